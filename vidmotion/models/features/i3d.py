"""I3D, the network of FVD (Carreira and Zisserman, arXiv:1705.07750; spec metrics.md, section 5).

    net = I3D()
    out = jax.jit(net.apply)(variables, x_nthwc)    # x: 224x224, see metrics.resize.for_i3d
    out["logits"]                                   # the features of FVD, (n, 400)

This is the RGB stream for Kinetics-400, with the behaviour of TensorFlow Hub's
``deepmind/i3d-kinetics-400/1``. `python -m vidmotion.convert i3d` converts the weights of its public
ports, and layers have the names of those files. Shape suffixes: n clips, t frames, h height, w width,
c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.features.windows import max_pool, pad_axis, same_padding, taps

SIZE = 224  # pixels, height and width
LEAST_FRAMES = 9  # with fewer frames, the last mean would have no position in time
CLASSES = 400

# The channels of each block's branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after max pooling.
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
# (window, strides) of the max pooling before a block.
POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


class Conv3d(nn.Module):
    """A convolution over time, height and width with "SAME" padding and no bias.

    It is computed as one convolution of images whose channels are the concatenated channels of several frames, since
    libraries for CPUs have fast kernels only for images.

    It has one parameter, ``kernel`` (size, size, size, c, features).

    Attributes:
      features: the channels of the output.
      size: the size of the kernel along each axis.
      stride: the stride along each axis.
      dtype: the dtype of the convolution; the kernel is float32.
    """

    features: int
    size: int = 1
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> jax.Array:
        """(n, t, h, w, c) -> (n, t', h', w', features); t', h', w' are t, h, w over the stride, rounded up."""
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
    """A `Conv3d`, batch norm with fixed statistics, and ReLU.

    The original's norm has no scale; the ports store scales of one.

    Attributes:
      features, size, stride, dtype: see `Conv3d`.
      bn_eps: the number that is added to the variance.
    """

    features: int
    size: int = 1
    stride: int = 1
    bn_eps: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> jax.Array:
        """(n, t, h, w, c) -> (n, t', h', w', features) of `dtype`; see `Conv3d`."""
        x = Conv3d(self.features, self.size, self.stride, self.dtype, name="conv3d")(x_nthwc)
        norm = nn.BatchNorm(
            use_running_average=True, epsilon=self.bn_eps, dtype=jnp.float32, name="bn"
        )
        return nn.relu(norm(x)).astype(self.dtype)


class Mixed(nn.Module):
    """Four branches over one input, with their output channels concatenated.

    Attributes:
      channels: the channels of the branches, a value of `BLOCKS`.
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
    """Turns clips into logits of Kinetics-400, and the pooled features from which these are computed.

    The variables are ``params`` and ``batch_stats``, which nothing updates.

    Attributes:
      bn_eps: the number that norms add to the variance: 1e-3 in the original; VideoGPT's port uses 1e-5, which changes
        the logits by 0.7 %.
      dtype: the dtype of the convolutions; parameters, norms and results are float32.
    """

    bn_eps: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nthwc: jax.Array) -> dict[str, jax.Array]:
        """Computes the features of clips.

        Args:
          x_nthwc: RGB in [-1, 1], (n, t, 224, 224, 3); 9 to 16 frames give one position in time, 17
            to 24 two, and so on.

        Returns:
          A dictionary of float32 arrays: ``logits`` (n, 400), before any softmax and averaged over time, and ``pooled``
          (n, 1024), the input of the last layer averaged over time.

        Raises:
          ValueError: if the clips have another shape, or fewer than 9 frames.
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
        # The network ends with a mean over windows of 2x7x7, where 7x7 is the whole map, and a mean over time.
        x_ntc = jnp.mean(x.astype(jnp.float32), axis=(2, 3))
        pooled_nc = jnp.mean((x_ntc[:, 1:] + x_ntc[:, :-1]) / 2, axis=1)
        # The last layer is linear, so the mean of its outputs equals its output for the mean.
        logits = nn.Dense(CLASSES, dtype=jnp.float32, precision="highest", name="logits")
        return {"logits": logits(pooled_nc), "pooled": pooled_nc}
