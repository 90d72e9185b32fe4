"""The GAN head's discriminator against plain torch with `spectral_norm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion.models.projection_discriminator import Discriminator, SpectralNorm

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
functional = torch.nn.functional

# At 16 pixels two blocks halve the resolution and two keep it.
SMALL = dict(width=4, most=8, blocks=4)


class Normalised(torch.nn.Module):
    """A layer with torch's spectral norm that holds our kernel, bias and vectors."""

    def __init__(self, kernel, bias, vectors):
        super().__init__()
        kernel = np.asarray(kernel)
        space = kernel.shape[:-2]
        layer = (
            torch.nn.Conv2d(*kernel.shape[2:], space[0], padding=space[0] // 2)
            if space
            else torch.nn.Linear(*kernel.shape)
        )
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1))))
            layer.bias.copy_(torch.tensor(np.asarray(bias)).reshape(-1))
        self.layer = torch.nn.utils.spectral_norm(layer, eps=1e-4)
        left, right = (torch.tensor(np.asarray(vectors[n])) for n in ("left", "right"))
        self.layer.weight_u.copy_(left)
        if space:  # torch flattens in the order (i, h, w), we in the order (h, w, i)
            right = right.reshape(*kernel.shape[:-1]).permute(2, 0, 1).reshape(-1)
        self.layer.weight_v.copy_(right)

    def forward(self, x):
        return self.layer(x)


class Oracle(torch.nn.Module):
    def __init__(self, variables):
        super().__init__()
        params, spectral = variables["params"], variables["spectral"]
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    name: Normalised(p["kernel"], p["bias"], spectral[f"block_{i}"][name]["norm"])
                    for name, p in params[f"block_{i}"].items()
                }
            )
            for i in range(SMALL["blocks"])
        )
        self.score = Normalised(
            params["score_kernel"], params["score_bias"], spectral["score_norm"]
        )

    def forward(self, x):
        features = []
        for i, block in enumerate(self.blocks):
            y = block["conv1"](functional.relu(x) if i else x)
            y = block["conv2"](functional.relu(y))
            x = block["shortcut"](x) if "shortcut" in block else x
            if i < 2:
                x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
            x = x + y
            features.append(x)
        return self.score(functional.relu(x).sum((2, 3)))[:, 0], features


@pytest.fixture(scope="module")
def small():
    net = Discriminator(**SMALL)
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 16, 16, 3)).astype(np.float32)
    variables = quick_jit(net.init)(jax.random.key(0), x)
    biased = jax.tree.map(
        lambda fresh, other: other if fresh.ndim < 2 else fresh,
        variables["params"],
        random_like(variables["params"]),
    )
    return net, {**variables, "params": biased}, x


@pytest.fixture(scope="module")
def judge(small):
    net = small[0]

    def run(variables, x, update):
        return net.apply(variables, x, update=update, mutable=["spectral"])

    return quick_jit(run, static_argnames="update")


def compared(got, expected):
    score, features = expected
    np.testing.assert_allclose(got.score_n, score.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert [f.shape[1] for f in got.features] == [8, 4, 4, 4]
    for ours, theirs in zip(got.features, features, strict=True):
        want = theirs.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-4)


def test_equals_torch_before_and_after_iterations(small, judge):
    _, variables, x = small
    oracle = Oracle(variables)
    given = torch.tensor(x.transpose(0, 3, 1, 2))
    got, unchanged = judge(variables, x, False)
    compared(got, oracle.eval()(given))
    jax.tree.map(np.testing.assert_array_equal, unchanged["spectral"], variables["spectral"])
    oracle.train()
    for _ in range(3):
        got, new = judge(variables, x, True)
        variables = {**variables, **new}
        compared(got, oracle(given))
    compared(judge(variables, x, False)[0], oracle.eval()(given))


def test_gradients_equal_torch(small):
    net, variables, x = small
    oracle = Oracle(variables).train()
    given = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    (oracle(given)[0] ** 2).sum().backward()

    @quick_jit
    def slopes(params, x):
        def loss(params, x):
            judged, _ = net.apply(
                {**variables, "params": params}, x, update=True, mutable=["spectral"]
            )
            return jnp.sum(judged.score_n**2)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    by_params, by_x = slopes(variables["params"], x)
    want = given.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(by_x, want, atol=1e-3 * np.abs(want).max())
    want = oracle.blocks[1]["conv1"].layer.weight_orig.grad.numpy().transpose(2, 3, 1, 0)
    got = by_params["block_1"]["conv1"]["kernel"]
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_iterations_find_the_largest_singular_value():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    net = SpectralNorm()
    variables = net.init(jax.random.key(0), kernel, False)
    step = quick_jit(lambda v: net.apply(v, kernel, True, mutable=["spectral"]))
    for _ in range(60):
        normalised, variables = step(variables)
    want = kernel / np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    np.testing.assert_allclose(normalised, want, atol=1e-4)


def test_a_kernel_of_zeros_has_finite_vectors():
    net, kernel = SpectralNorm(), jnp.zeros((4, 3))
    variables = net.init(jax.random.key(0), kernel, False)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(variables))


def test_widths_and_resolutions_at_256():
    net = Discriminator()
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    judged, _ = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x), image)
    shapes = [feature.shape[1:] for feature in judged.features]
    sides, widths = [s[0] for s in shapes], [s[2] for s in shapes]
    assert sides == [128, 64, 32, 16, 8, 4, 4]
    assert widths == [64, 128, 256, 512, 512, 512, 512]
    assert judged.score_n.shape == (1,)
