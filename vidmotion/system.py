"""The one interface between a paper and the training loop, and the table of systems.

A system is a frozen dataclass of numbers and linen modules, never arrays. Its fields are those of ``config.system``,
so a misspelt one is an error and there is no second schema.
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
    """One optimisation player.

    Attributes:
      name: top-level key of its parameters, and of its section in ``config.optimizer``.
      start: first step (count of completed updates) at which it learns.
      period: it learns every `period` steps from `start` on.
      shares_forward: it reuses the first player's stop-gradient outputs (`Out.carry`) instead of
        recomputing them with that player's updated parameters.
      whole_schedule: its learning rate's schedule is that of the whole run, as though it had learnt from step 0; else
        the schedule begins with its first update and ends with its last.
      switches: steps from which its loss has a term that it did not have before, as the loss asks `begun` about them.
    """

    name: str
    start: int = 0
    period: int = 1
    shares_forward: bool = False
    whole_schedule: bool = False
    switches: tuple[int, ...] = ()


class Vars(NamedTuple):
    """All arrays a system reads: trained (and frozen) parameters, mutable state, never-trained constants."""

    params: PyTree
    mutable: PyTree
    consts: PyTree


class Out(NamedTuple):
    """What a loss returns beside its scalar.

    Attributes:
      metrics: ``{name: () array}``, averaged over microbatches by `weight`.
      mutable: the new mutable state.
      carry: stop-gradient outputs for later players that share the forward pass.
      weight: () array, how much this microbatch counts (1 unless microbatches are uneven).
    """

    metrics: dict[str, jax.Array]
    mutable: PyTree = ()
    carry: PyTree = ()
    weight: jax.Array | float = 1.0


class Const(NamedTuple):
    """A network that is never trained.

    Attributes:
      shapes: () -> abstract parameter tree; reads no file.
      load: () -> the parameters, of those shapes.
    """

    shapes: Callable[[], PyTree]
    load: Callable[[], PyTree]


class System(abc.ABC):
    """What every paper provides. Subclasses are frozen dataclasses.

    A system that also moves one clip as another, starts from published weights or has more to say of itself inherits
    `MotionTransfer`, `Released` or `Describes` too.
    """

    @property
    def players(self) -> tuple[Player, ...]:
        """Players in the order in which they update."""
        return (Player("model"),)

    @abc.abstractmethod
    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of a training batch of `batch` examples."""

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Parameters ``{player: tree}`` for ALL stages; the tree never changes between stages."""

    def init_mutable(self) -> PyTree:
        """Non-gradient state (running statistics, codebooks) of a run that begins.

        A run that starts from another's parameters takes over that run's state too (`inherited`).
        """
        return {}

    def consts_spec(self) -> dict[str, Const]:
        """Networks this paper never trains, by name."""
        return {}

    @abc.abstractmethod
    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Scalar loss of `player` on `batch` after `step` completed updates."""

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array, **options) -> PyTree:
        """Outputs for pictures and evaluators; pure and jit-able."""
        raise ConfigError(f"{type(self).__name__} has nothing to sample")

    def evaluators(self) -> tuple[str, ...]:
        """Names from `vidmotion.evaluation` that make sense for this system."""
        return ()


@runtime_checkable
class MotionTransfer(Protocol):
    """A system whose `System.sample` shows one clip, ``content``, moving as another, ``motion``."""

    @property
    def window(self) -> int:
        """Frames of motion that `sample` takes together where a video of any length moves the content
        (`vidmotion.reenact`); 0: only clips as in training can."""
        return 0

    @property
    def overlap(self) -> int:
        """Frames that a window shares with the next, in which one is to fade into the other."""
        return 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes that `sample` can decode alone, with the option ``part``."""
        return ()

    @property
    def content_frames(self) -> int:
        """Frames of a content video that serve a motion of any length; 0: content runs beside the motion."""
        return 0

    @property
    def face_side(self) -> int:
        """Pixels of the face crops that `sample` reads where faces are known, beside whole pictures: then the
        batch has ``driving``, ``reference_face`` and ``f_rts`` as in `data.portraits`. 0: it reads none."""
        return 0

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """The codes of clips as `sample` takes them, for probes; pure and jit-able.

        Returns:
          ``content`` floats (B, Dc) of each content clip; ``motion`` floats (B, T, Dm) of each motion clip.
        """
        raise ConfigError(f"{type(self).__name__} has no codes of content and motion to read")


@runtime_checkable
class Released(Protocol):
    """A system that can start from a published network, as ``python -m vidmotion.convert`` wrote it."""

    @staticmethod
    def released_fields(arguments: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Fields of this system that the arguments of the published network decide."""
        return {"network": arguments}

    @abc.abstractmethod
    def released(self, params: PyTree) -> PyTree:
        """``{player: tree}`` of this system from the parameters of the published network; it may lack players.

        Raises:
          ConfigError: another network than this system starts from.
        """

    def released_mutable(self, params: PyTree) -> PyTree:
        """The non-gradient state that comes with the published network."""
        return self.init_mutable()


