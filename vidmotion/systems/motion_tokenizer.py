"""X-NeMo's motion tokenizer: turns the motion codes of a frozen X-NeMo into discrete tokens of four frames each
(appendix E; spec xnemo.md, 4.2). As in T2M-GPT, it is a VQ-VAE over time whose codebook is updated by moving averages
of the vectors assigned to each entry.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion.config_schema import from_config
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.losses.tokens import tokenizer_loss
from vidmotion.models.motion_tokenizer import MotionTokenizer, Tokenized
from vidmotion.system import Const, Describes, Out, System, Vars, dtype

PyTree = Any
ENCODER = "motion_encoder"  # name of the motion encoder's fingerprint


@dataclasses.dataclass(frozen=True)
class MotionTokens(System, Describes):
    """A `MotionTokenizer` that is trained on stored motion codes.

    Attributes:
      codes: the folder of X-NeMo motion codes that ``python -m vidmotion.encode`` wrote; their statistics, which lie
        there too, are used frozen.
      frames: T, the number of codes in a training sequence.
      network: the fields of `MotionTokenizer`.
      velocity, commitment: the weights of the terms of these names in `tokenizer_loss`.
      compute: ``float32`` or ``bfloat16``.
    """

    codes: str
    frames: int
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    velocity: float = 0.5
    commitment: float = 0.02
    compute: str = "float32"

    def __post_init__(self):
        dtype(self.compute)
        from_config(MotionTokenizer, self.network, "system.network")
        step = 2**self.net.halvings
        if self.frames < step or self.frames % step:
            raise ConfigError(
                f"config.system.frames={self.frames} must be a positive multiple of {step}, the frames of a token"
            )

    @property
    def net(self) -> MotionTokenizer:
        """The tokenizer."""
        return MotionTokenizer(**self.network, dtype=dtype(self.compute))

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``motion`` float32 (B, T, channels)."""
        shape = (batch, self.frames, self.net.channels)
        return {"motion": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        return {"model": self._fresh(key)["params"]}

    def init_mutable(self) -> PyTree:
        """Returns the initial ``codebook``, which is replaced from the first batch (see `quantizer.EmaQuantizer`)."""
        return {"codebook": self._fresh(jax.random.key(0))["codebook"]}

    def _fresh(self, key: jax.Array) -> PyTree:
        return self.net.init(key, jnp.zeros((1, 2**self.net.halvings, self.net.channels)))

    def consts_spec(self) -> dict[str, Const]:
        """Returns ``{"standard": {"mean", "deviation"}}``, the frozen statistics of the codes, (channels,) each."""
        return {"standard": Const(self._shapes, self._load)}

    def _shapes(self) -> PyTree:
        leaf = jax.ShapeDtypeStruct((self.net.channels,), jnp.float32)
        return {"mean": leaf, "deviation": leaf}

    def _load(self) -> PyTree:
        encoded.MotionCodesSource.read_provenance(self.codes)
        have = encoded.MotionCodesSource.read_attached(self.codes)
        if have["mean"].shape != (self.net.channels,):
            raise ConfigError(
                f"config.system.codes={self.codes!r} comes from an X-NeMo with codes of {len(have['mean'])} "
                f"numbers, but config.system.network.channels={self.net.channels}"
            )
        return {"mean": have["mean"], "deviation": have["std"]}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the statistics and of the motion encoder of the X-NeMo."""
        encoder = encoded.MotionCodesSource.read_provenance(self.codes)["encoder"]
        return {**super().fingerprints(consts), ENCODER: encoder}

    def tokens(self, batch: int) -> int:
        """Returns the number of motion tokens in a batch."""
        return batch * self.frames // 2**self.net.halvings

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures how well tokens preserve held-out motion."""
        return ("motion_tokens",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the smooth L1 error of the standardised codes and of their differences from frame to frame, plus the
        commitment loss."""
        made, state = self.net.apply(
            self.variables(vars), batch["motion"], key, mutable=["codebook"]
        )
        loss, terms = tokenizer_loss(
            made.target_btc,
            made.reconstruction_btc,
            made.commitment,
            self.velocity,
            self.commitment,
        )
        return loss, Out({**terms, "perplexity": made.perplexity}, {"codebook": state["codebook"]})

    # -- use --------------------------------------------------------------------------------------

    @staticmethod
    def variables(vars: Vars) -> dict[str, PyTree]:
        """Returns the variables of `net`."""
        return {
            "params": vars.params["model"],
            "codebook": vars.mutable["codebook"],
            "standard": vars.consts["standard"],
        }

    def rebuilt(self, vars: Vars, batch: PyTree) -> Tokenized:
        """Encodes the codes ``motion`` (B, T, channels) as tokens and decodes them again."""
        return self.net.apply(self.variables(vars), batch["motion"])

    def read(self, vars: Vars, batch: PyTree) -> jax.Array:
        """Encodes the codes ``motion`` (B, T, channels) as tokens, int32 (B, T / 4)."""
        return self.net.apply(self.variables(vars), batch["motion"], method="encode")
