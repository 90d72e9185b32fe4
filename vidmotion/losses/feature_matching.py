"""L1 distance between two lists of feature maps (X-NeMo, equations 4 to 6)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

LAYERS = ("mean", "sum")


def feature_distance(
    real: Sequence[jax.Array], fake: Sequence[jax.Array], layers: str = "mean"
) -> jax.Array:
    """Averages the absolute difference within each pair of maps, and takes the mean or sum over layers.

    No gradient passes to `real`. The paper writes norms and sums. The code from which it took the weights has means
    within a layer, a sum over VGG's layers and a mean over the discriminator's (spec xnemo.md, 2.1).

    Args:
      real, fake: two lists of maps, of equal length and with equal shapes.
      layers: how to combine the layers: ``mean`` for feature matching, ``sum`` for perceptual losses.

    Returns:
      Scalar float32.

    Raises:
      ValueError: if `layers` is unknown, or the maps do not fit each other.
    """
    if layers not in LAYERS:
        raise ValueError(f"layers={layers!r}: choose {' or '.join(LAYERS)}")
    shapes = [[x.shape for x in maps] for maps in (real, fake)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"feature_distance: maps {shapes[0]} do not fit maps {shapes[1]}")
    total = sum(
        jnp.mean(jnp.abs(jax.lax.stop_gradient(x).astype(jnp.float32) - y.astype(jnp.float32)))
        for x, y in zip(real, fake)
    )
    return total / len(real) if layers == "mean" else total
