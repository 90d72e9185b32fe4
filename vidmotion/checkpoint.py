"""Checkpoints that are whole or absent: state, data position and checksums in one orbax save.

Orbax commits a step by renaming its folder, so a killed save leaves nothing under a final name. It does not
notice a flipped byte in array data, so each step carries `checksums.json`, written before the rename, and is
verified before it is restored. A damaged step is set aside under ``damaged/`` and the one before it is used.
"""

import collections
import contextlib
import json
import logging
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vidmotion import paths
from vidmotion.state import TrainState

log = logging.getLogger(__name__)

PyTree = Any
CHECKSUMS = "checksums.json"
_TEMPORARY = ".orbax-checkpoint-tmp"
# Files that orbax writes or rewrites after the checksums and does not need for reading.
_MARKERS = {CHECKSUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}
_CHUNK = 1 << 24


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read; names the path and the step."""


class Checkpointer:
    """The checkpoints of one run, under ``<workdir>/checkpoints/<step>``.

    Args:
      workdir: of the run; made if absent. Local paths become absolute, ``gs://`` paths pass through.
      keep: number of newest checkpoints kept.
      keep_period: every step divisible by it is kept for good; 0 keeps none beyond `keep`.
      read_only: only look; a missing folder is then no error until `restore`.
    """

    def __init__(self, workdir: str, keep: int = 2, keep_period: int = 0, read_only: bool = False):
        self._workdir = _absolute(workdir)
        self.directory = self._workdir / "checkpoints"
        self._read_only = read_only
        self._saving: int | None = None
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            keep_period=keep_period or None,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = None
        if not read_only or self.directory.exists():
            self._manager = self._open()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: TrainState, position: Mapping[str, Any], wait: bool = False):
        """Save `state` and the data position under the label `step`, in the background.

        If the background save before this one failed, that is logged here, and this one goes ahead.

        Args:
          step: number of completed updates.
          state: device arrays; they may be donated as soon as this returns.
          position: JSON-able position of the data.
          wait: return only when the checkpoint is whole on disk.

        Raises:
          CheckpointError: the disk refused it (an older checkpoint is untouched), or `step` is not
            newer than what is there.
        """
        try:
            self._wait()
        except CheckpointError as error:
            log.error("%s", error)
        present = self.steps()
        if present and step <= present[-1]:
            raise CheckpointError(
                f"cannot save step {step} under {self.directory}: it holds {present}, and a run only "
                "goes forward"
            )
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_dict(state)),
                    data=ocp.args.JsonSave(dict(position)),
                ),
                force=True,
            )
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failed(error) from error
        if wait:
            self._wait()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest whole checkpoint, placed as `like` says, or None if there is none.

        Damaged ones that are newer are said to be so and set aside. If none is whole, all stay where
        they are, so that a restarted command fails again instead of training from scratch.

        Args:
          like: abstract state whose leaves carry the shardings to restore to; any mesh, any number of
            processes, whatever they were at saving.

        Raises:
          CheckpointError: checkpoints exist and none is whole, or their tree is not that of `like`.
        """
        damaged = {}
        for step in reversed(self.steps()):
            problem = self._agree(step)
            if problem is None:
                break
            damaged[step] = problem
            log.error("checkpoint %s is damaged: %s", self.directory / str(step), problem)
        else:
            if damaged:
                listed = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
                raise CheckpointError(
                    f"no whole checkpoint under {self.directory} ({listed}). Move that folder away to "
                    "begin from scratch."
                )
            return None
        restored = self._read(step, like)
        self._set_aside(list(damaged))
        return restored

    def close(self) -> None:
        """Wait for a save under way and release everything.

        Raises:
          CheckpointError: that save failed.
        """
        if self._manager is None:
            return
        try:
            self._wait()
        finally:
            self._manager.close()
            self._manager = None

    # -- parts ------------------------------------------------------------------------------------

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=self._options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def _wait(self) -> None:
        """Until no save is under way; raises `CheckpointError` if the last one failed."""
        try:
            self._manager.wait_until_finished()
            if self._saving is not None and self._saving not in self.steps():
                raise OSError("it did not finish")
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failed(error) from error
        self._saving = None

    def _failed(self, error: Exception) -> CheckpointError:
        """Clear away the save that `error` ended, and what to tell about it."""
        step, self._saving = self._saving, None
        with contextlib.suppress(Exception):  # the same error again
            self._manager.close()
        self._manager = self._open()
        last = self.steps()
        return CheckpointError(
            f"could not save step {step} under {self.directory}: {_first_line(error)}. "
            + (f"The checkpoint of step {last[-1]} is untouched." if last else "There is none yet.")
        )

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_as_dict(like)), data=ocp.args.JsonRestore()
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory / str(step)} is whole but holds another network or optimizer than "
                f"this config's: {_joined(error)}"
            ) from error
        # Restored arrays may not be donatable; one pass through a jitted identity makes them so.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        adopt = jax.jit(lambda state: state, donate_argnums=0, out_shardings=shardings)
        state = adopt(TrainState(**restored["state"]))
        return state, restored["data"]

    def _seal(self) -> None:
        """Checksum every file of the step just written, while it still has its temporary name."""
        if jax.process_index() != 0:
            return
        folder = self.directory / f"{self._saving}{_TEMPORARY}"
        if not folder.exists():  # stores without atomic rename write under the final name
            folder = self.directory / str(self._saving)
        sums = {str(file.relative_to(folder)): _crc(file) for file in _files(folder)}
        (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None."""
        folder = self.directory / str(step)
        try:
            sums = dict(json.loads((folder / CHECKSUMS).read_text()).items())
        except FileNotFoundError:
            return f"{CHECKSUMS} is missing"
        except (OSError, ValueError, AttributeError) as error:
            return f"{CHECKSUMS} cannot be read: {_first_line(error)}"
        for name, expected in sums.items():
            try:
                if _crc(folder / name) != expected:
                    return f"{name} differs from its checksum"
            except FileNotFoundError:
                return f"{name} is missing"
            except OSError as error:
                return f"{name} cannot be read: {_first_line(error)}"
        return None

    def _agree(self, step: int) -> str | None:
        """`_damage` as process 0 finds it, on all processes."""
        problem = self._damage(step) if jax.process_index() == 0 else None
        if jax.process_count() == 1:
            return problem
        bad = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
        return (problem or "found by process 0") if bad else None

    def _set_aside(self, steps: list[int]) -> None:
        """Move damaged steps out of the way, so that their labels can be saved again."""
        if self._read_only or not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            damaged = self._workdir / "damaged"
            damaged.mkdir(parents=True, exist_ok=True)
            for step in steps:
                count = sum(name.name.startswith(f"{step}-") for name in damaged.iterdir())
                (self.directory / str(step)).rename(damaged / f"{step}-{count}")
            log.warning("damaged checkpoints were moved to %s", damaged)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager = self._open()


def read_params(workdir: str, averaged: bool = True) -> dict[str, Any]:
    """Parameters of a run's newest checkpoint as numpy arrays, with no target tree and on no device mesh.

    `read_mutable` reads its non-gradient state in the same way.

    Args:
      workdir: of the other run.
      averaged: take the averaged value where there is one.

    Returns:
      ``{player: nested dict}``.

    Raises:
      CheckpointError: no checkpoint there.
    """
    restored = _read_parts(workdir, ("params", "ema"))
    return paths.merge(restored["params"], restored.get("ema", {}) if averaged else {})


def read_mutable(workdir: str) -> dict[str, Any]:
    """Non-gradient state of a run's newest checkpoint, {} where its system has none; see `read_params`."""
    return _read_parts(workdir, ("mutable",)).get("mutable", {})


def _read_parts(workdir: str, parts: tuple[str, ...]) -> dict[str, Any]:
    """Parts of the state of the newest whole checkpoint, those that are not empty."""
    directory = _absolute(workdir) / "checkpoints"
    with Checkpointer(workdir, read_only=True) as checkpointer:
        steps = [step for step in checkpointer.steps() if checkpointer._damage(step) is None]
    if not steps:
        raise CheckpointError(f"{workdir}: no whole checkpoint under {directory}")
    folder = directory / str(steps[-1]) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        wanted = {name: tree[name] for name in parts if tree.get(name)}
        if not wanted:
            return {}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return reader.restore(
            folder, args=ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=True)
        )


