"""Samplers, which turn noise into data by calls of ``denoise(x, sigma)`` or ``predict(x, time)``.

`sample`: Karras et al. 2022, Algorithm 1 without churn, in the variance-exploding form of `process`.
`ddim`: Song et al. 2020 without noise, over discrete times, in the variance-preserving form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.diffusion.process import check_prediction

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
SAMPLERS = ("heun", "euler")


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> jax.Array:
    """Returns the noise levels of a sampler (Karras et al., Eq. 5): (steps + 1,) float32, from `sigma_max` down to
    `sigma_min`, then 0. Raises ValueError if `steps` is less than 1."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {steps}")
    ramp = jnp.linspace(0.0, 1.0, steps) if steps > 1 else jnp.zeros((1,))
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return jnp.concatenate([sigmas, jnp.zeros((1,))]).astype(jnp.float32)


def sample(
    denoise: Denoise, noise: jax.Array, sigmas: jax.Array, method: str = "heun"
) -> jax.Array:
    """Turns noise into data by solving dx/dsigma = (x - D(x; sigma)) / sigma along `sigmas`.

    Args:
      denoise: D(x, sigma) with sigma of shape (); returns an array like x.
      noise: standard normal array of the output's shape.
      sigmas: the noise levels (steps + 1,), decreasing, the last of them 0; the last interval is always an Euler step.
      method: ``heun`` (2 * steps - 1 evaluations) or ``euler`` (steps evaluations).

    Raises:
      ValueError: unknown method.
    """
    if method not in SAMPLERS:
        raise ValueError(f"sampler {method!r}: choose one of {', '.join(SAMPLERS)}")

    def euler(x, sigma, following):
        slope = (x - denoise(x, sigma)) / sigma
        return x + (following - sigma) * slope, slope

    def body(x, pair):
        sigma, following = pair
        ahead, slope = euler(x, sigma, following)
        if method == "heun":
            slope_ahead = (ahead - denoise(ahead, following)) / following
            ahead = x + (following - sigma) * 0.5 * (slope + slope_ahead)
        return ahead, None

    x, _ = jax.lax.scan(body, noise * sigmas[0], (sigmas[:-2], sigmas[1:-1]))
    return euler(x, sigmas[-2], sigmas[-1])[0]


def leading_times(steps: int, train_steps: int = 1000, offset: int = 1) -> np.ndarray:
    """Returns the discrete times of a sampler, spaced as in Stable Diffusion's schedulers.

    They are the first `steps` multiples of train_steps // steps, from 0, plus `offset`. For 25 of 1000 steps they are
    961, 921, ..., 41, 1.

    Returns:
      (steps,) int32, descending.

    Raises:
      ValueError: `steps` is not within 1 .. train_steps, or times lie outside the schedule.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(
            f"steps must be from 1 to {train_steps}, the length of the schedule, got {steps}"
        )
    times = np.arange(steps, dtype=np.int32)[::-1] * (train_steps // steps) + offset
    if times[0] >= train_steps or times[-1] < 0:
        raise ValueError(
            f"{steps} steps with offset {offset} leave the schedule of {train_steps} times"
        )
    return times


def ddim(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    times: np.ndarray,
    alpha_bar: np.ndarray,
    prediction: str = "eps",
    final: float = 1.0,
    trajectory: bool = False,
) -> jax.Array:
    """Denoises an array by DDIM (Song et al. 2020, Eq. 12 with sigma = 0).

    Args:
      predict: ``predict(x, time)`` with an int32 time of shape (); returns an array like x, which means what
        `prediction` says.
      x: the noisy array at times[0], float32: sqrt(abar) * clean + sqrt(1 - abar) * noise.
      times: (steps,) descending, for example from `leading_times`.
      alpha_bar: (train_steps,), from `DDPM.alpha_bar`.
      prediction: what the network predicts: "eps", the noise; "x0", the clean array; or "v".
      final: alpha bar after the last step: 1 for the clean array itself; alpha_bar[0] for schedulers with
        set_alpha_to_one=False.
      trajectory: whether to return x at the start and after every step.

    Returns:
      The clean array, like x; with `trajectory` an array (steps + 1, *x.shape).

    Raises:
      ValueError: unknown prediction.
    """
    check_prediction(prediction)
    table = np.append(np.asarray(alpha_bar, np.float64)[np.asarray(times)], final)
    signal, spread = (np.sqrt(part).astype(np.float32) for part in (table, 1.0 - table))

    def body(x, step):
        time, (a, s), (a_next, s_next) = step
        out = predict(x, time).astype(x.dtype)
        if prediction == "eps":
            clean, noise = (x - s * out) / a, out
        elif prediction == "x0":
            clean, noise = out, (x - a * out) / s
        else:
            clean, noise = a * x - s * out, a * out + s * x
        x = a_next * clean + s_next * noise
        return x, x if trajectory else None

    factors = jnp.asarray(np.stack([signal, spread], 1))
    steps = (jnp.asarray(times, jnp.int32), factors[:-1], factors[1:])
    end, passed = jax.lax.scan(body, x, steps)
    return jnp.concatenate([x[None], passed]) if trajectory else end
