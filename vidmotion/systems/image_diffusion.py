"""Diffusion of single pictures in a codec's latents: a small Stable Diffusion from which other recipes can start.

X-NeMo and WarpFace start both of their networks from the UNet of Stable Diffusion 1.5. This system trains a UNet of
the same class (`models.unet.UNet`) without any condition, of any width and on any pictures, with the loss

    L = mean (target - UNet(z_t, t))^2                       (Rombach et al. 2022, arXiv:2112.10752, Eq. 2)

where t is uniform over the times of a discrete process. Another recipe takes over the parameters by
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
      frames: the number of pictures in a training example, which is a clip; each has a time and noise of its own.
      codec: a codec of `codecs`, or a mapping of its fields.
      unet: the sizes of `UNet`.
      diffusion: the diffusion process.
      prediction: what the UNet predicts: ``eps``, ``x0`` or ``v``.
      steps: the number of DDIM steps in sampling.
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
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), whose frames are independent examples."""
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def consts_spec(self) -> dict[str, Const]:
        """Returns the codec's frozen network, if it has one."""
        return self.codec.consts()

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the codec's networks."""
        return self.codec.fingerprints(consts)

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": {"unet": tree}}``."""
        side, channels = self.codec.latent_shape(self.size)
        latent = jnp.zeros((1, 1, side, side, channels))
        return {"model": {"unet": self._net.init(key, latent, jnp.zeros(1))["params"]}}

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures how well held-out pictures are denoised and draws a sheet of samples."""
        return ("denoising",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the denoising loss on a batch of pictures."""
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
        """Adds the noise of one time of the process to pictures and rebuilds them by one call of the network.

        Args:
          vars: parameters.
          batch: ``video`` uint8 (B, T, H, W, 3).
          key: the random key of the noise.
          time: the discrete time, from 0 to ``diffusion.steps`` - 1; the latter has the most noise.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1].
        """
        latent = self.codec.encode(vars.consts, batch["video"])
        flat = latent.reshape(-1, 1, *latent.shape[2:])
        noisy = self.diffusion.noised(flat, jax.random.normal(key, flat.shape), jnp.int32(time))
        clean = self._denoise(vars, noisy, np.array([time]), 1.0)
        return {"video": self.codec.decode(vars.consts, clean.reshape(latent.shape))}

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array, steps: int | None = None) -> PyTree:
        """Generates pictures from noise.

        Args:
          vars: parameters.
          batch: ``video`` (B, T, H, W, 3), of which only B and T are used: as many pictures are made.
          key: the random key of the noise.
          steps: the number of DDIM steps; None or 0 takes the config's.

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
        """Runs DDIM over `times`; `final` is alpha bar after the last step, see `samplers.ddim`."""

        def predict(x, time):
            return self._predict(vars, x, jnp.full((len(x),), time))

        alpha_bar = self.diffusion.alpha_bar()
        return samplers.ddim(predict, x_bfhwc, times, alpha_bar, self.prediction, final)
