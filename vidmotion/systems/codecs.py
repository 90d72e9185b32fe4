"""Where diffusion happens: in pixels, or in the latents of a frozen image autoencoder.

A codec is a frozen record with `latent_shape`, `consts`, `encode` and `decode`. Arrays of a frozen network come in as
`consts`, never from a closure.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.convert import engine, read
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.errors import ConfigError
from vidmotion.models import vae
from vidmotion.system import Const, fingerprint

log = logging.getLogger(__name__)

PyTree = Any
CHANNELS = 4  # of a latent frame
FACTOR = 8  # of the image autoencoders here: a latent frame has 1/8 of the height and width


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """No autoencoder: x = (v / 256 - mean) / std * 0.5 (Sprites; spec 6.1).

    Attributes:
      mean, std: of v / 256 over the training set, so that x has the EDM's sigma_data = 0.5.
    """

    mean: float
    std: float
    cached: ClassVar[bool] = False

    def latent_shape(self, size: int) -> tuple[int, int]:
        """(height, channels) of a latent frame."""
        return size, 3

    def consts(self) -> dict[str, Const]:
        """No frozen networks."""
        return {}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """None: nothing is frozen."""
        return {}

    def encode(self, consts: PyTree, video: jax.Array) -> jax.Array:
        """uint8 (B, T, H, W, 3) -> float32 latents of the same shape."""
        return (video.astype(jnp.float32) / 256.0 - self.mean) * (0.5 / self.std)

    def decode(self, consts: PyTree, latent: jax.Array) -> jax.Array:
        """Latents -> float32 video in [0, 1] (1 is pixel value 255)."""
        return jnp.clip((latent * (self.std / 0.5) + self.mean) * (256.0 / 255.0), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """Per-frame latents of a frozen f=8 image autoencoder, normalised per channel (spec 3.1; gap 10).

    x = (z - mean) / std * 0.5, z the posterior mean, so that sigma_data = 0.5 holds.

    Attributes:
      network: ``sd``, the Stable Diffusion autoencoder (needs `weights`); ``tiny``, the same with few
        channels (needs `weights`); or ``patch``, a fixed projection of 8x8 patches without weights,
        for demos and tests.
      weights: file with the autoencoder in the diffusers layout.
      mean, std: per channel, of z over the training set.
      chunk: frames of each clip encoded or decoded at a time, which bounds memory: one frame of 256 px
        takes ``sd`` about 0.1 GiB to encode and 0.25 GiB to decode (XLA's estimate, float32), times
        the clips that a device holds.
      cached: training reads latents that ``python -m vidmotion.data.prepare latents`` stored, in place of
        pixels; `weights` then still decode what is sampled.

    Raises:
      ConfigError: unknown network, or one that needs weights and has none.
    """

    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = ""
    chunk: int = 1
    cached: bool = False

    def __post_init__(self):
        if self.network not in (*vae.SIZES, "patch"):
            raise ConfigError(
                f"config.system.codec.network={self.network!r}: choose {', '.join(vae.SIZES)} or patch"
            )
        if not len(self.mean) == len(self.std) == CHANNELS:
            raise ConfigError(
                f"config.system.codec: mean and std are {CHANNELS} numbers each, got {self.mean} and "
                f"{self.std}"
            )
        if self.chunk < 1:
            raise ConfigError(f"config.system.codec.chunk={self.chunk}: at least 1")

    @property
    def _net(self) -> vae.AutoencoderKL | vae.PatchCodec:
        return (
            vae.PatchCodec()
            if self.network == "patch"
            else vae.AutoencoderKL(**vae.SIZES[self.network])
        )

    def latent_shape(self, size: int) -> tuple[int, int]:
        """(height, channels) of a latent frame.

        Raises:
          ConfigError: `size` is not a multiple of 8.
        """
        if size % FACTOR:
            raise ConfigError(f"config.system.size={size}: this codec needs a multiple of {FACTOR}")
        return size // FACTOR, CHANNELS

    def consts(self) -> dict[str, Const]:
        """``{"vae": the autoencoder}``, nothing for the patch codec, which the log then says."""
        if self.network == "patch":
            log.info(
                "config.system.codec.network is patch: a small fixed codec without weights stands in "
                "for the image autoencoder, and pictures are no sharper than its 8x8 patches"
            )
            return {}
        return {"vae": Const(self._shapes, self._load)}

    def fingerprints(self, consts: Mapping[str, PyTree]) -> dict[str, str]:
        """``{"vae": hex text}`` naming what makes the latents: the weights, or the fixed projection."""
        # Rounded: its last bits are the platform's cosine.
        fixed = {"patch_basis": np.round(vae.patch_basis(), 5)}
        return {"vae": fingerprint(consts.get("vae", fixed))}

    def _shapes(self) -> PyTree:
        image = jnp.zeros((1, FACTOR * 8, FACTOR * 8, 3))
        return jax.eval_shape(self._net.init, jax.random.key(0), image)["params"]

    def _load(self) -> PyTree:
        wanted = (
            "the Stable Diffusion image autoencoder in the diffusers layout, for example "
            "diffusion_pytorch_model.safetensors of stabilityai/sd-vae-ft-mse on Hugging Face"
        )
        field = f"config.system.codec.weights={self.weights!r}"
        if not self.weights:
            raise ConfigError(f"config.system.codec.weights is empty: give the file of {wanted}")
        try:
            source = read.read(self.weights, float32=True)
        except FileNotFoundError as error:
            raise ConfigError(f"{field} does not exist: give the file of {wanted}") from error
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"{field} cannot be read ({error}): give the file of {wanted}"
            ) from error
        try:
            return engine.convert(self._shapes(), source, vae_maps.DIFFUSERS)
        except engine.ConversionError as error:
            raise ConfigError(
                f"{field} is not {wanted}: {len(error.problems)} problems, the first: "
                f"{error.problems[0]}"
            ) from error

    def encode(self, consts: Mapping[str, PyTree], video: jax.Array) -> jax.Array:
        """Normalised latents of a clip.

        Args:
          consts: with the autoencoder.
          video: uint8 (B, T, H, W, 3), or its `posterior_mean` as float16, from a cache.

        Returns:
          float32 (B, T, H/8, W/8, C).
        """
        pixels = video.dtype == jnp.uint8
        latent = self.posterior_mean(consts, video) if pixels else video.astype(jnp.float32)
        return (latent - self._row(self.mean)) * (0.5 / self._row(self.std))

    def posterior_mean(self, consts: Mapping[str, PyTree], video: jax.Array) -> jax.Array:
        """uint8 (B, T, H, W, 3) -> the autoencoder's own latents, float32 (B, T, H/8, W/8, C)."""

        def mean(frames):
            image = frames.astype(jnp.float32) / 127.5 - 1.0
            return self._apply(consts, image, "encode")[0]

        return self._in_chunks(mean, video)

    def decode(self, consts: Mapping[str, PyTree], latent: jax.Array) -> jax.Array:
        """Latents -> float32 video (B, T, H, W, 3) in [0, 1]."""

        def pixels(frames):
            return self._apply(consts, frames, "decode")

        raw = latent * (self._row(self.std) / 0.5) + self._row(self.mean)
        return jnp.clip(self._in_chunks(pixels, raw) * 0.5 + 0.5, 0.0, 1.0)

    def _apply(self, consts, x_bhwc, method):
        variables = {"params": consts["vae"]} if "vae" in consts else {}
        return self._net.apply(variables, x_bhwc, method=method)

    def _in_chunks(self, function, x_bthwc):
        """Map over time, `chunk` frames of every clip at a time; the batch stays cut over the mesh."""
        frames_tbhwc = jnp.moveaxis(x_bthwc, 1, 0)
        return jnp.moveaxis(jax.lax.map(function, frames_tbhwc, batch_size=self.chunk), 0, 1)

    def _row(self, values):
        return jnp.asarray(np.asarray(values, np.float32))[None, None, None, None]


def make(values: Mapping[str, Any]) -> PixelCodec | LatentCodec:
    """The codec that ``config.system.codec`` describes: with a `network`, a `LatentCodec`.

    Raises:
      ConfigError: an unknown field.
    """
    if isinstance(values, PixelCodec | LatentCodec):
        return values
    cls = LatentCodec if "network" in values else PixelCodec
    try:
        return cls(**values)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        raise ConfigError(f"config.system.codec: {error}. Known fields: {known}") from error
