"""Builds a run from a config: the system, the data, the optimizer, the state, and the compiled functions.

`open_run` opens the workdirs of runs.

A run starts in this order (each later source of values wins): abstract init -> shardings -> init on device ->
``init_from`` -> optimizer and averages made from the loaded weights -> restore, if the workdir has a checkpoint.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vidmotion import checkpoint, chunked_map, lock, paths, sharding
from vidmotion import system as systems
from vidmotion import weights as own_weights
from vidmotion.config_schema import from_config, plain
from vidmotion.convert import folder as converted
from vidmotion.data import pipeline
from vidmotion.data.clip_source import ClipSource, Prepared
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.optim import Optimizer
from vidmotion.state import TrainState
from vidmotion.step import Ema, Stepper
from vidmotion.system import Vars

log = logging.getLogger(__name__)

PyTree = Any
# Seconds that XLA takes to compile one line of a lowered program on two CPU cores: a rough forecast for any system.
COMPILE_SECONDS = 0.001
START_SECONDS = 0.003  # the same for a program that draws initial values
# The least values of fields that are counts; 0 means never or none.
LEAST = {
    **dict.fromkeys(("batch_size", "accumulate", "checkpoint/keep"), 1),
    **dict.fromkeys(("steps", "log_every", "checkpoint/every", "checkpoint/keep_period"), 0),
    **dict.fromkeys(("sample/rows", "sample/every"), 0),
}


def announce(lowered: jax.stages.Lowered, what: str, line: float = COMPILE_SECONDS) -> None:
    """Log roughly how long it will take to compile a program that `what` names; `line` is the seconds of one line."""
    lines = lowered.as_text().count("\n")
    log.info("compiling the %s, about %d s", what, max(1, round(lines * line)))


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuse counts that are too small, which would otherwise fail or lose data only later."""
    fields = paths.flatten(config.to_dict())
    for name, least in LEAST.items():
        if name in fields and fields[name] < least:
            raise ConfigError(
                f"config.{name.replace('/', '.')} must be at least {least}, got {fields[name]}"
            )


