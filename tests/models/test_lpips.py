"""LPIPS and its trunks against plain torch and the spec's golden values, and in limiting cases."""

import importlib.util
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from quick import quick_jit

from vidmotion.convert.engine import convert
from vidmotion.convert.maps import lpips as maps
from vidmotion.convert.read import read
from vidmotion.models.features.lpips import LPIPS, TRUNKS

RULES = {"vgg": maps.VGG, "alex": maps.ALEX}
WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
# (kind, index in torchvision's `features`, output channels, kernel, stride, padding). TAPS has the layers returned.
LAYERS = {
    "vgg": (
        *[("conv", i, c, 3, 1, 1) for i, c in ((0, 64), (2, 64))],
        "pool",
        *[("conv", i, c, 3, 1, 1) for i, c in ((5, 128), (7, 128))],
        "pool",
        *[("conv", i, c, 3, 1, 1) for i, c in ((10, 256), (12, 256), (14, 256))],
        "pool",
        *[("conv", i, c, 3, 1, 1) for i, c in ((17, 512), (19, 512), (21, 512))],
        "pool",
        *[("conv", i, c, 3, 1, 1) for i, c in ((24, 512), (26, 512), (28, 512))],
    ),
    "alex": (
        ("conv", 0, 64, 11, 4, 2),
        "pool",
        ("conv", 3, 192, 5, 1, 2),
        "pool",
        ("conv", 6, 384, 3, 1, 1),
        ("conv", 8, 256, 3, 1, 1),
        ("conv", 10, 256, 3, 1, 1),
    ),
}
# Convolutions, tapped after their ReLU.
TAPS = {"vgg": (2, 7, 14, 21, 28), "alex": (0, 3, 6, 8, 10)}
POOL = {"vgg": 2, "alex": 3}
SIZES = {"vgg": (17, 19), "alex": (33, 37)}  # sizes at which pooling drops rows and columns


