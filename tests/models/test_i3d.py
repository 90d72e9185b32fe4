"""I3D against the spec's golden values and, with random weights, plain torch; its convolution against lax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import filled_state

from vidmotion.convert.maps.i3d import RULES
from vidmotion.models.features.i3d import I3D, SIZE, Conv3d


@pytest.fixture(scope="module")
def state():
    """Fills the public file's keys and shapes by the rule of section 14."""
    return filled_state(I3D(), (1, 9, SIZE, SIZE, 3), RULES)


def test_sizes(state):
    source, _ = state
    assert len(source) + 57 == 344  # the file also holds 57 counters of updates
    assert source["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)


@pytest.mark.slow
def test_golden_values(state):
    """Checks the values of section 14 for both epsilons."""
    b, c, t, y, x = np.ogrid[:2, :3, :16, :SIZE, :SIZE]
    wave = np.sin(0.01 * (y + 1) * (c + 1) + 0.07 * (x + 1) + b + 0.2 * t)
    clip = np.moveaxis(wave, 1, -1).astype(np.float32)
    net = jax.jit(lambda v, x, eps: I3D(bn_eps=eps).apply(v, x))  # compiled once for both epsilons
    out = jax.tree.map(np.asarray, net(state[1], clip, 1e-3))
    logits = out["logits"]
    assert logits.shape == (2, 400) and out["pooled"].shape == (2, 1024)
    assert (logits.mean(), logits.std()) == pytest.approx((0.007627, 1.327774), abs=1e-5)
    want = [0.806383, 2.471005, -0.808219, 1.191637]
    np.testing.assert_allclose(logits[0, :4], want, atol=1e-5)
    assert out["pooled"].mean() == pytest.approx(0.567638, abs=1e-5)
    logits = np.asarray(net(state[1], clip, 1e-5)["logits"])
    assert logits.std() == pytest.approx(1.337578, abs=1e-5)
    want = [0.812384, 2.487273, -0.815242, 1.200175]
    np.testing.assert_allclose(logits[0, :4], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.oracle
def test_torch(state):
    """Compares logits of 17 frames, which give two positions in time that are averaged after the last layer."""
    torch = pytest.importorskip("torch")
    source, variables = state
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 17, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        want, positions = torch_i3d(
            {key: torch.from_numpy(value) for key, value in source.items()},
            torch.from_numpy(clip.transpose(0, 4, 1, 2, 3).copy()),
        )
    assert positions == 2
    got = jax.jit(I3D().apply)(variables, clip)["logits"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def torch_i3d(w, x, eps=1e-3):
    """Runs the network in plain torch; returns the logits and the number of positions in time that they average."""
    import torch
    from torch.nn import functional as F

    def padded(x, size, stride):
        """Pads with zeros as TensorFlow does, which also suits max pooling because its inputs are not negative."""
        pad = []
        for length, k, s in zip(x.shape[:1:-1], size[::-1], stride[::-1]):
            total = max((-(-length // s) - 1) * s + k - length, 0)
            pad += [total // 2, total - total // 2]
        return F.pad(x, pad)

    def conv(name, x, size=1, stride=1):
        x = padded(x, (size,) * 3, (stride,) * 3)
        x = F.conv3d(x, w[f"{name}.conv3d.weight"], None, stride)
        parts = ("running_mean", "running_var", "weight", "bias")
        statistics = [w[f"{name}.bn.{part}"] for part in parts]
        return F.relu(F.batch_norm(x, *statistics, training=False, eps=eps))

    def pool(x, size, stride):
        return F.max_pool3d(padded(x, size, stride), size, stride)

    x = pool(conv("Conv3d_1a_7x7", x, 7, 2), (1, 3, 3), (1, 2, 2))
    x = conv("Conv3d_2c_3x3", conv("Conv3d_2b_1x1", x), 3)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        name = f"Mixed_{block}."
        branches = [
            conv(name + "b0", x),
            conv(name + "b1b", conv(name + "b1a", x), 3),
            conv(name + "b2b", conv(name + "b2a", x), 3),
            conv(name + "b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        x = torch.cat(branches, 1)
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    x = F.conv3d(x, w["logits.conv3d.weight"], w["logits.conv3d.bias"])
    return x[..., 0, 0].mean(2), x.shape[2]


@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("frames", [9, 10])
def test_convolution_is_that_of_lax(size, stride, frames):
    """Compares the convolution of frames laid side by side in images with one over three axes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, 8, 11, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, size, 3, 4)).astype(np.float32)
    got = Conv3d(4, size, stride).apply({"params": {"kernel": kernel}}, x)
    want = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (stride,) * 3,
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_other_shapes_are_refused():
    def initialised(*shape):
        return jax.eval_shape(
            I3D().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32)
        )

    with pytest.raises(ValueError, match="at least 9 frames, got 8"):
        initialised(1, 8, SIZE, SIZE, 3)
    for shape in ((1, 16, 256, 256, 3), (16, SIZE, SIZE, 3), (1, 16, SIZE, SIZE, 1)):
        with pytest.raises(ValueError, match=r"clips must be \(n, t, 224, 224, 3\)"):
            initialised(*shape)
