"""Vector quantisers: BCD's grouped one with Gumbel-softmax assignment, and one whose entries are moving averages.

Shape suffixes: b batch, t frames, n codebooks, j entries per codebook, d dimension per codebook, m = n * d,
v vectors of a batch.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

DISTANCES = ("sq_l2", "l2")


class Quantized(NamedTuple):
    """The result of `GroupedQuantizer`; everything is float32 except `ids_btn`.

    Attributes:
      m_hat_btm: the quantised motion, after the optional linear map.
      ids_btn: the int32 index of the nearest entry in each codebook.
      soft_btnj: softmax(-alpha * distance), without noise and temperature; the rate is measured on it.
    """

    m_hat_btm: jax.Array
    ids_btn: jax.Array
    soft_btnj: jax.Array


def default_alpha(dim: int) -> float:
    """Returns 5 * 16 / D, which is TF-Codec's alpha = 5 at D = 16 and keeps the same softness at other D (spec 4.3)."""
    return 5.0 * 16.0 / dim


def temperature(step: jax.Array, start: float, end: float, decay: float) -> jax.Array:
    """Returns the Gumbel-softmax temperature at a step: tau_n = max(start * decay^n, end) (Tables A4, A5)."""
    # The logarithm is taken in double precision, since 0.9999972 rounded to float32 decays 0.05 % too fast.
    return jnp.maximum(start * jnp.exp(step * math.log(decay)), end)


# By default, accelerators multiply float32 with 8 or 10 bits of mantissa, which is too coarse for distances.
_einsum = functools.partial(jnp.einsum, precision="highest")


def _squared_distances(m_btnd: jax.Array, books_njd: jax.Array) -> jax.Array:
    """Returns squared distances (B, T, N, J) from every group to every entry of its codebook, never below 0."""
    cross = _einsum("btnd,njd->btnj", m_btnd, books_njd)
    return jnp.maximum(
        jnp.sum(m_btnd**2, axis=-1, keepdims=True)
        - 2.0 * cross
        + jnp.sum(books_njd**2, axis=-1)[None, None],
        0.0,
    )


class GroupedQuantizer(nn.Module):
    """Quantises each group of a motion vector by its own codebook: N codebooks of J entries in R^D (BCD; spec 4.3).

    Attributes:
      books, entries, dim: N, J, D.
      alpha: the factor in the logits -alpha * distance; 0 means `default_alpha`.
      learn_alpha: whether alpha is a learned positive scalar that starts at this value.
      distance: ``sq_l2`` or ``l2``.
      hard: whether the forward pass takes one entry, with a straight-through gradient; False passes the soft mixture.
      normalise: whether to RMS-normalise the whole motion vector first, so that its scale cannot collapse usage.
      post_linear: whether a bias-free linear map follows the quantisation.
      tau_max, tau_min, tau_decay: start, end and decay of the `temperature` at which training draws entries (Tables A4,
        A5).
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
    tau_max: float = 2.0
    tau_min: float = 0.5
    tau_decay: float = 0.9999972

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
        """Quantises motion vectors.

        Args:
          m_btm: the motion vectors, (B, T, N * D).
          tau: () Gumbel-softmax temperature; unused without `key`.
          key: the random key of the Gumbel noise; None takes the nearest entry (evaluation).
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
        """Looks up code ids: (B, T, N) int -> quantised motion (B, T, N * D), as `__call__` returns it."""
        return self._mix(jax.nn.one_hot(ids_btn, self.entries))

    def _mix(self, weights_btnj: jax.Array) -> jax.Array:
        m_btnd = _einsum("btnj,njd->btnd", weights_btnj, self.codebooks)
        m_btm = m_btnd.reshape(*m_btnd.shape[:2], -1)
        return self.out(m_btm) if self.post_linear else m_btm

    def _logits(self, m_btnd: jax.Array) -> jax.Array:
        """Returns -alpha * distance to every entry, (B, T, N, J)."""
        squared = _squared_distances(m_btnd, self.codebooks)
        alpha = jnp.exp(self.log_alpha) if self.learn_alpha else self.fixed_alpha
        return -alpha * (squared if self.distance == "sq_l2" else jnp.sqrt(squared + 1e-12))


class Coded(NamedTuple):
    """The result of `EmaQuantizer`; everything is float32 except `ids_bt`.

    Attributes:
      z_btd: the values of the nearest entries; the gradient passes straight through to the input.
      ids_bt: the int32 index of the nearest entry.
      commitment: the mean square distance of the input from its entries; its gradient reaches only the input.
      perplexity: 2 to the power of the entropy, in bits, of this batch's use of the entries; at most J.
    """

    z_btd: jax.Array
    ids_bt: jax.Array
    commitment: jax.Array
    perplexity: jax.Array


