"""Grouped vector quantiser with Gumbel-softmax assignment (BCD; spec 4.3).

Shapes: b batch, t frames, n codebooks, j entries per codebook, d dimension per codebook, m = n * d.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

DISTANCES = ("sq_l2", "l2")


class Quantized(NamedTuple):
    """What the quantiser returns; everything is float32 but `ids`.

    Attributes:
      m_hat_btm: quantised motion, after the optional linear map.
      ids_btn: int32 index of the nearest entry in each codebook.
      soft_btnj: softmax(-alpha * distance), no noise and no temperature: what the rate is measured on.
    """

    m_hat_btm: jax.Array
    ids_btn: jax.Array
    soft_btnj: jax.Array


def default_alpha(dim: int) -> float:
    """5 * 16 / D: TF-Codec's alpha = 5 at D = 16, held to the same softness at other D (spec 4.3)."""
    return 5.0 * 16.0 / dim


def temperature(step: jax.Array, start: float, end: float, decay: float) -> jax.Array:
    """tau_n = max(start * decay^n, end) (Tables A4, A5)."""
    # The logarithm in double precision: 0.9999972 rounded to float32 decays 0.05 % too fast.
    return jnp.maximum(start * jnp.exp(step * math.log(decay)), end)


# Accelerators multiply float32 with 8 or 10 bits of mantissa by default: too coarse for distances.
_einsum = functools.partial(jnp.einsum, precision="highest")


class GroupedQuantizer(nn.Module):
    """N codebooks of J entries in R^D, one assignment per group of the motion vector.

    Attributes:
      books, entries, dim: N, J, D.
      alpha: logits are -alpha * distance; 0 takes `default_alpha`, and a learned positive scalar
        starting there if `learn_alpha`.
      distance: ``sq_l2`` or ``l2``.
      hard: one-hot forward with straight-through gradient; False passes the soft mixture.
      normalise: RMS-normalise the whole motion vector first, so that its scale cannot collapse usage.
      post_linear: a bias-free map after quantisation.
    """

    books: int
    entries: int
    dim: int
    alpha: float = 0.0
    learn_alpha: bool = False
    distance: str = "sq_l2"
    hard: bool = True
    normalise: bool = True
    post_linear: bool = True

    def setup(self):
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r}: choose {' or '.join(DISTANCES)}")
        self.codebooks = self.param(
            "codebooks",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
            (self.books, self.entries, self.dim),
        )
        alpha = self.alpha or default_alpha(self.dim)
        if self.learn_alpha:
            self.log_alpha = self.param("log_alpha", nn.initializers.constant(jnp.log(alpha)), ())
        else:
            self.fixed_alpha = alpha
        if self.post_linear:
            self.out = nn.Dense(self.books * self.dim, use_bias=False, name="out")

    def __call__(
        self, m_btm: jax.Array, tau: jax.Array | float = 1.0, key: jax.Array | None = None
    ) -> Quantized:
        """Quantise motion vectors.

        Args:
          m_btm: (B, T, N * D).
          tau: () Gumbel-softmax temperature; unused without `key`.
          key: PRNG key of the Gumbel noise; None takes the nearest entry (evaluation).
        """
        m_btm = m_btm.astype(jnp.float32)
        if self.normalise:
            m_btm = m_btm * jax.lax.rsqrt(jnp.mean(m_btm**2, axis=-1, keepdims=True) + 1e-6)
        batch, frames, _ = m_btm.shape
        m_btnd = m_btm.reshape(batch, frames, self.books, self.dim)
        logits_btnj = self._logits(m_btnd)
        ids_btn = jnp.argmax(logits_btnj, axis=-1).astype(jnp.int32)
        if key is None:
            weights_btnj = jax.nn.one_hot(ids_btn, self.entries)
        else:
            noisy = logits_btnj + jax.random.gumbel(key, logits_btnj.shape)
            weights_btnj = jax.nn.softmax(noisy / tau, axis=-1)
            if self.hard:
                picked = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), self.entries)
                weights_btnj = weights_btnj + jax.lax.stop_gradient(picked - weights_btnj)
        return Quantized(
            m_hat_btm=self._mix(weights_btnj),
            ids_btn=ids_btn,
            soft_btnj=jax.nn.softmax(logits_btnj, axis=-1),
        )

    def embed(self, ids_btn: jax.Array) -> jax.Array:
        """Code ids (B, T, N) int -> quantised motion (B, T, N * D), as `__call__` returns it."""
        return self._mix(jax.nn.one_hot(ids_btn, self.entries))

    def _mix(self, weights_btnj: jax.Array) -> jax.Array:
        m_btnd = _einsum("btnj,njd->btnd", weights_btnj, self.codebooks)
        m_btm = m_btnd.reshape(*m_btnd.shape[:2], -1)
        return self.out(m_btm) if self.post_linear else m_btm

    def _logits(self, m_btnd: jax.Array) -> jax.Array:
        """-alpha * distance to every entry, (B, T, N, J)."""
        cross = _einsum("btnd,njd->btnj", m_btnd, self.codebooks)
        squared = jnp.maximum(
            jnp.sum(m_btnd**2, axis=-1, keepdims=True)
            - 2.0 * cross
            + jnp.sum(self.codebooks**2, axis=-1)[None, None],
            0.0,
        )
        alpha = jnp.exp(self.log_alpha) if self.learn_alpha else self.fixed_alpha
        return -alpha * (squared if self.distance == "sq_l2" else jnp.sqrt(squared + 1e-12))
