"""Defines the interface between a paper's system and the training loop, and lists the systems.

A system is a frozen dataclass of numbers and linen modules, never arrays. Its fields are the fields of
``config.system``, so a misspelt field is an error and no second schema is needed.
"""

import abc
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion import paths
from vidmotion.config_schema import from_config
from vidmotion.errors import ConfigError

PyTree = Any

SYSTEMS = {
    "bcd": "vidmotion.systems.bcd:BCD",
    "heads_reader": "vidmotion.systems.heads_reader:HeadsReader",
    "image_autoencoder": "vidmotion.systems.image_autoencoder:ImageAutoencoder",
    "image_diffusion": "vidmotion.systems.image_diffusion:ImageDiffusion",
    "motion_gpt": "vidmotion.systems.motion_gpt:MotionGenerator",
    "motion_tokenizer": "vidmotion.systems.motion_tokenizer:MotionTokens",
    "sprites_judge": "vidmotion.systems.sprites_judge:SpritesJudge",
    "token_gpt": "vidmotion.systems.token_gpt:TokenGenerator",
    "vidtwin": "vidmotion.systems.vidtwin:VidTwinAutoencoder",
    "vidtwin_dit": "vidmotion.systems.vidtwin_dit:VidTwinDiT",
    "warpface": "vidmotion.systems.warpface:WarpFace",
    "xnemo": "vidmotion.systems.xnemo:XNeMo",
}


@dataclasses.dataclass(frozen=True)
class Player:
    """A group of parameters that is trained with a loss and an optimizer of its own, such as a GAN's discriminator.

    Attributes:
      name: the top-level key of the player's parameters, and of its section in ``config.optimizer``.
      start: the first step (the number of completed updates) at which the player learns.
      period: the player learns every `period` steps from `start` on.
      shares_forward: whether the player reuses the first player's stop-gradient outputs (`Out.carry`) instead of
        recomputing them with the first player's updated parameters.
      whole_schedule: whether the schedule of the player's learning rate covers the whole run, as if the player had
        learnt from step 0; otherwise the schedule begins with the player's first update and ends with its last.
      switches: the steps from which the player's loss has an additional term, about which the loss asks `begun`.
    """

    name: str
    start: int = 0
    period: int = 1
    shares_forward: bool = False
    whole_schedule: bool = False
    switches: tuple[int, ...] = ()


class Vars(NamedTuple):
    """All arrays that a system reads: trained (and frozen) parameters, mutable state, and never-trained networks."""

    params: PyTree
    mutable: PyTree
    consts: PyTree


class Out(NamedTuple):
    """The outputs of a loss beside its scalar.

    Attributes:
      metrics: ``{name: () array}``, averaged over microbatches with weights `weight`.
      mutable: the new mutable state.
      carry: stop-gradient outputs for later players that share the forward pass.
      weight: () array, the weight of this microbatch (1 unless microbatches are uneven).
    """

    metrics: dict[str, jax.Array]
    mutable: PyTree = ()
    carry: PyTree = ()
    weight: jax.Array | float = 1.0


class Const(NamedTuple):
    """A network that is never trained.

    Attributes:
      shapes: returns the abstract parameter tree, without reading any file.
      load: returns the parameters, with these shapes.
    """

    shapes: Callable[[], PyTree]
    load: Callable[[], PyTree]


