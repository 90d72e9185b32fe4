"""Diffusion processes: how a clean array is noised, and how a network becomes a denoiser.

Both processes are written in the variance-exploding form y = z + sigma * n, so that one sampler serves
both. A network F(x, time) becomes a denoiser D by

    D(y; sigma) = c_skip * y + c_out * F(c_in * y, time)            (Karras et al. 2022, Eq. 7)

and is trained by the mean of weight(sigma) * (D - z)^2.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Scalings(NamedTuple):
    """Per-example factors, each shaped like sigma; `time` is what the network embeds."""

    c_skip: jax.Array
    c_out: jax.Array
    c_in: jax.Array
    time: jax.Array


@dataclasses.dataclass(frozen=True)
class EDM:
    """Karras et al. 2022, Table 1, column "Ours".

    Attributes:
      sigma_data: standard deviation of the clean data.
      p_mean, p_std: ln sigma ~ Normal(p_mean, p_std^2) in training.
      sigma_min, sigma_max: ends of the sampling schedule.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def sample_sigma(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise levels for training, float32 of `shape`."""
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))

    def scalings(self, sigma: jax.Array) -> Scalings:
        """c_skip, c_out, c_in of Table 1; time is 1000 * c_noise = 250 ln sigma."""
        total = sigma**2 + self.sigma_data**2
        return Scalings(
            c_skip=self.sigma_data**2 / total,
            c_out=sigma * self.sigma_data / jnp.sqrt(total),
            c_in=1.0 / jnp.sqrt(total),
            time=250.0 * jnp.log(sigma),
        )

    def weight(self, sigma: jax.Array) -> jax.Array:
        """(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2: unit loss weight on F."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ho et al. 2020: linear betas, the network predicts the noise (BCD supplement, Eq. 1-4).

    With sigma_t = sqrt((1 - abar_t) / abar_t) the noisy z_t / sqrt(abar_t) equals z + sigma_t * n, and
    weight 1/sigma^2 makes the weighted loss on D exactly the mean of (F - n)^2.

    Attributes:
      steps: number of discrete times.
      beta_start, beta_end: ends of the linear schedule.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def _sigmas(self) -> np.ndarray:
        """(steps,) float32, increasing."""
        alpha_bar = np.cumprod(1.0 - np.linspace(self.beta_start, self.beta_end, self.steps))
        return np.sqrt((1.0 - alpha_bar) / alpha_bar).astype(np.float32)

    @property
    def sigma_min(self) -> float:
        """Sigma of the first discrete time."""
        return float(self._sigmas()[0])

    @property
    def sigma_max(self) -> float:
        """Sigma of the last discrete time."""
        return float(self._sigmas()[-1])

    def sample_sigma(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise levels of uniform discrete times, float32 of `shape`."""
        return jnp.asarray(self._sigmas())[jax.random.randint(key, shape, 0, self.steps)]

    def scalings(self, sigma: jax.Array) -> Scalings:
        """Noise prediction: D = y - sigma * F(y / sqrt(1 + sigma^2)); time interpolates the table."""
        table = jnp.asarray(self._sigmas())
        time = jnp.interp(jnp.log(sigma), jnp.log(table), jnp.arange(self.steps, dtype=jnp.float32))
        return Scalings(
            c_skip=jnp.ones_like(sigma),
            c_out=-sigma,
            c_in=1.0 / jnp.sqrt(1.0 + sigma**2),
            time=time,
        )

    def weight(self, sigma: jax.Array) -> jax.Array:
        """1 / sigma^2: unit loss weight on the predicted noise."""
        return 1.0 / sigma**2


Process = EDM | DDPM
