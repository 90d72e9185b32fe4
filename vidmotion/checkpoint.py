"""Saves and restores checkpoints: state, data position and checksums in one orbax save, either whole or absent.

Orbax commits a step by renaming its folder, so a killed save leaves nothing under a final name. Orbax does not notice
a flipped byte in array data, so each step carries `checksums.json`, written before the rename, and is verified before
it is restored. A damaged step is moved to ``damaged/`` and the step before it is used. A step that holds a NaN or an
infinity counts as damaged, since no training could continue from it.
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vidmotion import paths
from vidmotion.state import TrainState, name_broken

log = logging.getLogger(__name__)

PyTree = Any
CHECKSUMS = "checksums.json"
_TEMPORARY = ".orbax-checkpoint-tmp"
# Files without checksums: orbax writes or rewrites them after the checksums, and does not need them for reading.
_MARKERS = {CHECKSUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}
_CHUNK = 1 << 24


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read; the message names the path and the step."""


class Checkpointer:
    """Saves and restores the checkpoints of one run, under ``<workdir>/checkpoints/<step>``.

    Args:
      workdir: the folder of the run, made if absent. Local paths become absolute; ``gs://`` paths stay as they are.
      keep: the number of newest checkpoints to keep.
      keep_period: every step divisible by this number is kept for good; 0 keeps none beyond `keep`.
      read_only: whether only to read; the folder may then be missing, and there are no checkpoints.
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
            # The root metadata would be empty, and writing it on opening waits for all processes. That would hang if
            # only some of them open a manager, because another process is just making the folder.
            save_root_metadata=False,
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
        """Return the steps on disk, oldest first."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: TrainState, position: Mapping[str, Any], wait: bool = False):
        """Save `state` and the data position under the label `step`, in the background.

        If the previous background save failed, the failure is logged and this save goes ahead.

        Args:
          step: the number of completed updates.
          state: device arrays; they may be donated as soon as this returns.
          position: the position in the data, JSON-able.
          wait: whether to return only when the checkpoint is whole on disk.

        Raises:
          CheckpointError: the disk refused the save (older checkpoints are untouched), or `step` is not newer than
            every step on disk.
        """
        try:
            self._wait()
        except CheckpointError as error:
            log.error("%s", error)
        present = self.steps()
        if present and step <= present[-1]:
            raise CheckpointError(
                f"cannot save step {step} under {self.directory}: it already holds the steps {present}, and "
                "a run never goes back"
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

    def restore(
        self, like: TrainState, partial: bool = False
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore the newest checkpoint that is whole and finite.

        Damaged checkpoints that are newer are logged as errors and moved to ``damaged/``. If all checkpoints are
        damaged, they stay where they are, so that a restarted command fails again instead of training from scratch.

        Args:
          like: the abstract state, whose leaves carry the shardings to restore to. Mesh and number of processes may
            differ from those at saving.
          partial: whether to read only the leaves that `like` has, for a run that is used and not trained; otherwise
            the checkpoint must hold exactly the tree of `like`.

        Returns:
          The state and the data position; None if there is no checkpoint.

        Raises:
          CheckpointError: checkpoints exist and all are damaged, or their tree is not that of `like`.
        """
        damaged = {}
        for step in reversed(self.steps()):
            problem = self._agree(step)
            if problem is None:
                state, data, broken = self._read(step, like, partial)
                if not broken:
                    self._set_aside(list(damaged))
                    return state, data
                problem = f"not finite: {broken}"
            damaged[step] = problem
            log.error("checkpoint %s is damaged: %s", self.directory / str(step), problem)
        if damaged:
            listed = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise CheckpointError(
                f"no intact checkpoint under {self.directory} ({listed}). Move that folder and record.json "
                "away to start again."
            )
        return None

    def digest(self, step: int) -> str:
        """Return a hex sha256 of a step's checksums, which identifies all of its files without reading them."""
        sums = self.directory / str(step) / CHECKSUMS
        return hashlib.sha256(sums.read_bytes()).hexdigest()

    def close(self) -> None:
        """Wait for a save in progress and release all resources.

        Raises:
          CheckpointError: the save failed.
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
        if not self._read_only:
            self._workdir.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            _plain(self._workdir) / "checkpoints",
            options=self._options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def _wait(self) -> None:
        """Wait until no save is in progress; raises `CheckpointError` if the last one failed."""
        try:
            self._manager.wait_until_finished()
            if self._saving is not None and self._saving not in self.steps():
                raise OSError("it did not finish")
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failed(error) from error
        self._saving = None

    def _failed(self, error: Exception) -> CheckpointError:
        """Clean up after the save that `error` ended, and return the exception that reports it."""
        step, self._saving = self._saving, None
        with contextlib.suppress(Exception):  # closing raises the same error again
            self._manager.close()
        self._manager = self._open()
        last = self.steps()
        return CheckpointError(
            f"could not save step {step} under {self.directory}: {_first_line(error)}. "
            + (
                f"The checkpoint of step {last[-1]} is untouched."
                if last
                else "There is no earlier checkpoint."
            )
        )

    def _read(
        self, step: int, like: TrainState, partial: bool
    ) -> tuple[TrainState, dict[str, Any], str]:
        """Read the state and the position of a step; also returns the `name_broken` of the state."""
        wanted = _as_dict(like)
        try:
            if partial:
                there = {name: part for name, part in wanted.items() if jax.tree.leaves(part)}
                folder = _plain(self._workdir) / "checkpoints" / str(step) / "state"
                state = TrainState(**wanted | _read_leaves(folder, there))
                data = self._manager.restore(
                    step, args=ocp.args.Composite(data=ocp.args.JsonRestore())
                )
                return state, data["data"], name_broken(state)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore()
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory / str(step)} is intact but holds another network or optimizer than "
                f"this config's: {_joined(error)}"
            ) from error
        # Restored arrays may not be donatable; passing them through a jitted identity makes them donatable.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        adopt = jax.jit(lambda state: state, donate_argnums=0, out_shardings=shardings)
        state = adopt(TrainState(**restored["state"]))
        return state, restored["data"], name_broken(state)

    def _seal(self) -> None:
        """Write the checksums of all files of the step just written, while it still has its temporary name."""
        if jax.process_index() != 0:
            return
        folder = self.directory / f"{self._saving}{_TEMPORARY}"
        if not folder.exists():  # stores without atomic rename write under the final name
            folder = self.directory / str(self._saving)
        sums = {str(file.relative_to(folder)): _crc(file) for file in _files(folder)}
        (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1))

    def _damage(self, step: int, within: str = "") -> str | None:
        """Tell what is wrong with a step's files, or None; only files whose names begin with `within` are checked."""
        folder = self.directory / str(step)
        try:
            sums = dict(json.loads((folder / CHECKSUMS).read_text()).items())
        except FileNotFoundError:
            return f"{CHECKSUMS} is missing"
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            return f"{CHECKSUMS} cannot be read: {_first_line(error)}"
        for name, expected in sums.items():
            if not name.startswith(within):
                continue
            try:
                if _crc(folder / name) != expected:
                    return f"{name} differs from its checksum"
            except FileNotFoundError:
                return f"{name} is missing"
            except OSError as error:
                return f"{name} cannot be read: {_first_line(error)}"
        return None

    def _agree(self, step: int) -> str | None:
        """Return `_damage` as process 0 finds it, on all processes; only process 0 knows the details."""
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


def read_position(workdir: str) -> dict[str, Any] | None:
    """Read what a run's newest checkpoint keeps beside the state: the data position, the networks and the config.

    Checkpoints whose position is damaged are skipped. None if no checkpoint is left.
    """
    with Checkpointer(workdir, read_only=True) as checkpointer:
        for step in reversed(checkpointer.steps()):
            folder = checkpointer.directory / str(step)
            if checkpointer._damage(step, within="data/") is None:
                return json.loads((folder / "data" / "metadata").read_text())
    return None


def read_params(workdir: str, averaged: bool = True) -> dict[str, Any]:
    """Read the parameters of a run's newest whole and finite checkpoint as numpy arrays, without target tree or mesh.

    `read_mutable` reads the non-gradient state in the same way.

    Args:
      workdir: the folder of the run to read.
      averaged: whether to take the averaged value of each leaf that has one.

    Returns:
      ``{player: nested dict}``.

    Raises:
      CheckpointError: the workdir has no such checkpoint.
    """
    restored = _read_newest(workdir)
    return paths.merge(restored["params"], restored.get("ema", {}) if averaged else {})


def read_mutable(workdir: str) -> dict[str, Any]:
    """Read the non-gradient state of a run's newest whole and finite checkpoint; {} if its system has none.

    See `read_params`.
    """
    return _read_newest(workdir).get("mutable", {})


def _read_newest(workdir: str) -> dict[str, Any]:
    """Read those of parameters, averages and non-gradient state that the newest whole and finite checkpoint holds."""
    directory = _absolute(workdir) / "checkpoints"
    passed = []
    with Checkpointer(workdir, read_only=True) as checkpointer:
        for step in reversed(checkpointer.steps()):
            if (problem := checkpointer._damage(step)) is None:
                parts = _read_parts(
                    _plain(_absolute(workdir)) / "checkpoints" / str(step) / "state"
                )
                if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parts)):
                    return parts
                problem = "not finite"
            log.warning("checkpoint %s is skipped: %s", directory / str(step), problem)
            passed.append(f"; step {step}: {problem}")
    raise CheckpointError(f"{workdir}: no intact checkpoint under {directory}{''.join(passed)}")


