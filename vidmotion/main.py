"""Command line: ``python -m vidmotion.main --config=configs/<name>.py[:argument] --workdir=DIR [--mode=MODE]``.

Modes: ``train`` (resumes what the workdir holds), ``eval``, ``sample``, ``plan``. Any field of the config can be
overridden: ``--config.batch_size=64``. Exit codes: 0 done, 2 refused (the message says why), 3 a loss became
non-finite, 75 interrupted and saved (the same command resumes).
"""

import logging
import os
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

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
    if "JAX_COORDINATOR_ADDRESS" in variables and "JAX_NUM_PROCESSES" in variables:
        jax.distributed.initialize(
            variables["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(variables["JAX_NUM_PROCESSES"]),
            process_id=int(variables["JAX_PROCESS_ID"]),
            heartbeat_timeout_seconds=int(variables.get("VIDMOTION_HEARTBEAT_SECONDS", "100")),
        )
    elif (
        int(variables.get("SLURM_NTASKS", "1")) > 1
        or int(variables.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in variables.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in variables
    ):
        jax.distributed.initialize()  # jax reads these clusters itself


def run_mode(mode: str, config, workdir: str | None) -> int:
    """Do what `mode` says; returns an exit code."""
    from vidmotion import evaluation, plan, train
    from vidmotion.errors import ConfigError
    from vidmotion.run import Run

    if mode == "plan":
        print(plan.plan(Run(config, workdir or "")))
        return 0
    if not workdir:
        raise ConfigError(f"--mode={mode} needs --workdir=DIR, the folder of the run")
    if mode == "train":
        return train.train(config, workdir)
    run = Run(config, workdir)
    run.claim_workdir()
    if mode == "eval":
        train.evaluate_vars(run, run.trained_vars())
    else:
        evaluation.pictures(run, run.trained_vars(), step=None)
    return 0


def main(argv: list[str]) -> None:
    """Entry point under `absl.app.run`."""
    from vidmotion.errors import EXIT_NONFINITE, EXIT_REFUSED

    if len(argv) > 1:
        log.error("unexpected arguments: %s", " ".join(argv[1:]))
        sys.exit(EXIT_REFUSED)
    set_up_log()
    set_up_devices()
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.data.records import DatasetError
    from vidmotion.errors import ConfigError
    from vidmotion.media import MediaError
    from vidmotion.train import NonFiniteError

    try:
        code = run_mode(_MODE.value, _CONFIG.value, _WORKDIR.value)
    except (ConfigError, DatasetError, CheckpointError, MediaError) as error:
        log.error("%s", error)
        code = EXIT_REFUSED
    except NonFiniteError as error:
        log.error("%s", error)
        code = EXIT_NONFINITE
    sys.exit(code)


def cli() -> None:
    """Console entry; turns mistakes in flags and config overrides into one message."""
    from vidmotion.errors import EXIT_REFUSED

    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if _CONFIG.present and _CONFIG.value is not None:
            raise
        print(f"error in --config or an override of it: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    cli()
