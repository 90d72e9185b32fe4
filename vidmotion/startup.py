"""How every command begins and ends: log, devices, and exit codes for what its user can mend."""

import argparse
import logging
import os
import signal
from collections.abc import Callable

from absl import logging as absl_logging

from vidmotion.errors import EXIT_REFUSED, ConfigError

log = logging.getLogger(__name__)


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
    """Compilation cache, and one distributed job where the environment describes several hosts.

    Raises:
      ConfigError: a description that is not complete.
    """
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


def simulate_devices(count: int) -> None:
    """Make JAX show `count` CPU devices, to compile for; 0 or less leaves it as it is.

    Raises:
      ConfigError: JAX has started already, with other devices.
    """
    import jax

    if count <= 0:
        return
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ConfigError(
            f"config.plan.devices={count} needs a process of its own: {error}"
        ) from error


def one_process() -> None:
    """Refuse several processes, for a command that writes one file.

    Raises:
      ConfigError: there are several.
    """
    import jax

    if jax.process_count() > 1:
        raise ConfigError(f"this command runs in one process, not in {jax.process_count()}")


def at_least(least: int) -> Callable[[str], int]:
    """For `argparse`: a whole number from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least}, got {text}")
        return int(text)

    return number


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse a command that uses a trained run; ``--config.<field>=<value>`` as in `main` is taken apart.

    Returns:
      (what `parser` reads, {field: value as text}). Anything else ends the process as `parser` does.
    """
    args, rest = parser.parse_known_args(arguments)
    fields = {}
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("--config.") or not equals:
            parser.error(f"unrecognized arguments: {word}")
        fields[name.removeprefix("--config.")] = value
    return args, fields


def exit_code_of(work: Callable[[], int], stopped: str) -> int:
    """Do `work` and return its exit code; what the user can mend is one message and `EXIT_REFUSED`.

    Args:
      work: returns an exit code.
      stopped: what to say after Ctrl-C.
    """
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.data.records import DatasetError
    from vidmotion.media import MediaError

    try:
        return work()
    except (ConfigError, DatasetError, CheckpointError, MediaError) as error:
        log.error("%s", error)
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        log.error("%s", error)
    except KeyboardInterrupt:
        log.error("%s", stopped)
        return 128 + signal.SIGINT
    return EXIT_REFUSED
