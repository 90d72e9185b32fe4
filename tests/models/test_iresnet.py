"""CSIM's recogniser against the spec's golden values and, with random weights, against plain torch."""

import jax
import numpy as np
import pytest
from quick import filled_state

from vidmotion.convert.maps.iresnet import RULES, arguments
from vidmotion.models.features.iresnet import SIZES, IResNet


def state_of(net, gain):
    """Fills the keys and shapes of the public file; returns the file's content and our variables made from it."""
    return filled_state(net, (1, net.size, net.size, 3), RULES, gain)


def faces():
    """Returns two test pictures of section 14, in [-1, 1], and one of noise."""
    b, c, y, x = np.ogrid[:2, :3, :112, :112]
    waves = np.moveaxis(np.sin(0.1 * (y + 1) * (c + 1) + 0.07 * (x + 1) + b), 1, -1)
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 112, 112, 3))
    return np.concatenate([waves, noise]).astype(np.float32)


def check(size, source, variables, entries, first, deviation, cosine):
    """Checks the golden values of section 14; `entries` includes one counter per norm."""
    net = IResNet(**SIZES[size])
    assert len(source) + sum(key.endswith("running_mean") for key in source) == entries
    assert IResNet(**arguments({key: x.shape for key, x in source.items()})) == net
    out = np.asarray(jax.jit(net.apply)(variables, faces()))
    assert out.shape == (3, 512) and out.dtype == np.float32
    got = out[:2]
    np.testing.assert_allclose(got[0, :4], first, atol=3e-6)
    assert got.std() == pytest.approx(deviation, abs=3e-6)
    lengths = np.linalg.norm(got, axis=1)
    assert got[0] @ got[1] / np.prod(lengths) == pytest.approx(cosine, abs=2e-6)
    return out


@pytest.mark.slow
@pytest.mark.oracle
def test_golden_values_and_torch():
    torch = pytest.importorskip("torch")
    source, variables = state_of(IResNet(**SIZES["r50"]), 0.3)
    first = [-0.26437, 0.014797, -0.210282, 0.173491]
    got = check("r50", source, variables, 475, first, 0.149104, 0.999558)
    weights = {key: torch.from_numpy(value) for key, value in source.items()}
    with torch.no_grad():
        want = torch_iresnet(weights, torch.from_numpy(faces().transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_golden_values_of_the_larger_net():
    source, variables = state_of(IResNet(**SIZES["r100"]), 0.3)
    first = [-0.240135, 0.026766, -0.309913, 0.146712]
    check("r100", source, variables, 925, first, 0.196852, 0.999532)


def torch_iresnet(w, x):
    """Runs the network of arcface_torch in plain torch."""
    from torch.nn import functional as F

    def norm(name, x):
        parts = ("running_mean", "running_var", "weight", "bias")
        statistics = [w[f"{name}.{part}"] for part in parts]
        return F.batch_norm(x, *statistics, training=False, eps=1e-5)

    x = F.prelu(norm("bn1", F.conv2d(x, w["conv1.weight"], padding=1)), w["prelu.weight"])
    for stage in range(1, 5):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in w:
            name, stride = f"layer{stage}.{i}", 1 if i else 2
            y = F.conv2d(norm(f"{name}.bn1", x), w[f"{name}.conv1.weight"], padding=1)
            y = F.prelu(norm(f"{name}.bn2", y), w[f"{name}.prelu.weight"])
            y = F.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1)
            if i == 0:
                x = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(f"{name}.downsample.1", x)
            x = x + norm(f"{name}.bn3", y)
            i += 1
    x = F.linear(norm("bn2", x).flatten(1), w["fc.weight"], w["fc.bias"])
    return norm("features", x)


def test_other_shapes_are_refused():
    for shape in ((1, 128, 128, 3), (112, 112, 3), (1, 112, 112, 1)):
        with pytest.raises(ValueError, match=r"faces must be \(n, 112, 112, 3\)"):
            jax.eval_shape(
                IResNet(**SIZES["r18"]).init,
                jax.random.key(0),
                jax.ShapeDtypeStruct(shape, np.float32),
            )
