"""Command line: ``python -m vidmotion.main --config=configs/<name>.py[:argument] --workdir=DIR [--mode=MODE]``.

Modes: ``train`` (resumes a run that the workdir holds), ``eval``, ``sample``, ``plan``. The config can also be given by
the name of a recipe, ``--config=<name>[:argument]``; both forms work in any folder. Any field of the config can be
overridden: ``--config.batch_size=64``.
Exit codes: 0 done, 2 refused (the message says why), 3 a loss or a parameter became non-finite, 4 trained and saved but
not all measured, 75 interrupted and saved (the same command resumes), 130 stopped by a second Ctrl-C.
"""

import argparse
import logging
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from vidmotion import startup
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError

log = logging.getLogger("vidmotion.main")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<name>.py[:argument] or <name>[:argument]", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: checkpoints, metrics, pictures."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "sample", "plan"], "What to do.")


_EVALS = flags.DEFINE_list(
    "evals",
    None,
    "Evaluators to run instead of the default ones: names of sections of config.evals, or none for no evaluator.",
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "With --mode=train: number of steps to trace into WORKDIR/profile, for TensorBoard and ui.perfetto.dev.",
    lower_bound=0,
)


def run_mode(
    mode: str, config, workdir: str | None, profile: int = 0, evals: list[str] | None = None
) -> int:
    """Run one mode of the command line and return its exit code."""
    from vidmotion import evaluation, plan, train
    from vidmotion.open_run import check_place, check_workdir
    from vidmotion.run import Run

    if profile and (mode != "train" or (workdir or "").startswith("gs://")):
        raise ConfigError(
            "--profile traces a training with --mode=train and a workdir on a local disk"
        )
    if mode == "plan":
        print(plan.report(config, workdir or ""))
        return EXIT_DONE
    if not workdir:
        raise ConfigError(f"--mode={mode} needs --workdir=DIR, the folder of the run")
    check_place(workdir)
    if mode == "train":
        return train.train(config, workdir, profile, evals)
    run = Run(config, workdir)
    check_workdir(run)
    vars = run.trained_vars()
    if mode == "eval":
        if not evaluation.asked(config, evals):
            names = evaluation.evaluators(run.system)
            raise ConfigError(
                f"there is nothing to evaluate: the config of {workdir} runs no evaluator by itself; "
                + (
                    f"choose some with --evals=NAME,NAME from {', '.join(names)}"
                    if names
                    else "its system has none"
                )
            )
        train.evaluate_vars(run, vars, evals)
    else:
        evaluation.pictures(run, vars)
        evaluation.analyse(run, vars)
    return EXIT_DONE


def main(argv: list[str]) -> None:
    """Run the parsed command line under `absl.app.run`, and exit."""
    startup.set_up_log()
    from vidmotion import targets
    from vidmotion.errors import EXIT_NONFINITE, EXIT_PREEMPTED
    from vidmotion.train import NonFiniteError, PreemptedError

    def work() -> int:
        if _MODE.value == "plan":
            targets.prepare(_CONFIG.value.get("plan"))
        startup.set_up_devices()
        evals = [] if _EVALS.value == ["none"] else _EVALS.value
        return run_mode(_MODE.value, _CONFIG.value, _WORKDIR.value, _PROFILE.value, evals)

    try:
        code = startup.exit_code_of(
            work, "stopped at once; the run can be resumed from the last checkpoint"
        )
    except NonFiniteError as error:
        log.error("%s", error)
        code = EXIT_NONFINITE
    except PreemptedError as error:
        log.warning("%s", error)
        code = EXIT_PREEMPTED
    sys.exit(code)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it ends the process with one message and exit code 2."""
    try:
        rest = flags.FLAGS(_with_files(argv))
        if _CONFIG.value is None:
            meant = f"; did you mean --config={rest[1]}?" if rest[1:] else ""
            raise flags.Error(
                f"--config=configs/<name>.py is missing{meant or '; --help lists the flags'}"
            )
        if rest[1:]:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}")
        _ = _CONFIG.value.is_locked  # an error in reading the config file is raised only on use
        return rest
    except SyntaxError as error:
        message = f"{error.filename}, line {error.lineno}: {error.msg}"
    except (AttributeError, KeyError) as error:
        name = str(error.args[0])
        if "get_config" in name:
            message = f"the file of --config has no function get_config ({name})"
        elif fields := [w.lstrip("-") for w in argv if w.lstrip("-").startswith("config.")]:
            message = _no_field(name, fields, argv)
        else:
            raise
    except ConfigError as error:
        message = str(error)
    except flags.UnrecognizedFlagError as error:
        message = str(error)
        if error.flagname.partition(".")[0] in _fields(argv):
            message += f"; the field of the config is set with --config.{error.flagname}"
    except (flags.Error, OSError, TypeError, ValueError) as error:
        message = str(error).strip()
        raised, colon, said = message.splitlines()[-1].partition(": ")
        if colon and raised in ("ValueError", "vidmotion.errors.ConfigError"):
            message = said  # from the config file itself, whose traceback adds nothing
        message = _kind_of_value(message) or message
    print(message, file=sys.stderr)
    sys.exit(EXIT_REFUSED)


def _kind_of_value(message: str) -> str:
    """Rewrite absl's message about a value of the wrong type to name the field's type; "" for other messages."""
    kinds = {
        "invalid literal for int()": "a whole number",
        "could not convert string to float": "a number",
        "Non-boolean argument to boolean flag": "True or False",
    }
    found = re.fullmatch(r"flag (--[\w.]+)=(.*?): (.*)", message, re.S)
    for said, kind in kinds.items():
        if found and found[3].startswith(said):
            return f"{found[1]} must be {kind}, not {found[2]!r}"
    return ""


def _fields(argv: list[str]) -> list[str]:
    """Return the top-level fields of the config that a command line names; none if it names no config."""
    try:
        return [*_config_of(argv).keys()]
    except (AttributeError, OSError, ValueError):
        return []


def _no_field(message: str, fields: list[str], argv: list[str]) -> str:
    """Say which override names a field that does not exist, and which field was probably meant.

    Args:
      message: the message of ml_collections, which holds the unknown name, but escaped and without its section.
      fields: the overrides, ``config.<field>=<value>``.
      argv: the command line, which names the config.
    """
    missing = (re.findall(r"\w+", message) or [""])[0]
    given = [field.partition("=")[0] for field in fields]
    wrong = next((field for field in given if missing in field.split(".")), given[0])
    section, known = wrong.split("."), _config_of(argv)
    for part in section[1:]:
        if not hasattr(known, "keys") or part not in known:
            break
        known = known[part]
    near = startup.nearest(missing, known.keys()) if hasattr(known, "keys") else ""
    return f"--{wrong}: the config has no such field{near}"


def _config_of(argv: list[str]):
    """Load the config that a command line names, without the overrides; the flag has no value until all of them fit."""
    from vidmotion.open_run import load_config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config")
    return load_config(parser.parse_known_args(argv)[0].config)


def _with_files(argv: list[str]) -> list[str]:
    """Replace the name of the config in a command line by the path of its file."""
    words = list(argv)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            if equals:
                words[i] = f"{flag}={startup.config_file(value)}"
            elif i + 1 < len(words):
                words[i + 1] = startup.config_file(words[i + 1])
    return words


def cli() -> None:
    """Run as a console script."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
