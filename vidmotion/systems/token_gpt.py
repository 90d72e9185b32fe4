"""Motion generation from X-NeMo's codes: GPT-2 over the tokens of a frozen tokenizer (appendix E; spec xnemo.md, 4.3
and 4.4). It continues the tokens of a driving video (outpainting), or generates tokens of a given emotion from scratch.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths
from vidmotion.config_schema import from_config
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.models import token_gpt
from vidmotion.models.motion_tokenizer import MotionTokenizer
from vidmotion.models.token_gpt import TokenGPT
from vidmotion.system import Const, Describes, Out, System, Vars, dtype
from vidmotion.systems.motion_tokenizer import ENCODER

PyTree = Any
CONTEXT = 8  # earlier tokens that are decoded together with new ones and then dropped, so that no seam shows
# Fields that the folder's tokenizer and the config's must share.
SHAPE = ("channels", "entries", "dim", "halvings", "width", "blocks", "growth")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings for drawing tokens.

    Attributes:
      temperature: the temperature of the draws; 0 always takes the most likely token.
      top_k: draw only among this many most likely tokens; 0 draws among all.
      top_p: draw only among the most likely tokens that together reach this probability; 1 draws among all.
      guidance: the scale of the condition's effect on the logits; 1 switches guidance off.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True)
class TokenGenerator(System, Describes):
    """A GPT-2 that generates motion tokens.

    Attributes:
      codes: the folder of motion tokens that ``python -m vidmotion.encode`` wrote; its tokenizer is used frozen.
      length: the number of tokens in a training sequence.
      tokenizer: the fields of `MotionTokenizer`; the sizes must be those of the folder's tokenizer.
      width, layers, heads, max_positions, dropout: see `TokenGPT`.
      conditions: the number of emotions in the folder's clips, counting each level of an emotion; 0 trains without
        emotions.
      drop: the probability per sequence of training without the emotion.
      keep: the smallest probability of keeping an input token in training. Each sequence draws its probability from
        `keep` to 1, and tokens that are not kept are replaced by random ones; 1 keeps all.
      sampler: how tokens are drawn.
      compute: ``float32`` or ``bfloat16``.
    """

    codes: str
    length: int
    width: int
    layers: int
    heads: int
    max_positions: int
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    conditions: int = 0
    drop: float = 0.1
    keep: float = 1.0
    dropout: float = 0.1
    sampler: Sampler = Sampler()
    compute: str = "float32"

    def __post_init__(self):
        dtype(self.compute)
        from_config(MotionTokenizer, self.tokenizer, "system.tokenizer")
        if self.width % self.heads:
            raise ConfigError(
                f"config.system.width={self.width} must be divisible by heads={self.heads}"
            )
        most = self.max_positions - self.net.prefix + 1
        if not 2 <= self.length <= most:
            raise ConfigError(
                f"config.system.length={self.length} must be from 2 to {most}, with max_positions={self.max_positions}"
            )
        if not 0 <= self.drop < 1 or not 0 <= self.keep <= 1:
            raise ConfigError(
                f"config.system: drop={self.drop} must be at least 0 and below 1, and keep={self.keep} within 0..1"
            )
        draws = self.sampler
        if (
            draws.temperature < 0
            or not 0 <= draws.top_k <= self.net.entries
            or not 0 < draws.top_p <= 1
        ):
            raise ConfigError(
                f"config.system.sampler: temperature={draws.temperature} must be at least 0, top_k={draws.top_k} from "
                f"0 to the {self.net.entries} entries, and top_p={draws.top_p} above 0 and at most 1"
            )
        if draws.guidance != 1.0 and not self.conditions:
            raise ConfigError(
                f"config.system.sampler.guidance={draws.guidance} must be 1 if there are no conditions to guide towards"
            )

    # -- networks ---------------------------------------------------------------------------------

    @property
    def decoder(self) -> MotionTokenizer:
        """The tokenizer, whose decoder turns tokens into motion codes."""
        return MotionTokenizer(**self.tokenizer, dtype=dtype(self.compute))

    @property
    def net(self) -> TokenGPT:
        """The GPT-2."""
        return TokenGPT(
            entries=self.decoder.entries,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_positions=self.max_positions,
            conditions=self.conditions,
            dropout=self.dropout,
            dtype=dtype(self.compute),
        )

    @property
    def step(self) -> int:
        """The number of frames that a token stands for."""
        return 2**self.decoder.halvings

    # -- the interface ----------------------------------------------------------------------------

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``ids`` int32 (B, S); with conditions also ``condition`` int32 (B,)."""
        spec = {"ids": jax.ShapeDtypeStruct((batch, self.length), jnp.int32)}
        if self.conditions:
            spec["condition"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return spec

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        condition = jnp.zeros(1, jnp.int32) if self.conditions else None
        ids = jnp.zeros((1, self.length - 1), jnp.int32)
        return {"model": self.net.init(key, ids, condition)["params"]}

    def consts_spec(self) -> dict[str, Const]:
        """Returns ``{"tokenizer": variables}``, the frozen tokenizer."""
        return {"tokenizer": Const(self._shapes, self._load)}

    def _shapes(self) -> PyTree:
        motion = jnp.zeros((1, self.step, self.decoder.channels))
        return dict(jax.eval_shape(self.decoder.init, jax.random.key(0), motion))

    def _load(self) -> PyTree:
        there = encoded.MotionTokensSource.read_provenance(self.codes)
        theirs, ours = MotionTokenizer(**there["network"], parent=None), self.decoder
        differing = [
            f"{name} {getattr(theirs, name)} instead of {getattr(ours, name)}"
            for name in SHAPE
            if getattr(theirs, name) != getattr(ours, name)
        ]
        if differing:
            raise ConfigError(
                f"config.system.codes={self.codes!r} comes from a motion tokenizer of another shape than "
                f"config.system.tokenizer: {', '.join(differing)}"
            )
        names = there["conditions"]
        if self.conditions and self.conditions != len(names):
            raise ConfigError(
                f"config.system.conditions={self.conditions}, but the clips of config.system.codes="
                f"{self.codes!r} have {len(names)} emotions{': ' if names else ''}{', '.join(names)}"
            )
        return paths.unflatten(encoded.MotionTokensSource.read_attached(self.codes))

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the tokenizer and of the motion encoder of the X-NeMo."""
        encoder = encoded.MotionTokensSource.read_provenance(self.codes)["encoder"]
        return {**super().fingerprints(consts), ENCODER: encoder}

    def tokens(self, batch: int) -> int:
        """Returns the number of GPT-2 positions in a batch."""
        return batch * (self.net.prefix + self.length - 1)

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures the cross-entropy on held-out tokens and shows generated motion."""
        return ("token_generation",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the mean cross-entropy of the next token, in nats."""
        ids = batch["ids"]
        keep_key, corrupt_key, drop_key, dropout_key = jax.random.split(key, 4)
        keep_b1 = jax.random.uniform(keep_key, (len(ids), 1), minval=self.keep, maxval=1.0)
        seen = ids[:, :-1]
        if self.keep < 1:
            seen = token_gpt.corrupt(corrupt_key, seen, self.net.entries, keep_b1)
        condition = None
        if self.conditions:
            dropped_b = jax.random.bernoulli(drop_key, self.drop, (len(ids),))
            condition = jnp.where(dropped_b, self.conditions, batch["condition"])
        logits = self.net.apply(
            {"params": vars.params["model"]},
            seen,
            condition,
            deterministic=False,
            rngs={"dropout": dropout_key},
        )
        loss = token_gpt.token_loss(logits, ids, self.net.pad)
        hit = jnp.mean(jnp.argmax(logits, axis=-1) == ids)
        return loss, Out({"cross_entropy": loss, "top1": hit}, vars.mutable)

    # -- use --------------------------------------------------------------------------------------

    def score(self, vars: Vars, batch: PyTree) -> jax.Array:
        """Returns the cross-entropy (B,) of each sequence ``ids``, in nats per token, without dropout."""
        condition = batch["condition"] if self.conditions else None
        params = {"params": vars.params["model"]}
        logits = self.net.apply(params, batch["ids"][:, :-1], condition)

        def one(logits_sv, ids_s):
            return token_gpt.token_loss(logits_sv[None], ids_s[None], self.net.pad)

        return jax.vmap(one)(logits, batch["ids"])

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array, count: int | None = None) -> PyTree:
        """Generates tokens that continue given ones, and decodes them to motion codes.

        Args:
          vars: parameters.
          batch: ``ids`` int32 (B, S), the tokens to continue, where S may be 0; with conditions also ``condition``
            int32 (B,), where the value `conditions` means "no emotion".
          key: the random key of the draws.
          count: the number of tokens to generate; None takes `length`.

        Returns:
          ``ids`` int32 (B, count), the new tokens; ``motion`` float32 (B, 4 * count, channels), their motion codes.
        """
        draws = self.sampler
        new = token_gpt.generate(
            self.net,
            {"params": vars.params["model"]},
            batch["ids"],
            self.length if count is None else count,
            key=key,
            condition_b=batch["condition"] if self.conditions else None,
            temperature=draws.temperature,
            top_k=draws.top_k or None,
            top_p=draws.top_p,
            guidance=draws.guidance,
        )
        return {"ids": new, "motion": self.motion(vars, batch["ids"], new)}

    def motion(self, vars: Vars, before: jax.Array, ids: jax.Array) -> jax.Array:
        """Decodes tokens `ids` (B, S) to motion codes (B, 4 * S, channels).

        The tokens `before` (B, S') that precede `ids` serve as context for the decoder.
        """
        context = min(CONTEXT, before.shape[1])
        joined = jnp.concatenate([before[:, before.shape[1] - context :], ids], axis=1)
        made = self.decoder.apply(vars.consts["tokenizer"], joined, method="decode")
        return made[:, context * self.step :]

    def tokenised(self, vars: Vars, motion: jax.Array) -> jax.Array:
        """Encodes motion codes (B, T, channels) as tokens, int32 (B, T / 4)."""
        return self.decoder.apply(vars.consts["tokenizer"], motion, method="encode")

    @property
    def uniform_loss(self) -> float:
        """The cross-entropy of a uniform guess among all entries and the end of the sequence."""
        return math.log(self.net.entries + 1)
