"""Opens runs: from workdirs, from folders of released weights, and the networks that this package ships.

A run is opened for use with the config with which it was trained. A run whose training is resumed must have that
config too, apart from `FREE_FIELDS`.
"""

import ast
import importlib.util
import json
import logging
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from vidmotion import checkpoint, files, paths, run_record, sharding, startup
from vidmotion import system as systems
from vidmotion import weights as own_weights
from vidmotion.convert import folder as converted
from vidmotion.errors import ConfigError
from vidmotion.run import Run
from vidmotion.system import Vars

log = logging.getLogger(__name__)

PyTree = Any
CONFIG_FILE = "config.json"
RELEASED = {
    "vidtwin": "vidtwin",
    "xnemo": "xnemo:stage=4,gan_head=off",
}  # {network of `vidmotion.convert`: config of the system that uses it}

# Fields that may differ from those with which the workdir was begun. Except `steps`, whose change is announced, none
# of them changes what is learnt from a given state on.
FREE_FIELDS = (
    r"(steps|log_every|sharding|init_from|init_rules)"
    r"|(mesh|checkpoint|evals?|sample|plan)/.*"
    r"|data/(threads|workers|prefetch|eval/.*)"
    r"|data/.*/(sheets_dir|directory)"  # the same data may be elsewhere; a fingerprint is checked
    r"|system/(.*/)?weights"  # so may a never-trained network, whose fingerprint is checked
    r"|system/overlap"
    r"|system/codec/compute"  # changes only the rounding of a frozen network, as a mesh does
    r"|system/(remat|codes|latents|sampler/.*|guidance/scale|diffusion/sigma_(min|max))"
)


