"""A small convolutional network that reads a face in two looks: the first finds it, the second reads a crop of it.

It is cheap enough for a CPU.

Shape suffixes: b batch, h height, w width, c channels, i j rows and columns of the crop, d features, p pose.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models.blocks import SAME, Downsample, ResBlock, group_norm
from vidmotion.models.warpca import sample_at


class Look(nn.Module):
    """Turns pictures into features that keep the position of everything.

    The pixels of each `patch` x `patch` square become channels, so that no convolution runs at the pictures' full
    size. Then follow `blocks` residual blocks of `width` channels, and as many of twice the width at half the size. The
    result is squeezed to `narrow` channels and kept position by position: a pooled feature would not know where
    anything lies, which is most of what the network has to tell.

    Attributes:
      patch: the side of the squares that are folded into channels.
      width: the channels of the first level, a multiple of `groups`.
      blocks: the number of residual blocks at each level.
      narrow: the channels of each position at the end.
      groups: the number of groups of the norms.
      dtype: the dtype of the computation.
    """

    patch: int
    width: int
    blocks: int
    narrow: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Floats (B, H, W, 3), H and W multiples of 2 `patch` -> (B, H W `narrow` / 4 `patch`^2)."""
        x = x_bhwc.astype(self.dtype)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)
        x = nn.Conv(self.width, (3, 3), padding=SAME, dtype=self.dtype, name="stem")(x)
        for level, width in enumerate((self.width, 2 * self.width)):
            if level:
                x = Downsample(dtype=self.dtype, name="down")(x)
            for i in range(self.blocks):
                name = f"level{level}_block{i}"
                x = ResBlock(width, self.groups, dtype=self.dtype, name=name)(x)
        x = nn.silu(group_norm(self.groups, 1e-6, self.dtype, "norm")(x))
        x = nn.Conv(self.narrow, (1, 1), dtype=self.dtype, name="squeeze")(x)
        return x.reshape(len(x), -1)


class HeadsReaderNet(nn.Module):
    """Reads `outputs` numbers from each picture; the first `pose` of them say where the face is.

    The first look, at the whole picture, reads only the pose. `frame` turns the pose into the place of a crop, in which
    eyes and mouth lie at the same places for every face; the second look sees this crop. One hidden layer then reads
    the features of both looks and the pose. Its first `pose` outputs are corrections, added to the pose of the first
    look. No gradient flows through the place of the crop.

    Attributes:
      outputs: how many numbers are read from each picture.
      pose: how many of these numbers make up the pose.
      frame: the function that maps poses (b, p) and the pictures' side to the columns and rows (b, i, j) of the crop's
        pixels in the picture.
      patch: the side of a patch in both looks.
      widths, blocks: the sizes of the first and of the second look.
      narrow, groups: see `Look`; the same in both looks.
      hidden: the number of units of the hidden layers.
      dtype: the dtype of the computation; the results are float32.
    """

    outputs: int
    pose: int
    frame: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
    patch: int = 4
    widths: tuple[int, int] = (48, 64)
    blocks: tuple[int, int] = (1, 2)
    narrow: int = 32
    hidden: int = 256
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Floats (B, S, S, 3) -> the pose by the first look (B, `pose`), and all numbers (B, `outputs`); float32."""

        def look(k: int, name: str) -> Look:
            sizes = self.patch, self.widths[k], self.blocks[k], self.narrow, self.groups
            return Look(*sizes, dtype=self.dtype, name=name)

        def dense(x_bd: jax.Array, name: str) -> jax.Array:
            return nn.silu(nn.Dense(self.hidden, dtype=self.dtype, name=name)(x_bd))

        far_bd = dense(look(0, "far")(x_bhwc), "far_hidden")
        first_bp = nn.Dense(self.pose, name="first")(far_bd.astype(jnp.float32))
        pose_bp = jax.lax.stop_gradient(first_bp)
        near_bd = look(1, "near")(sample_at(x_bhwc, *self.frame(pose_bp, x_bhwc.shape[2])))
        seen_bd = jnp.concatenate([near_bd, far_bd, pose_bp.astype(self.dtype)], axis=1)
        out = nn.Dense(self.outputs, name="out")(dense(seen_bd, "hidden").astype(jnp.float32))
        return first_bp, out.at[:, : self.pose].add(pose_bp)
