"""Feature matching and equation 7 against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.losses.feature_matching import feature_distance
from vidmotion.losses.gan_head import Weights, generator_loss

# The two pairs of features have mean absolute differences of 1 and 0.25.
REAL = [jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2, 2, 1))]
FAKE = [jnp.array([[0.0, 3.0]]), jnp.array([[[[1.0], [0.0]], [[0.0], [0.0]]]])]


def test_feature_distance_by_hand():
    assert feature_distance(REAL, FAKE) == pytest.approx(0.625)
    assert feature_distance(REAL, FAKE, layers="sum") == pytest.approx(1.25)


def test_no_gradient_reaches_the_real_side():
    by_real, by_fake = jax.grad(feature_distance, argnums=(0, 1))(REAL, FAKE)
    assert not any(np.any(leaf) for leaf in by_real)
    np.testing.assert_allclose(by_fake[0], [[-0.25, 0.25]])  # half of the mean over two entries


def test_equation_7_by_hand():
    target = jnp.zeros((2, 2, 2, 3))
    image = target.at[0].set(0.5)  # mean absolute difference 0.25
    score = jnp.array([1.0, -3.0])  # the negative mean is 1
    loss, terms = generator_loss(target, image, score, (REAL, FAKE), (REAL, FAKE), (REAL, FAKE))
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(
        dict(adversarial=1.0, reconstruction=0.25, matching=0.625, vgg=1.25, face=1.25)
    )
    assert loss == pytest.approx(1 + 0.25 + 10 * 0.625 + 3e-2 * 1.25 + 6e-3 * 1.25)
    loss, terms = generator_loss(
        target, image, score, (REAL, FAKE), weights=Weights(reconstruction=2.0, matching=0.0)
    )
    assert set(terms) == {"adversarial", "reconstruction", "matching"}
    assert loss == pytest.approx(1.5)
    # Without a discriminator only the mean absolute difference is left.
    loss, terms = generator_loss(target, image)
    assert set(terms) == {"reconstruction"} and loss == pytest.approx(0.25)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit maps"):
        feature_distance(REAL, FAKE[:1])
    with pytest.raises(ValueError, match="layers='max': choose mean or sum"):
        feature_distance(REAL, FAKE, layers="max")
