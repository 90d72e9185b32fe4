"""Starts and ends every command: log, devices, command-line helpers, and exit codes for mistakes of the user."""

import argparse
import ast
import difflib
import glob
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Callable, Iterable

from absl import logging as absl_logging

from vidmotion.errors import EXIT_REFUSED, ConfigError

log = logging.getLogger(__name__)


def recipes() -> dict[str, pathlib.Path]:
    """Return the files of this project's configs, by name."""
    folder = pathlib.Path(importlib.util.find_spec("configs").origin).parent
    return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}


def config_file(name: str) -> str:
    """Find the file of a config and append its argument: ``heads:demo`` -> ``/.../configs/heads.py:demo``.

    Args:
      name: the name of a recipe of this project, or a path that ends in ``.py``. If there is no file at the path
        ``configs/<name>.py``, the path stands for the recipe of that name, so that it works in any folder.

    Raises:
      ConfigError: there is no such recipe or file; the message lists the recipes and describes each of them.
    """
    stem, colon, argument = name.partition(":")
    path, known = pathlib.Path(stem), recipes()
    if path.suffix == ".py" and path.exists():
        return name
    recipe = path.stem if path.parent.name in ("", "configs") else ""
    if recipe in known and (path.suffix == ".py") == (path.parent.name == "configs"):
        return f"{known[recipe]}{colon}{argument}"
    what = "no file" if path.suffix == ".py" else "no config"
    lines = [
        f"there is {what} {stem!r}{nearest(recipe, known) or '.'} Give one of these names, or a path:"
    ]
    for known_name, file in known.items():
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {known_name:<17} {about.partition(chr(10))[0]}")
    raise ConfigError("\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest, for a message about a name that does not exist, the name that was probably meant; "" if none is near."""
    found = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def set_up_log() -> None:
    """Log this project's messages from INFO on, those of libraries from WARNING on, and orbax's from ERROR on."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax uses absl's logger, and warns about its own defaults ("CheckpointManagerOptions.read_only=True, ...").
    absl_logging.get_absl_logger().addFilter(
        lambda record: record.levelno >= logging.ERROR or "/orbax/" not in record.pathname
    )
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    project = logging.getLogger("vidmotion")
    project.setLevel(logging.INFO)
    project.addHandler(handler)
    project.propagate = False


def set_up_devices() -> None:
    """Set up the compilation cache, and join the distributed job if the environment describes several processes.

    The devices and versions with which this process runs are logged.

    Raises:
      ConfigError: the description of the processes is not complete, or the processes do not find each other.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache_folder(), "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        _join(
            f"JAX_COORDINATOR_ADDRESS={address}",
            coordinator_address=address,
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=_number("VIDMOTION_HEARTBEAT_SECONDS", 100),
        )
    elif cluster := _cluster():
        _join(cluster)  # jax reads these clusters itself
    if jax.process_index() > 0:
        logging.getLogger("vidmotion").setLevel(logging.WARNING)  # process 0 logs for all
    _introduce()


def _introduce() -> None:
    """Log the devices and versions, and warn about a GPU that jax cannot use."""
    import jax

    devices = jax.devices()
    log.info(
        "vidmotion %s on %d %s device%s (%s), jax %s, Python %s",
        version(),
        len(devices),
        jax.default_backend(),
        "" if len(devices) == 1 else "s",
        devices[0].device_kind,
        jax.__version__,
        platform.python_version(),
    )
    if jax.default_backend() == "cpu" and not jax.config.jax_platforms and _gpus():
        log.warning(
            "this machine has an NVIDIA GPU that jax cannot use, so everything runs on the CPU: "
            "pip install 'vidmotion[cuda]', or set JAX_PLATFORMS=cpu to choose the CPU"
        )


def version() -> str:
    """Return the version of the installed package; "unknown" if it runs from its folder without being installed."""
    try:
        return importlib.metadata.version("vidmotion")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _gpus() -> list[str]:
    """Return the device files of NVIDIA GPUs."""
    return glob.glob("/dev/nvidia[0-9]*")


def cache_folder() -> str:
    """Return this project's cache folder; a relative XDG_CACHE_HOME is ignored, as the XDG specification demands."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(
        base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "vidmotion"
    )


def _cluster() -> str:
    """Return the environment variable that says that this process is one of several; "" if none does."""
    variables = os.environ
    if (tasks := _number("SLURM_NTASKS", 1)) > 1:
        # An allocation sets SLURM_NTASKS too; only srun, which starts the tasks, sets SLURM_STEP_NUM_TASKS.
        if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
            return f"SLURM_STEP_NUM_TASKS={variables['SLURM_STEP_NUM_TASKS']}"
        log.warning(
            "SLURM_NTASKS=%d, but srun did not start this process, so it runs alone; "
            "`srun python -m vidmotion.main ...` starts all of them",
            tasks,
        )
    if _number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        return f"OMPI_COMM_WORLD_SIZE={variables['OMPI_COMM_WORLD_SIZE']}"
    if "," in variables.get("TPU_WORKER_HOSTNAMES", ""):
        return f"TPU_WORKER_HOSTNAMES={variables['TPU_WORKER_HOSTNAMES']}"
    if address := variables.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return f"MEGASCALE_COORDINATOR_ADDRESS={address}"
    return ""


def _number(name: str, default: int | None = None) -> int:
    """Read a number from an environment variable; an empty variable counts as absent."""
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(
            f"the environment variable {name} must be a number; it is {text!r}"
            + ("" if default is not None else ", and JAX_COORDINATOR_ADDRESS needs it")
        ) from error


def _join(why: str, **options) -> None:
    """Call `jax.distributed.initialize`; `why` names, for messages, the variable that asked for it."""
    import jax

    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{why} asks for several processes, but they did not find each other: {text[0]}. Start all of "
            "them at once (docs/launchers.md), or unset it to run alone"
        ) from error
    if jax.default_backend() == "cpu" and sys.stdout is sys.__stdout__:
        # Gloo, which connects processes on CPUs, prints a line for each of its connections and cannot be silenced.
        # So Python keeps the standard output, and whatever libraries write to it directly is discarded.
        sys.stdout.flush()
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def simulate_devices(count: int) -> None:
    """Make JAX show `count` CPU devices, to compile for; if `count` is 0 or less, nothing is changed.

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
      ConfigError: the job has several processes.
    """
    import jax

    if jax.process_count() > 1:
        raise ConfigError(
            f"this command must run in a single process, not in {jax.process_count()}"
        )


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for `argparse` that takes whole numbers from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return number


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse a command that uses a config, with overrides ``--config.<field>=<value>`` as in `main`.

    Any other unknown argument ends the process with a usage error.

    Returns:
      The arguments that `parser` knows, and ``{field: value as text}``.
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
    """Do `work` and return its exit code; an error that the user can correct gives one message and `EXIT_REFUSED`.

    Args:
      work: a function that does the work and returns an exit code.
      stopped: the message after Ctrl-C.
    """
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.data.records import DatasetError
    from vidmotion.media import MediaError

    try:
        return work()
    except (ConfigError, DatasetError, CheckpointError, MediaError) as error:
        log.error("%s", error)
    except OSError as error:
        if error.filename is None:  # not about one of the user's files
            raise
        log.error("%s", error)
    except KeyboardInterrupt:
        log.error("%s", stopped)
        return 128 + signal.SIGINT
    return EXIT_REFUSED