class EmaQuantizer(nn.Module):
    """One codebook whose entries follow the vectors assigned to them, as in VQ-VAE and T2M-GPT (xnemo.md, 4.2).

    The entries get no gradient: an entry is the moving average of the sum of its vectors divided by the moving average
    of their count (van den Oord et al. 2017, appendix A.1). An entry whose average count falls below `least` is set to
    a random vector of the batch; in the first batch, all entries are. If a batch has fewer vectors than entries, its
    vectors are repeated with a little noise.

    The collection ``codebook`` holds the state: ``entries`` and ``sums`` (J, D), ``counts`` (J,), and
    ``started``, false until the first training batch. Under `jit` with a batch split over a mesh, the
    averages are taken over the whole batch; with accumulation, over each microbatch in turn.

    Attributes:
      entries, dim: J, D.
      decay: the share of the averages that is kept at each step.
      least: the average count below which an entry is replaced.
    """

    entries: int
    dim: int
    decay: float = 0.99
    least: float = 1.0

    def setup(self):
        shape = (self.entries, self.dim)
        self.book = self.variable("codebook", "entries", jnp.zeros, shape)
        self.sums = self.variable("codebook", "sums", jnp.zeros, shape)
        self.counts = self.variable("codebook", "counts", jnp.ones, shape[:1])
        self.started = self.variable("codebook", "started", jnp.zeros, (), jnp.bool_)

    def __call__(self, z_btd: jax.Array, key: jax.Array | None = None) -> Coded:
        """Quantises vectors.

        Args:
          z_btd: the vectors, (B, T, D).
          key: the random key for drawing the vectors that replace entries. With a key, the collection ``codebook``
            must be mutable and is updated after the assignment; None leaves it unchanged (evaluation).
        """
        z_btd = z_btd.astype(jnp.float32)
        fixed_btd = jax.lax.stop_gradient(z_btd)
        if key is not None:
            drawn_jd = self._draw(key, fixed_btd.reshape(-1, self.dim))
            first = ~self.started.value
            self.book.value = jnp.where(first, drawn_jd, self.book.value)
            self.sums.value = jnp.where(first, drawn_jd, self.sums.value)
        distances_bt1j = _squared_distances(fixed_btd[:, :, None], self.book.value[None])
        ids_bt = jnp.argmin(distances_bt1j[:, :, 0], axis=-1).astype(jnp.int32)
        chosen_btd = self.embed(ids_bt)
        used_j = jnp.zeros(self.entries).at[ids_bt].add(1.0)
        if key is not None:
            self._follow(fixed_btd, ids_bt, used_j, drawn_jd)
        share_j = used_j / ids_bt.size
        return Coded(
            z_btd=z_btd + jax.lax.stop_gradient(chosen_btd - z_btd),
            ids_bt=ids_bt,
            commitment=jnp.mean(jnp.square(z_btd - chosen_btd)),
            perplexity=jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share_j, share_j))),
        )

    def embed(self, ids_bt: jax.Array) -> jax.Array:
        """Looks up code ids: (B, T) int -> entries (B, T, D)."""
        return jnp.take(self.book.value, ids_bt, axis=0)

    def _follow(
        self, z_btd: jax.Array, ids_bt: jax.Array, used_j: jax.Array, drawn_jd: jax.Array
    ) -> None:
        sums_jd = jnp.zeros_like(self.sums.value).at[ids_bt].add(z_btd)
        for average, now in ((self.sums, sums_jd), (self.counts, used_j)):
            average.value = self.decay * average.value + (1.0 - self.decay) * now
        counts_j1 = self.counts.value[:, None]
        mean_jd = self.sums.value / jnp.maximum(counts_j1, 1e-8)
        self.book.value = jnp.where(counts_j1 >= self.least, mean_jd, drawn_jd)
        self.started.value = jnp.ones((), jnp.bool_)

    def _draw(self, key: jax.Array, z_vd: jax.Array) -> jax.Array:
        """Draws J of the vectors at random, (J, D); none is repeated before all have been drawn."""
        count = len(z_vd)
        order, noise = jax.random.split(key)
        shuffled_vd = jax.random.permutation(order, z_vd)
        if count >= self.entries:
            return shuffled_vd[: self.entries]
        repeated_jd = shuffled_vd[jnp.arange(self.entries) % count]
        # Not in paper but in T2M-GPT: the noise makes copies differ.
        return repeated_jd + 0.01 * self.dim**-0.5 * jax.random.normal(noise, repeated_jd.shape)
