"""VidTwin's ablations: Table 3 of the main text (arXiv 2412.17726; spec vidtwin.md, section 13).

Each changes one branch of `VidTwin` and leaves the rest as it is. The paper says in a line what takes whose place; of
(b) and (d) the released code has a class, both without Gaussians, of (a) and (c) it has none. Sizes that no source
gives are chosen so that a clip keeps about as many numbers as in the paper's setting 1, 4,928:

    a 4,704   b 5,184   c 4,928   d 4,928

Shape suffixes as in `vidtwin`.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vidmotion.models.qformer import QFormer
from vidmotion.models.vidtwin import STARTS, Start, VidTwin, dense

CONVOLUTIONS = 2  # of (c)


class SingleLatent(VidTwin):
    """(a) One latent at a similar rate: the structure branch alone.

    Our choice: nothing but the words is public. What the other branch kept goes to this one: with
    ``structure_channels=6`` a clip keeps 16 x 7 x 7 x 6 = 4,704 numbers. `dynamics_channels` and `dynamics_blocks` are
    not read.
    """

    @property
    def dynamics_shape(self) -> None:
        """There is no such latent."""
        return None

    def dynamics_branch(self) -> tuple[None, None]:
        """None."""
        return None, None


class FrameQueries(nn.Module):
    """A Q-Former over the places of each frame.

    Attributes:
      reader: makes the Q-Former.
    """

    reader: Callable[[], QFormer]

    @nn.compact
    def __call__(self, z_bthwc: jax.Array, deterministic: bool) -> jax.Array:
        """Features (b, t, h, w, c) -> (b, t, q, width of a query)."""
        memory = rearrange(z_bthwc, "b t h w c -> (b t) (h w) c")
        found = self.reader()(memory, deterministic)
        return rearrange(found, "(b t) q n -> b t q n", b=len(z_bthwc))


class FramePlaces(nn.Module):
    """Queries of a frame back to its places: a dense layer, then one from queries to places, each with ReLU.

    Attributes:
      side, features: h = w and c of the result.
      start: how the layers begin.
    """

    side: int
    features: int
    start: Start

    @nn.compact
    def __call__(self, dynamics_btqn: jax.Array) -> jax.Array:
        """(b, t, q, n) -> (b, t, h, w, c), not negative."""
        x = dense(dynamics_btqn, self.features, self.start, "widen")
        x = dense(x, self.side**2, self.start, "mix", axis=2, places=True)
        return rearrange(x, "b t c (h w) -> b t h w c", h=self.side)


class SpatialQFormer(VidTwin):
    """(b) A Q-Former over the places of each frame in the place of the two averages, for the dynamics.

    As the class of the released code, without Gaussians: what the queries find is the latent. Its number of queries was
    not published: two of 64 numbers are nearest to the 112 that a frame has in setting 1. `dynamics_channels` and
    `dynamics_blocks` are not read.

    Attributes:
      dynamics_queries: the number of queries of a frame.
    """

    dynamics_queries: int = 2
    variational: ClassVar[bool] = False

    @property
    def dynamics_shape(self) -> tuple[int, int, int]:
        """(f, queries, width of a query)."""
        return self.grid[0], self.dynamics_queries, self.query_width

    def dynamics_branch(self) -> tuple[nn.Module, nn.Module]:
        """The Q-Former, and back to the places."""
        places = FramePlaces(self.grid[1], self.width, STARTS[self.start])
        return FrameQueries(self.qformer(self.dynamics_queries)), places


class FrameConvolutions(nn.Module):
    """In the place of the structure's Q-Former: convolutions over three frames, a layer from frames to queries, an MLP.

    Attributes:
      queries, width, mlp_dim: sizes, as of the `QFormer`.
      start: how the layers begin.
    """

    queries: int
    width: int
    mlp_dim: int
    start: Start

    @nn.compact
    def __call__(self, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """Frames (b, l, any width) -> (b, queries, width); there is no dropout."""
        x = memory_blc
        for i in range(CONVOLUTIONS):
            conv = nn.Conv(
                self.width,
                (3,),
                padding=1,
                kernel_init=self.start.relu,
                bias_init=self.start.bias(3 * x.shape[-1]),
                dtype=jnp.float32,
                name=f"conv_{i}",
            )
            x = nn.relu(conv(x))
        x = dense(x, self.queries, self.start, "mix", axis=1, places=True)
        x = dense(rearrange(x, "b n q -> b q n"), self.mlp_dim, self.start, "mlp_in")
        return dense(x, self.width, self.start, "mlp_out", relu=False)


class Convolutions(VidTwin):
    """(c) Convolutions and an MLP in the place of the structure's Q-Former, with its width, queries and MLP.

    Our choice but for that: nothing but the words is public. Both latents are Gaussians, as in the full model.
    """

    def reader(self) -> Callable[[], nn.Module]:
        """Makes the convolutions."""
        return functools.partial(
            FrameConvolutions,
            self.queries,
            self.query_width,
            self.query_mlp,
            STARTS[self.start],
            name="convolutions",
        )


class PlacesReader(nn.Module):
    """Each frame becomes one vector, in which all places have their numbers; a Q-Former reads the frames of the clip.

    Attributes:
      reader: makes the Q-Former.
      place_width: numbers of a place.
      width: the width of a frame's vector.
      start: how the layers begin.
    """

    reader: Callable[[], QFormer]
    place_width: int
    width: int
    start: Start

    @nn.compact
    def __call__(self, z_bthwc: jax.Array, deterministic: bool) -> jax.Array:
        """Features (b, t, h, w, c) -> (b, q, 1, 1, width of a query)."""
        x = dense(z_bthwc, self.place_width, self.start, "narrow", relu=False)
        x = dense(rearrange(x, "b t h w n -> b t (h w n)"), self.width, self.start, "frame")
        return self.reader()(x, deterministic)[:, :, None, None]


class PlacesDecoder(nn.Module):
    """Queries of a clip back to the places of its frames.

    Attributes:
      frames, side, features: t, h = w, c of the result.
      place_width: numbers of a place.
      start: how the layers begin.
    """

    frames: int
    side: int
    features: int
    place_width: int
    start: Start

    @nn.compact
    def __call__(self, structure_bqhwn: jax.Array) -> jax.Array:
        """(b, q, 1, 1, n) -> (b, t, h, w, c)."""
        x = dense(structure_bqhwn[:, :, 0, 0], self.features, self.start, "widen")
        x = dense(x, self.side**2 * self.place_width, self.start, "places")
        x = dense(x, self.frames, self.start, "mix", axis=1, places=True)
        x = rearrange(x, "b (h w n) t -> b t h w n", h=self.side, w=self.side)
        return dense(x, self.features, self.start, "channels", relu=False)


class PlacesAsFeatures(VidTwin):
    """(d) Places in the feature axis of the structure's Q-Former, and not in its batch.

    As the class of the released code, without Gaussians; our choice is that the dynamics stay averages, so that one
    thing differs from the full model, and the number of queries: 49 of 64 numbers are the 3,136 of setting 1. There may
    be more of them than frames. `structure_channels`, `structure_blocks` and `structure_width` are not read.

    Attributes:
      place_width: numbers of a place in a frame's vector.
    """

    place_width: int = 32
    variational: ClassVar[bool] = False

    @property
    def structure_shape(self) -> tuple[int, int, int, int]:
        """(n_q, 1, 1, width of a query)."""
        return self.queries, 1, 1, self.query_width

    @property
    def most_queries(self) -> int:
        """The largest number of queries that there is."""
        return max(1, self.queries)

    def structure_branch(self) -> tuple[nn.Module, nn.Module]:
        """The Q-Former over frames, and back to their places."""
        start, (frames, side, _) = STARTS[self.start], self.grid
        reader = PlacesReader(self.reader(), self.place_width, self.width, start)
        return reader, PlacesDecoder(frames, side, self.width, self.place_width, start)


# By the letters of the table; "" is the full model.
ABLATIONS = {
    "": VidTwin,
    "a": SingleLatent,
    "b": SpatialQFormer,
    "c": Convolutions,
    "d": PlacesAsFeatures,
}