class System(abc.ABC):
    """The interface that every paper implements. Subclasses are frozen dataclasses.

    A system may also inherit from `MotionTransfer` (it makes one clip move like another), `Released` (it can start
    from published weights) or `Describes` (it gives more information about itself).
    """

    @property
    def players(self) -> tuple[Player, ...]:
        """Players in the order in which they update."""
        return (Player("model"),)

    @abc.abstractmethod
    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the names, shapes and dtypes of a training batch of `batch` examples."""

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Initialise the parameters ``{player: tree}`` for ALL stages; the tree never changes between stages."""

    def init_mutable(self) -> PyTree:
        """Make the non-gradient state (running statistics, codebooks) of a new run.

        A run that starts from the parameters of another run takes over that run's non-gradient state too
        (`inherited`).
        """
        return {}

    def consts_spec(self) -> dict[str, Const]:
        """Return the networks that this paper never trains, by name."""
        return {}

    @abc.abstractmethod
    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Compute the scalar loss of `player` on `batch` after `step` completed updates."""

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array, **options) -> PyTree:
        """Compute the outputs for pictures and evaluators; pure and jit-able."""
        raise ConfigError(f"{type(self).__name__} has nothing to sample")

    def evaluators(self) -> tuple[str, ...]:
        """Return the names of the evaluators in `vidmotion.evaluation` that make sense for this system."""
        return ()


@runtime_checkable
class MotionTransfer(Protocol):
    """A system whose `System.sample` shows one clip, ``content``, moving like another clip, ``motion``."""

    @property
    def window(self) -> int:
        """Number of motion frames per call of `sample` when a video of any length drives the content.

        `vidmotion.reenact` reads it. 0 means that `sample` takes only clips of the same length as in training.
        """
        return 0

    @property
    def overlap(self) -> int:
        """Number of frames that a window shares with the next one, over which the two are cross-faded."""
        return 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes that `sample` can decode alone, with the option ``part``."""
        return ()

    @property
    def content_frames(self) -> int:
        """Number of content frames that serve a motion of any length; 0 if the content runs alongside the motion."""
        return 0

    @property
    def face_side(self) -> int:
        """Side, in pixels, of the face crops that `sample` reads beside whole pictures; 0 if it reads none.

        If faces are known, the batch then holds ``driving``, ``reference_face`` and ``f_rts`` as in `data.portraits`.
        """
        return 0

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Compute the codes of clips, for probes; the batch is that of `sample`. Pure and jit-able.

        Returns:
          ``content``, floats (B, Dc), one code per content clip; ``motion``, floats (B, T, Dm), one per frame of each
          motion clip.
        """
        raise ConfigError(f"{type(self).__name__} has no codes of content and motion to read")


@runtime_checkable
class Released(Protocol):
    """A system that can start from a published network that ``python -m vidmotion.convert`` converted."""

    @staticmethod
    def released_fields(arguments: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Return the fields of this system that follow from the arguments of the published network."""
        return {"network": arguments}

    @abc.abstractmethod
    def released(self, params: PyTree) -> PyTree:
        """Convert the parameters of the published network to ``{player: tree}`` of this system; players may be absent.

        Raises:
          ConfigError: the network is not the one from which this system starts.
        """

    def released_mutable(self, params: PyTree) -> PyTree:
        """Return the non-gradient state that belongs to the published network."""
        return self.init_mutable()


@runtime_checkable
class Describes(Protocol):
    """A system that gives more information about itself, for the plan, the log and the check of its networks."""

    def tokens(self, batch: int) -> int:
        """Return the number of tokens that the largest network processes for `batch` examples; 0 if it has none."""
        return 0

    def facts(self, params: PyTree) -> dict[str, str]:
        """Return extra lines for ``--mode=plan``, ``{label: text}``; `params` is abstract, ``{player: tree}``."""
        return {}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Return a hex fingerprint of each never-trained network; stored with checkpoints and data made with them."""
        return {name: fingerprint(tree) for name, tree in consts.items()}

    @property
    def share_kept(self) -> float | None:
        """Ratio of the size of a clip's codes to the size of the clip, in numbers; None if codes rebuild nothing."""
        return None


_SPAN: contextvars.ContextVar[tuple[int, int | None]] = contextvars.ContextVar("span")


@contextlib.contextmanager
def within(first: int, end: int | None) -> Iterator[None]:
    """Declare that code traced inside this context serves only the steps `first` to `end` - 1.

    If `end` is None, the code serves all steps from `first` on.
    """
    token = _SPAN.set((first, end))
    try:
        yield
    finally:
        _SPAN.reset(token)


