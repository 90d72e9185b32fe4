"""Motion as maps of features that are added to the denoiser's own: X-NeMo without motion cross-attention.

This is the ablation "w/o cross-attn" of X-NeMo's Table 2 (spec xnemo.md, 1.11): "the motion latent is transformed into
a 2D control map via an upsampling decoder and applied to the UNet using a ControlNet". The ControlNet is part of the
released code, which does not use it. It has no way down, only an embedding of the time, a middle, a way up that takes
nothing from a way down, and 1x1 convolutions that start at zero. The decoder in front of it was not published.

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
    """Turns motion tokens into features that a `UNet` adds to those kept on its way down and to those of its middle.

    The tokens of a frame, joined into one vector, are the style of a StyleGAN (`Synthesis`) whose map has the
    resolution and the channels of the UNet's middle. This is our choice: the paper only says that the decoder is like
    StyleGAN's. Each 1x1 convolution at the end has as many channels as the features to which its output is added; in
    the released code it has those of its stage, which do not fit the features after the down-samplers.

    With the sizes of Stable Diffusion 1.5, a map of 8x8 and 32 tokens of 16 numbers, it has 553,800,000 parameters.

    Attributes:
      channels, attention, layers_per_block, heads, norm_groups: the fields of the `UNet` with these names.
      context: whether there are cross-attentions to the context, as in the `UNet`.
      side: the side of the map, 4 times a power of two: the resolution of the UNet's middle.
      opened: whether the 1x1 convolutions start as other layers do, and not at zero.
      remat: whether to recompute residual blocks and transformers in the backward pass.
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
        """Returns the features to be added to those of the `UNet`.

        Args:
          motion_bfsc: the motion tokens of each frame.
          time_b: (b,) the timestep of each sample.
          context_bsc: the context of the `UNet`; None without `context`.

        Returns:
          A list of arrays (b, f, h, w, c) for the outputs of the first convolution, of each layer and of each
          down-sampler, in the order of the way down; and one array (b, f, side, side, c) for the middle.
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