def filled(name, shape, gain=1.0):
    """Draws an array by the fill rule of the spec metrics.md, section 14."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        r *= gain * np.sqrt(2 / np.prod(shape[1:]))
    else:
        r *= 0.01
    return r.astype(np.float32)


def trunk_state(trunk):
    state, inputs = {}, 3
    for layer in LAYERS[trunk]:
        if layer != "pool":
            _, i, channels, size, _, _ = layer
            for part, shape in (("weight", (channels, inputs, size, size)), ("bias", (channels,))):
                name = f"features.{i}.{part}"
                state[name] = filled(name, shape)
            inputs = channels
    return state


def random_heads(trunk):
    rng = np.random.default_rng(0)
    return {
        f"lin{i}.model.1.weight": rng.uniform(0, 2 / c, (1, c, 1, 1)).astype(np.float32)
        for i, c in enumerate(WIDTHS[trunk])
    }


def params_of(trunk, state):
    net = LPIPS(trunk)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image, image)["params"]
    return convert(shapes, state, RULES[trunk])


def torch_features(trunk, state, x):
    """Runs the trunk in plain torch; x is a tensor (n, 3, h, w) in [-1, 1]."""
    import torch
    from torch.nn import functional as F

    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    x, found = (x - shift) / scale, []
    for layer in LAYERS[trunk]:
        if layer == "pool":
            x = F.max_pool2d(x, POOL[trunk], 2)
            continue
        _, i, _, _, stride, padding = layer
        weight, bias = (torch.from_numpy(state[f"features.{i}.{p}"]) for p in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride, padding))
        if i in TAPS[trunk]:
            found.append(x)
    return found


def torch_lpips(trunk, state, x, y):
    import torch

    def unit(f):
        return f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10)

    total = 0
    pairs = zip(torch_features(trunk, state, x), torch_features(trunk, state, y))
    for i, (f, g) in enumerate(pairs):
        head = torch.from_numpy(state[f"lin{i}.model.1.weight"])
        total = total + torch.nn.functional.conv2d((unit(f) - unit(g)) ** 2, head).mean((2, 3))
    return total[:, 0]


@pytest.fixture(scope="module", params=["vgg", "alex"])
def case(request):
    """Returns (trunk, torch state, our parameters, first images, second images)."""
    trunk = request.param
    state = trunk_state(trunk) | random_heads(trunk)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 2, *SIZES[trunk], 3)).astype(np.float32)
    return trunk, state, params_of(trunk, state), x, y


@pytest.fixture(scope="module")
def compiled(case):
    """Compiles once; returns the step, the distance, both feature maps, and the gradient in the second images."""
    trunk, _, params, x, y = case
    net = LPIPS(trunk)

    def value(y, params, x):
        distance = net.apply({"params": params}, x, y)
        maps = [net.apply({"params": params}, v, method="features") for v in (x, y)]
        return jnp.sum(distance), (distance, maps)

    step = quick_jit(jax.value_and_grad(value, has_aux=True))
    (_, (distance, maps)), gradient = step(y, params, x)
    return step, distance, maps, gradient


def nchw(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


@pytest.mark.oracle
def test_equals_torch(case, compiled):
    torch = pytest.importorskip("torch")
    trunk, state, _, x, y = case
    _, distance, found, gradient = compiled
    a, b = (torch.from_numpy(nchw(v)) for v in (x, y))
    b.requires_grad_()
    for got, want in zip(found[1], torch_features(trunk, state, b), strict=True):
        want = want.detach().numpy()
        assert got.shape[-1] == want.shape[1]
        np.testing.assert_allclose(nchw(got), want, rtol=1e-5, atol=1e-5 * want.max())
    want = torch_lpips(trunk, state, a, b)
    np.testing.assert_allclose(distance, want.detach().numpy(), rtol=1e-5)
    want.sum().backward()
    want = b.grad.numpy()
    np.testing.assert_allclose(nchw(gradient), want, atol=1e-4 * np.abs(want).max())


def test_layers_sum_up(case, compiled):
    trunk, _, params, _, _ = case
    _, distance, found, _ = compiled
    layers = LPIPS(trunk).apply({"params": params}, *found, method="distances")
    assert layers.shape == (2, 5) and layers.dtype == jnp.float32
    np.testing.assert_allclose(layers.sum(-1), distance, rtol=1e-5)


def test_is_a_distance_with_a_gradient_everywhere(case, compiled):
    """Equal images have distance zero; without active channels (all weights and biases zero) nothing is NaN."""
    _, _, params, x, _ = case
    step = compiled[0]
    (_, (distance, _)), gradient = step(x, params, x)
    np.testing.assert_array_equal(distance, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)
    dead = jax.tree.map(jnp.zeros_like, params)
    (_, (distance, _)), gradient = step(x, dead, -x)
    np.testing.assert_array_equal(distance, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_bfloat16(case, compiled):
    trunk, _, params, x, y = case
    net = LPIPS(trunk, jnp.bfloat16)

    def value(y, params, x):
        distance = net.apply({"params": params}, x, y)
        return jnp.sum(distance), distance

    step = quick_jit(jax.value_and_grad(value, has_aux=True))
    (_, distance), gradient = step(y, params, x)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, compiled[1], rtol=0.03)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_no_device_needs_the_images_of_another():
    """A batch split over a mesh needs no collective."""
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = Mesh(np.asarray(devices), ("data",))
    cut, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    net, x = LPIPS("alex"), jnp.zeros((4, 31, 31, 3))
    params = jax.eval_shape(net.init, jax.random.key(0), x, x)
    step = quick_jit(net.apply, in_shardings=(whole, cut, cut), out_shardings=cut)
    program = step.lower(params, x, x).compile().as_text()
    assert "convolution" in program
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program


def test_fresh_heads_are_not_negative():
    maps = [jnp.zeros((1, 1, 1, c)) for c in WIDTHS["alex"]]
    params = LPIPS("alex").init(jax.random.key(0), maps, maps, method="distances")["params"]
    for i, channels in enumerate(WIDTHS["alex"]):
        kernel = params[f"head_{i}"]["kernel"]
        assert kernel.shape == (channels, 1) and kernel.min() >= 0 and kernel.max() > 0


@pytest.mark.parametrize(("trunk", "least"), [("vgg", 16), ("alex", 31)])
def test_refuses(trunk, least):
    def shapes(trunk, x, y):
        x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, y))
        return jax.eval_shape(LPIPS(trunk).init, jax.random.key(0), x, y)

    fits, small = (1, least, least, 3), (1, least, least - 1, 3)
    shapes(trunk, fits, fits)
    with pytest.raises(ValueError, match=f"of at least {least}x{least}"):
        shapes(trunk, small, small)
    with pytest.raises(ValueError, match="of at least"):
        shapes(trunk, (1, least, least, 1), (1, least, least, 1))
    with pytest.raises(ValueError, match="differ"):
        shapes(trunk, fits, (2, least, least, 3))
    with pytest.raises(ValueError, match="choose one of vgg, alex"):
        shapes("squeeze", fits, fits)


def test_parameters():
    """The trunks, which also work alone, have the 14,714,688 and 2,469,696 parameters of torchvision's `features`."""
    for trunk, count in (("vgg", 14_714_688), ("alex", 2_469_696)):
        x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        params = jax.eval_shape(LPIPS(trunk).init, jax.random.key(0), x, x)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params["net"])) == count
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count + sum(WIDTHS[trunk])
        alone = jax.eval_shape(TRUNKS[trunk]().init, jax.random.key(0), x)["params"]
        assert alone == params["net"]