def begun(step: jax.Array, start: int) -> bool | jax.Array:
    """Return ``step >= start``: a bool if it is the same for all steps of the surrounding `within`, else a () array."""
    first, end = _SPAN.get((0, None))
    if first >= start:
        return True
    if end is not None and end <= start:
        return False
    return step >= start


def when(due: bool | jax.Array, run: Callable, rest: Callable, *operands: PyTree) -> PyTree:
    """Return ``run(*operands)`` if `due`, a bool or a () bool array, else ``rest(*operands)``, which has equal shapes.

    If `due` is a bool, only the chosen function is traced. If it is an array, it becomes a conditional, so that the
    other function costs nothing. XLA's CPU backend, however, runs convolutions inside a conditional some thirty times
    slower than outside, so on the CPU both functions are computed and one result is taken.
    """
    if isinstance(due, bool):
        return run(*operands) if due else rest(*operands)
    if jax.default_backend() != "cpu":
        return jax.lax.cond(due, run, rest, *operands)
    return jax.tree.map(functools.partial(jnp.where, due), run(*operands), rest(*operands))


def fresh_statistics(shapes: PyTree) -> PyTree:
    """Make the initial running statistics of batch norms: means of 0 and variances (``var``) of 1.

    Args:
      shapes: a nested dict of shapes, the collection ``batch_stats`` of a network.
    """
    return paths.unflatten(
        {
            path: (jnp.ones if path.endswith("var") else jnp.zeros)(leaf.shape)
            for path, leaf in paths.flatten(shapes).items()
        }
    )


def inherited(fresh: PyTree, there: PyTree) -> PyTree:
    """Replace each leaf of the non-gradient state `fresh` for which `there` has one of the same path and shape."""
    found = paths.flatten(there)
    return paths.unflatten(
        {
            path: found[path] if path in found and found[path].shape == leaf.shape else leaf
            for path, leaf in paths.flatten(fresh).items()
        }
    )


def fingerprint(tree: PyTree) -> str:
    """Return a hex sha256 of the paths, dtypes, shapes and values of all leaves; the order of keys does not matter."""
    digest = hashlib.sha256()
    for path, leaf in sorted(paths.flatten(tree).items()):
        value = np.asarray(leaf, order="C")
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def check_batch(system: System, batch: PyTree, size: int) -> None:
    """Compare a batch from the loader with the system's `System.input_spec` for `size` examples.

    Raises:
      ConfigError: a name is missing, or a shape or dtype differs; the message lists every such name.
    """
    wrong = []
    for name, want in system.input_spec(size).items():
        have = batch.get(name)
        if have is None:
            wrong.append(f"{name}: missing (the data yield {sorted(batch)})")
        elif have.shape != want.shape or have.dtype != want.dtype:
            wrong.append(f"{name}: {have.dtype}{have.shape}, expected {want.dtype}{want.shape}")
    if wrong:
        raise ConfigError("the data do not fit config.system: " + "; ".join(wrong))


def find(name: str) -> type[System]:
    """Import the class of a system; `name` is a key of `SYSTEMS`."""
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(section: Mapping[str, Any]) -> System:
    """Build the system that ``config.system`` describes.

    Args:
      section: a mapping with ``name`` (a key of `SYSTEMS`) and the fields of that system.

    Raises:
      ConfigError: the name or a field is unknown, or a value does not fit.
    """
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in SYSTEMS:
        raise ConfigError(
            f"config.system.name={name!r}: choose one of {', '.join(sorted(SYSTEMS))}"
        )
    return from_config(find(name), fields, "system")


def dtype(name: str) -> jnp.dtype:
    """Return the compute dtype with the name ``float32`` or ``bfloat16`` (parameters are always float32).

    Raises:
      ConfigError: the name is another one.
    """
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype={name!r}: choose float32 or bfloat16")
    return jnp.dtype(name)
