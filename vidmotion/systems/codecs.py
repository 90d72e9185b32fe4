"""Codecs, which define the space of the diffusion: pixels, or the latents of a frozen image autoencoder.

A codec is a frozen dataclass with `latent_shape`, `consts`, `encode` and `decode`. The arrays of a frozen network are
passed in as `consts`, never captured by a closure.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
import numpy as np

from vidmotion import chunked_map, paths
from vidmotion import weights as own_weights
from vidmotion.config_schema import from_config
from vidmotion.convert import engine, folder, read
from vidmotion.convert.maps import temporal_vae as temporal_vae_maps
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.errors import ConfigError
from vidmotion.models import temporal_vae, vae
from vidmotion.system import Const, dtype, fingerprint

log = logging.getLogger(__name__)

PyTree = Any
# Channels of the latents of the published autoencoders, and how many times smaller than a picture they are.
CHANNELS, FACTOR = 4, 8
# Autoencoders whose decoder sees several successive frames: name of the network -> name in `temporal_vae.SIZES`.
TEMPORAL = {"svd": "svd", "svd_tiny": "tiny"}


def signed(pixels: jax.Array) -> jax.Array:
    """Converts uint8 pixels of any shape to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """A codec without an autoencoder: pixel values v become x = (v / 256 - mean) / std * 0.5 (Sprites; spec 6.1).

    Attributes:
      mean, std: mean and standard deviation of v / 256 over the training set, so that x has the EDM's sigma_data = 0.5.
      patch: the side of the squares of pixels that are folded into channels, so that a network sees fewer positions;
        this loses nothing.
    """

    mean: float
    std: float
    patch: int = 1
    cached: ClassVar[bool] = False

    def latent_shape(self, size: int) -> tuple[int, int]:
        """Returns (height, channels) of a latent frame.

        Raises:
          ConfigError: `size` is not a multiple of `patch`.
        """
        if size % self.patch:
            raise ConfigError(f"config.system.size={size} is not a multiple of patch={self.patch}")
        return size // self.patch, 3 * self.patch**2

    def consts(self) -> dict[str, Const]:
        """Returns the frozen networks: there are none."""
        return {}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the frozen networks: there are none."""
        return {}

    def encode(self, consts: PyTree, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Turns video, uint8 (B, T, H, W, 3), into float32 latents (B, T, H / patch, W / patch, C); `key` is not
        read."""
        x = (video.astype(jnp.float32) / 256.0 - self.mean) * (0.5 / self.std)
        p = self.patch
        return einops.rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=p, q=p)

    def encode_and_draw(
        self, consts: PyTree, video: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the result of `encode` twice, because pixels have no posterior to draw from."""
        x = self.encode(consts, video)
        return x, x

    def decode(self, consts: PyTree, latent: jax.Array) -> jax.Array:
        """Turns latents into float32 video in [0, 1], where 1 is the pixel value 255."""
        p = self.patch
        x = einops.rearrange(latent, "b t h w (p q c) -> b t (h p) (w q) c", p=p, q=p)
        return jnp.clip((x * (self.std / 0.5) + self.mean) * (256.0 / 255.0), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """A codec whose latents are those of a frozen image autoencoder, frame by frame (spec 3.1; gap 10).

    Latents z are normalised per channel, x = (z - mean) / std * 0.5, so that sigma_data = 0.5 holds. Normally z is the
    posterior mean.

    Attributes:
      network: ``sd``, the Stable Diffusion autoencoder (needs `weights`); ``tiny``, the same with few
        channels (needs `weights`); ``svd`` and ``svd_tiny``, those of Stable Video Diffusion, whose
        decoder takes several frames together; ``patch``, a fixed projection of 8x8 patches without weights, for
        tests; or a mapping of `AutoencoderKL`'s sizes, for an autoencoder that this package trained.
      weights: the file with the autoencoder in the diffusers layout, or the folder into which ``python -m
        vidmotion.convert sd_vae`` (or ``svd_vae``) converted it. For an autoencoder that this package trained with
        configs/heads_codec.py: the workdir of its run, or its name among the shipped `weights`.
      mean, std: the mean and standard deviation of each channel of z over the training set.
      chunk: the number of frames of each clip that are encoded or decoded at a time, which bounds memory: for ``sd``,
        one frame of 256 px takes about 0.1 GiB to encode and 0.25 GiB to decode (XLA's estimate, float32), times the
        number of clips on a device. ``svd`` decodes 25 frames at a time, whatever `chunk` is.
      compute: the dtype in which the network runs, ``float32`` or ``bfloat16``. Latents and pictures are returned as
        float32 in either case, and the weights and the fingerprint stay the same.
      cached: whether training reads latents that ``python -m vidmotion.data.prepare latents`` stored instead of pixels;
        samples are still decoded with `weights`.

    Raises:
      ConfigError: unknown network, or values that do not fit; on loading, that a network needs weights and has none.
    """

    network: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = ""
    chunk: int = 1
    cached: bool = False
    compute: str = "float32"

    def __post_init__(self):
        if self._own:
            from_config(vae.AutoencoderKL, self.network, "system.codec.network")
        elif self.network not in (*vae.SIZES, *TEMPORAL, "patch"):
            raise ConfigError(
                f"config.system.codec.network={self.network!r}: choose "
                f"{', '.join((*vae.SIZES, *TEMPORAL))} or patch, or give the sizes of AutoencoderKL"
            )
        if not len(self.mean) == len(self.std) == self._channels:
            raise ConfigError(
                f"config.system.codec: mean and std must have {self._channels} numbers each, got {self.mean} and "
                f"{self.std}"
            )
        if self.chunk < 1:
            raise ConfigError(f"config.system.codec.chunk={self.chunk} must be at least 1")
        dtype(self.compute)

    @property
    def _own(self) -> bool:
        """Whether this package trained the autoencoder."""
        return isinstance(self.network, Mapping)

    @property
    def _temporal(self) -> bool:
        return not self._own and self.network in TEMPORAL

    @property
    def _net(self) -> vae.AutoencoderKL | vae.PatchCodec | temporal_vae.TemporalAutoencoder:
        computed = {"dtype": dtype(self.compute)}
        if self._own:
            return vae.AutoencoderKL(**self.network, **computed)
        if self._temporal:
            sizes = temporal_vae.SIZES[TEMPORAL[self.network]]
            return temporal_vae.TemporalAutoencoder(**sizes, **computed)
        if self.network == "patch":
            return vae.PatchCodec()
        return vae.AutoencoderKL(**vae.SIZES[self.network], **computed)

    @property
    def _factor(self) -> int:
        """How many times smaller than a picture its latent frame is, in height and in width."""
        return self._net.factor if self._own else FACTOR

    @property
    def _channels(self) -> int:
        return self._net.latent_channels if self._own else CHANNELS

    def latent_shape(self, size: int) -> tuple[int, int]:
        """Returns (height, channels) of a latent frame.

        Raises:
          ConfigError: `size` is not a multiple of the autoencoder's factor, which is 8 for the published ones.
        """
        if size % self._factor:
            raise ConfigError(
                f"config.system.size={size}: this codec needs a multiple of {self._factor}"
            )
        return size // self._factor, self._channels

    def consts(self) -> dict[str, Const]:
        """Returns ``{"vae": the autoencoder}``; nothing for the patch codec, and then says so in the log."""
        if self.network == "patch":
            log.info(
                "config.system.codec.network is patch: a small fixed codec without weights stands in "
                "for the image autoencoder, and pictures are no sharper than its 8x8 patches"
            )
            return {}
        return {"vae": Const(self._shapes, self._load)}

    def fingerprints(self, consts: Mapping[str, PyTree]) -> dict[str, str]:
        """Returns ``{"vae": hex text}``, the fingerprint of the weights or of the fixed projection."""
        # Rounded, because the last bits depend on the platform's cosine.
        fixed = {"patch_basis": np.round(vae.patch_basis(), 5)}
        return {"vae": fingerprint(consts.get("vae", fixed))}

    def _shapes(self) -> PyTree:
        side = 8 * self._factor
        image = jnp.zeros((1, side, side, 3))
        return jax.eval_shape(self._net.init, jax.random.key(0), image)["params"]

    def _load(self) -> PyTree:
        return self._load_own() if self._own else self._load_published()

    def _load_own(self) -> PyTree:
        field = "config.system.codec.weights"
        if not self.weights:
            raise ConfigError(
                f"{field} is empty: give the workdir of a run of configs/heads_codec.py, or the name of shipped "
                f"weights ({', '.join(own_weights.names()) or 'none'})"
            )
        return self._fitting(own_weights.read(self.weights, field).get("model", {}))

    def _fitting(self, params: PyTree) -> PyTree:
        """Returns `params`; raises a ConfigError if they do not belong to this autoencoder."""
        field, want = "config.system.codec.weights", self._shapes()
        wrong = paths.misfits(params, want)
        others = paths.flatten(params).keys() - paths.flatten(want).keys()
        wrong += [f"{path}: not part of this autoencoder" for path in sorted(others)]
        if wrong:
            raise ConfigError(
                f"{field}={self.weights!r} is not an autoencoder of config.system.codec.network's sizes: "
                + "; ".join(wrong)
            )
        return params

    def _load_published(self) -> PyTree:
        temporal = self._temporal
        wanted = (
            f"the Stable {'Video ' * temporal}Diffusion {'' if temporal else 'image '}autoencoder in the "
            "diffusers layout, for example diffusion_pytorch_model.safetensors of "
            + (
                "stabilityai/stable-video-diffusion-img2vid-xt, folder vae,"
                if temporal
                else "stabilityai/sd-vae-ft-mse"
            )
            + " on Hugging Face"
        )
        field = f"config.system.codec.weights={self.weights!r}"
        if not self.weights:
            raise ConfigError(f"config.system.codec.weights is empty: give the file of {wanted}")
        if pathlib.Path(self.weights).is_dir():
            network = "svd_vae" if temporal else "sd_vae"
            hint = f"`python -m vidmotion.convert {network}` makes that folder from {wanted}"
            return self._fitting(folder.load_wanted(field, self.weights, network, hint)[1])
        try:
            source = read.read(self.weights, float32=True)
        except FileNotFoundError as error:
            raise ConfigError(f"{field} does not exist: give the file of {wanted}") from error
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"{field} cannot be read ({error}): give the file of {wanted}"
            ) from error
        try:
            rules = temporal_vae_maps.RULES if temporal else vae_maps.DIFFUSERS
            return engine.convert(self._shapes(), source, rules)
        except engine.ConversionError as error:
            raise ConfigError(
                f"{field} is not {wanted}: {len(error.problems)} problems, the first: "
                f"{error.problems[0]}"
            ) from error

    def encode(
        self, consts: Mapping[str, PyTree], video: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Turns a clip into normalised latents.

        Args:
          consts: the frozen networks, with the autoencoder as ``vae``.
          video: uint8 (B, T, H, W, 3), or the float16 result of `posterior_mean` from a cache.
          key: the random key of a draw from the posterior; None takes its mean. Not read for cached latents, which are
            always the mean.

        Returns:
          float32 (B, T, H/f, W/f, C), where f is the autoencoder's factor.
        """
        if video.dtype != jnp.uint8:
            return self._normalised(video.astype(jnp.float32))
        if key is None:
            return self._normalised(self.posterior_mean(consts, video))
        return self.encode_and_draw(consts, video, key)[1]

    def encode_and_draw(
        self, consts: Mapping[str, PyTree], video: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the posterior's mean and a draw from it, each as from `encode`, with a single run of the autoencoder;
        `video` is uint8."""

        def both(pair):
            frames, noise = pair
            mean, logvar = self._apply(consts, signed(frames), "encode")
            return mean, mean + jnp.exp(0.5 * logvar) * noise

        side = video.shape[2] // self._factor, video.shape[3] // self._factor
        noise = jax.random.normal(key, (*video.shape[:2], *side, self._channels))
        mean, drawn = self._in_chunks(both, (video, noise))
        return self._normalised(mean), self._normalised(drawn)

    def posterior_mean(self, consts: Mapping[str, PyTree], video: jax.Array) -> jax.Array:
        """Turns video, uint8 (B, T, H, W, 3), into the autoencoder's own latents, float32 (B, T, H/f, W/f, C), without
        normalisation; f is the autoencoder's factor."""

        def mean(frames):
            return self._apply(consts, signed(frames), "encode")[0]

        return self._in_chunks(mean, video)

    def decode(self, consts: Mapping[str, PyTree], latent: jax.Array) -> jax.Array:
        """Turns latents into float32 video (B, T, H, W, 3) in [0, 1]."""

        def pixels(frames):
            return self._apply(consts, frames, "decode")

        raw = latent * (self._row(self.std) / 0.5) + self._row(self.mean)
        if self._temporal:
            variables = {"params": consts["vae"]}
            video = temporal_vae.decode_in_chunks(self._net, variables, raw).astype(jnp.float32)
        else:
            video = self._in_chunks(pixels, raw)
        return jnp.clip(video * 0.5 + 0.5, 0.0, 1.0)

    def _apply(self, consts, x_bhwc, method):
        variables = {"params": consts["vae"]} if "vae" in consts else {}
        made = self._net.apply(variables, x_bhwc, method=method)
        return jax.tree.map(lambda x: x.astype(jnp.float32), made)

    def _in_chunks(self, function, x_bthwc):
        """Maps `function` over time, `chunk` frames of every clip at a time; the batch stays sharded over the mesh."""

        def turned(tree):
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)

        return turned(chunked_map.each(function, turned(x_bthwc), self.chunk))

    def _normalised(self, latent):
        return (latent - self._row(self.mean)) * (0.5 / self._row(self.std))

    def _row(self, values):
        return jnp.asarray(np.asarray(values, np.float32))[None, None, None, None]


def make(values: Mapping[str, Any]) -> PixelCodec | LatentCodec:
    """Builds the codec that ``config.system.codec`` describes: a `LatentCodec` if it has the field `network`, otherwise
    a `PixelCodec`.

    Raises:
      ConfigError: an unknown field, or a value that does not fit.
    """
    if isinstance(values, PixelCodec | LatentCodec):
        return values
    return from_config(LatentCodec if "network" in values else PixelCodec, values, "system.codec")
