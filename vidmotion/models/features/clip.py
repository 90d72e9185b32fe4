"""The image tower of CLIP (Radford et al. 2021, arXiv:2103.00020) with its projection.

X-NeMo gives the reference picture's embedding, as a single token, to all text cross-attentions (spec
xnemo.md, section 1.9). Shape suffixes: b batch, h height, w width, l tokens, c width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.models.attention import layer_norm
from vidmotion.models.blocks import Dtype
from vidmotion.models.layers import SHORT, attention, mlp

# Mean and deviation of red, green and blue, for pixels in [0, 1]. Pictures are resized to 224 x 224 by PIL's bicubic
# filter.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# `ClipVision(**SIZES[name])`; parameters: vit_l14 303,966,208, tiny 14,784.
SIZES = {
    "vit_l14": {
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_dim": 4096,
        "patch": 14,
        "size": 224,
        "embedding": 768,
    },
    "tiny": {
        "width": 16,
        "layers": 2,
        "heads": 2,
        "mlp_dim": 32,
        "patch": 14,
        "size": 28,
        "embedding": 48,
    },
}


def normalise(x_bhwc: jax.Array) -> jax.Array:
    """Normalises RGB in [0, 1], channels last, as `ClipVision` expects it."""
    return (x_bhwc - MEAN.reshape((1,) * (x_bhwc.ndim - 1) + (3,))) / STD.reshape(
        (1,) * (x_bhwc.ndim - 1) + (3,)
    )


class Layer(nn.Module):
    """A pre-norm transformer layer with the sigmoid approximation of GELU.

    Attributes:
      heads: the number of heads of the attention.
      mlp_dim: the hidden width of the feed-forward layer.
      dtype: the dtype of the computation.
    """

    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_blc: jax.Array) -> jax.Array:
        """(b, l, c) -> (b, l, c)."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        y = layer_norm(self.dtype, "norm1")(x_blc)
        x_blc = x_blc + attention(y, heads=self.heads, dense=dense, names=SHORT)
        y = layer_norm(self.dtype, "norm2")(x_blc)
        return x_blc + mlp(
            y, self.mlp_dim, dense=dense, activation=lambda y: y * nn.sigmoid(1.702 * y)
        )


class ClipVision(nn.Module):
    """Turns a picture into the embedding that CLIP compares with texts; the embedding is not normalised.

    Attributes:
      width, layers, heads, mlp_dim: the transformer's sizes.
      patch: the side of a patch in pixels.
      size: the side of the picture in pixels.
      embedding: the width of the embedding.
      dtype: the dtype of the computation; parameters stay float32.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    patch: int = 14
    size: int = 224
    embedding: int = 768
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Normalised picture (b, size, size, 3) -> (b, embedding) float32.

        Raises:
          ValueError: if the picture has another size.
        """
        if x_bhwc.ndim != 4 or x_bhwc.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"expected pictures (b, {self.size}, {self.size}, 3), got {x_bhwc.shape}"
            )
        side = self.size // self.patch
        patch = self.patch, self.patch
        normal = nn.initializers.normal(0.02)
        x = nn.Conv(
            self.width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embed",
        )(x_bhwc)
        x = x.reshape(len(x), side * side, self.width)
        first = self.param("class_token", normal, (self.width,)).astype(self.dtype)
        first = jnp.broadcast_to(first[None, None], (len(x), 1, self.width))
        position = self.param("position", normal, (1 + side * side, self.width))
        x = jnp.concatenate([first, x], axis=1) + position[None].astype(self.dtype)
        x = layer_norm(self.dtype, "norm_in")(x)
        for i in range(self.layers):
            x = Layer(self.heads, self.mlp_dim, self.dtype, name=f"layer_{i}")(x)
        x = layer_norm(self.dtype, "norm_out")(x[:, 0])
        project = nn.Dense(self.embedding, use_bias=False, dtype=self.dtype, name="projection")
        return project(x).astype(jnp.float32)
