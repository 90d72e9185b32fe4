"""A run: what a config describes, built; shared by every mode of the command line.

Order at the start (each later source wins): abstract init -> shardings -> init on device -> ``init_from`` ->
optimizer and averages made from the loaded weights -> restore, if the workdir has a checkpoint.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from vidmotion import checkpoint, chunked_map, lock, paths, run_record, sharding
from vidmotion import system as systems
from vidmotion import weights as own_weights
from vidmotion.config_schema import from_config, plain
from vidmotion.convert import folder as converted
from vidmotion.data import pipeline
from vidmotion.data.clip_source import ClipSource
from vidmotion.errors import ConfigError
from vidmotion.optim import Optimizer
from vidmotion.state import TrainState
from vidmotion.step import Ema, Stepper
from vidmotion.system import Vars

log = logging.getLogger(__name__)

PyTree = Any
CONFIG_FILE = "config.json"
RELEASED = {
    "vidtwin": "vidtwin",
    "xnemo": "xnemo:stage=4,gan_head=off",
}  # network of `vidmotion.convert`: config of the system around it

# Fields that may differ from those the workdir was begun with: none changes what is learnt from here on
# for a given state, but `steps`, which is announced.
FREE_FIELDS = (
    r"(steps|log_every|sharding|init_from|init_rules)"
    r"|(mesh|checkpoint|eval|sample|plan)/.*"
    r"|data/(threads|workers|prefetch|eval/.*)"
    r"|data/.*/(sheets_dir|directory)"  # the same data may lie elsewhere; a fingerprint guards them
    r"|system/(.*/)?weights"  # so may a never-trained network, guarded likewise
    r"|system/(remat|codes|latents|sampler/.*|guidance/scale|diffusion/sigma_(min|max))"
)


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config ``<file>:<argument>`` of this project, for example ``sprites_judge:demo``.

    Raises:
      ConfigError: no such config.
    """
    module, _, argument = name.partition(":")
    try:
        return importlib.import_module(f"configs.{module}").get_config(argument)
    except ModuleNotFoundError as error:
        raise ConfigError(f"there is no config configs/{module}.py") from error