class Run:
    """Everything built from a config: system, mesh, shardings, data, state.

    Args:
      config: the (locked) config.
      workdir: the folder of this run.
      abstract: whether the run serves only for calculations; its mesh may then need more devices than there are.
      mesh: the mesh to use; by default the mesh that the config describes, made of all devices that JAX sees.

    Attributes:
      config: the (locked) config.
      workdir: the folder of this run.
      system: the system to train.
      mesh: the device mesh.
      stepper: the training update of the system.
      batch: the shapes and dtypes of a global batch.

    Raises:
      ConfigError: a field does not exist or does not fit; the message names it.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str,
        abstract: bool = False,
        mesh: Mesh | None = None,
    ):
        _check_numbers(config)
        self.config = config
        self.workdir = epath.Path(workdir)
        self.system = systems.build(config.system)
        self.mesh = mesh or sharding.make_mesh(config.mesh, abstract=abstract)
        sharding.check_batch_size(
            config.batch_size, self.mesh, config.accumulate, jax.process_count()
        )
        self.stepper = Stepper(
            self.system,
            {
                name: from_config(Optimizer, part, f"optimizer.{name}")
                for name, part in config.optimizer.items()
            },
            steps=config.steps,
            seed=config.seed,
            accumulate=config.accumulate,
            ema=from_config(Ema, config.ema, "ema"),
        )
        self.batch = self.system.input_spec(config.batch_size)

    def with_batch_size(self, batch_size: int) -> "Run":
        """Return a copy of this run with another global batch size, for calculations; network and state are shared."""
        other = copy.copy(self)
        other.batch = self.system.input_spec(batch_size)
        return other

    # -- data -------------------------------------------------------------------------------------

    def source(self, split: str, **changes) -> ClipSource:
        """Make the random-access source of a split's data.

        Its kind is the split's own ``kind``, or else ``config.data.kind``.

        Args:
          split: the section of ``config.data`` to read, ``train`` or ``eval``.
          **changes: arguments of the source that override those in the config.

        Raises:
          ConfigError: there is no such section, or the data were made with networks other than this run's; and as
            for `pipeline.make_source`.
        """
        data = self.config.data
        if split not in data:
            raise ConfigError(
                f"config.data has no section {split!r}, which must describe that split's data"
            )
        arguments = {**data.get("common", {}), **data[split], **changes}
        # Training may read pairs of frames where evaluation reads whole clips.
        kind, folder = arguments.pop("kind", data.kind), arguments.get("directory", "")
        if kind in ("videos", "portraits") and not epath.Path(folder).exists():
            size = getattr(self.system, "size", "N")
            raise DatasetError(
                f"{folder}: no such dataset folder. To make it from your own videos: "
                f"vidmotion prepare videos --src=FOLDER --out={folder} --size={size}"
            )
        source = pipeline.make_source(kind, **arguments)
        self._check_networks(source.networks, arguments.get("directory"))
        return source

    def check_batch(self, source: ClipSource, batch: PyTree) -> None:
        """Check this process's rows of a batch of `source` against the system's input, as `systems.check_batch` does.

        If the clips have another size, the message gives the command that makes clips of the right size.
        """
        try:
            systems.check_batch(self.system, batch, self.config.batch_size // jax.process_count())
        except ConfigError as error:
            side = batch["video"].shape[2] if "video" in batch else 0
            raise ConfigError(f"{error}{self._remade(source, side)}") from error

    def check_size(self, source: ClipSource) -> None:
        """Refuse motion transfer between clips whose size is not the system's.

        Raises:
          ConfigError: the sizes differ; the message gives the command that makes clips of the right size.
        """
        video = source[0].get("video")
        if isinstance(self.system, systems.MotionTransfer) and video is not None:
            side, size = video.shape[1], self.system.size
            if side != size:
                raise ConfigError(
                    f"the clips to evaluate on have {side} x {side} pixels, but config.system has {size} x {size}"
                    + self._remade(source, side)
                )

    def _remade(self, source: ClipSource, side: int) -> str:
        """Write, for a message, the command that makes the source's clips in the system's size.

        The text is empty if `side`, the size of the clips, is the system's already, or if the command is not known.
        """
        size = getattr(self.system, "size", side)
        made_by = source.made_by if isinstance(source, Prepared) else ""
        if side == size or "--size=" not in made_by:
            return ""
        command = re.sub(r"--size=\d+", f"--size={size}", made_by)
        return f". To make clips of that size: {command}"

    def loader(self, split: str, batch_size: int | None = None) -> pipeline.Loader:
        """Make the loader of a split's batches; shuffled for ``train``, in the source's order for ``eval``."""
        data, source = self.config.data, self.source(split)
        return pipeline.Loader(
            source,
            transforms=source.transforms,
            batch_size=batch_size or self.config.batch_size,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shuffle=split == "train",
            num_threads=data.threads,
            num_workers=data.workers,
            prefetch=data.prefetch,
        )

    def put(self, batch: PyTree) -> PyTree:
        """Turn this process's rows into global device arrays, leaving out names that the system does not read."""
        return sharding.put_batch({name: batch[name] for name in self.batch}, self.mesh)

    # -- state ------------------------------------------------------------------------------------

    @functools.cached_property
    def abstract_params(self) -> PyTree:
        """Shapes and dtypes of the parameters, ``{player: tree}``."""
        return jax.eval_shape(self._init_params, self.batch)

    @functools.cached_property
    def _init_params(self) -> Callable[[PyTree], PyTree]:
        # Shapes and values share one jitted function, so that its trace, which takes seconds, is made once.
        return jax.jit(self.stepper.init_params)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the whole state under this mesh."""
        shapes = jax.eval_shape(self.stepper.init_state, self.abstract_params)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes,
            self._state_shardings(shapes),
        )

    @property
    def state_shardings(self) -> TrainState:
        """Tree of `NamedSharding` with the structure of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def _state_shardings(self, shapes: TrainState) -> TrainState:
        whole = sharding.replicated(self.mesh)
        rules = plain(self.config.sharding)
        params = sharding.of_params(self.abstract_params, rules, self.mesh)
        split = jax.tree.map(sharding.also_over_data, self.abstract_params, params)
        opt = {
            name: self.stepper.opt_like(name, slots, self.abstract_params, split[name], whole)
            for name, slots in shapes.opt.items()
        }
        where = paths.flatten(split)
        return TrainState(
            step=whole,
            params=params,
            mutable=jax.tree.map(lambda _: whole, shapes.mutable),
            opt=opt,
            ema=paths.unflatten({path: where[path] for path in paths.flatten(shapes.ema)}),
        )

    @functools.cached_property
    def _consts_spec(self) -> dict[str, systems.Const]:
        return self.system.consts_spec()

    @functools.cached_property
    def abstract_consts(self) -> PyTree:
        """Shapes of the never-trained networks."""
        return {name: const.shapes() for name, const in self._consts_spec.items()}

    @functools.cached_property
    def consts(self) -> PyTree:
        """Never-trained networks, loaded and placed on every device.

        Raises:
          ConfigError, DatasetError: a network's file is missing or does not fit; raised by the system's loaders.
        """
        loaded = {name: const.load() for name, const in self._consts_spec.items()}
        return jax.device_put(loaded, sharding.replicated(self.mesh))

    @functools.cached_property
    def networks(self) -> dict[str, str]:
        """Fingerprint of each never-trained network."""
        if isinstance(self.system, systems.Describes):
            return self.system.fingerprints(self.consts)
        return {name: systems.fingerprint(tree) for name, tree in self.consts.items()}

    def _check_networks(self, recorded: Mapping[str, str], what: Any) -> None:
        """Raise `ConfigError` if `what` was made with networks whose `recorded` fingerprints differ from this run's."""
        for name, there in recorded.items():
            here = self.networks.get(name, "none")
            if there != here:
                raise ConfigError(
                    f"{what} was made with other weights of the network {name!r} than config.system names: "
                    f"its fingerprint is {there[:12]}, that of these weights is {here[:12]}; name the weights that it "
                    "was made with, or make it again with these"
                )

    def fresh_state(self) -> TrainState:
        """Initialise the state at step 0 on its devices, then fill it from ``init_from`` if the config sets that."""
        shardings = self.state_shardings
        batch = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.system.input_spec(1)
        )
        draw = jax.jit(self.stepper.init_params, out_shardings=shardings.params).lower(batch)
        announce(draw, "initial values", START_SECONDS)
        params = draw.compile()(batch)
        if self.config.init_from:
            source, mutable = self._inheritance()
            params = checkpoint.load_into(params, source, plain(self.config.init_rules))
            log.info("parameters initialised from %s", self.config.init_from)
        state = jax.jit(self.stepper.init_state, out_shardings=shardings)(params)
        if self.config.init_from and state.mutable:
            mutable = systems.inherited(state.mutable, mutable)
            mutable = jax.device_put(mutable, shardings.mutable)
            state = dataclasses.replace(state, mutable=mutable)
        return state

    def check_start(self) -> None:
        """Refuse an ``init_from`` that holds no parameters; whether parameters fit is checked by `fresh_state`.

        Raises:
          ConfigError: ``init_from`` holds no parameters; the message lists what it may name.
        """
        folder = self.config.init_from
        given = folder in own_weights.names() or (epath.Path(folder) / converted.NETWORK).exists()
        if not folder or given:
            return
        with checkpoint.Checkpointer(folder, read_only=True) as there:
            if not there.steps():
                raise ConfigError(
                    f"config.init_from={folder} is not a trained run, a folder that `python -m vidmotion.convert` "
                    f"wrote, or one of the shipped networks, {', '.join(own_weights.names())}"
                )

    def leaves_at_start(self, player: str, names: Collection[str]) -> dict[str, jax.Array]:
        """Initialise those of a player's parameters that have the paths `names`, with the config's seed."""

        @jax.jit  # drops the computations that only the other parameters need
        def chosen(batch):
            flat = paths.flatten(self._init_params(batch)[player])
            return {name: flat[name] for name in names}

        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.batch)
        return chosen(batch)

    def _inheritance(self) -> tuple[PyTree, PyTree]:
        """Read the parameters and non-gradient state in ``init_from``.

        It names a run, a shipped network, or a folder that `vidmotion.convert` wrote.
        """
        folder = self.config.init_from
        if folder in own_weights.names():
            return own_weights.read_shipped(folder, "config.init_from")
        if not (epath.Path(folder) / converted.NETWORK).exists():
            return checkpoint.read_params(folder), checkpoint.read_mutable(folder)
        try:
            params = converted.load(folder)[2]
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.init_from={folder}: {error}") from error
        if not isinstance(self.system, systems.Released):
            raise ConfigError(
                f"config.init_from={folder} holds a published network, but {self.config.system.name} "
                "cannot start from one"
            )
        return self.system.released(params), self.system.released_mutable(params)

    def restore(
        self, checkpointer: checkpoint.Checkpointer, for_use: bool = False
    ) -> tuple[TrainState, dict] | None:
        """Restore the workdir's newest whole checkpoint onto this mesh.

        Args:
          checkpointer: the checkpoints of the workdir.
          for_use: whether to leave out what only training reads: the optimizer, and the raw value of each leaf that
            has an average.

        Returns:
          The state and what `position` recorded; None if there is no checkpoint.

        Raises:
          ConfigError: the checkpoint was trained with other never-trained networks.
          CheckpointError: as for `Checkpointer.restore`.
        """
        like = self.abstract_state
        if for_use:
            averaged = paths.flatten(like.ema)
            raw = {k: leaf for k, leaf in paths.flatten(like.params).items() if k not in averaged}
            like = dataclasses.replace(like, params=paths.unflatten(raw), opt={})
        restored = checkpointer.restore(like, partial=for_use)
        if restored is not None:
            self._check_networks(restored[1].get("networks", {}), f"the run {self.workdir}")
        return restored

    def position(self, loader: pipeline.Loader, step: int) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the state: the position in the data, the networks and the config."""
        config = json.loads(self.config.to_json())
        return {**loader.state(step), "networks": self.networks, "config": config}

    def trained_vars(self) -> Vars:
        """Read the averaged parameters of the workdir's newest checkpoint, for evaluation and sampling.

        Raises:
          CheckpointError: the workdir has none.
        """
        with checkpoint.Checkpointer(self.workdir, read_only=True) as checkpointer:
            restored = self.restore(checkpointer, for_use=True)
            if restored is None:
                raise checkpoint.CheckpointError(
                    f"{self.workdir} holds no checkpoint; train first (vidmotion train, or --mode=train)"
                )
            state, _ = restored
        return self.vars_of(state)

    def weights_digest(self) -> str:
        """Return a hex sha256 that identifies the weights of `trained_vars`, so that a result can be traced to them.

        It is the digest of the checkpoint's checksums, or of the weight files if the weights come from no run.

        Raises:
          CheckpointError: the workdir has no checkpoint.
        """
        with checkpoint.Checkpointer(self.workdir, read_only=True) as checkpointer:
            if not (steps := checkpointer.steps()):
                raise checkpoint.CheckpointError(f"{self.workdir} holds no checkpoint; train first")
            return checkpointer.digest(steps[-1])

    def vars_by_part(self) -> Callable[..., Vars]:
        """Return a function that gives the trained variables of some networks only, for networks that run in turn.

        The function takes names of networks and returns variables that hold only these networks of the player
        ``model``. A released run reads them from disk at each call, and their memory is free again when the caller
        drops them.

        Raises:
          ConfigError, CheckpointError: as for `trained_vars`.
        """
        vars = self.trained_vars()

        def only(*names: str) -> Vars:
            model = vars.params["model"]
            return vars._replace(params={"model": {n: model[n] for n in names if n in model}})

        return only

    def vars_of(self, state: TrainState) -> Vars:
        """Return the variables of a state that `System.sample` reads, with averaged parameters."""
        # Averages are split over more axes than the parameters in whose place they stand.
        params = jax.device_put(state.averaged_params(), self.state_shardings.params)
        return Vars(params, state.mutable, self.consts)

    # -- compiled functions -----------------------------------------------------------------------

    def lower_update(
        self,
        update: Callable | None = None,
        phase: tuple[int, int | None] | None = None,
        platforms: tuple[str, ...] | None = None,
    ) -> jax.stages.Lowered:
        """Trace and lower the training update; its first argument, the state, is donated.

        Args:
          update: another function with the arguments and outputs of `Stepper.update`, to lower in its place.
          phase: the phase of the run that the update serves (`Stepper.phase`); None for the last one.
          platforms: the platforms to lower for; by default those of this process.
        """
        phase = phase or self.stepper.phase(self.config.steps - 1)
        rows, whole = sharding.batch(self.mesh), sharding.replicated(self.mesh)

        def placed(where):
            return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        jitted = self.jit(
            update or functools.partial(self.stepper.update, phase=phase),
            donate_argnums=0,
            out_shardings=(self.state_shardings, whole),
        )
        traced = jitted.trace(
            self.abstract_state,
            jax.tree.map(placed(whole), self.abstract_consts),
            jax.tree.map(placed(rows), self.batch),
        )
        return traced.lower(lowering_platforms=platforms)

    def flops_per_step(self) -> float | None:
        """Count the model FLOPs of one update of the global batch by XLA's cost analysis; None if it has none.

        The update is traced separately for this, without recomputation, layer scans, microbatches or chunking, so that
        each operation of the model counts once. A player that updates only in some steps counts as if it updated in
        all. The update is that of the run's last phase, in which all parts are active.
        """
        loops = {"remat", "scan"} & {field.name for field in dataclasses.fields(self.system)}
        system = dataclasses.replace(self.system, **dict.fromkeys(loops, False))
        stepper = dataclasses.replace(self.stepper, system=system, accumulate=1)
        params = jax.eval_shape(stepper.init_params, self.batch)
        state = jax.eval_shape(stepper.init_state, params)

        def update(*args):
            with chunked_map.all_at_once():
                return stepper.update(*args, phase=stepper.phase(self.config.steps - 1))

        lowered = jax.jit(update).lower(state, self.abstract_consts, self.batch)
        return (lowered.cost_analysis() or {}).get("flops")

    def jit_sample(self, **options) -> Callable[[Vars, PyTree, jax.Array], PyTree]:
        """Jit `System.sample` for a batch cut across the mesh; the outputs are whole on every process.

        The first call of the returned function logs roughly how long it will take to compile.
        """
        jitted, begun = self.jit(functools.partial(self.system.sample, **options)), []

        def sample(*arguments):
            if not begun:
                announce(jitted.lower(*arguments), "sampler")
                begun.append(True)
            return jitted(*arguments)

        return sample

    def jit(self, function: Callable, **options) -> Callable:
        """Apply `jax.jit` for arrays on this run's mesh; outputs are whole on every device unless `options` differ."""
        defaults = {
            "out_shardings": sharding.replicated(self.mesh),
            "compiler_options": sharding.compiler_options(self.mesh),
        }
        return jax.jit(sharding.OnMesh(function, self.mesh), **defaults | options)

    def rows(self, count: int) -> int:
        """Return the smallest batch size >= `count` that divides evenly among the mesh and the processes."""
        unit = int(np.lcm(sharding.batch_shards(self.mesh), jax.process_count()))
        return -(-count // unit) * unit

    def put_rows(self, batch: PyTree) -> PyTree:
        """Turn a batch that every process holds whole into global arrays that are cut over the mesh."""
        where: NamedSharding = sharding.batch(self.mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index]), batch
        )

    # -- the workdir ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, part: str = "") -> Iterator[None]:
        """Lock the workdir, or the folder `part` in it, for this job; process 0 holds the lock for all its processes.

        Raises:
          ConfigError: another job holds the lock; the message names its process.
        """
        folder = self.workdir / part if part else self.workdir
        with contextlib.ExitStack() as stack:
            problem = None
            if jax.process_index() == 0:
                try:
                    stack.enter_context(lock.hold(folder))
                except ConfigError as error:
                    problem = error
            if jax.process_count() > 1:
                refused = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
                if refused and problem is None:
                    problem = ConfigError(f"process 0 found that {folder} is in use")
            if problem is not None:
                raise problem
            yield
