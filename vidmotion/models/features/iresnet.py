"""The face recogniser of CSIM / ID-SIM: an improved ResNet trained as ArcFace (spec metrics.md, section 6).

    net = IResNet(**SIZES["r50"])
    embedding_nd = jax.jit(net.apply)(variables, x_nhwc)  # x: metrics.identity.align

Deng et al. (arXiv:1801.07698) in the layout of insightface's `arcface_torch`. `python -m
vidmotion.convert arcface` converts its weights, which are never trained further; layers have the names
of that file. Shape suffixes: n images, h height, w width, c channels, d embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

SIZE = 112  # pixels, height and width of an aligned face
BN_EPSILON = 1e-5

# `IResNet(**SIZES[name])`: the number of blocks of each stage.
SIZES = {
    "r18": {"layers": (2, 2, 2, 2)},
    "r34": {"layers": (3, 4, 6, 3)},
    "r50": {"layers": (3, 4, 14, 3)},
    "r100": {"layers": (3, 13, 30, 3)},
}


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=BN_EPSILON, dtype=jnp.float32, name=name)


def _conv(features: int, size: int, stride: int, dtype: DTypeLike, name: str) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,  # symmetric also at stride 2, where "SAME" would be one pixel off
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        # By default accelerators round float32 products to 10 bits or fewer (section 15, 1).
        precision="highest" if jnp.dtype(dtype) == jnp.float32 else None,
        name=name,
    )


class PReLU(nn.Module):
    """The activation max(x, 0) + slope min(x, 0), with a learned slope for each channel."""

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> jax.Array:
        """(n, h, w, c) -> the same shape and dtype."""
        slope = self.param("slope", nn.initializers.constant(0.25), x_nhwc.shape[-1:], jnp.float32)
        negative = jnp.minimum(x_nhwc, 0) * slope[None, None, None].astype(x_nhwc.dtype)
        return jnp.maximum(x_nhwc, 0) + negative


class Block(nn.Module):
    """A residual block: norm, convolution, norm, PReLU, convolution and norm, added to the input.

    Attributes:
      features: the channels of the output.
      stride: the stride of the second convolution and of the shortcut.
      shortcut: whether the input passes a 1x1 convolution and a norm before the addition.
      dtype: the dtype of the convolutions; parameters and norms are float32.
    """

    features: int
    stride: int
    shortcut: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> jax.Array:
        """(n, h, w, c) -> (n, h / stride, w / stride, features), rounded up."""
        y = _norm("bn1")(x_nhwc).astype(self.dtype)
        y = _norm("bn2")(_conv(self.features, 3, 1, self.dtype, "conv1")(y))
        y = PReLU(name="prelu")(y).astype(self.dtype)
        y = _norm("bn3")(_conv(self.features, 3, self.stride, self.dtype, "conv2")(y))
        if self.shortcut:
            x_nhwc = _conv(self.features, 1, self.stride, self.dtype, "downsample_conv")(x_nhwc)
            x_nhwc = _norm("downsample_bn")(x_nhwc)
        return (x_nhwc.astype(jnp.float32) + y).astype(self.dtype)


class IResNet(nn.Module):
    """Turns aligned faces into embeddings, whose cosine tells whether two faces are of the same person.

    The variables are ``params`` and ``batch_stats``, which nothing updates.

    Attributes:
      layers: the number of blocks of each stage; `SIZES` has the published ones.
      widths: the channels of each stage; the stem has as many as the first stage.
      embedding: the length of the embedding.
      size: the side of the faces in pixels, a multiple of 16.
      dtype: the dtype of the convolutions; parameters, norms and the last layer are float32.
    """

    layers: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding: int = 512
    size: int = SIZE
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> jax.Array:
        """Computes the embeddings, which do not have unit length.

        Args:
          x_nhwc: RGB in [-1, 1], (n, size, size, 3), aligned by `metrics.identity.align`.

        Returns:
          (n, embedding) float32.

        Raises:
          ValueError: if the faces have another shape.
        """
        if x_nhwc.ndim != 4 or x_nhwc.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"IResNet: faces must be (n, {self.size}, {self.size}, 3), got {x_nhwc.shape}: "
                "align them by metrics.identity.align"
            )
        x = _conv(self.widths[0], 3, 1, self.dtype, "conv1")(x_nhwc.astype(self.dtype))
        x = PReLU(name="prelu")(_norm("bn1")(x)).astype(self.dtype)
        for stage, (depth, width) in enumerate(zip(self.layers, self.widths), 1):
            for i in range(depth):
                first = i == 0
                x = Block(width, 2 if first else 1, first, self.dtype, name=f"layer{stage}_{i}")(x)
        # Channels first, the order in which the public file's dense layer has its inputs.
        x = rearrange(_norm("bn2")(x), "n h w c -> n (c h w)")
        x = nn.Dense(self.embedding, precision="highest", name="fc")(x)
        return _norm("features")(x)
