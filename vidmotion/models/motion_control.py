"""Motion as a map of features that is added to the denoiser's own: X-NeMo without motion cross-attention.

The ablation "w/o cross-attn" of X-NeMo's Table 2 (spec xnemo.md, 1.11): "the motion latent is transformed into a 2D
control map via an upsampling decoder and applied to the UNet using a ControlNet". Its network lies unused in the
released code: no way down; an embedding of the time, a middle and a way up that takes nothing from a way down, and 1x1
convolutions that start at zero. The decoder in front of it was not published.

Shape suffixes: b batch, f frames, h height, w width, n = b f, s motion tokens, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidmotion.models import forms
from vidmotion.models.blocks import Dtype, Upsample
from vidmotion.models.stylegan import Synthesis
from vidmotion.models.unet import Given, Middle, UpAlone, embedded_time, zeros


class MotionControl(nn.Module):
    """Motion tokens to what a `UNet` adds to all that it keeps on the way down, and to its middle.

    The tokens of a frame, side by side, are the style of a StyleGAN (`Synthesis`) whose map has the resolution and the
    channels of the UNet's middle. Our choice: the paper says no more of the decoder than that it is like StyleGAN's.
    The last convolution of each stage has the channels of what it is added to; in the released code they have those of
    their stage, which do not fit what the down-samplers leave.

    Parameters with the sizes of Stable Diffusion 1.5, a map of 8x8 and 32 tokens of 16 numbers: 553,800,000.

    Attributes:
      channels, attention, layers_per_block, heads, norm_groups: those of the `UNet`.
      context: has the `UNet`'s cross-attentions to its context.
      side: the side of the map, 4 times a power of two: the UNet's middle resolution.
      opened: the 1x1 convolutions start as other layers do, and not at zero.
      remat: recompute residual blocks and transformers in the backward pass.
      dtype: the dtype of the computation.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_block: int
    heads: int
    norm_groups: int
    context: bool
    side: int
    opened: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, motion_bfsc: jax.Array, time_b: jax.Array, context_bsc: jax.Array | None
    ) -> tuple[list[jax.Array], jax.Array]:
        """What is added.

        Args:
          motion_bfsc: tokens of each frame.
          time_b: (b,) timestep.
          context_bsc: what the `UNet` takes; None without `context`.

        Returns:
          A list of (b, f, h, w, c), for the output of the first convolution, of each layer and of each down-sampler in
          the order of the way down; and (b, f, side, side, c) for the middle.
        """
        b, f = motion_bfsc.shape[:2]
        lowest, last = self.channels[-1], len(self.channels) - 1
        own = dict(
            heads=self.heads,
            groups=self.norm_groups,
            context=self.context,
            within={},
            after={},
            remat=self.remat,
            dtype=self.dtype,
        )
        start = nn.initializers.lecun_normal() if self.opened else zeros

        def leave(name: str, x: jax.Array, channels: int) -> jax.Array:
            return forms.Dense(channels, kernel_init=start, dtype=self.dtype, name=name)(x)

        grown = Synthesis(
            self.side, lowest, lowest * self.side, colours=False, dtype=self.dtype, name="map"
        )
        x = grown(motion_bfsc.reshape(b * f, -1)).reshape(b, f, self.side, self.side, lowest)
        time_bc = embedded_time(time_b, self.channels[0], self.dtype)
        given = Given(time_bc, context_bsc, {}, {}, None, ())
        x = Middle(lowest, 1, None, True, **own, name="mid")(x, given, {})
        middle = leave("leave_mid", x, lowest)
        made: list[jax.Array] = []
        for i in range(last, -1, -1):
            up = (lambda: Upsample(self.dtype, name="upsample")) if i else None
            shape = self.channels[i], self.layers_per_block + 1, up, self.attention[i]
            x = UpAlone(*shape, **own, name=f"up_{last - i}")(x, given, made, {})
        widths = [self.channels[0]]
        for i, width in enumerate(self.channels):
            widths += [width] * (self.layers_per_block + (i < last))
        pairs = enumerate(zip(made[::-1], widths, strict=True))
        return [leave(f"leave_{j}", x, width) for j, (x, width) in pairs], middle
