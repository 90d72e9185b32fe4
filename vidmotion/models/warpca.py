"""WarpCA: cross-attention to a motion code whose result warps the hidden state (WarpFace, 3.3.2).

It follows Eq. 9 and 10 and spec warpface.md, section 6. That section says why the code is cut into tokens: with a
single token, every position would attend to the same thing, and all would be moved alike.

Shape suffixes: b batch, f frames, h w rows and columns, c channels, l = h w, m code, n tokens,
e token width, t time embedding.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models.dit import sincos_1d
from vidmotion.models.layers import attention

TOKENS = ("chunk", "groups", "single")
FLOW_INPUTS = ("attn_plus_query", "attn")
FUSIONS = ("add", "blend")
zeros = nn.initializers.zeros


def warp(x_bhwc: jax.Array, flow_bhw2: jax.Array) -> jax.Array:
    """Warps maps backward and bilinearly: out[y, x] = in at (x, y) + flow[y, x], with repeated borders.

    Flow is (x, y) in units of half the distance between the centres of the border pixels, so one
    pixel is 2 / (w - 1), and zero flow is the exact identity. Coordinates are float32, the gathered
    values keep their dtype.

    Args:
      x_bhwc: the maps to warp.
      flow_bhw2: the flow, with the batch, height and width of `x_bhwc`.

    Returns:
      The warped maps, with the shape and dtype of `x_bhwc`.
    """
    _, height, width, _ = x_bhwc.shape
    flow = flow_bhw2.astype(jnp.float32)
    pixels = flow * (jnp.array([width - 1, height - 1], jnp.float32) * 0.5)[None, None, None]
    x = pixels[..., 0] + jnp.arange(width, dtype=jnp.float32)[None, None]
    y = pixels[..., 1] + jnp.arange(height, dtype=jnp.float32)[None, :, None]
    return sample_at(x_bhwc, x, y)


def sample_at(x_bhwc: jax.Array, x_bij: jax.Array, y_bij: jax.Array) -> jax.Array:
    """Samples pictures at any points, bilinearly and with repeated borders.

    Args:
      x_bhwc: the pictures.
      x_bij, y_bij: the columns and the rows of the points, float32, counted from the centre of the first pixel.

    Returns:
      (b, i, j, c) of the dtype of the pictures.
    """
    _, height, width, _ = x_bhwc.shape
    x, y = jnp.clip(x_bij, 0, width - 1), jnp.clip(y_bij, 0, height - 1)
    left, top = jnp.floor(x), jnp.floor(y)
    across, down = (x - left)[..., None], (y - top)[..., None]
    columns = left.astype(jnp.int32), jnp.minimum(left.astype(jnp.int32) + 1, width - 1)
    rows = top.astype(jnp.int32), jnp.minimum(top.astype(jnp.int32) + 1, height - 1)
    flat_blc = rearrange(x_bhwc, "b h w c -> b (h w) c")

    def at(row, column):
        index_bl = rearrange(row * width + column, "b i j -> b (i j)")
        taken = jnp.take_along_axis(flat_blc, index_bl[..., None], axis=1)
        return taken.reshape(*x.shape, -1)

    def between(first, second, weight):
        return first + (second - first) * weight.astype(first.dtype)

    upper = between(at(rows[0], columns[0]), at(rows[0], columns[1]), across)
    lower = between(at(rows[1], columns[0]), at(rows[1], columns[1]), across)
    return between(upper, lower, down)


def motion_tokens(theta_bm: jax.Array, how: str, groups: int, token_width: int) -> jax.Array:
    """Cuts a code (b, m) into tokens (b, n, e).

    Args:
      theta_bm: the code.
      how: ``chunk``, pieces of `token_width` with a fixed sine and cosine code of their place;
        ``groups``, one piece per group (the caller adds an embedding); ``single``, the whole code as one token.
      groups: K, the number of groups; read by ``groups`` only.
      token_width: the width of a token; read by ``chunk`` only.

    Raises:
      ValueError: if `how` is unknown, or the code does not divide into such pieces.
    """
    size = theta_bm.shape[-1]
    pieces = {"chunk": size // token_width, "groups": groups, "single": 1}.get(how)
    if pieces is None:
        raise ValueError(f"motion_tokens={how!r}: choose one of {', '.join(TOKENS)}")
    if pieces < 1 or size % pieces or (how == "chunk" and size % token_width):
        raise ValueError(
            f"motion_tokens={how!r}: a code of {size} numbers does not divide into "
            + (f"tokens of {token_width}" if how == "chunk" else f"{groups} groups")
        )
    tokens_bne = rearrange(theta_bm, "b (n e) -> b n e", n=pieces)
    if how == "chunk":
        tokens_bne = tokens_bne + sincos_1d(token_width, np.arange(pieces))[None]
    return tokens_bne


class TimeModulation(nn.Module):
    """Modulates a motion code by the time, Eq. 9: (1 + gamma(t)) * theta + delta(t); the identity at the start.

    `__call__(theta_bm, time_bt)` returns the modulated code and (gamma_bm, delta_bm).
    """

    @nn.compact
    def __call__(
        self, theta_bm: jax.Array, time_bt: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        size = theta_bm.shape[-1]
        dense = functools.partial(nn.Dense, size, kernel_init=zeros)
        u = nn.silu(time_bt.astype(jnp.float32))
        gamma, delta = dense(name="gamma")(u), dense(name="delta")(u)
        return (1.0 + gamma) * theta_bm + delta, (gamma, delta)


class WarpCA(nn.Module):
    """Moves a hidden state by a motion code: Eq. 9, cross-attention, flow and occlusion, Eq. 10.

    Attributes:
      heads: the number of heads of the attention.
      mode: ``warpca``; or ``ca``, plain cross-attention to the same tokens, whose output is added (Table 3).
      tokens: how the code is cut, `how` of `motion_tokens`; not in paper.
      groups, token_width: see `motion_tokens`; not in paper.
      flow_input: the features from which flow and occlusion are read: ``attn``, the attention's output, or
        ``attn_plus_query``, that output plus the normalised hidden state. Not in paper.
      time_modulation: whether the time modulates the code by Eq. 9; False is "w/o timestep" of Table 3.
      fusion: ``add``, Eq. 10; ``blend``, (1 - O) H + O W(H), for analysis.
      flow_range: the factor of the tanh that gives the flow, and so the longest flow; 1 is half the picture. It is not
        in the paper, where it is 1.
      flow_start: about the standard deviation of the flow before its tanh in a fresh network; with 0 the code has no
        gradient until the flow's last layer has moved. Not in paper.
      occlusion_bias: the bias of the occlusion, which starts as O = sigmoid(occlusion_bias); not in paper.
      dtype: the dtype of the computation; code, flow and occlusion are float32.

    Raises:
      ValueError: if a choice is unknown, or the code does not divide into the tokens.
    """

    heads: int
    mode: str = "warpca"
    tokens: str = "chunk"
    groups: int = 4
    token_width: int = 16
    flow_input: str = "attn_plus_query"
    time_modulation: bool = True
    fusion: str = "add"
    flow_range: float = 1.0
    flow_start: float = 0.0
    occlusion_bias: float = -2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array, time_bt: jax.Array, theta_bfm: jax.Array) -> jax.Array:
        """Moves the hidden state of each frame by the frame's code; frames do not see each other.

        With mode ``warpca`` it sows into the collection "motion" ``flow`` (b f, h, w, 2), ``occlusion`` (b f, h, w, 1)
        and, with `time_modulation`, ``gamma`` and ``delta`` of Eq. 9, (b f, m) each.

        Args:
          x_bfhwc: the hidden state before its norm.
          time_bt: the embedded time of each sample.
          theta_bfm: the motion code of each frame.

        Returns:
          The new hidden state (b, f, h, w, c).
        """
        for name, value, known in (
            ("mode", self.mode, ("warpca", "ca")),
            ("flow_input", self.flow_input, FLOW_INPUTS),
            ("fusion", self.fusion, FUSIONS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: choose {' or '.join(known)}")
        frames, _, _, channels = x_bfhwc.shape[1:]
        x_bhwc = rearrange(x_bfhwc, "b f h w c -> (b f) h w c")
        theta_bm = rearrange(theta_bfm, "b f m -> (b f) m").astype(jnp.float32)
        time_bt = jnp.repeat(time_bt, frames, axis=0)
        if self.time_modulation and self.mode == "warpca":
            theta_bm, (gamma, delta) = TimeModulation(name="time")(theta_bm, time_bt)
            self.sow("motion", "gamma", gamma)
            self.sow("motion", "delta", delta)
        tokens_bne = motion_tokens(theta_bm, self.tokens, self.groups, self.token_width)
        if self.tokens == "groups":
            shape = tokens_bne.shape[1:]
            tokens_bne = (
                tokens_bne
                + self.param("token_embedding", nn.initializers.normal(0.02), shape)[None]
            )
        query = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x_bhwc)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        attended = attention(
            rearrange(query, "b h w c -> b (h w) c"),
            tokens_bne,
            heads=self.heads,
            dense=functools.partial(dense, use_bias=False),
            out=functools.partial(dense, kernel_init=zeros) if self.mode == "ca" else dense,
        )
        if self.mode == "ca":
            return x_bfhwc + attended.reshape(x_bfhwc.shape)
        attended = attended.reshape(x_bhwc.shape)
        seen = attended + query if self.flow_input == "attn_plus_query" else attended

        def read(name: str, features: int, start: float, bias: float) -> jax.Array:
            y = nn.silu(dense(channels, name=f"{name}_in")(seen)).astype(jnp.float32)
            out = nn.Dense(
                features,
                kernel_init=nn.initializers.normal(start * (4 / channels) ** 0.5),
                bias_init=nn.initializers.constant(bias),
                name=f"{name}_out",
            )
            return out(y)

        flow = self.flow_range * jnp.tanh(read("flow", 2, self.flow_start, 0.0))
        occlusion = nn.sigmoid(read("occlusion", 1, 0.0, self.occlusion_bias))
        self.sow("motion", "flow", flow)
        self.sow("motion", "occlusion", occlusion)
        occlusion = occlusion.astype(x_bhwc.dtype)
        kept = 1.0 - occlusion if self.fusion == "blend" else 1.0
        return (kept * x_bhwc + occlusion * warp(x_bhwc, flow)).reshape(x_bfhwc.shape)
