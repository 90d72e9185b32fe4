"""Motion cross-attention, temporal attention, and X-NeMo's denoising UNet that has both.

Spec xnemo.md, sections 1.4-1.6. Both modules are built alike: group norm per frame, a dense layer, two attentions and a
GEGLU layer with their residuals, a dense layer that starts at zero, and the input added. One of each follows every
layer of the UNet, 21 of each in all. In the ablation without motion cross-attention, `motion_control` brings in the
motion instead:

    net = DenoisingUNet(**SIZES["sd15"])
    eps = net.apply(variables, x, time, context, motion, banks=pairs)
    eps = net.apply(variables, x, time, context, skip=("motion", "temporal"))  # image stage

Shape suffixes: b batch, f frames, h height, w width, n rows, l tokens of a row, s motion tokens, c
channels.
"""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.models.attention import Attention, FeedForward, layer_norm
from vidmotion.models.blocks import Dtype, group_norm
from vidmotion.models.motion_control import MotionControl
from vidmotion.models.unet import TRANSFORMER_EPSILON, Given, Make, UNet, zeros

ATTENTIONS = 2
MAX_FRAMES = 32
MOTION = (32, 16)  # the number of motion tokens of a frame, and their width


def frame_code(frames: int, width: int) -> np.ndarray:
    """Returns a fixed code of the frame number, (frames, width): sines on even channels, cosines on odd ones, both at
    rates from 1 down towards 1/10000."""
    angle = np.arange(frames)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(frames, width).astype("f4")


class MotionModule(nn.Module):
    """Lets each frame's places attend to that frame's motion tokens (section 1.5).

    Attributes:
      heads: the number of heads of the attentions.
      groups: the number of groups of the norm at the entrance.
      opened: whether the last layer starts as other layers do, and not at zero.
      dtype: the dtype of the computation.
    """

    heads: int = 8
    groups: int = 32
    opened: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array, motion_bfsc: jax.Array) -> jax.Array:
        """Features (b, f, h, w, c) and motion tokens (b, f, s, c') -> (b, f, h, w, c).

        Raises:
          ValueError: if there are no motion tokens, or their batch or number of frames differs from the features'.
        """
        shape = jnp.shape(motion_bfsc)
        if len(shape) != 4 or shape[:2] != x_bfhwc.shape[:2]:
            raise ValueError(
                f"expected motion tokens {x_bfhwc.shape[:2]} + (tokens, width), one set per frame, got "
                f"{shape}; skip=('motion',) leaves this module out"
            )
        frames = x_bfhwc.shape[1]
        context_nsc = einops.rearrange(motion_bfsc, "b f s c -> (b f) s c").astype(self.dtype)
        y_nlc = _enter(x_bfhwc, "b f h w c -> (b f) (h w) c", self.groups, self.dtype)
        for i in range(ATTENTIONS):
            q = layer_norm(self.dtype, f"norm_{i}")(y_nlc)
            y_nlc = y_nlc + Attention(self.heads, self.dtype, name=f"attn_{i}")(q, context_nsc)
        y_nlc = _leave(y_nlc, self.dtype, self.opened)
        return x_bfhwc + y_nlc.reshape(-1, frames, *x_bfhwc.shape[2:])


class TemporalModule(nn.Module):
    """Lets each place attend to itself in all frames (section 1.6; AnimateDiff v2).

    Attributes:
      heads: the number of heads of the attentions.
      groups: the number of groups of the norm at the entrance.
      dtype: the dtype of the computation.
    """

    heads: int = 8
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bfhwc: jax.Array, condition: object = None) -> jax.Array:
        """(b, f, h, w, c) -> (b, f, h, w, c); `condition` is not read.

        Raises:
          ValueError: if there are more than 32 frames.
        """
        _, f, h, w, c = x_bfhwc.shape
        if f > MAX_FRAMES:
            raise ValueError(
                f"{f} frames at once, but the temporal modules know {MAX_FRAMES} positions: use "
                "windows, or skip=('temporal',)"
            )
        code_1fc = jnp.asarray(frame_code(f, c), self.dtype)[None]
        y_nfc = _enter(x_bfhwc, "b f h w c -> (b h w) f c", self.groups, self.dtype)
        for i in range(ATTENTIONS):
            q = layer_norm(self.dtype, f"norm_{i}")(y_nfc) + code_1fc
            y_nfc = y_nfc + Attention(self.heads, self.dtype, name=f"attn_{i}")(q)
        y_nfc = _leave(y_nfc, self.dtype)
        return x_bfhwc + einops.rearrange(y_nfc, "(b h w) f c -> b f h w c", h=h, w=w)


