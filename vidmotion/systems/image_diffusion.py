"""Diffusion of single pictures in a codec's latents: the miniature of Stable Diffusion that a recipe can start from.

X-NeMo and WarpFace begin with the UNet of Stable Diffusion 1.5 in both of their networks. This system trains a UNet of
the same class (`models.unet.UNet`) without any condition, at whatever width, on whatever pictures, by

    L = mean (target - UNet(z_t, t))^2                       (Rombach et al. 2022, arXiv:2112.10752, Eq. 2)

with t uniform over the times of a discrete process. Another recipe takes its parameters by
``config.init_from=<workdir>`` and rules such as ``(r"model/(reference|denoiser)/(.*)", r"model/unet/\\2")``.

Shape suffixes: b batch, f frames, h w latent rows and columns, c channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.config_schema import from_config
from vidmotion.diffusion import samplers
from vidmotion.diffusion.process import DDPM, PREDICTIONS
from vidmotion.errors import ConfigError
from vidmotion.models.unet import UNet
from vidmotion.system import Const, Describes, Out, System, Vars, dtype
from vidmotion.systems import codecs

PyTree = Any
PROCESS = DDPM()


@dataclasses.dataclass(frozen=True)
class ImageDiffusion(System, Describes):
    """An unconditional UNet on the latents of a codec.

    Attributes:
      size: height and width of a picture.
      frames: pictures of one training example, which is a clip; each has a time and noise of its own.
      codec: see `codecs`, or a mapping of its fields.
      unet: sizes of `UNet`.
      diffusion: fields of `DDPM`.
      prediction: ``eps``, ``x0`` or ``v``.
      steps: the number of steps of DDIM.
      compute: ``float32`` or ``bfloat16``.

    Raises:
      ConfigError: values that do not exist or do not fit together.
    """

    size: int
    frames: int
    codec: codecs.PixelCodec | codecs.LatentCodec
    unet: Mapping[str, Any]
    diffusion: DDPM = PROCESS
    prediction: str = "eps"
    steps: int = 20
    compute: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "codec", codecs.make(self.codec))
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"config.system.prediction={self.prediction!r}: choose {', '.join(PREDICTIONS)}"
            )
        from_config(UNet, self.unet, "system.unet")
        self.codec.latent_shape(self.size)

    @property
    def _net(self) -> UNet:
        channels = self.codec.latent_shape(self.size)[1]
        fixed = {"context_width": 0, "latent_channels": channels, "dtype": dtype(self.compute)}
        return UNet(**{**self.unet, **fixed})

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """``video``: uint8 (B, T, H, W, 3), whose frames are taken one by one."""
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def consts_spec(self) -> dict[str, Const]:
        """The codec's frozen network, if it has one."""
        return self.codec.consts()

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Fingerprints of the codec's networks."""
        return self.codec.fingerprints(consts)

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """``{"model": {"unet": tree}}``."""
        side, channels = self.codec.latent_shape(self.size)
        latent = jnp.zeros((1, 1, side, side, channels))
        return {"model": {"unet": self._net.init(key, latent, jnp.zeros(1))["params"]}}

    def evaluators(self) -> tuple[str, ...]:
        """How much of held-out pictures comes back from noise, and a sheet of samples."""
        return ("denoising",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """The denoising loss on a batch of pictures."""
        time_key, noise_key = jax.random.split(key)
        latent = self.codec.encode(vars.consts, batch["video"])
        latent = latent.reshape(-1, 1, *latent.shape[2:])
        time = jax.random.randint(time_key, (len(latent),), 0, self.diffusion.steps)
        noise = jax.random.normal(noise_key, latent.shape)
        made = self._predict(vars, self.diffusion.noised(latent, noise, time), time)
        target = self.diffusion.target(latent, noise, time, self.prediction)
        loss = jnp.mean(jnp.square(target - made))
        return loss, Out({"mse": loss}, vars.mutable)

    def denoised(self, vars: Vars, batch: PyTree, key: jax.Array, time: int) -> PyTree:
        """Pictures noised to a time of the process and rebuilt by one call of the network.

        Args:
          vars: parameters.
          batch: ``video`` uint8 (B, T, H, W, 3).
          key: the random key of the noise.
          time: from 0 to ``diffusion.steps`` - 1, the highest noise.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1].
        """
        latent = self.codec.encode(vars.consts, batch["video"])
        flat = latent.reshape(-1, 1, *latent.shape[2:])
        noisy = self.diffusion.noised(flat, jax.random.normal(key, flat.shape), jnp.int32(time))
        clean = self._denoise(vars, noisy, np.array([time]), 1.0)
        return {"video": self.codec.decode(vars.consts, clean.reshape(latent.shape))}

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array, steps: int | None = None) -> PyTree:
        """Pictures from noise, as many and as large as those of a batch, which is not read otherwise.

        Args:
          vars: parameters.
          batch: ``video`` (B, T, H, W, 3).
          key: the random key of the noise.
          steps: the number of steps of DDIM, instead of the config's.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1].
        """
        count, frames = batch["video"].shape[:2]
        side, channels = self.codec.latent_shape(self.size)
        noise = jax.random.normal(key, (count * frames, 1, side, side, channels))

        times = samplers.leading_times(steps or self.steps, self.diffusion.steps)
        latent = self._denoise(vars, noise, times, float(self.diffusion.alpha_bar()[0]))
        latent = latent.reshape(count, frames, side, side, channels)
        return {"video": self.codec.decode(vars.consts, latent)}

    # -- parts ------------------------------------------------------------------------------------

    def _predict(self, vars, x_bfhwc, time_b):
        return self._net.apply({"params": vars.params["model"]["unet"]}, x_bfhwc, time_b)

    def _denoise(self, vars, x_bfhwc, times, final):
        """DDIM over `times`, to the share `final` of the clean array's variance."""

        def predict(x, time):
            return self._predict(vars, x, jnp.full((len(x),), time))

        alpha_bar = self.diffusion.alpha_bar()
        return samplers.ddim(predict, x_bfhwc, times, alpha_bar, self.prediction, final)
