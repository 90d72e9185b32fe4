"""PatchGAN: a discriminator that judges overlapping patches of an image (Isola et al., 1611.07004).

It has batch norm and no sigmoid; VidTwin gives it single frames (spec vidtwin.md, section 7). Shape
suffixes: n images, h height, w width, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.spacetime import uniform_bias

MOMENTUM = 0.9  # share of the running statistics that is kept; PyTorch's momentum is 1 - 0.9 = 0.1
EPSILON = 1e-5


def _near_one(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's running statistics, in float32.

    Unlike in `nn.BatchNorm`, the running variance averages the unbiased estimate, so that statistics can be converted
    from and to PyTorch. Both normalise a training batch by the biased estimate.

    The parameters are ``scale`` and ``bias``; the collection ``batch_stats`` holds ``mean`` and ``var``.

    Attributes:
      scale_init: the initializer of ``scale``; by default that of a GAN's discriminator.
    """

    scale_init: nn.initializers.Initializer = _near_one

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool) -> jax.Array:
        """(n, h, w, c) -> the same shape and dtype; see `PatchDiscriminator` for `train`."""
        channels = x_nhwc.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        x = x_nhwc.astype(jnp.float32)
        if train:
            mean = jnp.mean(x, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(x - mean[None, None, None]), axis=(0, 1, 2))
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    running.value = MOMENTUM * running.value + (1.0 - MOMENTUM) * now
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * jax.lax.rsqrt(var + EPSILON)
        y = (x - mean[None, None, None]) * gain[None, None, None] + bias[None, None, None]
        return y.astype(x_nhwc.dtype)


class PatchDiscriminator(nn.Module):
    """The discriminator: 4x4 convolutions, `layers` of them with stride 2, and leaky ReLU 0.2.

    With 3 layers, each logit sees 70x70 pixels.

    The statistics of a batch come from one call. VidTwin calls the network separately on real and on
    reconstructed frames, and keeps the running statistics that both calls update, as well as those
    updated by the call in the generator's pass (section 7). Under `jit` with the batch split over a
    mesh, mean and variance are those of the whole batch on all devices, at the cost of one small
    all-reduce per norm and direction. In the paper's code each device uses its own, so its statistics
    are those of a batch that is smaller by a factor of the number of devices. With accumulation, our
    statistics are those of a microbatch.

    Attributes:
      width: the channels after the first convolution; each further one doubles them, up to 8 times `width`.
      layers: the number of convolutions of stride 2; one of stride 1 and the output layer follow.
      dtype: the dtype of the convolutions. Parameters, norms and logits are float32.
    """

    width: int = 64
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, train: bool) -> jax.Array:
        """Computes the logits of the patches, which are positive for real ones.

        Args:
          x_nhwc: RGB in [-1, 1], (n, h, w, 3); with 3 layers at least 24x24.
          train: whether to normalise by this batch's statistics and update the running ones, for which the
            collection ``batch_stats`` must be mutable; False normalises by the running statistics.

        Returns:
          (n, h', w', 1) float32; 224x224 pixels give 26x26 logits.

        Raises:
          ValueError: if the rank is wrong, or the images are too small to have a logit.
        """
        least = 3 * 2**self.layers
        if x_nhwc.ndim != 4 or min(x_nhwc.shape[1:3]) < least:
            raise ValueError(
                f"PatchDiscriminator: images must be (n, h, w, c) of at least {least}x{least}, got "
                f"{x_nhwc.shape}"
            )

        def conv(x: jax.Array, features: int, stride: int, bias: bool, name: str) -> jax.Array:
            return nn.Conv(
                features,
                (4, 4),
                strides=stride,
                padding=1,
                use_bias=bias,
                kernel_init=nn.initializers.normal(0.02),
                # PyTorch's default, since the released code re-initialises only the kernels.
                bias_init=uniform_bias(16 * x.shape[-1]),
                dtype=self.dtype,
                name=name,
            )(x)

        x = nn.leaky_relu(conv(x_nhwc, self.width, 2, True, "conv_0"), 0.2)
        for i in range(1, self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = conv(x, self.width * min(2**i, 8), stride, False, f"conv_{i}")
            x = nn.leaky_relu(BatchNorm(name=f"norm_{i}")(x, train), 0.2)
        x = conv(x, 1, 1, True, f"conv_{self.layers + 1}")
        return x.astype(jnp.float32)
