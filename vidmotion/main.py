"""Command line: ``python -m vidmotion.main --config=configs/<name>.py[:argument] --workdir=DIR [--mode=MODE]``.

Modes: ``train`` (resumes what the workdir holds), ``eval``, ``sample``, ``plan``. Any field of the config can be
overridden: ``--config.batch_size=64``. Exit codes: 0 done, 2 refused (the message says why), 3 a loss became
non-finite, 75 interrupted and saved (the same command resumes), 130 stopped by a second Ctrl-C.
"""

import logging
import os
import signal
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError

log = logging.getLogger("vidmotion.main")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<name>.py[:argument]", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: checkpoints, metrics, pictures."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "sample", "plan"], "What to do.")


def set_up_log() -> None:
    """This project's messages from INFO on; those of libraries from WARNING on."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    project = logging.getLogger("vidmotion")
    project.setLevel(logging.INFO)
    project.addHandler(handler)
    project.propagate = False


def set_up_devices() -> None:
    """Compilation cache, and one distributed job where the environment describes several hosts."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "vidmotion", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    variables = os.environ
    if "JAX_COORDINATOR_ADDRESS" in variables:
        try:
            count, index = int(variables["JAX_NUM_PROCESSES"]), int(variables["JAX_PROCESS_ID"])
            heartbeat = int(variables.get("VIDMOTION_HEARTBEAT_SECONDS", "100"))
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "JAX_COORDINATOR_ADDRESS asks for several processes; JAX_NUM_PROCESSES and "
                f"JAX_PROCESS_ID must be numbers too ({error})"
            ) from error
        jax.distributed.initialize(
            variables["JAX_COORDINATOR_ADDRESS"],
            num_processes=count,
            process_id=index,
            heartbeat_timeout_seconds=heartbeat,
        )
    elif (
        int(variables.get("SLURM_NTASKS", "1")) > 1
        or int(variables.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in variables.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in variables
    ):
        jax.distributed.initialize()  # jax reads these clusters itself
    if jax.process_index() > 0:
        logging.getLogger("vidmotion").setLevel(logging.WARNING)  # process 0 speaks for all


def run_mode(mode: str, config, workdir: str | None) -> int:
    """Do what `mode` says; returns an exit code."""
    from vidmotion import evaluation, plan, train
    from vidmotion.run import Run

    if mode == "plan":
        print(plan.plan(Run(config, workdir or "", abstract=True)))
        return EXIT_DONE
    if not workdir:
        raise ConfigError(f"--mode={mode} needs --workdir=DIR, the folder of the run")
    if mode == "train":
        return train.train(config, workdir)
    run = Run(config, workdir)
    run.check_workdir()
    if mode == "eval":
        train.evaluate_vars(run, run.trained_vars())
    else:
        evaluation.pictures(run, run.trained_vars(), step=None)
    return EXIT_DONE


def main(argv: list[str]) -> None:
    """Entry point under `absl.app.run`."""
    set_up_log()
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.data.records import DatasetError
    from vidmotion.errors import EXIT_NONFINITE, EXIT_PREEMPTED
    from vidmotion.media import MediaError
    from vidmotion.train import NonFiniteError, PreemptedError

    try:
        set_up_devices()
        code = run_mode(_MODE.value, _CONFIG.value, _WORKDIR.value)
    except (ConfigError, DatasetError, CheckpointError, MediaError) as error:
        log.error("%s", error)
        code = EXIT_REFUSED
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        log.error("%s", error)
        code = EXIT_REFUSED
    except NonFiniteError as error:
        log.error("%s", error)
        code = EXIT_NONFINITE
    except PreemptedError as error:
        log.warning("%s", error)
        code = EXIT_PREEMPTED
    except KeyboardInterrupt:
        log.error("stopped at once; the last checkpoint is the state to resume from")
        code = 128 + signal.SIGINT
    sys.exit(code)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; what is wrong with it is one message and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise flags.Error("--config=configs/<name>.py is missing; --help lists the flags")
        if rest[1:]:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}")
        _ = _CONFIG.value.is_locked  # a config file that could not be read says so only when used
        return rest
    except (AttributeError, KeyError) as error:
        if not any(word.lstrip("-").startswith("config.") for word in argv):
            raise
        name = str(error.args[0]).strip("'\"")
        message = f"an override --config.<field>=... names no field of the config: {name}"
    except (flags.Error, OSError, TypeError, ValueError) as error:
        message = str(error).strip()
        last = message.splitlines()[-1]
        if last.startswith(("ValueError: ", "vidmotion.errors.ConfigError: ")):
            message = last  # raised by the config file itself, whose traceback says no more
    print(message, file=sys.stderr)
    sys.exit(EXIT_REFUSED)


def cli() -> None:
    """Console entry."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