def load_into(params: PyTree, source: Mapping[str, Any], rules: paths.Rules) -> PyTree:
    """Replace leaves of `params` by those of another run (``init_from``).

    Args:
      params: ``{player: tree}`` of device arrays (their shardings are kept).
      source: ``{player: tree}`` of numpy arrays, from `read_params`.
      rules: ``((regex, value), ...)`` on the paths of `params`; value False keeps the fresh leaf, True
        takes the leaf of the same path, None takes it where the source has it and else keeps the fresh
        one, a string takes that path with ``\\1`` groups filled in.

    Raises:
      CheckpointError: leaves that are missing in the source or have another shape; all are named.
      paths.RuleError: a leaf matches no rule, or a rule's value makes no sense.
    """
    kept_with_rule = [(rule[0], tuple(rule)) for rule in rules]
    matched = paths.flatten(paths.assign(kept_with_rule, params, "config.init_rules"))
    have, target, wrong = paths.flatten(source), paths.flatten(params), []
    fresh = collections.Counter()
    for path, leaf in target.items():
        pattern, value = matched[path]
        name = _renamed(path, pattern, value)
        if name is None or (value is None and name not in have):
            fresh["/".join(path.split("/")[:2])] += 1
            continue
        if name not in have:
            wrong.append(f"{path}: no {name} there")
        elif have[name].shape != leaf.shape:
            wrong.append(f"{path}: {have[name].shape} there, {leaf.shape} here")
        else:
            target[path] = jax.device_put(have[name].astype(leaf.dtype), leaf.sharding)
    if wrong:
        raise CheckpointError(
            "config.init_from does not fit this network: "
            + "; ".join(wrong)
            + ". Exclude them with config.init_rules, e.g. (('model/new/.*', False), ('.*', True))."
        )
    if fresh:
        said = ", ".join(f"{part} ({count} arrays)" for part, count in fresh.items())
        log.info("not taken from config.init_from, but initialised: %s", said)
    return paths.unflatten(target)


def _renamed(path: str, pattern: str, value: Any) -> str | None:
    """Where an ``init_rules`` rule looks for `path` in the other run; None: nowhere."""
    if value is None or isinstance(value, bool):
        return None if value is False else path
    try:
        return re.fullmatch(pattern, path).expand(value)
    except (re.error, TypeError) as error:
        raise paths.RuleError(
            f"config.init_rules: ({pattern!r}, {value!r}): the value is True, False, None or a path with "
            f"groups of the pattern ({error})"
        ) from error


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("step", "params", "mutable", "opt", "ema")}


def _absolute(path: str) -> epath.Path:
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().resolve()


def _files(folder: epath.Path):
    for entry in sorted(folder.iterdir(), key=str):
        if entry.is_dir():
            yield from _files(entry)
        elif entry.name not in _MARKERS:
            yield entry


def _crc(file: epath.Path) -> str:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _first_line(error: BaseException, limit: int = 300) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:limit]


def _joined(error: BaseException, limit: int = 1000) -> str:
    return " ".join(str(error).split())[:limit]
