"""The Inception network of FID and the Inception score (spec metrics.md, section 4).

    net = InceptionV3()
    out = jax.jit(net.apply)(variables, x_nhwc)     # x: 299x299, see metrics.resize.for_inception
    out["2048"]                                     # the features of FID
    out["logits_unbiased"]                          # of the Inception score

This is the network of Szegedy et al. (arXiv:1512.00567) in the form of TensorFlow's graph of
2015-12-05. It differs from torchvision's: average pooling at the border leaves the padding out, the
last block has max pooling where the others have average pooling, batch norms add 1e-3 to the
variance, and there are 1008 classes. `python -m vidmotion.convert fid_inception` converts the weights
of the public port of that graph, and layers have the names of that file. Shape suffixes: n images,
h height, w width, c channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.features.windows import max_pool, mean_3x3

SIZE = 299  # pixels, height and width
CLASSES = 1008
BN_EPSILON = 1e-3

Kernel = int | tuple[int, int]


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm with fixed statistics, and ReLU.

    Attributes:
      features: the channels of the output.
      kernel: the size of the kernel: the side of a square, or (height, width).
      strides: the stride along both axes.
      padding: "SAME", which at stride 1 is symmetric, or "VALID".
      dtype: the dtype of the convolution; parameters and the norm are float32.
    """

    features: int
    kernel: Kernel
    strides: int = 1
    padding: str = "SAME"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> jax.Array:
        """(n, h, w, c) -> (n, h', w', features)."""
        size = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        x = nn.Conv(
            self.features,
            size,
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            # By default accelerators round float32 products to 10 bits or fewer (section 15, 1).
            precision="highest" if jnp.dtype(self.dtype) == jnp.float32 else None,
            name="conv",
        )(x_nhwc)
        norm = nn.BatchNorm(
            use_running_average=True, epsilon=BN_EPSILON, dtype=jnp.float32, name="bn"
        )
        return nn.relu(norm(x)).astype(self.dtype)


class _Block(nn.Module):
    """The base class of blocks, which are branches over one input with their output channels concatenated."""

    dtype: DTypeLike = jnp.float32

    def _conv(self, name: str, features: int, kernel: Kernel = 1, **options) -> ConvNorm:
        return ConvNorm(features, kernel, dtype=self.dtype, name=name, **options)


class BlockA(_Block):
    """A block on maps of 35x35; its branches: 1x1, 5x5, two 3x3 in a row, average pooling.

    Attributes:
      pool_features: the channels of the branch with the average pooling.
    """

    pool_features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self._conv
        one = conv("branch1x1", 64)(x)
        five = conv("branch5x5_2", 64, 5)(conv("branch5x5_1", 48)(x))
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3)(double)
        pool = conv("branch_pool", self.pool_features)(mean_3x3(x))
        return jnp.concatenate([one, five, double, pool], axis=-1)


class BlockB(_Block):
    """The block that reduces maps from 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, down = self._conv, dict(strides=2, padding="VALID")
        three = conv("branch3x3", 384, 3, **down)(x)
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3, **down)(double)
        pool = max_pool(x, (3, 3), (2, 2), "VALID")
        return jnp.concatenate([three, double, pool], axis=-1)


class BlockC(_Block):
    """A block on maps of 17x17; its branches: 1x1, 7x7, two 7x7 in a row, average pooling.

    Each 7x7 convolution is made of a row and a column.

    Attributes:
      inner: the channels inside the branches with 7x7 convolutions.
    """

    inner: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, inner, row, column = self._conv, self.inner, (1, 7), (7, 1)
        one = conv("branch1x1", 192)(x)
        seven = conv("branch7x7_2", inner, row)(conv("branch7x7_1", inner)(x))
        seven = conv("branch7x7_3", 192, column)(seven)
        double = conv("branch7x7dbl_2", inner, column)(conv("branch7x7dbl_1", inner)(x))
        double = conv("branch7x7dbl_4", inner, column)(conv("branch7x7dbl_3", inner, row)(double))
        double = conv("branch7x7dbl_5", 192, row)(double)
        pool = conv("branch_pool", 192)(mean_3x3(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class BlockD(_Block):
    """The block that reduces maps from 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, down = self._conv, dict(strides=2, padding="VALID")
        three = conv("branch3x3_2", 320, 3, **down)(conv("branch3x3_1", 192)(x))
        seven = conv("branch7x7x3_2", 192, (1, 7))(conv("branch7x7x3_1", 192)(x))
        seven = conv("branch7x7x3_4", 192, 3, **down)(conv("branch7x7x3_3", 192, (7, 1))(seven))
        pool = max_pool(x, (3, 3), (2, 2), "VALID")
        return jnp.concatenate([three, seven, pool], axis=-1)