def load_config(name: str) -> ml_collections.ConfigDict:
    """Load the config with a name or path, for example ``sprites_judge:demo`` or ``configs/sprites_judge.py:demo``.

    Raises:
      ConfigError: there is no such config.
      ValueError: the config does not take that argument; the message lists the arguments that it takes.
    """
    file, _, argument = startup.config_file(name).partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def check_place(workdir: str) -> None:
    """Refuse a workdir in a bucket that this process cannot use.

    Raises:
      ConfigError: a library or the credentials are missing, the bucket cannot be reached, or the name has characters
        that are patterns in bucket paths.
    """
    if not workdir.startswith("gs://"):
        return
    if found := re.findall(r"[][*?\\]", workdir):
        raise ConfigError(
            f"{workdir}: checkpoints in a bucket cannot be read if the path contains {' '.join(sorted(set(found)))}; "
            "choose another --workdir"
        )
    try:
        import gcsfs  # noqa: F401
        from google import auth
        from google.auth.exceptions import GoogleAuthError
    except ImportError as error:
        raise ConfigError(
            f"{workdir} is in a bucket, and the package that reads it is not installed ({error}): "
            "pip install 'vidmotion[gcs]'"
        ) from error
    try:
        auth.default()  # without credentials, gcsfs would be anonymous and fail at the first checkpoint
    except GoogleAuthError as error:
        raise ConfigError(
            f"{workdir}: there are no Google Cloud credentials here: run `gcloud auth application-default login`, "
            "or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from error
    try:
        epath.Path(workdir).exists()
    except Exception as error:  # several libraries are involved, each with its own errors
        raise ConfigError(f"{workdir} cannot be reached: {error}") from error


def open_run(workdir: str, changes: Mapping[str, str] | None = None) -> Run:
    """Open the run in a workdir for use; its batches are cut over the devices of this job.

    Args:
      workdir: the folder of the run, or the name of a shipped run (`vidmotion.weights`).
      changes: new values, as text, of fields of the run's config, for example
        ``{"system.codec.weights": "vae.safetensors"}``; only `FREE_FIELDS` may change.

    Raises:
      ConfigError: the workdir holds no run, or a change does not fit the run.
    """
    if workdir in own_weights.names():
        config = ml_collections.ConfigDict(of_today(own_weights.card(workdir)["config"]))
        config = _used_here(config, changes)
        params, mutable = own_weights.read_shipped(workdir, "the run")

        def whole(run):
            params["model"] = _completed(run, params["model"])
            return params

        def parts(system, names):
            model = params["model"]
            chosen = {name: model[name] for name in names or model if name in model}
            return {"model": chosen}, mutable or system.init_mutable()

        return GivenRun(config, workdir, workdir, whole, parts)
    check_place(workdir)
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        content = dict(json.loads(path.read_text()).items())
        config = ml_collections.ConfigDict(of_today(content))
    except FileNotFoundError as error:
        shipped = ", ".join(own_weights.names())
        raise ConfigError(
            f"{workdir} holds no run: there is no {path}, and the shipped networks are {shipped}"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{workdir} holds no run: {path} cannot be read ({error})") from error
    trained = (checkpoint.read_position(workdir) or {}).get("config", content)
    if differing := _differing(trained, content):
        raise ConfigError(
            f"{path} is not the config of the run that made the checkpoints beside it ({differing}): put that file back"
        )
    return Run(_used_here(config, changes), workdir)


def _completed(run: Run, model: PyTree) -> PyTree:
    """Add to the parameters of a shipped network those that never learnt, which still have their initial values."""
    wanted = paths.flatten(run.abstract_params["model"])
    if absent := wanted.keys() - paths.flatten(model).keys():
        begun = jax.device_get(run.leaves_at_start("model", sorted(absent)))
        model = paths.merge(model, paths.unflatten(begun))
    return model


def of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the config of an older run into today's fields, with the same meaning.

    Evaluators once shared a section ``eval``, and those that need a judge trained it themselves. The first stage of BCD
    was once a separate run without temporal blocks; today it is the part of a run before these blocks join.
    """
    from vidmotion import evaluation  # imported late, because it imports this module

    config = {**config}
    if "eval" in config:
        config["evals"] = evaluation.sections_of(config.pop("eval"))

    def part(section: Any, name: str) -> Mapping[str, Any]:
        """Return a part of a section, or an empty one if a damaged file has no mapping there.

        The damage is then reported as a difference between configs.
        """
        found = section.get(name, {})
        return found if isinstance(found, Mapping) else {}

    if any("judge_workdir" in part(config["evals"], name) for name in part(config, "evals")):
        config["evals"] = {name: {**part(config["evals"], name)} for name in config["evals"]}
        for section in config["evals"].values():
            if "judge_workdir" in section:
                section["judge"] = section.pop("judge_workdir")
    system = part(config, "system")
    if "temporal" in part(system, "denoiser"):
        denoiser = {**system["denoiser"]}
        denoiser["temporal_from"] = 0 if denoiser.pop("temporal") else config.get("steps", 0)
        config["system"] = {**system, "denoiser": denoiser}
    return config


def open_weights(folder: str, changes: Mapping[str, str] | None = None) -> Run:
    """Open a released network as if it were the run that trained it.

    Args:
      folder: a folder that ``python -m vidmotion.convert`` wrote, with a network in `RELEASED`.
      changes: see `open_run`.

    Raises:
      ConfigError: there is no such folder, it holds another network, or parameters do not fit the network; the
        message names them.
    """
    try:
        network, arguments, shapes = converted.describe(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--weights={folder}: {error}") from error
    if network not in RELEASED:
        raise ConfigError(
            f"--weights={folder} holds {network}, for which there is no system; choose {', '.join(RELEASED)}"
        )
    config = load_config(RELEASED[network])
    for name, value in systems.find(config.system.name).released_fields(arguments).items():
        config.system[name] = ml_collections.ConfigDict(value)
    config.system.compute = "float32"

    def read(system, names):
        params = converted.load(folder, names)[2]
        return system.released(params), system.released_mutable(params)

    config = _used_here(config, changes)
    return GivenRun(
        config, folder, f"--weights={folder}", lambda run: run.system.released(shapes), read
    )


def _used_here(
    config: ml_collections.ConfigDict, changes: Mapping[str, str] | None
) -> ml_collections.ConfigDict:
    """Adapt a recorded config to the devices of this job, and apply the `changes` of `open_run`."""
    config.mesh = {"data": -1}  # whatever mesh the run was trained on
    config.batch_size, config.accumulate = jax.device_count(), 1
    for name, text in (changes or {}).items():
        _change(config, name, text)
    return config


def _change(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Set a field of a recorded config, as the command line asks; only `FREE_FIELDS` may change."""
    fields = paths.flatten(config.to_dict())
    path = name.replace(".", "/")
    if path in fields and not re.fullmatch(FREE_FIELDS, path):
        raise ConfigError(
            f"--config.{name} stays {fields[path]!r}, since the run was trained with it"
        )
    set_field(config, name, text)


def set_field(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Set the field `name`, such as ``system.codec.weights``, to the value written in `text`.

    Raises:
      ConfigError: there is no such field, or the value is of another type than the field's.
    """
    fields = paths.flatten(config.to_dict())
    path = name.replace(".", "/")
    if path not in fields:
        near = startup.nearest(name, [field.replace("/", ".") for field in fields])
        raise ConfigError(f"--config.{name}: the config has no such field{near}")
    try:
        value = text if isinstance(fields[path], str) else ast.literal_eval(text)
        config.update_from_flattened_dict({name: value})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--config.{name}={text}: expected a value like {fields[path]!r}"
        ) from error


def claim_workdir(run: Run) -> None:
    """Write ``config.json`` into a new workdir; in an existing one, check that it belongs to the same run.

    Raises:
      ConfigError: see `check_workdir`.
    """
    if not check_workdir(run) and jax.process_index() == 0:
        run_record.write(run.workdir / CONFIG_FILE, json.loads(run.config.to_json()))


def check_workdir(run: Run) -> bool:
    """Check that the workdir fits this run's config, and return whether its ``config.json`` exists.

    Raises:
      ConfigError: the workdir was begun, or its newest checkpoint trained, with another config (the message lists
        the differing fields), or nothing tells with which config the checkpoints were trained.
    """
    path = run.workdir / CONFIG_FILE
    begun, trained = path.exists(), checkpoint.read_position(str(run.workdir))
    if begun:
        try:
            old = json.loads(path.read_text())
            steps = paths.flatten(old).get("steps")
        except (ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} is not a config written by this program: {error}") from error
        _check_config(run, old, f"{run.workdir} belongs to a run")
        if steps != run.config.steps:
            log.warning(
                "config.steps changes from %s to %s, where schedules now end",
                steps,
                run.config.steps,
            )
    if trained is None:
        return begun
    if "config" in trained:
        _check_config(run, trained["config"], f"the checkpoints of {run.workdir} are of a run")
    elif not begun:
        raise ConfigError(
            f"{path} is missing, and the checkpoints beside it do not say what they were trained with: put it "
            "back, or choose another --workdir and start from these weights with --config.init_from"
        )
    if not begun:
        log.warning("%s is missing; the checkpoints were trained with this config", path)
    return begun


def _check_config(run: Run, old: Mapping[str, Any], whose: str) -> None:
    """Raise `ConfigError` if an `old` config differs from the run's in more than `FREE_FIELDS`; `whose` names it."""
    if differing := _differing(old, json.loads(run.config.to_json())):
        raise ConfigError(
            f"{whose} with another config ({differing}). Choose another --workdir, or start from its weights "
            "with --config.init_from."
        )


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 8) -> str:
    """List, for a message, the fields other than `FREE_FIELDS` in which two configs differ; empty if there are none.

    If one config lacks a field of the system and the other has the field's default, this is no difference: the class
    gained the field between the two.
    """
    there, here = paths.flatten(of_today(there)), paths.flatten(of_today(here))
    names = {
        name
        for name in there.keys() | here.keys()
        if there.get(name) != here.get(name) and not re.fullmatch(FREE_FIELDS, name)
    }
    if names - (there.keys() & here.keys()) and _same_system(there, here):
        names = {name for name in names if not name.startswith("system/")}
    differing = [
        f"{name}: {there.get(name, 'absent')!r} in that run, {here.get(name, 'absent')!r} in this config"
        for name in sorted(names)
    ]
    more = f"; and {len(differing) - most} more" if len(differing) > most else ""
    return "; ".join(differing[:most]) + more


def _same_system(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Tell whether two flat configs describe systems that are equal except in `FREE_FIELDS`."""
    free = {name: value for name, value in here.items() if re.fullmatch(FREE_FIELDS, name)}
    fixed = {name: value for name, value in there.items() if not re.fullmatch(FREE_FIELDS, name)}
    try:
        one, other = (
            systems.build(paths.unflatten(flat)["system"]) for flat in (here, fixed | free)
        )
    except (ConfigError, KeyError, TypeError, ValueError):
        return False
    return one == other


class GivenRun(Run):
    """A run whose parameters come from weight files instead of checkpoints.

    The parameters are read whenever they are asked for, and are not kept in memory.

    Args:
      config: the (locked) config.
      where: the folder of the weights, or the name of a shipped network.
      named: the text by which error messages name the weights.
      shapes: takes this run and returns ``{player: tree}`` with the shapes of all parameters.
      read: takes the system and the names of the networks to read (None for all); returns ``{player: tree}`` and the
        non-gradient state.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        where: str,
        named: str,
        shapes: Callable[[Run], PyTree],
        read: Callable[[systems.System, tuple[str, ...] | None], tuple[PyTree, PyTree]],
    ):
        super().__init__(config, where)
        self._read_given = read
        want = {"model": self.abstract_params["model"]}
        if wrong := paths.misfits(shapes(self), want):
            raise ConfigError(f"{named} does not fit its own sizes: {'; '.join(wrong)}")

    def trained_vars(self) -> Vars:
        """Read the given parameters onto every device."""
        return self._read(None)

    def weights_digest(self) -> str:
        """See `Run.weights_digest`; the digest is that of the weight files."""
        where = self.workdir
        if str(where) in own_weights.names():
            where = own_weights.FOLDER / f"{where}.safetensors"
        return files.digest(where)

    def vars_by_part(self) -> Callable[..., Vars]:
        """See `Run.vars_by_part`; each call reads the files of the named networks."""
        return lambda *names: self._read(names)

    def _read(self, names: tuple[str, ...] | None) -> Vars:
        given = self._read_given(self.system, names)
        return Vars(*jax.device_put(given, sharding.replicated(self.mesh)), self.consts)
