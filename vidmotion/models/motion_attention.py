"""Motion cross-attention, temporal attention, and X-NeMo's denoising UNet that has both.

Spec xnemo.md, sections 1.4-1.6. Both modules share a skeleton: group norm per frame, a dense layer,
two attentions and a GEGLU layer with their residuals, a dense layer that starts at zero, and the
input added. One of each follows every layer of the UNet, 21 of each in all; without motion
cross-attention, an ablation, the motion comes by `motion_control`:

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
MOTION = (32, 16)  # tokens of a frame and their width


def frame_code(frames: int, width: int) -> np.ndarray:
    """(frames, width) fixed code of the frame number: sines on even channels, cosines on odd ones,
    both at rates from 1 down towards 1/10000."""
    angle = np.arange(frames)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(frames, width).astype("f4")


class MotionModule(nn.Module):
    """Each frame's places attend to that frame's motion tokens (section 1.5).

    Attributes:
      heads: the number of heads of the attentions.
      groups: the number of groups of the norm at the entrance.
      opened: the last layer starts as other layers do, and not at zero.
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
          ValueError: motion tokens of another batch or number of frames, or none.
        """
        shape = jnp.shape(motion_bfsc)
        if len(shape) != 4 or shape[:2] != x_bfhwc.shape[:2]:
            raise ValueError(
                f"want motion tokens {x_bfhwc.shape[:2]} + (tokens, width), one set per frame, got "
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
    """Each place attends to itself over the frames (section 1.6; AnimateDiff v2).

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
          ValueError: more than 32 frames.
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
    """Group norm of each frame by itself, tokens in `order`, first dense layer."""
    b, f, *_, c = x_bfhwc.shape
    y = x_bfhwc.reshape(b * f, *x_bfhwc.shape[2:])
    y = group_norm(groups, TRANSFORMER_EPSILON, dtype, "norm")(y).reshape(x_bfhwc.shape)
    return nn.Dense(c, dtype=dtype, name="proj_in")(einops.rearrange(y, order))


def _leave(y_nlc: jax.Array, dtype: Dtype, opened: bool = False) -> jax.Array:
    """GEGLU layer with its residual, last dense layer, which starts at zero unless `opened`."""
    y_nlc = y_nlc + FeedForward(dtype, name="ff")(layer_norm(dtype, "norm_ff")(y_nlc))
    start = nn.initializers.lecun_normal() if opened else zeros
    return nn.Dense(y_nlc.shape[-1], kernel_init=start, dtype=dtype, name="proj_out")(y_nlc)


class DenoisingUNet(UNet):
    """X-NeMo's denoising network: a `UNet` whose condition is motion tokens (b, f, 32, 16).

    Parameters at ``SIZES["sd15"]``: 1,684,818,244, of which 372,088,000 in the motion modules
    (paths ``*/motion_*``) and 453,209,280 in the temporal ones (``*/temporal_*``).

    Attributes:
      module_groups: the number of groups of the group norms of both modules; as released, whatever the UNet's are.
      motion_opened: the motion modules' last layers do not start at zero, so that the motion encoder has a gradient
        from the first step on. Not in paper.
      control_side: side of the middle's features where a `MotionControl` (paths ``control/*``) reads the motion
        tokens in place of motion modules, the ablation "w/o cross-attn" of Table 2; 0: there is none.
    """

    module_groups: int = 32
    motion_opened: bool = False
    control_side: int = 0

    def after(self) -> dict[str, Make]:
        """``motion``, unless there is a control, then ``temporal``."""
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
        """``motion`` and ``temporal``."""
        return "motion", "temporal"

    def added(self, time_b: jax.Array, given: Given) -> tuple[list[jax.Array], jax.Array] | None:
        """What the control makes of the motion tokens.

        Raises:
          ValueError: the tokens are not there.
        """
        if not self.control_side or ("motion" in given.skip and not self.is_initializing()):
            return None
        if given.condition is None:
            raise ValueError("want motion tokens; skip=('motion',) leaves the control out")
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