def check_place(workdir: str) -> None:
    """Refuse a workdir in a bucket that this process has no means or no right to reach.

    Raises:
      ConfigError: a library or the credentials are missing, the bucket does not answer, or the name has characters
        that are patterns there.
    """
    if not workdir.startswith("gs://"):
        return
    if found := re.findall(r"[][*?\\]", workdir):
        raise ConfigError(
            f"{workdir}: checkpoints cannot be read from a bucket below a name with {' '.join(sorted(set(found)))}; "
            "choose another --workdir"
        )
    try:
        import gcsfs  # noqa: F401
        from google import auth
        from google.auth.exceptions import GoogleAuthError
    except ImportError as error:
        raise ConfigError(
            f"{workdir} is in a bucket, and what reads it is not installed ({error}): pip install 'vidmotion[gcs]'"
        ) from error
    try:
        auth.default()  # without any, gcsfs would go on as nobody and be refused at the first checkpoint
    except GoogleAuthError as error:
        raise ConfigError(
            f"{workdir}: there are no Google Cloud credentials here; `gcloud auth application-default login`, "
            "or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from error
    try:
        epath.Path(workdir).exists()
    except Exception as error:  # of several libraries below
        raise ConfigError(f"{workdir} cannot be reached: {error}") from error


def open_run(workdir: str, changes: Mapping[str, str] | None = None) -> "Run":
    """The run that a workdir holds, to be used: its batches are cut over the devices that are here.

    Args:
      workdir: of the run, or the name of a shipped one (`vidmotion.weights`).
      changes: ``{"system.codec.weights": "vae.safetensors"}``, fields of its config that are otherwise here, as
        text; only `FREE_FIELDS`.

    Raises:
      ConfigError: no run there, or a change that does not fit it.
    """
    if workdir in own_weights.names():
        config = ml_collections.ConfigDict(own_weights.card(workdir)["config"])
        config = _used_here(config, changes)
        model = own_weights.read(workdir, "the run")["model"]

        def parts(system, names):
            chosen = {name: model[name] for name in names or model if name in model}
            return {"model": chosen}, system.init_mutable()

        return Released(config, workdir, workdir, lambda system: {"model": model}, parts)
    check_place(workdir)
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        config = ml_collections.ConfigDict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        shipped = ", ".join(own_weights.names())
        raise ConfigError(
            f"{workdir} holds no run: there is no {path}, and the shipped ones are {shipped}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{workdir} holds no run: {path} cannot be read ({error})") from error
    return Run(_used_here(config, changes), workdir)


def open_weights(folder: str, changes: Mapping[str, str] | None = None) -> "Run":
    """A released network, as the run that was trained to it.

    Args:
      folder: that ``python -m vidmotion.convert`` wrote, of a network in `RELEASED`.
      changes: as of `open_run`.

    Raises:
      ConfigError: no such folder, another network, or parameters that do not fit it; all are named.
    """
    try:
        network, arguments, shapes = converted.describe(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--weights={folder}: {error}") from error
    if network not in RELEASED:
        raise ConfigError(
            f"--weights={folder} holds {network}; there is a system for {', '.join(RELEASED)}"
        )
    config = load_config(RELEASED[network])
    for name, value in systems.find(config.system.name).released_fields(arguments).items():
        config.system[name] = ml_collections.ConfigDict(value)
    config.system.compute = "float32"

    def read(system, names):
        params = converted.load(folder, names)[2]
        return system.released(params), system.released_mutable(params)

    config = _used_here(config, changes)
    return Released(
        config, folder, f"--weights={folder}", lambda system: system.released(shapes), read
    )


def _used_here(
    config: ml_collections.ConfigDict, changes: Mapping[str, str] | None
) -> ml_collections.ConfigDict:
    """A recorded config with its batches cut over the devices that are here, and the `changes` of `open_run`."""
    config.mesh = {"data": -1}  # whatever it was trained on
    config.batch_size, config.accumulate = jax.device_count(), 1
    for name, text in (changes or {}).items():
        _change(config, name, text)
    return config


def _change(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Set the field of a recorded config that the command line names."""
    fields = paths.flatten(config.to_dict())
    path = name.replace(".", "/")
    if path not in fields:
        raise ConfigError(f"--config.{name}: the run's config has no such field")
    if not re.fullmatch(FREE_FIELDS, path):
        raise ConfigError(
            f"--config.{name}: it is {fields[path]!r} for good, the run was trained so"
        )
    try:
        value = text if isinstance(fields[path], str) else ast.literal_eval(text)
        config.update_from_flattened_dict({name: value})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"--config.{name}={text}: not like {fields[path]!r}") from error


class Run:
    """Everything built from a config: system, mesh, shardings, data, state.

    Args:
      config: the (locked) config.
      workdir: of this run.
      abstract: only to reckon with: a mesh that this machine cannot fill will do.

    Attributes:
      config: the (locked) config.
      workdir: of this run.
      system, stepper, mesh: what is trained, its update, and on which devices.
      batch: abstract global batch.

    Raises:
      ConfigError: a field that does not exist or does not fit; the message names it.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str, abstract: bool = False):
        self.config = config
        self.workdir = epath.Path(workdir)
        self.system = systems.build(config.system)
        self.mesh = sharding.make_mesh(config.mesh, abstract=abstract)
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
        """This run with global batches of another size, to reckon with: network and state are the same."""
        other = copy.copy(self)
        other.batch = self.system.input_spec(batch_size)
        return other

    # -- data -------------------------------------------------------------------------------------

    def source(self, split: str, **changes) -> ClipSource:
        """The random-access source of ``config.data.<split>`` (``train`` or ``eval``), of the `kind` given there,
        or else of ``config.data.kind``.

        `changes` go before the config's own arguments of the source.

        Raises:
          ConfigError: no such section, or data that other networks than this run's have made; and as
            `pipeline.make_source`.
        """
        data = self.config.data
        if split not in data:
            raise ConfigError(f"config.data has no section {split!r}: it names that split's data")
        arguments = {**data.get("common", {}), **data[split], **changes}
        # Training may read pairs of frames where evaluation reads whole clips.
        source = pipeline.make_source(arguments.pop("kind", data.kind), **arguments)
        self._check_networks(source.networks, arguments.get("directory"))
        return source

    def loader(self, split: str, batch_size: int | None = None) -> pipeline.Loader:
        """Batches of a split; shuffled for ``train``, in the source's order for ``eval``."""
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
        """This process's rows -> global device arrays; names the system does not read are left out."""
        return sharding.put_batch({name: batch[name] for name in self.batch}, self.mesh)

    # -- state ------------------------------------------------------------------------------------

    @functools.cached_property
    def abstract_params(self) -> PyTree:
        """Shapes of ``{player: tree}``."""
        return jax.eval_shape(self.stepper.init_params, self.batch)

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
        """Tree of `NamedSharding` like the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def _state_shardings(self, shapes: TrainState) -> TrainState:
        whole = sharding.replicated(self.mesh)
        rules = plain(self.config.sharding)
        params = sharding.of_params(self.abstract_params, rules, self.mesh)
        opt = {
            name: self.stepper.opt_like(name, slots, self.abstract_params, params[name], whole)
            for name, slots in shapes.opt.items()
        }
        where = paths.flatten(params)
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
        """Never-trained networks, loaded and on every device.

        Raises:
          ConfigError, DatasetError: what is missing or does not fit, from the system's loaders.
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
        """Refuse `what`, which was made with networks of the `recorded` fingerprints, where they are not these."""
        for name, there in recorded.items():
            here = self.networks.get(name, "none")
            if there != here:
                raise ConfigError(
                    f"{what} was made with other weights of the network {name!r} than config.system names: "
                    f"fingerprint {there[:12]} there, {here[:12]} here; name the file of those, or make it "
                    "anew with these"
                )

    def fresh_state(self) -> TrainState:
        """State at step 0: initialised in place, then ``init_from`` where the config names a run."""
        shardings = self.state_shardings
        batch = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.system.input_spec(1)
        )
        params = jax.jit(self.stepper.init_params, out_shardings=shardings.params)(batch)
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

    def _inheritance(self) -> tuple[PyTree, PyTree]:
        """Parameters and non-gradient state in ``init_from``: a run, or what `vidmotion.convert` wrote."""
        folder = self.config.init_from
        if not (epath.Path(folder) / converted.NETWORK).exists():
            return checkpoint.read_params(folder), checkpoint.read_mutable(folder)
        try:
            params = converted.load(folder)[2]
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.init_from={folder}: {error}") from error
        if not isinstance(self.system, systems.Released):
            raise ConfigError(
                f"config.init_from={folder} holds a published network, and {self.config.system.name} starts from none"
            )
        return self.system.released(params), self.system.released_mutable(params)

    def restore(
        self, checkpointer: checkpoint.Checkpointer, for_use: bool = False
    ) -> tuple[TrainState, dict] | None:
        """The workdir's newest whole checkpoint on this mesh, or None.

        Args:
          checkpointer: of the workdir.
          for_use: leave out what only training reads: the optimizer, and the raw value of each leaf that has an
            average.

        Raises:
          ConfigError: it was trained with other never-trained networks; and as `Checkpointer.restore`.
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
        """What a checkpoint keeps beside the state: where the data are, and what the run depends on."""
        config = json.loads(self.config.to_json())
        return {**loader.state(step), "networks": self.networks, "config": config}

    def trained_vars(self) -> Vars:
        """Averaged parameters of the workdir's newest checkpoint, for evaluation and sampling.

        Raises:
          CheckpointError: the workdir has none.
        """
        with checkpoint.Checkpointer(self.workdir, read_only=True) as checkpointer:
            restored = self.restore(checkpointer, for_use=True)
            if restored is None:
                raise checkpoint.CheckpointError(
                    f"{self.workdir} holds no checkpoint; train first, with --mode=train"
                )
            state, _ = restored
        return self.vars_of(state)

    def vars_by_part(self) -> Callable[..., Vars]:
        """`trained_vars` for networks that run one after the other: names of networks -> variables with those
        of the player ``model`` alone, which a released run reads only then, and whose memory is free again
        when the caller lets go of them.

        Raises:
          ConfigError, CheckpointError: as `trained_vars`.
        """
        vars = self.trained_vars()

        def only(*names: str) -> Vars:
            model = vars.params["model"]
            return vars._replace(params={"model": {n: model[n] for n in names if n in model}})

        return only

    def vars_of(self, state: TrainState) -> Vars:
        """What `System.sample` reads, from a state."""
        return Vars(state.averaged_params(), state.mutable, self.consts)

    # -- compiled functions -----------------------------------------------------------------------

    def lower_update(
        self, update: Callable | None = None, phase: tuple[int, int | None] | None = None
    ) -> jax.stages.Lowered:
        """The lowered training update of a phase of the run (`Stepper.phase`; None: the last), or another function of
        its arguments and outputs; the first is donated."""
        phase = phase or self.stepper.phase(self.config.steps - 1)
        rows, whole = sharding.batch(self.mesh), sharding.replicated(self.mesh)

        def placed(where):
            return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return self.jit(
            update or functools.partial(self.stepper.update, phase=phase),
            donate_argnums=0,
            out_shardings=(self.state_shardings, whole),
        ).lower(
            self.abstract_state,
            jax.tree.map(placed(whole), self.abstract_consts),
            jax.tree.map(placed(rows), self.batch),
        )

    def flops_per_step(self) -> float | None:
        """Model FLOPs of one update of the global batch, from XLA's cost analysis; None if it has none.

        Counted by a tracing of its own, without recomputation, layer scans, microbatches or work in pieces, so
        that each operation of the model counts once; a player that updates now and then counts as if it always did. The
        step is one of the run's last phase, in which all parts work.
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
        """`System.sample` over a batch cut across the mesh; its outputs are whole on every process."""
        return self.jit(functools.partial(self.system.sample, **options))

    def jit(self, function: Callable, **options) -> Callable:
        """`jax.jit` for arrays on this run's mesh; outputs are whole everywhere, unless `options` say otherwise."""
        defaults = {
            "out_shardings": sharding.replicated(self.mesh),
            "compiler_options": sharding.compiler_options(self.mesh),
        }
        return jax.jit(sharding.OnMesh(function, self.mesh), **defaults | options)

    def rows(self, count: int) -> int:
        """The smallest batch size >= count that the mesh and the processes divide."""
        unit = int(np.lcm(sharding.batch_shards(self.mesh), jax.process_count()))
        return -(-count // unit) * unit

    def put_rows(self, batch: PyTree) -> PyTree:
        """A batch that every process holds whole -> global arrays cut over the mesh."""
        where: NamedSharding = sharding.batch(self.mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index]), batch
        )

    # -- the workdir ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, part: str = "") -> Iterator[None]:
        """The workdir, or a part of it, for this job alone: process 0 holds it for all of the job's processes.

        Raises:
          ConfigError: another job holds it; says which process.
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
                    problem = ConfigError(f"{folder} is in use, as process 0 found")
            if problem is not None:
                raise problem
            yield

    def claim_workdir(self) -> None:
        """Write ``config.json`` into a new workdir; in an old one, check that it is the same run.

        Raises:
          ConfigError: see `check_workdir`.
        """
        if not self.check_workdir() and jax.process_index() == 0:
            run_record.write(self.workdir / CONFIG_FILE, json.loads(self.config.to_json()))

    def check_workdir(self) -> bool:
        """Whether a run of this config has begun in the workdir, and its ``config.json`` is there.

        Raises:
          ConfigError: the workdir was begun, or its newest checkpoint trained, with another config; the differing
            fields are listed. Or nothing says with which config its checkpoints were trained.
        """
        path = self.workdir / CONFIG_FILE
        begun, trained = path.exists(), checkpoint.read_position(str(self.workdir))
        if begun:
            try:
                old = json.loads(path.read_text())
                steps = paths.flatten(old).get("steps")
            except (ValueError, AttributeError) as error:
                raise ConfigError(
                    f"{path} is not a config written by this program: {error}"
                ) from error
            self._check_config(old, f"{self.workdir} belongs to a run")
            if steps != self.config.steps:
                log.warning(
                    "steps changes from %s to %s: schedules now end there", steps, self.config.steps
                )
        if trained is None:
            return begun
        if "config" in trained:
            self._check_config(trained["config"], f"the checkpoints of {self.workdir} are of a run")
        elif not begun:
            raise ConfigError(
                f"{path} is missing, and the checkpoints beside it do not say what they were trained with: put it "
                "back, or choose another --workdir and start from these weights with --config.init_from"
            )
        if not begun:
            log.warning("%s is missing; the checkpoints were trained with this config", path)
        return begun

    def _check_config(self, old: Mapping[str, Any], whose: str) -> None:
        """Refuse an `old` config that differs from this one in more than `FREE_FIELDS`."""
        old, new = paths.flatten(old), paths.flatten(json.loads(self.config.to_json()))
        differing = [
            f"{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} here"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and not re.fullmatch(FREE_FIELDS, name)
        ]
        if differing:
            raise ConfigError(
                f"{whose} with another config ({'; '.join(differing[:8])}"
                + (f"; and {len(differing) - 8} more" if len(differing) > 8 else "")
                + "). Choose another --workdir, or start from its weights with --config.init_from."
            )


class Released(Run):
    """A run whose parameters are given. They are read each time that they are asked for, and not kept.

    Args:
      config: the (locked) config.
      where: the folder or name that holds them.
      named: how messages name it.
      shapes: system -> ``{player: tree}`` that has the shapes of all of them.
      read: system and names of networks, None for all -> ``{player: tree}`` and the state that takes no gradient.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        where: str,
        named: str,
        shapes: Callable[[systems.System], PyTree],
        read: Callable[[systems.System, tuple[str, ...] | None], tuple[PyTree, PyTree]],
    ):
        super().__init__(config, where)
        self._read_given = read
        want = {"model": self.abstract_params["model"]}
        if wrong := paths.misfits(shapes(self.system), want):
            raise ConfigError(f"{named} does not fit its own sizes: {'; '.join(wrong)}")

    def trained_vars(self) -> Vars:
        """The given parameters, on every device."""
        return self._read(None)

    def vars_by_part(self) -> Callable[..., Vars]:
        """As of `Run`; the files of the named networks are read in each call."""
        return lambda *names: self._read(names)

    def _read(self, names: tuple[str, ...] | None) -> Vars:
        given = self._read_given(self.system, names)
        return Vars(*jax.device_put(given, sharding.replicated(self.mesh)), self.consts)
