"""Hinge terms by hand; the adaptive weight against torch and at the limits of floating point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.losses.gan import adaptive_weight, hinge_discriminator, hinge_generator


def test_hinge():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([-2.0, -0.5, 1.0])
    # relu(1 - real) is 0, 0.5, 2, 0; relu(1 + fake) is 0, 0.5, 2.
    np.testing.assert_allclose(
        hinge_discriminator(real, fake), 0.5 * (2.5 / 4 + 2.5 / 3), rtol=1e-6
    )
    np.testing.assert_allclose(hinge_generator(fake), 0.5, rtol=1e-6)


def test_logits_of_half_precision():
    """The mean of 4096 ones and one 3 is exact to float32; a bfloat16 sum would stop at 256."""
    fake = jnp.ones(4097, jnp.bfloat16).at[0].set(3)
    for got, want in (
        (hinge_generator(fake), -4099 / 4097),
        (hinge_discriminator(-fake, fake), 1 + 4099 / 4097),
    ):
        assert got.dtype == jnp.float32 and got.shape == ()
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("gain", [1.0, 1e-6])
def test_adaptive_weight_equals_torch(gain):
    """Compares weights computed from the gradients of two losses in a last kernel, by jax and by torch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    features, kernel, target, judge = (
        rng.normal(size=shape).astype(np.float32) for shape in ((5, 7), (7, 6), (5, 6), (6,))
    )
    w = torch.from_numpy(kernel).requires_grad_()
    image = torch.from_numpy(features) @ w
    nll = (image - torch.from_numpy(target)).abs().sum() / 5
    gan = -gain * torch.tanh(image @ torch.from_numpy(judge)).mean()
    norms = [torch.autograd.grad(x, w, retain_graph=True)[0].norm() for x in (nll, gan)]
    want = 0.05 * torch.clamp(norms[0] / (norms[1] + 1e-4), 0, 1e4)

    def losses(kernel):
        image = features @ kernel
        nll = jnp.sum(jnp.abs(image - target)) / 5
        return nll, -gain * jnp.mean(jnp.tanh(image @ judge))

    grads = [jax.grad(lambda k, i=i: losses(k)[i])(kernel) for i in (0, 1)]
    got = adaptive_weight(*grads, 0.05)
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want.item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("nll", "gan", "want"),
    [
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (3.0, 0.0, 1e4),  # 6 / 1e-4 exceeds the limit
        (1e-4, 0.0, 2.0),  # norm 2e-4 divided by eps
        (3e38, 3e38, 1.0),  # norms that overflow float32
        (1e30, 2e30, 0.5),
        (3e38, 0.0, 1e4),
        (0.0, 3e38, 0.0),
        (1e-30, 1.0, 0.0),
        (1e-30, 1e-30, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adaptive_weight_is_finite(nll, gan, want, dtype):
    """Each gradient has four equal entries, so its norm is twice one entry."""
    nll, gan = (jnp.full((2, 2), value, dtype) for value in (nll, gan))
    got = adaptive_weight(nll, gan, 0.5)
    np.testing.assert_allclose(got, 0.5 * want, rtol=0.01, atol=1e-20)


def test_no_gradient_passes_through_the_weight():
    gradient = jax.grad(lambda g: adaptive_weight(g, 2.0 * g, 0.05))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, 0.0)