def _enter(x_bfhwc: jax.Array, order: str, groups: int, dtype: Dtype) -> jax.Array:
    """Applies group norm to each frame by itself, arranges the tokens in `order`, and applies the first dense layer."""
    b, f, *_, c = x_bfhwc.shape
    y = x_bfhwc.reshape(b * f, *x_bfhwc.shape[2:])
    y = group_norm(groups, TRANSFORMER_EPSILON, dtype, "norm")(y).reshape(x_bfhwc.shape)
    return nn.Dense(c, dtype=dtype, name="proj_in")(einops.rearrange(y, order))


def _leave(y_nlc: jax.Array, dtype: Dtype, opened: bool = False) -> jax.Array:
    """Applies the GEGLU layer with its residual and the last dense layer, which starts at zero unless `opened`."""
    y_nlc = y_nlc + FeedForward(dtype, name="ff")(layer_norm(dtype, "norm_ff")(y_nlc))
    start = nn.initializers.lecun_normal() if opened else zeros
    return nn.Dense(y_nlc.shape[-1], kernel_init=start, dtype=dtype, name="proj_out")(y_nlc)


class DenoisingUNet(UNet):
    """X-NeMo's denoising network: a `UNet` whose condition is motion tokens (b, f, 32, 16).

    With ``SIZES["sd15"]`` it has 1,684,818,244 parameters: 372,088,000 of them in the motion modules (paths
    ``*/motion_*``) and 453,209,280 in the temporal modules (``*/temporal_*``).

    Attributes:
      module_groups: the number of groups of the group norms of both modules. It is the released network's, independent
        of the UNet's own number of groups.
      motion_opened: whether the motion modules' last layers start as other layers do, and not at zero, so that the
        motion encoder has a gradient from the first step on. Not in paper.
      control_side: if not 0, a `MotionControl` (paths ``control/*``) reads the motion tokens in place of the motion
        modules, the ablation "w/o cross-attn" of Table 2; the value is then the side of the middle's features.
    """

    module_groups: int = 32
    motion_opened: bool = False
    control_side: int = 0

    def after(self) -> dict[str, Make]:
        """Returns what makes the modules ``motion``, left out if there is a control, and ``temporal``."""
        shared = {"heads": self.heads, "groups": self.module_groups, "dtype": self.dtype}
        kinds = {
            "motion": (MotionModule, {"opened": self.motion_opened}),
            "temporal": (TemporalModule, {}),
        }
        if self.control_side:
            del kinds["motion"]
        return {
            name: functools.partial(nn.remat(kind) if self.remat else kind, **shared, **own)
            for name, (kind, own) in kinds.items()
        }

    def optional(self) -> tuple[str, ...]:
        """Returns the names ``motion`` and ``temporal``."""
        return "motion", "temporal"

    def added(self, time_b: jax.Array, given: Given) -> tuple[list[jax.Array], jax.Array] | None:
        """Returns the features that the control makes from the motion tokens; None without a control or if skipped.

        Raises:
          ValueError: if there are no motion tokens.
        """
        if not self.control_side or ("motion" in given.skip and not self.is_initializing()):
            return None
        if given.condition is None:
            raise ValueError(
                "no motion tokens were given; give them, or leave the control out with skip=('motion',)"
            )
        control = MotionControl(
            self.channels,
            self.attention,
            self.layers_per_block,
            self.heads,
            self.norm_groups,
            bool(self.context_width),
            self.control_side,
            self.motion_opened,
            self.remat,
            self.dtype,
            name="control",
        )
        return control(given.condition, time_b, given.context_bsc)
