"""Samplers: from noise to data, given only ``denoise(x, sigma)``.

Karras et al. 2022, Algorithm 1 without churn, in the variance-exploding form of `process`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
SAMPLERS = ("heun", "euler")


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> jax.Array:
    """(steps + 1,) float32, from `sigma_max` down to `sigma_min`, then 0 (Karras et al., Eq. 5)."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {steps}")
    ramp = jnp.linspace(0.0, 1.0, steps) if steps > 1 else jnp.zeros((1,))
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return jnp.concatenate([sigmas, jnp.zeros((1,))]).astype(jnp.float32)


def sample(
    denoise: Denoise, noise: jax.Array, sigmas: jax.Array, method: str = "heun"
) -> jax.Array:
    """Solve dx/dsigma = (x - D(x; sigma)) / sigma along `sigmas`.

    Args:
      denoise: D(x, sigma) with a () sigma; returns an array like x.
      noise: standard normal array of the output's shape.
      sigmas: (steps + 1,) decreasing, last 0; `steps` intervals, the last one always Euler.
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
