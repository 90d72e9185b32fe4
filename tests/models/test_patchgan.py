"""PatchDiscriminator against plain torch, its shapes, and its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion.convert.engine import export
from vidmotion.convert.maps.patchgan import RULES
from vidmotion.models.patchgan import PatchDiscriminator

NET = PatchDiscriminator(width=4)


def shapes_of(net, size=32):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=True), x)


@pytest.fixture(scope="module")
def variables():
    """Returns random variables, without zeros that hide errors; variances are positive."""
    tree = random_like(shapes_of(NET))
    tree["batch_stats"] = {
        name: {"mean": stats["mean"], "var": 0.5 + jnp.abs(stats["var"])}
        for name, stats in tree["batch_stats"].items()
    }
    return tree


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 33, 26, 3)).astype(np.float32)


def in_training(net, variables, x):
    logits, updated = net.apply(variables, x, train=True, mutable=["batch_stats"])
    return logits, updated["batch_stats"]


def reference(width):
    """Builds the discriminator in plain torch, with the layers numbered as in the released one."""
    from torch import nn

    def normed(inputs, outputs, stride):
        conv = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False)
        return conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)

    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        *normed(width, 2 * width, 2),
        *normed(2 * width, 4 * width, 2),
        *normed(4 * width, 8 * width, 1),
        nn.Conv2d(8 * width, 1, 4, 1, 1),
    )


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.oracle
def test_equals_torch(variables, images):
    """Compares two successive training calls, then one with the running statistics."""
    torch = pytest.importorskip("torch")
    module = reference(width=4)
    prefix = "loss.discriminator.main."
    state = {key.removeprefix(prefix): x for key, x in export(variables, RULES).items()}
    state = {key: torch.from_numpy(np.array(x)) for key, x in state.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)

    step = quick_jit(lambda variables, x: in_training(NET, variables, x))
    for x in (images, 0.5 * images[:2] + 0.3):
        want = nhwc(module(torch.from_numpy(np.moveaxis(x, -1, 1).copy())))
        logits, stats = step(variables, x)
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        variables = variables | {"batch_stats": stats}
        ours = export(variables, RULES)
        for key, value in module.state_dict().items():
            if "running" in key:
                np.testing.assert_allclose(ours[prefix + key], value, rtol=1e-5, atol=1e-6)
    module.eval()
    want = nhwc(module(torch.from_numpy(np.moveaxis(images, -1, 1).copy())))
    got = quick_jit(lambda v, x: NET.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_sizes():
    """Checks the paper's frames, the smallest frames, and the released discriminator's number of parameters."""
    net = PatchDiscriminator()
    variables = shapes_of(net)
    for size, side in ((224, 26), (24, 1)):
        x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        logits = jax.eval_shape(lambda v, x: net.apply(v, x, train=False), variables, x)
        assert logits.shape == (2, side, side, 1) and logits.dtype == jnp.float32
    # Kernels: 3*64, 64*128, 128*256, 256*512 and 512, times 16; biases: 64 and 1; three norms.
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == kernels + 65 + 2 * (128 + 256 + 512)
    with pytest.raises(ValueError, match="of at least 24x24"):
        shapes_of(net, 23)


def test_start():
    """Kernels are N(0, 0.02), scales N(1, 0.02); the statistics are mean 0 and variance 1, not a batch's."""
    x = 5.0 * jnp.ones((1, 24, 24, 3))
    init = quick_jit(lambda key, x: PatchDiscriminator(width=32).init(key, x, train=True))
    variables = init(jax.random.key(0), x)
    params = paths.flatten(variables["params"])
    for path, leaf in params.items():
        if path.endswith("kernel"):
            assert abs(leaf.std() / 0.02 - 1) < 5 / leaf.size**0.5 and abs(leaf.mean()) < 1e-3
    scales = np.concatenate([leaf for path, leaf in params.items() if path.endswith("scale")])
    assert abs(scales.mean() - 1) < 5e-3 and abs(scales.std() - 0.02) < 4e-3
    for path, leaf in paths.flatten(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, 1.0 if path.endswith("var") else 0.0)


def test_a_batch_cut_over_devices_has_one_mean(variables, images):
    """A batch split over devices has the same logits and statistics as on one device, up to rounding."""
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    x = np.concatenate([images[:2], 0.3 * images[1:]])
    step = quick_jit(lambda variables, x: in_training(NET, variables, x))
    mesh = Mesh(np.asarray(devices), ("data",))
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    got, want = step(everywhere, cut), step(variables, x)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


def test_bfloat16(variables, images):
    """Values and gradients are finite, also for a constant image far out of range."""
    net = PatchDiscriminator(width=4, dtype=jnp.bfloat16)

    def loss(params, x):
        logits, stats = in_training(net, variables | {"params": params}, x)
        return jnp.mean(logits), (logits, stats)

    step = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (logits, stats)), gradients = step(variables["params"], images)
    want, _ = in_training(NET, variables, images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, want, atol=0.05 * np.abs(want).max())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    found = step(variables["params"], np.full_like(images, 1e4))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
