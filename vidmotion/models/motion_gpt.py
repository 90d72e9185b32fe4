"""BCD's motion generator: content first, then motion codes frame by frame (supplement; bcd.md, 8).

Shape suffixes: b batch, c content tokens, p content elements, s frames, m motion channels
(books * book_dim), d width, n codebooks ("books"), j entries of a codebook.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.gpt2 import GPT2, Cache

# BCD, Table A6, for the codes of Table A4. content_shape and max_positions are not in the paper
# (bcd.md, 3.3 and 8).
SIZES = {
    "bcd_lrs3": dict(
        books=64,
        entries=32,
        book_dim=16,
        content_shape=(64, 512),
        width=1024,
        layers=12,
        heads=8,
        max_positions=128,
    ),
}


def _identity(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> jax.Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


class MotionGPT(nn.Module):
    """GPT-2 over [content, frame_1, frame_2, ...]; each position predicts the next frame's codes.

    The codes of one frame are predicted in parallel, independently of each other given the past. A frame enters as
    its quantised motion vector, so the codebooks are not part of this module (they are frozen, in BCD's parameters).

    Attributes:
      books: the number of codebooks.
      entries: the number of entries of each codebook.
      book_dim: the channels of an entry.
      content_shape: (content tokens, channels) of the clip's content.
      content_elements: the number of sequence elements that represent the content: 1 (all of it flattened, as the paper
        says) or content_shape[0] (one per content token).
      width, layers, heads, mlp_dim, max_positions, dropout, dtype: see `gpt2.GPT2`.
    """

    books: int
    entries: int
    book_dim: int
    content_shape: tuple[int, int]
    width: int
    layers: int
    heads: int
    max_positions: int
    content_elements: int = 1
    mlp_dim: int | None = None
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.content_elements not in (1, self.content_shape[0]):
            raise ValueError(
                f"MotionGPT: content_elements must be 1 or {self.content_shape[0]} (the content "
                f"tokens), got {self.content_elements}"
            )
        # Not in paper: both layers keep the scale of their inputs; at BCD's size the frame
        # embedding is square and starts as the identity.
        square = self.books * self.book_dim == self.width
        frame_init = _identity if square else nn.initializers.lecun_normal()
        self.content = nn.Dense(self.width, dtype=self.dtype)
        self.frame = nn.Dense(self.width, kernel_init=frame_init, dtype=self.dtype)
        self.trunk = GPT2(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            max_positions=self.max_positions,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.head = nn.Dense(
            self.books * self.entries,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
        )

    def __call__(
        self, content_bcd: jax.Array, motion_bsm: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Computes the logits of every next frame, given the true frames before it.

        Args:
          content_bcd: the content, (batch, *content_shape).
          motion_bsm: the quantised motion of frames 1 to S, (batch, S, books * book_dim). To train on
            T frames pass the first T - 1: the T outputs then line up with the T frames' codes.
          deterministic: switches dropout off.

        Returns:
          Logits (batch, S + 1, books, entries), float32; position s predicts frame s + 1, and the first
          position (s = 0) sees only the content.

        Raises:
          ValueError: if a shape does not fit or content_elements + S exceeds max_positions.
        """
        x_bsd = jnp.concatenate([self._prefix(content_bcd), self._frames(motion_bsm)], axis=1)
        h_bsd, _ = self.trunk(x_bsd, deterministic=deterministic)
        return self._logits(h_bsd[:, self.content_elements - 1 :])

    def prefill(self, content_bcd: jax.Array, frames: int) -> tuple[jax.Array, Cache]:
        """Starts decoding.

        Args:
          content_bcd: the content, (batch, *content_shape).
          frames: the number of frames that the cache has room for after the content.

        Returns:
          Logits (batch, 1, books, entries) of frame 1, and the cache.

        Raises:
          ValueError: if the content's shape does not fit, or content and frames together exceed max_positions.
        """
        cache = self.trunk.init_cache(content_bcd.shape[0], self.content_elements + frames)
        h_bsd, cache = self.trunk(self._prefix(content_bcd), cache)
        return self._logits(h_bsd[:, -1:]), cache

    def decode(self, motion_bsm: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Continues decoding after further frames.

        Args:
          motion_bsm: the quantised motion of these frames, (batch, S, books * book_dim).
          cache: the cache of everything before them.

        Returns:
          Logits (batch, S, books, entries), float32, of the frame after each of them, and the cache with the frames
          appended.
        """
        h_bsd, cache = self.trunk(self._frames(motion_bsm), cache)
        return self._logits(h_bsd), cache

    def _prefix(self, content_bcd: jax.Array) -> jax.Array:
        if content_bcd.shape[1:] != tuple(self.content_shape):
            raise ValueError(
                f"MotionGPT: content must be (batch, *{tuple(self.content_shape)}), "
                f"got {content_bcd.shape}"
            )
        return self.content(content_bcd.reshape(content_bcd.shape[0], self.content_elements, -1))

    def _frames(self, motion_bsm: jax.Array) -> jax.Array:
        channels = self.books * self.book_dim
        if motion_bsm.ndim != 3 or motion_bsm.shape[-1] != channels:
            raise ValueError(
                f"MotionGPT: motion must be (batch, frames, {channels}), got {motion_bsm.shape}"
            )
        return self.frame(motion_bsm)

    def _logits(self, h_bsd: jax.Array) -> jax.Array:
        shape = (*h_bsd.shape[:2], self.books, self.entries)
        return self.head(h_bsd).reshape(shape).astype(jnp.float32)


def next_frame_loss(
    logits_bsnj: jax.Array, ids_bsn: jax.Array, mask_bs: jax.Array | None = None
) -> jax.Array:
    """Computes the cross-entropy of the codes in nats, averaged over codebooks and frames (bcd.md, 8).

    Args:
      logits_bsnj: the logits (batch, frames, books, entries), from `MotionGPT`.
      ids_bsn: the frames' codes, int (batch, frames, books).
      mask_bs: (batch, frames), which frames count (clips may differ in length); None means all.

    Returns:
      float32 scalar; 0 if no frame counts.

    Raises:
      ValueError: if the shapes do not fit each other.
    """
    if logits_bsnj.shape[:-1] != ids_bsn.shape:
        raise ValueError(
            f"next_frame_loss: logits {logits_bsnj.shape} do not fit codes {ids_bsn.shape}; to "
            "train on T frames, give the model the first T - 1"
        )
    mask_bs = jnp.ones(ids_bsn.shape[:2]) if mask_bs is None else mask_bs.astype(jnp.float32)
    if mask_bs.shape != ids_bsn.shape[:2]:
        raise ValueError(
            f"next_frame_loss: mask {mask_bs.shape} does not fit codes {ids_bsn.shape}"
        )
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits_bsnj), ids_bsn[..., None], axis=-1)
    return -jnp.sum(logp.mean((-2, -1)) * mask_bs) / jnp.maximum(mask_bs.sum(), 1.0)


def draw(
    key: jax.Array | None,
    logits: jax.Array,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Chooses one code per distribution: the most likely one, or a random one.

    Args:
      key: the random key; may be None if temperature is 0.
      logits: the logits of the distributions, (..., entries).
      temperature: 0 takes the most likely entry (the paper's choice); otherwise logits are divided
        by it before drawing.
      top_k: draw only among this many most likely entries; None means all.
      top_p: draw only among the most likely of these entries, as few as reach this probability
        together, after the temperature (Holtzman et al. 2019, section 3.1); None means all.

    Returns:
      The codes, int32 (...).

    Raises:
      ValueError: if temperature is negative, top_k is not in [1, entries], top_p is not in (0, 1], or
        the key is missing.
    """
    entries = logits.shape[-1]
    if temperature < 0 or not 1 <= (entries if top_k is None else top_k) <= entries:
        raise ValueError(
            f"draw: temperature must be >= 0 and top_k in [1, {entries}], "
            f"got {temperature} and {top_k}"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"draw: top_p must be in (0, 1], got {top_p}")
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if key is None:
        raise ValueError("draw: temperature > 0 needs a key")
    best, ids = jax.lax.top_k(logits, entries if top_k is None else top_k)
    best = best / temperature
    if top_p is not None:
        share = jax.nn.softmax(best)
        before = jnp.cumsum(share, axis=-1) - share
        best = jnp.where(before < top_p, best, -jnp.inf)
    chosen = jax.random.categorical(key, best)
    return jnp.take_along_axis(ids, chosen[..., None], axis=-1)[..., 0].astype(jnp.int32)


def generate(
    model: MotionGPT,
    variables: Mapping,
    content_bcd: jax.Array,
    embed: Callable[[jax.Array], jax.Array],
    frames: int,
    *,
    key: jax.Array | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
) -> jax.Array:
    """Generates motion codes for a content, frame after frame; a pure function, for use under jit.

    Args:
      model, variables: the generator and its variables.
      content_bcd: the content, (batch, *content_shape).
      embed: the function that maps codes (batch, 1, books) to quantised motion (batch, 1, books * book_dim): the
        frozen codebook lookup, with BCD's linear map after it if there is one.
      frames: the number of frames to generate.
      key, temperature, top_k: see `draw`; the default is greedy. temperature and top_k are Python
        numbers (static under jit).

    Returns:
      Codes int32 (batch, frames, books).

    Raises:
      ValueError: if frames < 1, content_elements + frames - 1 exceeds max_positions, or `draw` raises it.
    """
    if frames < 1:
        raise ValueError(f"generate: frames must be at least 1, got {frames}")

    def pick(logits, s):
        step_key = None if key is None else jax.random.fold_in(key, s)
        return draw(step_key, logits, temperature, top_k)

    def step(carry, s):
        ids_b1n, cache = carry
        logits, cache = model.apply(variables, embed(ids_b1n), cache, method="decode")
        ids_b1n = pick(logits, s)
        return (ids_b1n, cache), ids_b1n[:, 0]

    logits, cache = model.apply(variables, content_bcd, frames - 1, method="prefill")
    first_b1n = pick(logits, 0)
    _, rest_sbn = jax.lax.scan(step, (first_b1n, cache), jnp.arange(1, frames))
    return jnp.concatenate([first_b1n, rest_sbn.swapaxes(0, 1)], axis=1)
