"""X-NeMo's motion tokenizer: motion codes of a frozen X-NeMo as discrete tokens, four frames each (appendix E; spec
xnemo.md, 4.2). After T2M-GPT: a VQ-VAE over time whose codebook follows the vectors assigned to it.
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
ENCODER = "motion_encoder"  # name of its fingerprint


@dataclasses.dataclass(frozen=True)
class MotionTokens(System, Describes):
    """A `MotionTokenizer`, trained on stored codes.

    Attributes:
      codes: folder that ``python -m vidmotion.encode`` wrote of an X-NeMo; its statistics are used frozen.
      frames: T, codes per training sequence.
      network: fields of `MotionTokenizer`.
      velocity, commitment: weights of these terms of the loss.
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
                f"config.system.frames={self.frames}: a positive multiple of {step}, the frames of a token"
            )

    @property
    def net(self) -> MotionTokenizer:
        """The tokenizer."""
        return MotionTokenizer(**self.network, dtype=dtype(self.compute))

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """``motion`` float32 (B, T, channels)."""
        shape = (batch, self.frames, self.net.channels)
        return {"motion": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """``{"model": tree}``."""
        return {"model": self._fresh(key)["params"]}

    def init_mutable(self) -> PyTree:
        """``codebook``, see `quantizer.EmaQuantizer`: it begins with the first batch."""
        return {"codebook": self._fresh(jax.random.key(0))["codebook"]}

    def _fresh(self, key: jax.Array) -> PyTree:
        return self.net.init(key, jnp.zeros((1, 2**self.net.halvings, self.net.channels)))

    def consts_spec(self) -> dict[str, Const]:
        """``{"standard": {"mean", "deviation"}}``, (channels,) each."""
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
                f"numbers, config.system.network.channels={self.net.channels}"
            )
        return {"mean": have["mean"], "deviation": have["std"]}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Also of the X-NeMo's motion encoder."""
        encoder = encoded.MotionCodesSource.read_provenance(self.codes)["encoder"]
        return {**super().fingerprints(consts), ENCODER: encoder}

    def tokens(self, batch: int) -> int:
        """The number of motion tokens in a batch."""
        return batch * self.frames // 2**self.net.halvings

    def evaluators(self) -> tuple[str, ...]:
        """What the tokens keep of held-out motion."""
        return ("motion_tokens",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Smooth L1 of standardised codes and of their differences, and the commitment."""
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
        """The variables of `net`."""
        return {
            "params": vars.params["model"],
            "codebook": vars.mutable["codebook"],
            "standard": vars.consts["standard"],
        }

    def rebuilt(self, vars: Vars, batch: PyTree) -> Tokenized:
        """Codes ``motion`` (B, T, channels) through the tokens and back."""
        return self.net.apply(self.variables(vars), batch["motion"])

    def read(self, vars: Vars, batch: PyTree) -> jax.Array:
        """Tokens int32 (B, T / 4) of codes ``motion`` (B, T, channels)."""
        return self.net.apply(self.variables(vars), batch["motion"], method="encode")
