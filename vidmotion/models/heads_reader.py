"""A small convolutional network that reads numbers off single pictures, cheap on a CPU.

Shape suffixes: b batch, h height, w width, c channels, d features.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models.blocks import SAME, Downsample, ResBlock, group_norm


class HeadsReaderNet(nn.Module):
    """Pictures to `outputs` numbers each.

    The pixels of each `patch` x `patch` square become channels, so that no convolution runs at the pictures' own
    size: at a side of 64 and a patch of 4, `blocks` residual blocks of `width` channels at 16x16, as many of twice
    the width at 8x8. What they found is squeezed to `narrow` channels and read position by position by a
    perceptron: a pooled feature would not know where anything lies, which is most of what is asked.

    Attributes:
      outputs: numbers a picture.
      patch: side of the squares folded into channels.
      width: channels of the first level, a multiple of `groups`.
      blocks: residual blocks a level.
      narrow: channels of each position before the perceptron.
      hidden: units of the perceptron's layer.
      groups: of the norms.
    """

    outputs: int
    patch: int = 4
    width: int = 64
    blocks: int = 2
    narrow: int = 32
    hidden: int = 256
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Floats (B, H, W, 3), H and W multiples of 2 `patch` -> float32 (B, outputs)."""
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
        x_bd = x.reshape(len(x), -1)
        x_bd = nn.silu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x_bd))
        return nn.Dense(self.outputs, dtype=jnp.float32, name="out")(x_bd.astype(jnp.float32))
