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
    size; then come `blocks` residual blocks at each of the `widths`, each level at half the height and width of the
    one before. What they found is squeezed to `narrow` channels and read position by position by a
    perceptron: a pooled feature would not know where anything lies, which is most of what is asked.

    Attributes:
      outputs: numbers a picture.
      patch: side of the squares folded into channels.
      widths: channels of each level, multiples of `groups`.
      blocks: residual blocks a level.
      narrow: channels of each position before the perceptron.
      hidden: units of the perceptron's layer.
      groups: of the norms.
    """

    outputs: int
    patch: int = 2
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    narrow: int = 32
    hidden: int = 256
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Floats (B, H, W, 3), H and W multiples of patch 2^(levels - 1) -> float32 (B, outputs)."""
        x = x_bhwc.astype(self.dtype)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)
        x = nn.Conv(self.widths[0], (3, 3), padding=SAME, dtype=self.dtype, name="stem")(x)
        for level, width in enumerate(self.widths):
            if level:
                x = Downsample(dtype=self.dtype, name=f"down_{level}")(x)
            for i in range(self.blocks):
                name = f"level{level}_block{i}"
                x = ResBlock(width, self.groups, dtype=self.dtype, name=name)(x)
        x = nn.silu(group_norm(self.groups, 1e-6, self.dtype, "norm")(x))
        x = nn.Conv(self.narrow, (1, 1), dtype=self.dtype, name="squeeze")(x)
        x_bd = x.reshape(len(x), -1)
        x_bd = nn.silu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x_bd))
        return nn.Dense(self.outputs, dtype=jnp.float32, name="out")(x_bd.astype(jnp.float32))
