"""I3D, the network of FVD (Carreira and Zisserman, arXiv:1705.07750; spec metrics.md, section 5).

    net = I3D()
    out = jax.jit(net.apply)(variables, x_nthwc)    # x: 224x224, see metrics.resize.for_i3d
    out["logits"]                                   # the features of FVD, (n, 400)

RGB stream, Kinetics-400, with the behaviour of TensorFlow Hub's ``deepmind/i3d-kinetics-400/1``.
Weights come from its public ports through `python -m vidmotion.convert i3d`. Layers are called as in
those files. Shape suffixes: n clips, t frames, h height, w width, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.features.windows import max_pool, pad_axis, same_padding, taps

SIZE = 224  # pixels, height and width
LEAST_FRAMES = 9  # fewer leave no position in time for the last mean
CLASSES = 400

# Channels of the branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after a maximum.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# (window, strides) of the maximum before a block.
POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


class Conv3d(nn.Module):
    """Convolution over time, height and width, padded as "SAME", no bias.

    Computed as one convolution of images whose channels are those of the frames side by side: libraries
    for processors have fast kernels for images only.

    Parameter ``kernel`` (size, size, size, c, features).

    Attributes:
      features: channels of the output.
      size: the size of the kernel, all axes.
      stride: the stride of all axes.
      dtype: the dtype of the convolution; the kernel is float32.
    """

    features: int
    size: int = 1
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> jax.Array:
        """(n, t, h, w, c) -> (n, t', h', w', features), sizes over the stride, rounded up."""
        n, t, *_, c = x_nthwc.shape
        size, stride = self.size, self.stride
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (size, size, size, c, self.features), jnp.float32
        ).astype(self.dtype)
        x = pad_axis(x_nthwc.astype(self.dtype), 1, *same_padding(t, size, stride))
        x = jnp.concatenate(taps(x, 1, size, stride), axis=-1)
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(size, size, size * c, self.features)
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]),
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # By default accelerators round float32 products to 10 bits or fewer (section 15, 1).
            precision="highest" if jnp.dtype(self.dtype) == jnp.float32 else None,
        )
        return y.reshape(n, -1, *y.shape[1:])


class ConvNorm(nn.Module):
    """`Conv3d`, batch norm by fixed statistics, ReLU.

    The original's norm has no scale; the ports store ones.

    Attributes:
      features, size, stride, dtype: see `Conv3d`.
      bn_eps: added to the variance.
    """

    features: int
    size: int = 1
    stride: int = 1
    bn_eps: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> jax.Array:
        """See `Conv3d`; of `dtype`."""
        x = Conv3d(self.features, self.size, self.stride, self.dtype, name="conv3d")(x_nthwc)
        norm = nn.BatchNorm(
            use_running_average=True, epsilon=self.bn_eps, dtype=jnp.float32, name="bn"
        )
        return nn.relu(norm(x)).astype(self.dtype)


class Mixed(nn.Module):
    """Four branches over one input, their channels side by side.

    Attributes:
      channels: a value of `BLOCKS`.
      bn_eps, dtype: see `ConvNorm`.
    """

    channels: tuple[int, ...]
    bn_eps: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(name: str, features: int, size: int = 1) -> ConvNorm:
            return ConvNorm(features, size, bn_eps=self.bn_eps, dtype=self.dtype, name=name)

        c0, c1a, c1b, c2a, c2b, c3b = self.channels
        pool = max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        branches = [
            conv("b0", c0)(x),
            conv("b1b", c1b, 3)(conv("b1a", c1a)(x)),
            conv("b2b", c2b, 3)(conv("b2a", c2a)(x)),
            conv("b3b", c3b)(pool),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """Clips -> logits of Kinetics-400 and what they are made of.

    Variables: ``params`` and ``batch_stats``, which nothing updates.

    Attributes:
      bn_eps: 1e-3 in the original; VideoGPT's port takes 1e-5, which moves the logits by 0.7 %.
      dtype: the dtype of the convolutions; parameters, norms and what is returned are float32.
    """

    bn_eps: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> dict[str, jax.Array]:
        """Features of clips.

        Args:
          x_nthwc: RGB in [-1, 1], (n, t, 224, 224, 3); 9 to 16 frames give one position in time, 17
            to 24 two, and so on.

        Returns:
          float32: ``logits`` (n, 400), before any softmax and averaged over time, and ``pooled``
          (n, 1024), the input of the last layer averaged over time.

        Raises:
          ValueError: another shape, or fewer than 9 frames.
        """
        if x_nthwc.ndim != 5 or x_nthwc.shape[2:] != (SIZE, SIZE, 3):
            raise ValueError(
                f"I3D: clips must be (n, t, {SIZE}, {SIZE}, 3), got {x_nthwc.shape}: resize them "
                "by metrics.resize.for_i3d"
            )
        if x_nthwc.shape[1] < LEAST_FRAMES:
            raise ValueError(
                f"I3D: clips must have at least {LEAST_FRAMES} frames, got {x_nthwc.shape[1]}"
            )

        def conv(name: str, features: int, size: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(features, size, stride, self.bn_eps, self.dtype, name=name)

        x = conv("Conv3d_1a_7x7", 64, 7, 2)(x_nthwc)
        x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = conv("Conv3d_2c_3x3", 192, 3)(conv("Conv3d_2b_1x1", 64, 1)(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        for name, channels in BLOCKS.items():
            if name in POOLS:
                x = max_pool(x, *POOLS[name], "SAME")
            x = Mixed(channels, self.bn_eps, self.dtype, name=name)(x)
        # The last mean is over 2x7x7, and 7x7 is all of the map; then the frames' mean.
        x_ntc = jnp.mean(x.astype(jnp.float32), axis=(2, 3))
        pooled_nc = jnp.mean((x_ntc[:, 1:] + x_ntc[:, :-1]) / 2, axis=1)
        # The last layer is linear: the mean of its outputs is the output of the mean.
        logits = nn.Dense(CLASSES, dtype=jnp.float32, precision="highest", name="logits")
        return {"logits": logits(pooled_nc), "pooled": pooled_nc}