@runtime_checkable
class Describes(Protocol):
    """A system that says more of itself, for the plan, the log and the checks of what was made with it."""

    def tokens(self, batch: int) -> int:
        """Tokens that the largest network processes for `batch` examples; 0 where the word has no meaning."""
        return 0

    def facts(self, params: PyTree) -> dict[str, str]:
        """Further lines of ``--mode=plan``, label and text, given the abstract parameters ``{player: tree}``."""
        return {}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Hex text that names the content of each never-trained network; kept with what was made of them."""
        return {name: fingerprint(tree) for name, tree in consts.items()}

    @property
    def share_kept(self) -> float | None:
        """Numbers of a clip's codes over the numbers of the clip; None where nothing is to be rebuilt from codes."""
        return None


_SPAN: contextvars.ContextVar[tuple[int, int | None]] = contextvars.ContextVar("span")


@contextlib.contextmanager
def within(first: int, end: int | None) -> Iterator[None]:
    """What is traced inside serves the steps `first` to `end` - 1 only; `end` None: all steps from `first` on."""
    token = _SPAN.set((first, end))
    try:
        yield
    finally:
        _SPAN.reset(token)


def begun(step: jax.Array, start: int) -> bool | jax.Array:
    """Whether ``step >= start``: a bool where every step of the surrounding `within` agrees, else a () array."""
    first, end = _SPAN.get((0, None))
    if first >= start:
        return True
    if end is not None and end <= start:
        return False
    return step >= start


def when(due: bool | jax.Array, run: Callable, rest: Callable, *operands: PyTree) -> PyTree:
    """``run(*operands)`` if `due`, a bool or a () array of one, else ``rest(*operands)``, of equal shapes.

    What is known while tracing is not in the program. An array becomes a conditional, so that what is not due costs
    nothing; but XLA's CPU backend runs convolutions inside a conditional some thirty times slower than outside, so
    there both are computed and one is taken.
    """
    if isinstance(due, bool):
        return run(*operands) if due else rest(*operands)
    if jax.default_backend() != "cpu":
        return jax.lax.cond(due, run, rest, *operands)
    return jax.tree.map(functools.partial(jnp.where, due), run(*operands), rest(*operands))


def fresh_statistics(shapes: PyTree) -> PyTree:
    """Running statistics of batch norms as they start: means of 0 and variances (``var``) of 1.

    Args:
      shapes: nested dict of shapes, the collection ``batch_stats`` of a network.
    """
    return paths.unflatten(
        {
            path: (jnp.ones if path.endswith("var") else jnp.zeros)(leaf.shape)
            for path, leaf in paths.flatten(shapes).items()
        }
    )


def inherited(fresh: PyTree, there: PyTree) -> PyTree:
    """Non-gradient state `fresh`, with each leaf replaced that `there` has in the same place and shape."""
    found = paths.flatten(there)
    return paths.unflatten(
        {
            path: found[path] if path in found and found[path].shape == leaf.shape else leaf
            for path, leaf in paths.flatten(fresh).items()
        }
    )


def fingerprint(tree: PyTree) -> str:
    """Hex sha256 of the paths, dtypes, shapes and values of all leaves, whatever the order of keys."""
    digest = hashlib.sha256()
    for path, leaf in sorted(paths.flatten(tree).items()):
        value = np.asarray(leaf, order="C")
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def check_batch(system: System, batch: PyTree, size: int) -> None:
    """Compare what the loader yields with what the system expects.

    Raises:
      ConfigError: a name is missing, or a shape or dtype differs; every offender is named.
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
    """The class of a system, `name` a key of `SYSTEMS`."""
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(section: Mapping[str, Any]) -> System:
    """Build the system that ``config.system`` describes.

    Args:
      section: mapping with `name` (a key of `SYSTEMS`) and that system's fields.

    Raises:
      ConfigError: unknown name, unknown field or a value that does not fit.
    """
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in SYSTEMS:
        raise ConfigError(
            f"config.system.name={name!r}: choose one of {', '.join(sorted(SYSTEMS))}"
        )
    return from_config(find(name), fields, "system")


def dtype(name: str) -> jnp.dtype:
    """Compute dtype by its config name, ``float32`` or ``bfloat16`` (parameters stay float32).

    Raises:
      ConfigError: any other name.
    """
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype={name!r}: choose float32 or bfloat16")
    return jnp.dtype(name)
