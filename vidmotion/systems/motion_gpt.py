"""BCD's auto-regressive motion generation: GPT-2 over the codes of a frozen BCD (supplement A.2, Table A6).

The sequence is [content, frame_1, ..., frame_T], where a frame is given by its quantised motion. The head predicts the
next frame's code in all codebooks at once, and the loss is the mean cross-entropy over codebooks.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.models import motion_gpt
from vidmotion.models.quantizer import GroupedQuantizer
from vidmotion.system import Const, Describes, Out, System, Vars, dtype

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MotionGenerator(System, Describes):
    """A GPT-2 that generates motion codes.

    Attributes:
      codes: the folder of BCD codes that ``python -m vidmotion.encode`` wrote; its codebooks are used frozen.
      frames: the number of frames in a training sequence.
      books, entries, dim: the sizes of the BCD run's quantiser.
      content_tokens, content_width: K and C_c of the BCD run.
      width, layers, heads: the sizes of the GPT-2 (Table A6).
      max_positions, dropout: the number of position embeddings and the dropout rate of the GPT-2. Not in paper.
      content_elements: how many elements of the sequence hold the content: 1, as in the paper ("the first sequence
        element"), or K.
      post_linear: whether the BCD run's quantiser applies a linear map after quantisation.
      compute: ``float32`` or ``bfloat16``.
    """

    codes: str
    frames: int
    books: int
    entries: int
    dim: int
    content_tokens: int
    content_width: int
    width: int
    layers: int
    heads: int
    max_positions: int = 128
    dropout: float = 0.1
    content_elements: int = 1
    post_linear: bool = True
    compute: str = "float32"

    def __post_init__(self):
        dtype(self.compute)
        if self.content_elements not in (1, self.content_tokens):
            raise ConfigError(
                f"config.system.content_elements={self.content_elements}: choose 1 or "
                f"content_tokens={self.content_tokens}"
            )
        if self.frames < 2:
            raise ConfigError(f"config.system.frames={self.frames} must be at least 2")
        if self.frames > self.most_frames:
            raise ConfigError(
                f"config.system.frames={self.frames}: with max_positions={self.max_positions} it must be at most "
                f"{self.most_frames}"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"config.system.width={self.width} must be divisible by heads={self.heads}"
            )

    @property
    def most_frames(self) -> int:
        """The longest sequence in frames; the last frame needs no position, because it is predicted but never read."""
        return self.max_positions - self.content_elements + 1

    @property
    def _net(self) -> motion_gpt.MotionGPT:
        return motion_gpt.MotionGPT(
            books=self.books,
            entries=self.entries,
            book_dim=self.dim,
            content_shape=(self.content_tokens, self.content_width),
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_positions=self.max_positions,
            content_elements=self.content_elements,
            dropout=self.dropout,
            dtype=dtype(self.compute),
        )

    @property
    def _quantizer(self) -> GroupedQuantizer:
        return GroupedQuantizer(
            books=self.books, entries=self.entries, dim=self.dim, post_linear=self.post_linear
        )

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``content`` float32 (B, K, C_c), ``ids`` int32 (B, T, N)."""
        content = (batch, self.content_tokens, self.content_width)
        return {
            "content": jax.ShapeDtypeStruct(content, jnp.float32),
            "ids": jax.ShapeDtypeStruct((batch, self.frames, self.books), jnp.int32),
        }

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        content = jnp.zeros((1, self.content_tokens, self.content_width))
        motion = jnp.zeros((1, self.frames - 1, self.books * self.dim))
        return {"model": self._net.init(key, content, motion)["params"]}

    def consts_spec(self) -> dict[str, Const]:
        """Returns ``{"quantizer": the frozen codebooks}``."""
        return {"quantizer": Const(self._shapes, self._load)}

    def _shapes(self) -> PyTree:
        motion = jnp.zeros((1, 1, self.books * self.dim))
        return jax.eval_shape(self._quantizer.init, jax.random.key(0), motion)["params"]

    def _load(self) -> PyTree:
        have = encoded.CodesSource.read_attached(self.codes)
        have.pop("log_alpha", None)  # the softness of assignments, which decoding does not need
        want = {path: leaf.shape for path, leaf in paths.flatten(self._shapes()).items()}
        found = {path: value.shape for path, value in have.items()}
        if want != found:
            raise ConfigError(
                f"config.system.codes={self.codes!r} comes from a BCD of another shape: its quantiser "
                f"has {found}, but this config expects {want}"
            )
        return paths.unflatten(have)

    def tokens(self, batch: int) -> int:
        """Returns the number of sequence elements in a batch."""
        return batch * (self.content_elements + self.frames - 1)

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures the cross-entropy on held-out codes and the histogram of generated ones."""
        return ("motion_generation",)

    def embed(self, consts: Mapping[str, PyTree], ids_btn: jax.Array) -> jax.Array:
        """Turns codes (B, T, N) into quantised motion (B, T, N * D) with the codebooks of the frozen BCD."""
        return self._quantizer.apply({"params": consts["quantizer"]}, ids_btn, method="embed")

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the mean cross-entropy of the next frame's codes, in nats."""
        ids = batch["ids"]
        logits = self._net.apply(
            {"params": vars.params["model"]},
            batch["content"],
            self.embed(vars.consts, ids[:, :-1]),
            deterministic=False,
            rngs={"dropout": key},
        )
        loss = motion_gpt.next_frame_loss(logits, ids)
        hit = jnp.mean(jnp.argmax(logits, axis=-1) == ids)
        return loss, Out({"cross_entropy": loss, "top1": hit}, vars.mutable)

    def score(self, vars: Vars, batch: PyTree) -> jax.Array:
        """Returns the cross-entropy (B,) of each sequence, in nats, without dropout."""

        def one(content, ids):
            logits = self._net.apply(
                {"params": vars.params["model"]},
                content[None],
                self.embed(vars.consts, ids[None, :-1]),
            )
            return motion_gpt.next_frame_loss(logits, ids[None])

        return jax.vmap(one)(batch["content"], batch["ids"])

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        frames: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
    ) -> PyTree:
        """Generates motion codes for given content.

        Args:
          vars: parameters.
          batch: ``content`` float32 (B, K, C_c).
          key: the random key of the draws.
          frames: the number of frames to generate; None takes the config's.
          temperature: the temperature of the draws; 0 always takes the most likely code.
          top_k: draw only among this many most likely codes; None draws among all.

        Returns:
          ``ids`` int32 (B, frames, N).

        Raises:
          ConfigError: more than `most_frames` frames, or `temperature` or `top_k` out of range.
        """
        frames = self.frames if frames is None else frames
        if not 1 <= frames <= self.most_frames:
            raise ConfigError(f"frames={frames}: choose 1 to {self.most_frames}")
        if temperature < 0 or not 1 <= (top_k or 1) <= self.entries:
            raise ConfigError(
                f"temperature={temperature} must be at least 0, and top_k={top_k} from 1 to the "
                f"{self.entries} entries of a codebook"
            )
        ids = motion_gpt.generate(
            self._net,
            {"params": vars.params["model"]},
            batch["content"],
            lambda ids_b1n: self.embed(vars.consts, ids_b1n),
            frames,
            key=key,
            temperature=temperature,
            top_k=top_k,
        )
        return {"ids": ids}

    @property
    def uniform_loss(self) -> float:
        """ln J, the cross-entropy of a uniform guess."""
        return math.log(self.entries)