GOLDEN = {
    "vgg": ([0.0212571, 0.0207767], [0.0096567, 0.0054420, 0.0030300, 0.0020918, 0.0010366]),
    "alex": ([0.0093467, 0.0091842], [0.0026350, 0.0031353, 0.0013553, 0.0012393, 0.0009818]),
}
SUMS = {
    "vgg": (6.925992, 8.858334, 17.515006, 51.521323, 47.034854),
    "alex": (2.349532, 16.143027, 39.268439, 27.197178, 20.317177),
}


@pytest.mark.oracle
@pytest.mark.parametrize("trunk", ["vgg", "alex"])
def test_golden_values(trunk):
    """Checks section 14: the released heads, from an installed `lpips`, on a trunk filled by rule."""
    pytest.importorskip("torch")
    found = importlib.util.find_spec("lpips")
    if found is None:
        pytest.skip("the released heads come with the package lpips, which is not installed")
    heads = read(Path(found.origin).parent / "weights" / "v0.1" / f"{trunk}.pth", float32=True)
    sums = [float(heads[f"lin{i}.model.1.weight"].sum(dtype=np.float64)) for i in range(5)]
    np.testing.assert_allclose(sums, SUMS[trunk], rtol=1e-6)
    params = params_of(trunk, trunk_state(trunk) | heads)

    def image(phase):
        b, y, x, c = np.meshgrid(*map(np.arange, (2, 64, 64, 3)), indexing="ij")
        wave = np.sin(0.1 * (y + 1) * (c + 1) + 0.07 * (x + 1) + b + phase)
        return jnp.asarray(wave, jnp.float32)  # 0.5 + 0.5 wave is in [0, 1]

    net = LPIPS(trunk)
    maps = [net.apply({"params": params}, image(p), method="features") for p in (0.0, 0.3)]
    layers = net.apply({"params": params}, *maps, method="distances")
    values, of_first = GOLDEN[trunk]
    np.testing.assert_allclose(layers.sum(-1), values, rtol=1e-3)
    np.testing.assert_allclose(layers[0], of_first, rtol=1e-3)
