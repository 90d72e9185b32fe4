"""VidTwin's ablations: Table 3 of the main text (arXiv 2412.17726; spec vidtwin.md, section 13).

Each ablation changes one branch of `VidTwin` and leaves the rest as it is. The paper describes each in one line. The
released code has a class for (b) and one for (d), both without Gaussians, and none for (a) and (c). Sizes that no
source gives are chosen so that a clip keeps about as many numbers as in the paper's setting 1, 4,928:

    a 4,704   b 5,184   c 4,928   d 4,928

Shape suffixes are those of `vidtwin`.
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

CONVOLUTIONS = 2  # number of convolutions in (c)


class SingleLatent(VidTwin):
    """Ablation (a): one latent at a similar rate, from the structure branch alone.

    The design is our choice, since only the paper's words are public. The structure latent also gets the numbers that
    the dynamics would have had: with ``structure_channels=6`` a clip keeps 16 x 7 x 7 x 6 = 4,704 numbers.
    `dynamics_channels` and `dynamics_blocks` are not read.
    """

    @property
    def dynamics_shape(self) -> None:
        """None: this network has no dynamics latent."""
        return None

    def dynamics_branch(self) -> tuple[None, None]:
        """Returns None for both encoder and decoder: this network has no dynamics latent."""
        return None, None


class FrameQueries(nn.Module):
    """A Q-Former that reads the places of each frame.

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
    """Turns the queries of a frame back into features at its places.

    One dense layer widens the queries, another maps queries to places; a ReLU follows each.

    Attributes:
      side, features: h = w and c of the result.
      start: how the layers are initialised.
    """

    side: int
    features: int
    start: Start

    @nn.compact
    def __call__(self, dynamics_btqn: jax.Array) -> jax.Array:
        """(b, t, q, n) -> (b, t, h, w, c), without negative values."""
        x = dense(dynamics_btqn, self.features, self.start, "widen")
        x = dense(x, self.side**2, self.start, "mix", axis=2, places=True)
        return rearrange(x, "b t c (h w) -> b t h w c", h=self.side)


class SpatialQFormer(VidTwin):
    """Ablation (b): a Q-Former over the places of each frame replaces the two averages of the dynamics branch.

    As in the released code's class there are no Gaussians: the Q-Former's output is the latent. The number of queries
    was not published; two queries of 64 numbers come nearest to the 112 numbers of a frame in setting 1.
    `dynamics_channels` and `dynamics_blocks` are not read.

    Attributes:
      dynamics_queries: the number of queries of a frame.
    """

    dynamics_queries: int = 2
    variational: ClassVar[bool] = False

    @property
    def dynamics_shape(self) -> tuple[int, int, int]:
        """The shape of a dynamics latent, (f, queries, width of a query)."""
        return self.grid[0], self.dynamics_queries, self.query_width

    def dynamics_branch(self) -> tuple[nn.Module, nn.Module]:
        """Returns the Q-Former, and the module that turns its queries back into places."""
        places = FramePlaces(self.grid[1], self.width, STARTS[self.start])
        return FrameQueries(self.qformer(self.dynamics_queries)), places


class FrameConvolutions(nn.Module):
    """Replaces the structure's Q-Former by convolutions over three frames, a layer from frames to queries, and an MLP.

    Attributes:
      queries, width, mlp_dim: sizes, see `QFormer`.
      start: how the layers are initialised.
    """

    queries: int
    width: int
    mlp_dim: int
    start: Start

    @nn.compact
    def __call__(self, memory_blc: jax.Array, deterministic: bool) -> jax.Array:
        """Frames (b, l, any width) -> (b, queries, width); there is no dropout, so `deterministic` has no effect."""
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
    """Ablation (c): convolutions and an MLP replace the structure's Q-Former and keep its width, queries and MLP width.

    The rest of the design is our choice, since only the paper's words are public. Both latents are Gaussians, as in the
    full model.
    """

    def reader(self) -> Callable[[], nn.Module]:
        """Returns what makes the convolutions."""
        return functools.partial(
            FrameConvolutions,
            self.queries,
            self.query_width,
            self.query_mlp,
            STARTS[self.start],
            name="convolutions",
        )


class PlacesReader(nn.Module):
    """Turns each frame into one vector that holds all of its places, and reads the frames of the clip by a Q-Former.

    Attributes:
      reader: makes the Q-Former.
      place_width: how many numbers each place contributes to the layer that makes a frame's vector.
      width: the width of a frame's vector.
      start: how the layers are initialised.
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
    """Turns the queries of a clip back into features at the places of its frames.

    Attributes:
      frames, side, features: t, h = w and c of the result.
      place_width: how many numbers each place has before the last layer turns them into `features`.
      start: how the layers are initialised.
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
    """Ablation (d): the structure's Q-Former has the places in its feature axis, not in its batch.

    As in the released code's class there are no Gaussians. Two things are our choice. The dynamics stay averages, so
    that only one thing differs from the full model. The number of queries is such that a clip has as many numbers as in
    setting 1: 49 queries of 64 numbers are 3,136. There may be more queries than frames. `structure_channels`,
    `structure_blocks` and `structure_width` are not read.

    Attributes:
      place_width: how many numbers each place contributes to a frame's vector.
    """

    place_width: int = 32
    variational: ClassVar[bool] = False

    @property
    def structure_shape(self) -> tuple[int, int, int, int]:
        """The shape of a structure latent, (n_q, 1, 1, width of a query)."""
        return self.queries, 1, 1, self.query_width

    @property
    def most_queries(self) -> int:
        """The most queries that the structure branch may have: any number is allowed."""
        return max(1, self.queries)

    def structure_branch(self) -> tuple[nn.Module, nn.Module]:
        """Returns the Q-Former over frames, and the module that turns its queries back into their places."""
        start, (frames, side, _) = STARTS[self.start], self.grid
        reader = PlacesReader(self.reader(), self.place_width, self.width, start)
        return reader, PlacesDecoder(frames, side, self.width, self.place_width, start)


# The keys are the table's letters; "" is the full model.
ABLATIONS = {
    "": VidTwin,
    "a": SingleLatent,
    "b": SpatialQFormer,
    "c": Convolutions,
    "d": PlacesAsFeatures,
}
