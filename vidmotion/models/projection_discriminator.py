"""The discriminator of X-NeMo's GAN head: residual blocks with spectral norm (spec xnemo.md, 1.10).

It is the discriminator of the latent pose descriptors (Burkov et al., arXiv:2004.12000, section 3.1), without the
embedding on which its score was projected. Spectral norm is that of Miyato et al. (arXiv:1802.05957).

Shape suffixes: n images, h height, w width, c channels, i inputs and o outputs of a layer.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion import chunked_map

EPSILON = 1e-4  # least length of a vector in the power iteration, as in the pose descriptors' code
# The number of iterations at initialisation: from random vectors, one would give a poor estimate.
WARM_UP = 15


class Judged(NamedTuple):
    """The discriminator's judgement of images.

    Attributes:
      score_n: the score of each image, float32, positive for real images.
      features: the map after each block, in the dtype of the computation.
    """

    score_n: jax.Array
    features: list[jax.Array]


def _unit(x: jax.Array) -> jax.Array:
    # The clamp is inside the root, since the root's slope at zero is infinite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x)), EPSILON**2))


class SpectralNorm(nn.Module):
    """Divides a kernel by its largest singular value, which is found by power iteration.

    The collection ``spectral`` holds the current singular vectors ``left`` (o,) and ``right`` (i,) of
    the kernel as a matrix with one row per output. As in PyTorch, differentiation treats the vectors as
    constants but not the singular value.
    """

    @nn.compact
    def __call__(self, kernel: jax.Array, update: bool) -> jax.Array:
        """Kernel (..., o) -> the same shape, float32; `update` does one iteration first."""
        matrix_io = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        fixed_io = jax.lax.stop_gradient(matrix_io)

        def iterate(left_o: jax.Array) -> tuple[jax.Array, jax.Array]:
            right_i = _unit(jnp.dot(fixed_io, left_o, precision="highest"))
            return _unit(jnp.dot(right_i, fixed_io, precision="highest")), right_i

        def start() -> tuple[jax.Array, jax.Array]:
            first_o = jax.random.normal(self.make_rng("params"), matrix_io.shape[-1:])
            return jax.lax.fori_loop(
                0, WARM_UP, lambda _, pair: iterate(pair[0]), iterate(_unit(first_o))
            )

        if not self.has_variable("spectral", "left"):
            pair = start()
        left = self.variable("spectral", "left", lambda: pair[0])
        right = self.variable("spectral", "right", lambda: pair[1])
        if update and not self.is_initializing():
            left.value, right.value = iterate(left.value)
        largest = jnp.dot(
            jnp.dot(right.value, matrix_io, precision="highest"), left.value, precision="highest"
        )
        return kernel / largest


class SpectralConv(nn.Module):
    """A convolution that keeps the resolution, with spectral norm.

    Attributes:
      features: the output channels.
      kernel_size: the side of the kernel, odd.
      dtype: the dtype of the convolution.
    """

    features: int
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, update: bool) -> jax.Array:
        """(n, h, w, c) -> (n, h, w, features)."""
        size, half = self.kernel_size, self.kernel_size // 2
        shape = (size, size, x_nhwc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jax.lax.conv_general_dilated(
            x_nhwc.astype(self.dtype),
            SpectralNorm(name="norm")(kernel, update).astype(self.dtype),
            (1, 1),
            [(half, half)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return chunked_map.on_own_rows(y) + bias.astype(self.dtype)[None, None, None]


class Block(nn.Module):
    """A residual block: ReLU, 3x3 convolution, ReLU, 3x3 convolution and, if `down`, averages over 2x2.

    The shortcut averages the input likewise and, if the resolution or the channels change, applies a 1x1 convolution.

    Attributes:
      features: the output channels.
      down: whether to halve the resolution.
      first: whether the input is an image, so that there is no ReLU before the first convolution.
      dtype: the dtype of the convolutions.
    """

    features: int
    down: bool
    first: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, update: bool) -> jax.Array:
        """(n, h, w, c) -> (n, h, w, features), or half as high and wide, rounded down."""

        def conv(x: jax.Array, size: int, name: str) -> jax.Array:
            return SpectralConv(self.features, size, self.dtype, name=name)(x, update)

        def pooled(x: jax.Array) -> jax.Array:
            return nn.avg_pool(x, (2, 2), (2, 2)) if self.down else x

        y = conv(x_nhwc if self.first else nn.relu(x_nhwc), 3, "conv1")
        y = pooled(conv(nn.relu(y), 3, "conv2"))
        if self.down or x_nhwc.shape[-1] != self.features:
            # The order of a 1x1 convolution and an average makes no difference.
            x_nhwc = conv(pooled(x_nhwc), 1, "shortcut")
        return x_nhwc + y


class Discriminator(nn.Module):
    """Gives each image a score, and returns the feature maps along the way.

    Blocks halve the map while its side is above 4; the channels double up to `most`.

    Attributes:
      width: the channels after the first block.
      most: the largest number of channels.
      blocks: the number of blocks.
      dtype: the dtype of the convolutions; parameters, spectral norm and scores are float32.
    """

    width: int = 64
    most: int = 512
    blocks: int = 7
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array, update: bool = False) -> Judged:
        """Judges images.

        Args:
          x_nhwc: RGB in [-1, 1], (n, h, w, 3).
          update: whether to improve the estimates of the singular values by one iteration first, for which
            the collection ``spectral`` must be mutable.

        Returns:
          The scores (n,), and one feature map per block.
        """
        x, features = x_nhwc.astype(self.dtype), []
        for i in range(self.blocks):
            down = min(x.shape[1:3]) > 4
            width = min(self.width * 2**i, self.most)
            x = Block(width, down, i == 0, self.dtype, name=f"block_{i}")(x, update)
            features.append(x)
        summed_nc = jnp.sum(nn.relu(x.astype(jnp.float32)), axis=(1, 2))
        kernel = self.param("score_kernel", nn.initializers.lecun_normal(), (x.shape[-1], 1))
        bias = self.param("score_bias", nn.initializers.zeros, ())
        score_n1 = summed_nc @ SpectralNorm(name="score_norm")(kernel, update)
        return Judged(score_n1[:, 0] + bias, features)
