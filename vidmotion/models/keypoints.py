"""Self-supervised keypoints: the motion of WarpFace's ablation arm "IP" (Table 3 and Figure 1).

Siarohin et al. 2019 (arXiv 2003.00196), section 3.1: keypoints are the centres of heat maps. They are learned from the
task that uses them and from equivariance: moving the picture must move the keypoints in the same way. WarpFace gives no
details; the constants are those of the public configuration of Siarohin et al. (spec warpface.md, 12.1).

Shape suffixes: b batch, h w rows and columns, c channels, j keypoints, g control points, 2 is (x, y) in
[-1, 1] between the centres of the border pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from vidmotion.models.warpca import warp


def pixel_grid(height: int, width: int) -> jax.Array:
    """Returns (x, y) of every pixel, (height, width, 2)."""
    x, y = jnp.meshgrid(jnp.linspace(-1.0, 1.0, width), jnp.linspace(-1.0, 1.0, height))
    return jnp.stack([x, y], axis=-1)


class Bend:
    """A random deformation of the plane for each example: an affine map plus a thin-plate spline.

    Args:
      key: the random key of the draw.
      batch: the number of examples.
      affine: the standard deviation of the affine map's numbers about the identity.
      spline: the standard deviation of the spline's weights.
      points: the number of rows, and of columns, of the spline's control points.
    """

    def __init__(
        self,
        key: jax.Array,
        batch: int,
        affine: float = 0.05,
        spline: float = 0.005,
        points: int = 5,
    ):
        keys = jax.random.split(key)
        self._matrix_b23 = jnp.eye(2, 3)[None] + affine * jax.random.normal(keys[0], (batch, 2, 3))
        self._weight_bg = spline * jax.random.normal(keys[1], (batch, points**2))
        self._control_g2 = pixel_grid(points, points).reshape(-1, 2)

    def points(self, points_bn2: jax.Array) -> jax.Array:
        """Moves points: (b, n, 2) -> (b, n, 2)."""
        linear = jnp.einsum("bij,bnj->bni", self._matrix_b23[..., :2], points_bn2)
        moved = linear + self._matrix_b23[:, None, :, 2]
        apart = jnp.abs(points_bn2[:, :, None] - self._control_g2[None, None])
        distance_bng = jnp.sum(apart, axis=-1)
        kernel = jnp.square(distance_bng) * jnp.log(distance_bng + 1e-6)
        return moved + jnp.einsum("bng,bg->bn", kernel, self._weight_bg)[..., None]

    def picture(self, x_bhwc: jax.Array) -> jax.Array:
        """Deforms pictures: the result shows at p what `x_bhwc` shows at `points(p)`."""
        height, width = x_bhwc.shape[1:3]
        grid = pixel_grid(height, width).reshape(1, -1, 2)
        there = self.points(jnp.broadcast_to(grid, (len(x_bhwc), *grid.shape[1:])))
        return warp(x_bhwc, (there - grid).reshape(len(x_bhwc), height, width, 2))


class KeypointDetector(nn.Module):
    """Finds keypoints in a picture: the centres of the heat maps that an hourglass makes.

    Group norm replaces the original's batch norm, so that there are no running statistics.

    Attributes:
      points: J, the number of keypoints.
      blocks: how often the hourglass halves its map; the width doubles each time, up to `max_width`.
      width: the channels that the last block makes; the first block makes twice as many.
      max_width: the largest number of channels of a map.
      shrink: the factor by which the picture is made smaller first.
      temperature: the temperature of the softmax over places.
      dtype: the dtype of the convolutions; heat maps are float32.
    """

    points: int = 15
    blocks: int = 5
    width: int = 32
    max_width: int = 1024
    shrink: int = 4
    temperature: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Pictures in [-1, 1] -> keypoints (b, j, 2) float32."""
        b, h, w, c = x_bhwc.shape
        small = (b, h // self.shrink, w // self.shrink, c)
        x = jax.image.resize(x_bhwc, small, "bilinear").astype(self.dtype)

        def block(x, channels, name):
            x = nn.Conv(channels, (3, 3), dtype=self.dtype, name=f"{name}_conv")(x)
            groups = min(8, channels)
            return nn.relu(nn.GroupNorm(groups, dtype=self.dtype, name=f"{name}_norm")(x))

        widths = [min(self.max_width, self.width * 2**i) for i in range(1, self.blocks + 1)]
        kept = [x]
        for i, channels in enumerate(widths):
            x = nn.avg_pool(block(x, channels, f"down_{i}"), (2, 2), (2, 2))
            kept.append(x)
        x = kept.pop()
        for i, channels in enumerate([self.width, *widths[:-1]][::-1]):
            skip = kept.pop()
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "nearest")
            x = jnp.concatenate([block(x, channels, f"up_{i}"), skip], axis=-1)
        maps = nn.Conv(self.points, (7, 7), dtype=self.dtype, name="maps")(x).astype(jnp.float32)
        share = jax.nn.softmax(rearrange(maps, "b h w j -> b j (h w)") / self.temperature)
        return jnp.einsum("bjl,lk->bjk", share, pixel_grid(*small[1:3]).reshape(-1, 2))


class KeypointMotion(nn.Module):
    """Turns keypoints into a motion code: one token of `token_width` numbers per keypoint, from its shift and place.

    Attributes:
      detector: arguments of `KeypointDetector`.
      token_width: the width of a token.
      dtype: the dtype of the detector.
    """

    detector: dict
    token_width: int = 16
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.detect = KeypointDetector(**self.detector, dtype=self.dtype)
        self.token = nn.Dense(self.token_width)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Pictures in [-1, 1] -> keypoints (b, j, 2)."""
        return self.detect(x_bhwc)

    def code(self, source_bj2: jax.Array, driving_bj2: jax.Array) -> jax.Array:
        """Returns the code (b, j * token_width) of the motion from source to driving keypoints.

        Equal keypoints mean no motion.
        """
        seen = jnp.concatenate([driving_bj2 - source_bj2, source_bj2], axis=-1)
        return rearrange(self.token(seen), "b j e -> b (j e)")

    def equivariance(self, x_bhwc: jax.Array, found_bj2: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the equivariance loss mean |kp(I) - T(kp(T(I)))| of each example, (b,), for one random deformation T.

        Args:
          x_bhwc: the pictures I, in [-1, 1].
          found_bj2: kp(I), their keypoints.
          key: the random key of T.
        """
        bend = Bend(key, len(x_bhwc))
        again = bend.points(self.detect(bend.picture(x_bhwc)))
        return jnp.mean(jnp.abs(found_bj2 - again), axis=(1, 2))

    def everything(self, x_bhwc: jax.Array) -> jax.Array:
        """Uses every parameter, so that all of them are initialised."""
        found = self.detect(x_bhwc)
        return self.code(found, found)