class BlockE(_Block):
    """A block on maps of 8x8; its branches: 1x1, 3x3, two 3x3 in a row, pooling.

    The last 3x3 convolution of a branch is a row and a column side by side, whose outputs are concatenated.

    Attributes:
      maximum: whether the pooling takes maxima, as in the last block, instead of means.
    """

    maximum: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, row, column = self._conv, (1, 3), (3, 1)
        one = conv("branch1x1", 320)(x)
        three = conv("branch3x3_1", 384)(x)
        three = [conv("branch3x3_2a", 384, row)(three), conv("branch3x3_2b", 384, column)(three)]
        double = conv("branch3x3dbl_2", 384, 3)(conv("branch3x3dbl_1", 448)(x))
        double = [
            conv("branch3x3dbl_3a", 384, row)(double),
            conv("branch3x3dbl_3b", 384, column)(double),
        ]
        pool = max_pool(x, (3, 3), (1, 1), "SAME") if self.maximum else mean_3x3(x)
        pool = conv("branch_pool", 192)(pool)
        return jnp.concatenate([one, *three, *double, pool], axis=-1)


class InceptionV3(nn.Module):
    """Turns images into features at four depths, and logits.

    The variables are ``params`` and ``batch_stats``, which nothing updates; together they have 23,885,392 numbers.

    Attributes:
      dtype: the dtype of the convolutions; parameters, norms and results are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> dict[str, jax.Array]:
        """Computes the features of images; under `jit`, unused ones are not computed.

        Args:
          x_nhwc: RGB as `metrics.resize.for_inception` makes it, (n, 299, 299, 3), about in [-1, 1].

        Returns:
          A dictionary of float32 arrays. ``64``, ``192``, ``768`` and ``2048``, of shape (n, that number), are the
          means over pixels of the maps after the first and second pooling, before the last reduction and at the end
          (section 4: FID uses ``2048``). ``logits`` is (n, 1008); ``logits_unbiased`` is the same without the bias, and
          the Inception score is computed from it.

        Raises:
          ValueError: if the images have another shape.
        """
        if x_nhwc.ndim != 4 or x_nhwc.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(
                f"InceptionV3: images must be (n, {SIZE}, {SIZE}, 3), got {x_nhwc.shape}: resize "
                "them by metrics.resize.for_inception"
            )
        dtype, out = self.dtype, {}

        def conv(name: str, features: int, kernel: int, stride: int = 1, padding: str = "VALID"):
            return ConvNorm(features, kernel, stride, padding, dtype, name=name)

        def keep(x: jax.Array) -> None:
            out[str(x.shape[-1])] = jnp.mean(x.astype(jnp.float32), axis=(1, 2))

        x = conv("Conv2d_1a_3x3", 32, 3, 2)(x_nhwc.astype(dtype))
        x = conv("Conv2d_2a_3x3", 32, 3)(x)
        x = conv("Conv2d_2b_3x3", 64, 3, padding="SAME")(x)
        x = max_pool(x, (3, 3), (2, 2), "VALID")
        keep(x)
        x = conv("Conv2d_3b_1x1", 80, 1)(x)
        x = conv("Conv2d_4a_3x3", 192, 3)(x)
        x = max_pool(x, (3, 3), (2, 2), "VALID")
        keep(x)
        for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(dtype, features, name=name)(x)
        x = BlockB(dtype, name="Mixed_6a")(x)
        for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
            x = BlockC(dtype, inner, name=name)(x)
        x = BlockC(dtype, 192, name="Mixed_6e")(x)
        keep(x)
        x = BlockD(dtype, name="Mixed_7a")(x)
        x = BlockE(dtype, False, name="Mixed_7b")(x)
        x = BlockE(dtype, True, name="Mixed_7c")(x)
        keep(x)
        dense = nn.Dense(CLASSES, dtype=jnp.float32, precision="highest", name="fc")
        out["logits"] = dense(out["2048"])
        bias = dense.variables["params"]["bias"]
        out["logits_unbiased"] = out["logits"] - bias[None]
        return out
