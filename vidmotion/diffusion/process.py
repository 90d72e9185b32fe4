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

SCHEDULES = {"linear": 1, "scaled_linear": 2}  # name -> power of the evenly spaced number
OUTPUTS = ("edm", "x0")  # of `EDM`
PREDICTIONS = ("eps", "x0", "v")


def check_prediction(prediction: str) -> None:
    """Raise ValueError unless `prediction` is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")


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
      output: ``edm``, Table 1's c_skip and c_out; or ``x0``: D is sigma_data * F, so that nothing of the noisy
        array is left in what is made, and the error of D counts alike at every noise level.

    Raises:
      ValueError: unknown output.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    output: str = "edm"

    def __post_init__(self):
        if self.output not in OUTPUTS:
            raise ValueError(f"output {self.output!r}: choose one of {', '.join(OUTPUTS)}")

    def sample_sigma(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise levels for training, float32 of `shape`."""
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))

    def scalings(self, sigma: jax.Array) -> Scalings:
        """c_skip, c_out, c_in of Table 1; time is 1000 * c_noise = 250 ln sigma."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / jnp.sqrt(total)
        if self.output == "x0":
            c_skip, c_out = jnp.zeros_like(sigma), jnp.full_like(sigma, self.sigma_data)
        return Scalings(c_skip, c_out, c_in=1.0 / jnp.sqrt(total), time=250.0 * jnp.log(sigma))

    def weight(self, sigma: jax.Array) -> jax.Array:
        """1 / c_out^2, unit loss weight on F: (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 of Table 1."""
        return 1.0 / self.scalings(sigma).c_out ** 2


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ho et al. 2020: discrete times; by default linear betas (BCD supplement, Eq. 1-4).

    With sigma_t = sqrt((1 - abar_t) / abar_t) the noisy z_t / sqrt(abar_t) equals z + sigma_t * n, and
    weight 1/sigma^2 makes the weighted loss on D exactly the mean of (F - n)^2. Networks that are told
    the discrete time itself use the variance-preserving side: `noised`, `target`, `samplers.ddim`.

    Attributes:
      steps: number of discrete times.
      beta_start, beta_end: ends of the schedule.
      schedule: "linear", evenly spaced betas; "scaled_linear", their square roots are, as in Stable
        Diffusion (0.00085 to 0.012) and X-NeMo as released (0.00085 to 0.02).
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    schedule: str = "linear"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")

    def alpha_bar(self) -> np.ndarray:
        """(steps,) float64, decreasing: the share of the clean array's variance in z_t."""
        power = SCHEDULES[self.schedule]
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return np.cumprod(1.0 - np.linspace(*ends, self.steps) ** power)

    def _sigmas(self) -> np.ndarray:
        """(steps,) float32, increasing."""
        alpha_bar = self.alpha_bar()
        return np.sqrt((1.0 - alpha_bar) / alpha_bar).astype(np.float32)

    def noised(self, z: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
        """z_t = sqrt(abar_t) * z + sqrt(1 - abar_t) * noise; `time` int (B,) or (), of z's leading axes."""
        signal, spread = self._factors(z, time)
        return signal * z + spread * noise

    def target(self, z: jax.Array, noise: jax.Array, time: jax.Array, prediction: str) -> jax.Array:
        """What a network of that `prediction` (`PREDICTIONS`) is to give at z_t; arguments as `noised`.

        Raises:
          ValueError: unknown prediction.
        """
        check_prediction(prediction)
        if prediction == "v":  # Salimans and Ho 2022
            signal, spread = self._factors(z, time)
            return signal * noise - spread * z
        return noise if prediction == "eps" else z

    def _factors(self, z, time):
        alpha_bar = self.alpha_bar()
        time = jnp.asarray(time)
        shape = time.shape + (1,) * (z.ndim - time.ndim)
        pair = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
        return tuple(jnp.asarray(f, jnp.float32)[time].reshape(shape) for f in pair)

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
