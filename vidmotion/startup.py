"""How every command begins and ends: log, devices, and exit codes for what its user can mend."""

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
    """The configs of this project: their files by name."""
    folder = pathlib.Path(importlib.util.find_spec("configs").origin).parent
    return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}


def config_file(name: str) -> str:
    """The file of a config, followed by its argument: ``heads:demo`` -> ``/.../configs/heads.py:demo``.

    Args:
      name: the name of a recipe of this project, or a path that ends in ``.py``. Where there is no file at the path
        ``configs/<name>.py``, it means the recipe of that name, so that it can be given in any folder.

    Raises:
      ConfigError: there is no such recipe or file; lists the recipes and what each of them is.
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
    """For a message about a name that does not exist: the one that was probably meant, or nothing."""
    found = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def set_up_log() -> None:
    """This project's messages from INFO on; those of libraries from WARNING on, and of orbax from ERROR on."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax logs by absl's logger, and warns of its own defaults ("CheckpointManagerOptions.read_only=True, ...").
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
    """Compilation cache, and one distributed job where the environment describes several processes; says in the log
    on what devices and with which versions this process runs.

    Raises:
      ConfigError: a description that is not complete, or processes that do not find each other.
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
        logging.getLogger("vidmotion").setLevel(logging.WARNING)  # process 0 speaks for all
    _introduce()


def _introduce() -> None:
    """Log the devices and versions; warn of a GPU that jax cannot use."""
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
            "this machine has an NVIDIA GPU that jax cannot use, so that all runs on the CPU: "
            "pip install 'vidmotion[cuda]', or set JAX_PLATFORMS=cpu to mean the CPU"
        )


def version() -> str:
    """Of the installed package; "unknown" where it is run from its folder alone."""
    try:
        return importlib.metadata.version("vidmotion")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _gpus() -> list[str]:
    """Device files of NVIDIA GPUs."""
    return glob.glob("/dev/nvidia[0-9]*")


def cache_folder() -> str:
    """This project's folder for what can be made again; a relative XDG_CACHE_HOME counts as none, as its rules say."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(
        base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "vidmotion"
    )


def _cluster() -> str:
    """What in the environment says that this process is one of several; "": nothing."""
    variables = os.environ
    if (tasks := _number("SLURM_NTASKS", 1)) > 1:
        # An allocation has that variable too; only srun, which starts the tasks, counts those of its step.
        if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
            return f"SLURM_STEP_NUM_TASKS={variables['SLURM_STEP_NUM_TASKS']}"
        log.warning(
            "SLURM_NTASKS=%d, but srun did not start this process, so that it runs alone; "
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
    """An environment variable; one that is empty counts as absent."""
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
    """`jax.distributed.initialize`; `why` names what asked for it."""
    import jax

    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{why} asks for several processes, and they did not find each other: {text[0]}. Start all of "
            "them at once (docs/launchers.md), or unset it to run alone"
        ) from error
    if jax.default_backend() == "cpu" and sys.stdout is sys.__stdout__:
        # Gloo, which joins processes of a CPU, prints a line for each of its connections and has no switch for it:
        # Python keeps the standard output, and what libraries write beside it goes nowhere.
        sys.stdout.flush()
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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
