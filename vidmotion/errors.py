"""The error for mistakes that the user can correct, and the exit codes of the command line."""


class ConfigError(ValueError):
    """The config asks for something that does not exist or does not fit together."""


EXIT_DONE = 0
EXIT_REFUSED = 2  # a config, dataset, file or checkpoint error; the message says what to do
EXIT_NONFINITE = 3  # a loss, a gradient or a parameter became NaN or infinite
# Trained and saved, but some measurements failed; the record lists them, and the same command tries again.
EXIT_UNMEASURED = 4
EXIT_PREEMPTED = 75  # interrupted, state saved: the same command resumes (EX_TEMPFAIL)
