"""WarpFace's weight map and symmetry term by hand (spec warpface.md, sections 7 and 14)."""

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.losses.motion import adaptive_weight, symmetry_loss


def test_weight_map_of_the_worked_example():
    delta = np.array([[1.0, 0.2], [0.1, 0.0]], np.float32)[None, ..., None]
    weight = adaptive_weight(np.repeat(delta, 4, axis=-1), np.zeros((1, 2, 2, 4)), 0.5, 2.0)
    np.testing.assert_allclose(weight[0].reshape(-1), [3.576923, 0.5, 0.5, 0.5], rtol=1e-6)


def test_differences_are_averaged_over_channels_and_examples_kept_apart():
    z = np.zeros((2, 1, 2, 2), np.float32)
    z[0, 0, 0] = [3.0, -1.0]  # delta 2 and 0, mean 1
    z[1, 0, 1] = [0.2, 0.0]  # delta 0 and 0.1, mean 0.05: small, but this example's largest
    weight = np.asarray(adaptive_weight(z, np.zeros_like(z), 0.1, 3.0))
    np.testing.assert_allclose(weight[:, 0], [[0.7, 0.1], [0.1, 0.7]], rtol=1e-5)


def test_equal_frames_weigh_tau_and_carry_no_gradient():
    z = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(adaptive_weight(z, z, 0.25, 3.0), 0.25)
    gradient = jax.grad(lambda z: jnp.sum(adaptive_weight(z, z * 0.5, 0.5, 2.0)))(z)
    np.testing.assert_array_equal(gradient, 0.0)


def test_symmetry_is_a_mean_of_squares_that_opposite_codes_make_zero():
    there, back = jnp.array([[1.0, -2.0], [0.5, 0.5]]), jnp.array([[-1.0, 2.0], [0.5, -1.5]])
    np.testing.assert_allclose(symmetry_loss(there, back), [0.0, 1.0])  # (1 + 1) / 2
    both = jax.grad(lambda a, b: jnp.sum(symmetry_loss(a, b)), argnums=(0, 1))(there, back)
    for gradient in both:  # 2 (a + b) / D on either side
        np.testing.assert_allclose(gradient, [[0.0, 0.0], [1.0, -1.0]])
