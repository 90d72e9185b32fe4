"""VidTwin: a video autoencoder with two latents, structure and dynamics (arXiv 2412.17726).

    net = VidTwin(**SIZES["base"], **LATENTS["1"])
    structure, dynamics = net.apply(variables, video, method="encode")  # two Gaussians
    video = net.apply(variables, structure.mean, dynamics.mean, method="decode")
    video = net.apply(variables, structure.mean, None, method="decode")  # structure alone

Section numbers refer to the spec vidtwin.md, table numbers to the paper's supplement. Attention over frames inside the
two transformers is causal. The network as a whole is not, since the Q-Former, the dynamics head and the mixing of
queries into frames use both earlier and later frames (section 14, 5).

Shape suffixes: b batch, t frames, h w patches of a frame, c channels, q queries, p positions of
both profiles (the profile along the width first), n numbers of a latent.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike

from vidmotion.models.qformer import BERT, QFormer
from vidmotion.models.spacetime import Decoder, Encoder, uniform_bias, uniform_kernel

LOGVAR_RANGE = (-30.0, 20.0)  # section 4
# For the start "scaled": a posterior's deviation of 0.14, with means of about 1.
LOGVAR_START = -4.0
MAX_BLOCKS = 3
Initializer = nn.initializers.Initializer
lecun = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def interpolation(
    key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Initialises a kernel (n, m) that resamples n places to m by linear interpolation; `key` is not used."""
    n, m = shape
    at = jnp.clip((jnp.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return jnp.maximum(0, 1 - jnp.abs(jnp.arange(n)[:, None] - at[None])).astype(dtype)


class Start(NamedTuple):
    """How the layers between the two transformers are initialised.

    Attributes:
      kernel: the initializer of the kernel of a layer without activation.
      relu: the initializer of the kernel of a layer followed by a ReLU.
      bias: the function that maps a bias's fan-in to its initializer.
      places: the initializer of the kernel of a layer that mixes queries or places and is followed by a ReLU.
      qformer: the initializer of all kernels of the Q-Former.
      steady: whether the log-variances begin at `LOGVAR_START` for every clip, instead of at random values that depend
        on the clip.
    """

    kernel: Initializer
    relu: Initializer
    bias: Callable[[int], Initializer]
    places: Initializer
    qformer: Initializer
    steady: bool


# "released": the defaults of PyTorch and BERT. Each layer makes the signal smaller, so that differences between clips
# are down to 6e-6 in the means of the structure latent, while the posterior's deviation is 1.
# "scaled": every layer keeps the size of its signal. Queries and places are mixed by interpolation. Their inputs have
# passed a ReLU and are positive and much alike, so with random weights, every output whose weights sum to less than
# zero would be silent in all channels: half of the frames or places.
STARTS = {
    "released": Start(uniform_kernel, uniform_kernel, uniform_bias, uniform_kernel, BERT, False),
    "scaled": Start(lecun, he, lambda fan_in: nn.initializers.zeros, interpolation, lecun, True),
}

# Supplement, Table 1. Parameters with LATENTS["released"]: small 106,133,298, base 311,518,770,
# large 1,237,295,922. The released code also holds two unused layers (section 6); with them the numbers are 106.92M,
# 312.70M, 1239.7M.
SIZES = {
    "small": {"width": 512, "depth": 12, "heads": 8},
    "base": {"width": 768, "depth": 16, "heads": 12},
    "large": {"width": 1536, "depth": 16, "heads": 12},
}


def _latent(queries, structure_channels, structure_blocks, dynamics_channels, dynamics_blocks):
    return {
        "queries": queries,
        "structure_channels": structure_channels,
        "structure_blocks": structure_blocks,
        "dynamics_channels": dynamics_channels,
        "dynamics_blocks": dynamics_blocks,
    }


# n_q, d_S, blocks down to h_S (1, 2 or 3 blocks make 7, 4 or 2 of 14), d_D, blocks down to h_D.
LATENTS = {
    # Supplement, Table 5. Setting 1 is the paper's main result, 0.20 %.
    "1": _latent(16, 4, 1, 8, 1),
    "2": _latent(16, 4, 1, 16, 2),
    "3": _latent(12, 4, 1, 8, 1),
    "released": _latent(16, 8, 1, 8, 1),  # the released checkpoint, 0.33 %
    # Table 3 gives rates only. These settings, which are guesses, reach them (section 9).
    "0.11": _latent(8, 4, 1, 8, 2),
    "0.16": _latent(16, 8, 2, 8, 1),
    "0.48": _latent(16, 12, 1, 16, 2),
}


class Gaussian(NamedTuple):
    """A diagonal Gaussian over a latent, with mean and log-variance in float32 of equal shape.

    A log-variance of None means that the latent is not random: it is the mean.
    """

    mean: jax.Array
    logvar: jax.Array | None

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws one sample, with the shape of the mean."""
        if self.logvar is None:
            return self.mean
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Latents(NamedTuple):
    """The two latents of a clip, or their Gaussians.

    Structure is (batch, queries, h, w, structure_channels). Dynamics is (batch, frames, positions, dynamics_channels);
    the first half of the positions runs along the width (mean over rows), the second half along the height (mean over
    columns). The ablations of `vidtwin_ablations` have other shapes, and one of them has no dynamics.
    """

    structure: jax.Array | Gaussian
    dynamics: jax.Array | Gaussian | None

    def taken(self, key: jax.Array | None = None) -> "Latents":
        """Returns the means of the Gaussians or, with a key, independent draws from them."""
        keys = (None, None) if key is None else jax.random.split(key)
        pairs = zip(self, keys)
        return Latents(*(g and (g.mean if k is None else g.sample(k)) for g, k in pairs))


def halved(side: int, times: int) -> int:
    """Returns the side in patches after `times` convolutions of stride 2."""
    for _ in range(times):
        side = -(-side // 2)
    return side


def _conv(
    x: jax.Array, features: int, start: Start, name: str, *, relu: bool = False, stride: int = 1
) -> jax.Array:
    """Applies a 3x3 convolution padded by 1 on every side (at stride 2, "SAME" would pad one side only), and ReLU if
    `relu`."""
    y = nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        kernel_init=start.relu if relu else start.kernel,
        bias_init=start.bias(9 * x.shape[-1]),
        dtype=jnp.float32,
        name=name,
    )(x)
    return nn.relu(y) if relu else y


def dense(
    x: jax.Array,
    features: int,
    start: Start,
    name: str,
    axis: int = -1,
    places: bool = False,
    relu: bool = True,
) -> jax.Array:
    """Applies a dense layer over one axis, whose result becomes the last axis, and ReLU if `relu`.

    Args:
      x: the input.
      features: the number of outputs.
      start: how the layer is initialised.
      name: the name of the layer.
      axis: the axis that the layer reads.
      places: whether this axis runs over queries or places, so that `Start.places` initialises the kernel.
      relu: whether a ReLU follows.
    """
    kernel = start.relu if relu else start.kernel
    y = nn.DenseGeneral(
        features,
        axis=axis,
        kernel_init=start.places if places else kernel,
        bias_init=start.bias(x.shape[axis]),
        dtype=jnp.float32,
        name=name,
    )(x)
    return nn.relu(y) if relu else y


def _moments(x: jax.Array, channels: int, start: Start, variational: bool) -> jax.Array:
    """Applies the convolution that ends a branch's encoder: (..., h, w, c) -> (..., h, w, 2 channels).

    The result is mean and log-variance or, if not `variational`, the latent itself, (..., h, w, channels).
    """
    if not variational:
        return _conv(x, channels, start, "latent")
    if start.steady:

        def kernel(key, shape, dtype=jnp.float32):
            mean = lecun(key, (*shape[:-1], channels), dtype)
            return jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1)

        def bias(key, shape, dtype=jnp.float32):
            return jnp.repeat(jnp.array([0.0, LOGVAR_START], dtype), channels)

        start = start._replace(kernel=kernel, bias=lambda fan_in: bias)
    return _conv(x, 2 * channels, start, "moments")


def _gaussian(moments: jax.Array) -> Gaussian:
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Gaussian(mean, jnp.clip(logvar, *LOGVAR_RANGE))


class StructureEncoder(nn.Module):
    """Encodes features as the structure latent: a Q-Former along the time of each patch, then convolutions in space
    (2.1, 2.2).

    Attributes:
      reader: makes the module that reads the frames of a patch, called as ``(memory_blc, deterministic)``: the
        `QFormer`.
      width: the channels after the first convolution; every block doubles them.
      blocks: the number of convolutions of stride 2.
      channels: d_S.
      start: how the layers are initialised.
      variational: whether the latent is a Gaussian.
    """

    reader: Callable[[], nn.Module]
    width: int
    blocks: int
    channels: int
    start: Start
    variational: bool = True

    @nn.compact
    def __call__(self, z_bthwc: jax.Array, deterministic: bool) -> jax.Array:
        """Features (b, t, h, w, c) -> moments (b, q, h', w', 2 d_S), or d_S if not variational."""
        batch, _, side, _, _ = z_bthwc.shape
        memory = rearrange(z_bthwc, "b t h w c -> (b h w) t c")
        found = self.reader()(memory, deterministic)
        x = rearrange(found, "(b h w) q c -> (b q) h w c", h=side, w=side)
        x = _conv(x, self.width, self.start, "conv_in")
        for i in range(self.blocks):
            x = _conv(x, 2 * x.shape[-1], self.start, f"down_{i}", relu=True, stride=2)
        x = _moments(x, self.channels, self.start, self.variational)
        return rearrange(x, "(b q) h w n -> b q h w n", b=batch)


class StructureDecoder(nn.Module):
    """Turns the structure latent into its part of the decoder's input (2.3).

    Attributes:
      frames, side, features: t, h = w and c of the result.
      query_width: the channels of a query.
      width, blocks, start: see `StructureEncoder`.
    """

    frames: int
    side: int
    features: int
    query_width: int
    width: int
    blocks: int
    start: Start

    @nn.compact
    def __call__(self, structure_bqhwn: jax.Array) -> jax.Array:
        """(b, q, h', w', d_S) -> (b, t, h, w, c), without negative values."""
        start, batch = self.start, len(structure_bqhwn)
        x = rearrange(structure_bqhwn, "b q h w n -> (b q) h w n")
        x = _conv(x, self.width * 2**self.blocks, start, "conv_in", relu=True)
        for i in range(self.blocks):
            x = _conv(x, x.shape[-1] // 2, start, f"up_{i}", relu=True)
            x = repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)
        x = _conv(x, self.query_width, start, "conv_out")
        # Halving rounded up, so doubling may have made more than `side` places.
        first = (x.shape[1] - self.side) // 2
        middle = slice(first, first + self.side)
        x = rearrange(x[:, middle, middle], "(b q) h w c -> b q h w c", b=batch)
        x = dense(x, self.features, start, "widen")
        x = dense(x, self.frames, start, "mix", axis=1, places=True)
        return rearrange(x, "b h w c t -> b t h w c")


class DynamicsEncoder(nn.Module):
    """Encodes features as the dynamics latent: each frame's profile along the width and along the height (3.1).

    One head serves both profiles: a 3x3 convolution over (frame, position), which therefore sees the frame
    before and the frame after.

    Attributes:
      blocks: the number of convolutions of stride 2.
      channels: d_D.
      start: how the layers are initialised.
      variational: whether the latent is a Gaussian.
    """

    blocks: int
    channels: int
    start: Start
    variational: bool = True

    @nn.compact
    def __call__(self, z_bthwc: jax.Array, deterministic: bool = True) -> jax.Array:
        """Features (b, t, h, w, c) -> moments (b, t, w' + h', 2 d_D), or d_D if not variational.

        There is no dropout, so `deterministic` has no effect.
        """
        batch, frames, _, _, width = z_bthwc.shape
        x = z_bthwc.reshape(-1, *z_bthwc.shape[2:])
        for i in range(self.blocks):
            x = _conv(x, width, self.start, f"down_{i}", relu=True, stride=2)
        profiles = jnp.stack([jnp.mean(x, axis=1), jnp.mean(x, axis=2)])
        profiles = rearrange(profiles, "z (b t) p c -> (z b) t p c", t=frames)
        x = _moments(profiles, self.channels, self.start, self.variational)
        return rearrange(x, "(z b) t p n -> b t (z p) n", b=batch)


class DynamicsDecoder(nn.Module):
    """Turns the dynamics latent into its part of the decoder's input (3.2); both profiles share all layers.

    Attributes:
      side, features: h = w and c of the result.
      start: how the layers are initialised.
    """

    side: int
    features: int
    start: Start

    @nn.compact
    def __call__(self, dynamics_btpn: jax.Array) -> jax.Array:
        """(b, t, w' + h', d_D) -> (b, t, h, w, c), without negative values."""
        start = self.start
        x = dense(dynamics_btpn, self.features, start, "dense_0")
        x = dense(x, self.features, start, "dense_1")
        x = rearrange(x, "b t (z p) c -> b t z p c", z=2)
        x = dense(x, self.side, start, "stretch_0", axis=3, places=True)
        x = dense(x, self.side, start, "stretch_1", places=True)
        along_width, along_height = rearrange(x, "b t z c p -> z b t p c")
        return along_width[:, :, None] + along_height[:, :, :, None]


class VidTwin(nn.Module):
    """VidTwin's autoencoder: encodes a clip as a structure and a dynamics latent, and decodes them (arXiv 2412.17726,
    section 3; spec sections 1 to 4).

    An ablation is a subclass with another `reader`, `structure_branch` or `dynamics_branch` and matching shapes: see
    `vidtwin_ablations`.

    Parameters are float32, and so is everything but the matrix products of the two transformers, as
    under the autocast of the released code (section 1.5).

    Attributes:
      width, depth, heads: the sizes of encoder and decoder (`SIZES`).
      queries: n_q, at most the number of frames in the transformers (3.2.1 of the paper).
      structure_channels: d_S.
      structure_blocks: the number of convolutions of stride 2 on the structure, 0 to 3; the paper has 1 or more.
      dynamics_channels: d_D.
      dynamics_blocks: the number of convolutions of stride 2 on the dynamics, 1 to 3.
      frames: the number of frames of a clip.
      size: the height and width of a clip in pixels.
      patch: the frames, rows and columns of a patch.
      channels: the channels of a frame: 3 for pictures, another number for latents of an image autoencoder.
      query_width, query_layers, query_heads, query_mlp: the sizes of the Q-Former (D.1; section 2.1).
      structure_width: the channels of the first convolution on the structure.
      dropout: the dropout rate inside the Q-Former; there is no other dropout.
      start: how the layers between the transformers are initialised, a name of `STARTS`.
      query_times: whether the frames that the Q-Former reads carry codes of their times, and its queries begin at times
        of their own. Not in the paper, where queries can tell frames apart only after the temporal attention, which
        begins at zero, has learnt to write their order into what is read; short trainings do not get there.
      dtype: the dtype of the matrix products of both transformers.
      remat, scan: see `spacetime.Trunk`; `scan` changes the parameter tree.

    Raises:
      ValueError: when it is bound, if the sizes do not fit together.
    """

    width: int
    depth: int
    heads: int
    queries: int
    structure_channels: int
    structure_blocks: int
    dynamics_channels: int
    dynamics_blocks: int
    frames: int = 16
    size: int = 224
    patch: tuple[int, int, int] = (1, 16, 16)
    channels: int = 3
    query_width: int = 64
    query_layers: int = 6
    query_heads: int = 8
    query_mlp: int = 768
    structure_width: int = 128
    dropout: float = 0.1
    start: str = "released"
    query_times: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False
    variational: ClassVar[bool] = True  # whether the latents are Gaussians

    @property
    def grid(self) -> tuple[int, int, int]:
        """The numbers of patches of a clip: in time, down and across."""
        return tuple(-(-n // p) for n, p in zip((self.frames, self.size, self.size), self.patch))

    @property
    def structure_shape(self) -> tuple[int, int, int, int]:
        """The shape of a structure latent, (n_q, h_S, w_S, d_S)."""
        side = halved(self.grid[1], self.structure_blocks)
        return self.queries, side, side, self.structure_channels

    @property
    def dynamics_shape(self) -> tuple[int, int, int] | None:
        """The shape of a dynamics latent, (f, w_D + h_D, d_D); None if the network has no dynamics."""
        side = halved(self.grid[1], self.dynamics_blocks)
        return self.grid[0], 2 * side, self.dynamics_channels

    @property
    def rate(self) -> float:
        """The compression rate: how many numbers both latents have, divided by how many the clip has (supplement B.1,
        section 9)."""
        shapes = filter(None, (self.structure_shape, self.dynamics_shape))
        numbers = sum(map(math.prod, shapes))
        return numbers / (self.channels * self.frames * self.size**2)

    def setup(self):
        self.check()
        trunk = {
            "depth": self.depth,
            "heads": self.heads,
            "dtype": self.dtype,
            "remat": self.remat,
            "scan": self.scan,
        }
        self.encoder = Encoder(self.width, self.patch, trunk)
        self.structure_encoder, self.structure_decoder = self.structure_branch()
        self.dynamics_encoder, self.dynamics_decoder = self.dynamics_branch()
        self.decoder = Decoder(self.width, self.patch, trunk, self.channels)

    def qformer(self, queries: int) -> Callable[[], QFormer]:
        """Returns what makes a Q-Former of this network's sizes."""
        return functools.partial(
            QFormer,
            queries=queries,
            width=self.query_width,
            layers=self.query_layers,
            heads=self.query_heads,
            mlp_dim=self.query_mlp,
            dropout=self.dropout,
            kernel_init=STARTS[self.start].qformer,
            name="qformer",
        )

    def reader(self) -> Callable[[], nn.Module]:
        """Returns what makes the module with which the structure branch reads the frames of a patch."""
        return functools.partial(self.qformer(self.queries), times=self.query_times)

    def structure_branch(self) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder of the structure latent."""
        frames, side, _ = self.grid
        shared = {"width": self.structure_width, "blocks": self.structure_blocks}
        shared["start"] = STARTS[self.start]
        channels = {"channels": self.structure_channels, "variational": self.variational}
        return (
            StructureEncoder(self.reader(), **channels, **shared),
            StructureDecoder(frames, side, self.width, self.query_width, **shared),
        )

    def dynamics_branch(self) -> tuple[nn.Module | None, nn.Module | None]:
        """Returns encoder and decoder of the dynamics latent; both are None if the network has no dynamics."""
        start, side = STARTS[self.start], self.grid[1]
        sizes = self.dynamics_blocks, self.dynamics_channels
        return (
            DynamicsEncoder(*sizes, start, self.variational),
            DynamicsDecoder(side, self.width, start),
        )

    def features(self, x_bthwc: jax.Array) -> jax.Array:
        """Computes z, the features that both branches read (section 1.4).

        Args:
          x_bthwc: the video (batch, frames, size, size, channels), RGB in [-1, 1]. Where the last patch
            of an axis is incomplete, it is filled up with zeros (section 1.1).

        Returns:
          (batch, *grid, width) float32. Frame t depends only on frames up to t.

        Raises:
          ValueError: if rank or channels are wrong, or the video does not have `grid` patches; the position codes are
            fixed.
        """
        want = self.grid
        patches = tuple(-(-n // p) for n, p in zip(x_bthwc.shape[1:4], self.patch))
        if x_bthwc.ndim != 5 or x_bthwc.shape[-1] != self.channels or patches != want:
            shape = f"{self.frames}, {self.size}, {self.size}, {self.channels}"
            raise ValueError(
                f"VidTwin: video must be (batch, {shape}), that is {'x'.join(map(str, want))} "
                f"patches of {'x'.join(map(str, self.patch))}, got {x_bthwc.shape}"
            )
        return self.encoder(x_bthwc)

    def encode(self, x_bthwc: jax.Array, deterministic: bool = True) -> Latents:
        """Encodes a video as the Gaussians of both latents (sections 2, 3.1, 4).

        Args:
          x_bthwc: the video, as for `features`.
          deterministic: False switches the Q-Former's dropout on (rng "dropout").

        Returns:
          Latents of Gaussians, (batch, *structure_shape) and (batch, *dynamics_shape); log-variances
          are clipped to [-30, 20].

        Raises:
          ValueError: as `features` does.
        """
        z = self.features(x_bthwc)

        def latent(x: jax.Array) -> Gaussian:
            return _gaussian(x) if self.variational else Gaussian(x, None)

        encoders = self.structure_encoder, self.dynamics_encoder
        return Latents(*(net and latent(net(z, deterministic)) for net in encoders))

    def decode_features(
        self, structure: jax.Array | None = None, dynamics: jax.Array | None = None
    ) -> jax.Array:
        """Decodes latents up to the input of the last layer, (batch, *grid, width) float32; see `decode`.

        `decode` applies `to_pixels` to this result. A loss that needs its gradient with respect to the last
        kernel, ``decoder/out/kernel``, can therefore differentiate `to_pixels` alone.
        """
        parts = []
        if structure is not None:
            self._require("structure", structure, self.structure_shape)
            parts.append(self.structure_decoder(structure))
        if dynamics is not None:
            self._require("dynamics", dynamics, self.dynamics_shape)
            parts.append(self.dynamics_decoder(dynamics))
        if not parts:
            raise ValueError("VidTwin: nothing to decode; give structure, dynamics, or both")
        return self.decoder.features(sum(parts[1:], parts[0]))

    def to_pixels(self, features_bthwc: jax.Array) -> jax.Array:
        """Applies the last layer: turns the result of `decode_features` into the video that `decode` returns."""
        return self.decoder.pixels(features_bthwc)

    def decode(
        self, structure: jax.Array | None = None, dynamics: jax.Array | None = None
    ) -> jax.Array:
        """Decodes a video from both latents, or from one alone (sections 1.4, 2.3, 3.2).

        The latents may come from different clips: cross-reenactment (section 10).

        Args:
          structure: (batch, *structure_shape), or None for dynamics alone.
          dynamics: (batch, *dynamics_shape), or None for structure alone.

        Returns:
          (batch, frames, size, size, channels) float32, about in [-1, 1], not clipped. Where patches do not divide the
          clip, each axis is longer, a whole number of patches.

        Raises:
          ValueError: if both latents are None, or one has another shape.
        """
        return self.to_pixels(self.decode_features(structure, dynamics))

    def __call__(
        self, x_bthwc: jax.Array, key: jax.Array | None = None, deterministic: bool = True
    ) -> tuple[jax.Array, Latents]:
        """Reconstructs a video; uses every parameter.

        Args:
          x_bthwc: the video, as for `features`.
          key: the random key with which both latents are drawn, independently (section 4); None takes their means.
          deterministic: see `encode`.

        Returns:
          The reconstruction, with the shape of `x_bthwc` and values as from `decode`, and the Latents of Gaussians.

        Raises:
          ValueError: as `features` does.
        """
        latents = self.encode(x_bthwc, deterministic)
        video = self.decode(*latents.taken(key))
        _, frames, height, width, _ = x_bthwc.shape
        return video[:, :frames, :height, :width], latents

    def _require(self, name: str, latent: jax.Array, shape: tuple[int, ...] | None) -> None:
        if shape is None:
            raise ValueError(f"VidTwin: this network has no {name}")
        if latent.shape[1:] != shape:
            want = ", ".join(map(str, shape))
            raise ValueError(f"VidTwin: {name} must be (batch, {want}), got {latent.shape}")

    @property
    def most_queries(self) -> int:
        """The most queries that the structure branch may have: n_q <= f, since each query chooses from the frames."""
        return self.grid[0]

    def check(self) -> None:
        """Raises ValueError if the sizes do not fit together; the message names every fault."""
        faults = []
        if self.width % self.heads or self.width % 4:
            faults.append(f"width={self.width} must be divisible by heads={self.heads} and by 4")
        if self.query_width % self.query_heads:
            faults.append(
                f"query_width={self.query_width} must be divisible by query_heads={self.query_heads}"
            )
        for name, least in (("structure_blocks", 0), ("dynamics_blocks", 1)):
            if not least <= getattr(self, name) <= MAX_BLOCKS:
                faults.append(f"{name}={getattr(self, name)} must be from {least} to {MAX_BLOCKS}")
        if not 1 <= self.queries <= self.most_queries:
            faults.append(
                f"queries={self.queries} must be from 1 to {self.most_queries}, the number of frames that they choose "
                "from (n_q <= f)"
            )
        if self.start not in STARTS:
            faults.append(f"start={self.start!r} must be one of {', '.join(STARTS)}")
        if self.patch[1] != self.patch[2]:
            faults.append(f"patch={self.patch} must be square: both profiles share their layers")
        if faults:
            raise ValueError(f"VidTwin: {'; '.join(faults)}")
