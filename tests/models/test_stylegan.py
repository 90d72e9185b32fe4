"""StyleGAN2's synthesis against torch convolutions with explicit weights for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion.models.stylegan import Synthesis, upsample

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
functional = torch.nn.functional

SMALL = dict(size=16, channels=8, area=64)
STYLE = 6


def tensor(x):
    return torch.tensor(np.asarray(x))


def blurred(x, pad):
    """Pads x (n, c, h, w) by `pad` and filters each channel with [1 3 3 1], at a gain of 4."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (4 * torch.outer(taps, taps)).expand(x.shape[1], 1, 4, 4)
    return functional.conv2d(functional.pad(x, pad), kernel, groups=x.shape[1])


def stuffed(x):
    """Inserts a zero after every row and column."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def modulated(x, style, p, up=False, demodulate=True):
    """Applies equations 1 and 3 to the weights themselves, one example at a time."""
    affine, kernel = tensor(p["style_kernel"]), tensor(p["kernel"])
    scale = style @ affine / np.sqrt(affine.shape[0]) + tensor(p["style_bias"])
    weight = kernel.permute(3, 2, 0, 1) / np.sqrt(np.prod(kernel.shape[:3]))
    out = []
    for one, s in zip(x, scale):
        w = weight * s[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # A transposed convolution mirrors the kernel.
            y = functional.conv_transpose2d(
                one[None], w.flip(2, 3).transpose(0, 1), stride=2, padding=0
            )
            out.append(blurred(y, (1, 1, 1, 1)))
        else:
            out.append(functional.conv2d(one[None], w, padding=w.shape[-1] // 2))
    return torch.cat(out)


def oracle(p, style, sides):
    def styled(name, x, up=False):
        y = modulated(x, style, p[name]["conv"], up) + tensor(p[name]["bias"])[:, None, None]
        return functional.leaky_relu(y, 0.2) * np.sqrt(2)

    def colours(side, x):
        y = modulated(x, style, p[f"rgb_{side}"], demodulate=False)
        return y + tensor(p[f"rgb_{side}_bias"])[:, None, None]

    x = tensor(p["constant"]).permute(2, 0, 1)[None].repeat(len(style), 1, 1, 1)
    x = styled("conv_4", x)
    rgb = colours(4, x)
    for side in sides:
        x = styled(f"conv_{side}", styled(f"up_{side}", x, True))
        rgb = blurred(stuffed(rgb), (2, 1, 2, 1)) + colours(side, x)
    return torch.tanh(rgb)


@pytest.fixture(scope="module")
def small():
    net = Synthesis(**SMALL)
    style = np.random.default_rng(0).normal(size=(3, STYLE)).astype(np.float32)
    tree = jax.eval_shape(net.init, jax.random.key(0), style)["params"]
    return net, random_like(tree, scale=0.7), style


def test_equals_convolutions_with_modulated_weights(small):
    net, params, style = small
    expected = oracle(params, torch.tensor(style), (8, 16)).permute(0, 2, 3, 1)
    got = quick_jit(net.apply)({"params": params}, style)
    assert got.shape == (3, 16, 16, 3) and got.dtype == jnp.float32
    assert np.std(expected.numpy()) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradient_by_the_style_equals_torch(small):
    net, params, style = small
    weight = np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
    given = torch.tensor(style, requires_grad=True)
    out = oracle(params, given, (8, 16)).permute(0, 2, 3, 1)
    (out * torch.tensor(weight)).sum().backward()
    slope = quick_jit(jax.grad(lambda s: jnp.sum(net.apply({"params": params}, s) * weight)))(style)
    np.testing.assert_allclose(slope, given.grad.numpy(), atol=1e-3, rtol=1e-3)


def test_upsampling_is_bilinear_inside():
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
    want = jax.image.resize(x, (1, 10, 8, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(upsample(x)[:, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-6)


def test_channels_of_the_published_sizes():
    style = jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    tree = jax.eval_shape(Synthesis().init, jax.random.key(0), style)["params"]
    widths = {s: tree[f"conv_{s}"]["bias"].shape[0] for s in (4, 8, 16, 32, 64, 128, 256)}
    assert widths == {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128}


def test_half_precision_is_near(small):
    net, params, style = small
    half = Synthesis(**SMALL, dtype=jnp.bfloat16)
    full = net.apply({"params": params}, style)
    got = half.apply({"params": params}, style)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, full, atol=0.1)


def test_sizes_between_powers_of_two_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        Synthesis(size=48).init(jax.random.key(0), jnp.zeros((1, 4)))
