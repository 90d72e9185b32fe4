"""EMO-SIM's network against the spec's golden values and, with random weights, against plain torch."""

import jax
import numpy as np
import pytest
from quick import filled_state

from vidmotion.convert.maps.emonet import RULES, arguments
from vidmotion.models.features.emonet import EmoNet


def state_of(net, gain):
    """Fills the keys and shapes of the public file; returns the file's content and our variables made from it."""
    return filled_state(net, (1, net.size, net.size, 3), RULES, gain)


@pytest.mark.slow
@pytest.mark.oracle
def test_golden_values_and_torch():
    """Checks item 0 of section 14, and a face of noise against torch; the file has one counter per norm."""
    torch = pytest.importorskip("torch")
    net = EmoNet()
    source, variables = state_of(net, 0.3)
    assert len(source) + sum(key.endswith("running_mean") for key in source) == 682
    assert EmoNet(**arguments({key: x.shape for key, x in source.items()})) == net
    c, y, x = np.ogrid[:3, :256, :256]
    wave = 0.5 + 0.5 * np.sin(0.1 * (y + 1) * (c + 1) + 0.07 * (x + 1))
    noise = np.random.default_rng(0).random((3, 256, 256))
    faces = np.stack([wave, noise]).astype(np.float32)
    out = jax.jit(net.apply)(variables, faces.transpose(0, 2, 3, 1))
    assert out["valence"].shape == out["arousal"].shape == (2,)
    assert float(out["valence"][0]) == pytest.approx(0.028654, abs=2e-6)
    assert float(out["arousal"][0]) == pytest.approx(-0.015877, abs=2e-6)
    golden = [0.012293, -0.006606, 0.019828, -0.002987, -0.030136, 0.042327, -0.061386, -0.007930]
    np.testing.assert_allclose(out["expression"][0], golden, atol=3e-6)

    weights = {key: torch.from_numpy(value) for key, value in source.items()}
    with torch.no_grad():
        want = torch_emonet(weights, torch.from_numpy(faces)).numpy()
    assert not np.allclose(want[0], want[1], rtol=1e-2, atol=0)  # the output depends on the face
    np.testing.assert_allclose(out["expression"], want[:, :-2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out["valence"], want[:, -2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out["arousal"], want[:, -1], rtol=1e-4, atol=1e-6)


def torch_emonet(w, x):
    """Runs the network in plain torch; returns the last layer's output."""
    import torch
    from torch.nn import functional as F

    def norm(name, x):
        parts = ("running_mean", "running_var", "weight", "bias")
        statistics = [w[f"{name}.{part}"] for part in parts]
        return F.batch_norm(x, *statistics, training=False, eps=1e-5)

    def conv(name, x, stride=1):
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def block(name, x):
        y, parts = x, []
        for i in (1, 2, 3):
            y = conv(f"{name}.conv{i}", F.relu(norm(f"{name}.bn{i}", y)))
            parts.append(y)
        if f"{name}.downsample.2.weight" in w:
            x = conv(f"{name}.downsample.2", F.relu(norm(f"{name}.downsample.0", x)))
        return x + torch.cat(parts, 1)

    def hourglass(name, x, level):
        low = block(f"{name}.b2_{level}", F.max_pool2d(x, 2))
        if level > 1:
            low = hourglass(name, low, level - 1)
        else:
            low = block(f"{name}.b2_plus_1", low)
        low = block(f"{name}.b3_{level}", low)
        return block(f"{name}.b1_{level}", x) + F.interpolate(low, scale_factor=2)

    x = F.relu(norm("bn1", conv("conv1", x, 2)))
    x = block("conv4", block("conv3", F.max_pool2d(block("conv2", x), 2)))
    previous, parts = x, []
    for i in "01":
        z = block(f"top_m_{i}", hourglass(f"m{i}", previous, 4))
        z = F.relu(norm(f"bn_end{i}", conv(f"conv_last{i}", z)))
        heat = conv(f"l{i}", z)
        if i == "0":
            z = conv("bl0", z)
            previous = previous + z + conv("al0", heat)
        parts.append(z)
    x = torch.cat([x, torch.cat(parts, 1) * heat.sum(1, keepdim=True)], 1)
    x = conv("conv1x1_input_emo_2", x)
    for i in range(4):
        x = F.max_pool2d(block(f"emo_net_2.{2 * i}", x), 2)
    x = F.linear(x.mean((2, 3)), w["emo_fc_2.0.weight"], w["emo_fc_2.0.bias"])
    x = F.relu(norm("emo_fc_2.1", x))
    return F.linear(x, w["emo_fc_2.3.weight"], w["emo_fc_2.3.bias"])


def test_other_shapes_are_refused():
    for net, side in ((EmoNet(), 224), (EmoNet(size=96), 96)):
        face = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        with pytest.raises(ValueError, match="a multiple of 64, got"):
            jax.eval_shape(net.init, jax.random.key(0), face)