def _read_parts(folder: epath.Path) -> dict[str, Any]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
    names = ("params", "ema", "mutable")
    wanted = {name: tree[name] for name in names if tree.get(name)}
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    return _read_leaves(folder, wanted, on_host) if wanted else {}


def _read_leaves(folder: epath.Path, wanted: PyTree, where: PyTree | None = None) -> PyTree:
    """Read the leaves of a saved state that `wanted` has, and no others.

    Args:
      folder: the folder of the state.
      wanted: a tree of abstract leaves; without `where`, they carry the shardings to read to.
      where: a tree of `ocp.RestoreArgs` with the structure of `wanted`.
    """
    where = where or ocp.checkpoint_utils.construct_restore_args(wanted)
    with ocp.PyTreeCheckpointer() as reader:
        args = ocp.args.PyTreeRestore(wanted, restore_args=where, partial_restore=True)
        return reader.restore(folder, args=args)


def load_into(params: PyTree, source: Mapping[str, Any], rules: paths.Rules) -> PyTree:
    """Replace leaves of `params` by those of another run (``init_from``).

    Args:
      params: ``{player: tree}`` of device arrays (their shardings are kept).
      source: ``{player: tree}`` of numpy arrays, from `read_params`.
      rules: ``((regex, value), ...)`` on the paths of `params`. The value False keeps the fresh leaf; True takes the
        source's leaf of the same path; None takes that leaf if the source has it and otherwise keeps the fresh one;
        a string takes the source's leaf of that path, with ``\\1`` groups filled in.

    Raises:
      CheckpointError: leaves are missing in the source or have another shape; the message lists them all.
      paths.RuleError: a leaf matches no rule, or a rule's value is not valid.
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
            wrong.append(f"{path}: the checkpoint has no {name}")
        elif have[name].shape != leaf.shape:
            wrong.append(
                f"{path}: {have[name].shape} in the checkpoint, {leaf.shape} in this network"
            )
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
    """Return the path in the other run at which an ``init_rules`` rule looks for `path`; None if at none."""
    if value is None or isinstance(value, bool):
        return None if value is False else path
    try:
        return re.fullmatch(pattern, path).expand(value)
    except (re.error, TypeError) as error:
        raise paths.RuleError(
            f"config.init_rules: ({pattern!r}, {value!r}): the value must be True, False, None or a path with "
            f"groups of the pattern ({error})"
        ) from error


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("step", "params", "mutable", "opt", "ema")}


def _absolute(path: str) -> epath.Path:
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().resolve()


def _plain(folder: epath.Path) -> epath.Path:
    """Return a name of `folder` without the characters that orbax takes for patterns or escapes in its own paths.

    If the folder's own name has such characters, the result is a link in the folder for temporary files. It is the
    same in every process, and it is never removed, because another process may be using it.
    """
    if "://" in str(folder) or re.fullmatch(r"[\w./=+@:,~ -]*", str(folder)):
        return folder
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    link = os.path.join(tempfile.gettempdir(), f"vidmotion-{os.getuid()}-{digest}")
    with contextlib.suppress(FileExistsError):
        os.symlink(folder, link)
    if not os.path.islink(link) or os.readlink(link) != str(folder):
        raise CheckpointError(
            f"{folder}: checkpoints need a link to it at {link}, but something else is there"
        )
    return epath.Path(link)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
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
