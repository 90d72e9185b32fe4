"""The network of EMO-SIM: valence, arousal and expression of a face (spec metrics.md, section 8).

    net = EmoNet()
    out = jax.jit(net.apply)(variables, x_nhwc)  # x: crops of the face, 256x256, in [0, 1]
    out["valence"], out["arousal"]

Toisoul et al. (Nature Machine Intelligence 3, 2021): two stacked hourglasses find 68 landmarks, whose
summed heat maps weight the features from which emotion is read. `python -m vidmotion.convert emonet`
converts the public weights, which are never trained further. Layers have the names of that file. Shape
suffixes: n images, h height, w width, c channels.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vidmotion.models.motion_encoder import ConvBlock, Hourglass
from vidmotion.models.patchgan import BatchNorm

DEPTH = 4  # depth of the hourglasses
BLOCKS = 4  # number of blocks of the head, each of which halves the map


def _norm(name: str) -> BatchNorm:
    return BatchNorm(scale_init=nn.initializers.ones, name=name)


class EmoNet(nn.Module):
    """Reads the emotion of faces; 256 pixels and 8 expressions are the public `emonet_8.pth`.

    The variables are ``params`` and ``batch_stats``, which nothing updates: the public code's "instance norm" is in
    fact a batch norm with fixed statistics.

    Attributes:
      expressions: the number of classes of expressions; 8 or 5 in the public files.
      width: the channels of the first convolution; the maps have 2 and 4 times as many.
      landmarks: the number of heat maps.
      size: the side of the faces in pixels, a multiple of 64.
      dtype: the dtype of the convolutions; parameters, norms and the dense layers are float32.

    Raises:
      ValueError: when it is called, if the sizes do not fit.
    """

    expressions: int = 8
    width: int = 64
    landmarks: int = 68
    size: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_nhwc: jax.Array) -> dict[str, jax.Array]:
        """Reads the emotion of each face.

        Args:
          x_nhwc: RGB in [0, 1], without normalisation, (n, size, size, 3).

        Returns:
          A dictionary of float32 arrays: ``valence`` and ``arousal`` (n,), about in [-1, 1] but not clipped;
          ``expression`` (n, expressions), logits.

        Raises:
          ValueError: if the faces have another shape.
        """
        if self.size % 64 or x_nhwc.ndim != 4 or x_nhwc.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"EmoNet: faces must be (n, {self.size}, {self.size}, 3) with a size that is a multiple of 64, got "
                f"{x_nhwc.shape}"
            )
        # By default accelerators round float32 products to 10 bits or fewer (section 15, 1).
        exact = jnp.dtype(self.dtype) == jnp.float32
        with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
            return self._forward(x_nhwc.astype(self.dtype))

    def _forward(self, x: jax.Array) -> dict[str, jax.Array]:
        wide = 4 * self.width

        def conv(features: int, name: str) -> nn.Conv:
            return nn.Conv(features, (1, 1), dtype=self.dtype, name=name)

        def block(features: int, name: str, x: jax.Array) -> jax.Array:
            return ConvBlock(features, self.dtype, name=name)(x, False)

        stem = nn.Conv(self.width, (7, 7), strides=2, padding=3, dtype=self.dtype, name="conv1")
        x = nn.relu(_norm("bn1")(stem(x), False))
        x = nn.max_pool(block(2 * self.width, "conv2", x), (2, 2), (2, 2))
        x = block(wide, "conv4", block(2 * self.width, "conv3", x))

        features, y = [x], x
        for i in (0, 1):
            z = Hourglass(DEPTH, 0.0, self.dtype, "nearest", name=f"m{i}")(y, False)
            z = conv(wide, f"conv_last{i}")(block(wide, f"top_m_{i}", z))
            z = nn.relu(_norm(f"bn_end{i}")(z, False))
            heat = conv(self.landmarks, f"l{i}")(z)
            if i == 0:
                z = conv(wide, "bl0")(z)
                y = y + z + conv(wide, "al0")(heat)
            features.append(z)
        # The heat maps of the last hourglass weight the features of both.
        mask = jnp.sum(heat, axis=-1, keepdims=True)
        x = jnp.concatenate([features[0], *(z * mask for z in features[1:])], axis=-1)

        x = conv(wide, "conv1x1_input_emo_2")(x)
        for i in range(BLOCKS):
            x = nn.max_pool(block(wide, f"emo_net_2_{i}", x), (2, 2), (2, 2))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        x = nn.Dense(2 * self.width, name="emo_fc_in")(x)
        norm = _norm("emo_fc_norm")(x[:, None, None], False)[:, 0, 0]
        x = nn.Dense(self.expressions + 2, name="emo_fc_out")(nn.relu(norm))
        return {"expression": x[:, :-2], "valence": x[:, -2], "arousal": x[:, -1]}
