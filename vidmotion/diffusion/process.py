"""Diffusion processes, which define how noise is added to a clean array and how a network becomes a denoiser.

Both processes are written in the variance-exploding form y = z + sigma * n, so that one sampler serves
both. A network F(x, time) becomes a denoiser D by

    D(y; sigma) = c_skip * y + c_out * F(c_in * y, time)            (Karras et al. 2022, Eq. 7)

and is trained to minimise the mean of weight(sigma) * (D - z)^2.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Name of a schedule -> the power to which evenly spaced numbers are raised to give the betas.
SCHEDULES = {"linear": 1, "scaled_linear": 2}
OUTPUTS = ("edm", "x0")  # values of `EDM.output`
PREDICTIONS = ("eps", "x0", "v")


def check_prediction(prediction: str) -> None:
    """Raises ValueError unless `prediction` is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")


class Scalings(NamedTuple):
    """The factors that turn a network into a denoiser, each shaped like sigma; `time` is the network's time input."""

    c_skip: jax.Array
    c_out: jax.Array
    c_in: jax.Array
    time: jax.Array


@dataclasses.dataclass(frozen=True)
class EDM:
    """The process of Karras et al. 2022 (Table 1, column "Ours").

    Attributes:
      sigma_data: standard deviation of the clean data.
      p_mean, p_std: the mean and standard deviation of ln sigma, which is normally distributed in training.
      sigma_min, sigma_max: ends of the sampling schedule.
      output: how D is made of F: ``edm``, with Table 1's c_skip and c_out; or ``x0``, as sigma_data * F, so that D
        contains nothing of the noisy array, and the error of D has the same weight at every noise level.

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
        """Draws noise levels for training, float32 of `shape`."""
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))

    def scalings(self, sigma: jax.Array) -> Scalings:
        """Returns c_skip, c_out and c_in of Table 1 (or those of ``x0``), and time = 1000 * c_noise = 250 ln sigma."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / jnp.sqrt(total)
        if self.output == "x0":
            c_skip, c_out = jnp.zeros_like(sigma), jnp.full_like(sigma, self.sigma_data)
        return Scalings(c_skip, c_out, c_in=1.0 / jnp.sqrt(total), time=250.0 * jnp.log(sigma))

    def weight(self, sigma: jax.Array) -> jax.Array:
        """Returns the loss weight 1 / c_out^2, which is a weight of 1 on the error of F.

        With Table 1's c_out it is (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2.
        """
        return 1.0 / self.scalings(sigma).c_out ** 2


@dataclasses.dataclass(frozen=True)
class DDPM:
    """The process of Ho et al. 2020 over discrete times, by default with linear betas (BCD supplement, Eq. 1-4).

    With sigma_t = sqrt((1 - abar_t) / abar_t), the noisy array z_t / sqrt(abar_t) equals z + sigma_t * n, and
    the weight 1/sigma^2 makes the weighted loss on D exactly the mean of (F - n)^2. Networks whose input is
    the discrete time itself use the variance-preserving form: `noised`, `target`, `samplers.ddim`.

    Attributes:
      steps: number of discrete times.
      beta_start, beta_end: ends of the schedule.
      schedule: "linear", evenly spaced betas; or "scaled_linear", evenly spaced square roots of the betas, as in Stable
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
        """Returns alpha bar, (steps,) float64, decreasing: the factor of the clean array's variance in z_t."""
        power = SCHEDULES[self.schedule]
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return np.cumprod(1.0 - np.linspace(*ends, self.steps) ** power)

    def _sigmas(self) -> np.ndarray:
        """Returns sigma at every discrete time, (steps,) float32, increasing."""
        alpha_bar = self.alpha_bar()
        return np.sqrt((1.0 - alpha_bar) / alpha_bar).astype(np.float32)

    def noised(self, z: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
        """Returns z_t = sqrt(abar_t) * z + sqrt(1 - abar_t) * noise.

        `time` is an int array whose shape is that of the leading axes of z, such as (B,), or ().
        """
        signal, spread = self._factors(z, time)
        return signal * z + spread * noise

    def target(self, z: jax.Array, noise: jax.Array, time: jax.Array, prediction: str) -> jax.Array:
        """Returns the training target at z_t of a network with the given `prediction`, one of `PREDICTIONS`.

        The other arguments are those of `noised`.

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
        """The sigma of the first discrete time."""
        return float(self._sigmas()[0])

    @property
    def sigma_max(self) -> float:
        """The sigma of the last discrete time."""
        return float(self._sigmas()[-1])

    def sample_sigma(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws noise levels of uniformly distributed discrete times, float32 of `shape`."""
        return jnp.asarray(self._sigmas())[jax.random.randint(key, shape, 0, self.steps)]

    def scalings(self, sigma: jax.Array) -> Scalings:
        """Returns the factors of noise prediction, D = y - sigma * F(y / sqrt(1 + sigma^2), time).

        The time is interpolated in the table of sigmas.
        """
        table = jnp.asarray(self._sigmas())
        time = jnp.interp(jnp.log(sigma), jnp.log(table), jnp.arange(self.steps, dtype=jnp.float32))
        return Scalings(
            c_skip=jnp.ones_like(sigma),
            c_out=-sigma,
            c_in=1.0 / jnp.sqrt(1.0 + sigma**2),
            time=time,
        )

    def weight(self, sigma: jax.Array) -> jax.Array:
        """Returns the loss weight 1 / sigma^2, which is a weight of 1 on the error of the predicted noise."""
        return 1.0 / sigma**2


Process = EDM | DDPM
