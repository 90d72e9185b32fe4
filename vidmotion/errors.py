"""The error that is the user's to mend, and the codes the command line exits with."""


class ConfigError(ValueError):
    """The config asks for something that does not exist or does not fit together."""


EXIT_DONE = 0
EXIT_REFUSED = 2  # a config, dataset, file or checkpoint error; the message says what to do
EXIT_NONFINITE = 3  # a loss, a gradient or a parameter became NaN or infinite
# Trained and saved, but not all was measured; the record says what, the same command does it.
EXIT_UNMEASURED = 4
EXIT_PREEMPTED = 75  # interrupted, state saved: the same command resumes (EX_TEMPFAIL)
