"""FID's Inception network against the spec's golden values and, with random weights, against plain torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import filled_state

from vidmotion.convert.maps.inception import RULES
from vidmotion.metrics.resize import for_inception, resize
from vidmotion.models.features.inception import SIZE, InceptionV3
from vidmotion.models.features.windows import max_pool, mean_3x3


def image(n, size):
    """Returns the test pictures of section 14, channels last."""
    b, c, y, x = np.ogrid[:n, :3, :size, :size]
    wave = 0.5 + 0.5 * np.sin(0.1 * (y + 1) * (c + 1) + 0.07 * (x + 1) + b)
    return np.moveaxis(wave, 1, -1).astype(np.float32)


@pytest.fixture(scope="module")
def state():
    """Fills the public file's keys and shapes."""
    return filled_state(InceptionV3(), (1, SIZE, SIZE, 3), RULES)


@pytest.fixture(scope="module")
def features(state):
    apply = jax.jit(InceptionV3().apply)
    return lambda x: jax.tree.map(np.asarray, apply(state[1], x))


def test_sizes(state):
    source, _ = state
    # The file also holds 94 counters of updates: 566 entries in all.
    assert len(source) == 472 and sum(x.size for x in source.values()) == 23_885_392
    assert source["fc.weight"].shape == (1008, 2048)


@pytest.mark.slow
def test_golden_values(features):
    """Checks the values of section 14, in which "on floats" means resizing without rounding."""
    x = image(2, 64)
    out = features(resize(255 * x, "half_pixel", (SIZE, SIZE)) / 127.5 - 1)
    pool = out["2048"]
    assert pool.dtype == np.float32 and pool.shape == (2, 2048)
    assert (pool.mean(), pool.std()) == pytest.approx((0.210642, 0.271999), abs=2e-6)
    np.testing.assert_allclose(pool[0, :4], [0, 0.518367, 0.100881, 0], atol=2e-6)
    assert pool[1, -1] == pytest.approx(0.461216, abs=2e-6)
    for width, mean in (("768", 0.197477), ("192", 0.379430), ("64", 0.354131)):
        assert out[width].shape == (2, int(width))
        assert out[width].mean() == pytest.approx(mean, abs=2e-6)
    stored = np.round(255 * x).astype(np.uint8)
    pool = features(for_inception(stored, "pytorch_fid"))["2048"]
    assert (pool.mean(), pool[0, 1]) == pytest.approx((0.210666, 0.51851), abs=2e-6)
    pool = features(for_inception(stored, "tf_graph"))["2048"]
    assert (pool.mean(), pool.std()) == pytest.approx((0.210403, 0.271673), abs=2e-6)
    assert (pool[0, 1], pool[1, -1]) == pytest.approx((0.516673, 0.465456), abs=2e-6)


@pytest.mark.slow
@pytest.mark.oracle
def test_torch(state, features):
    torch = pytest.importorskip("torch")
    source, _ = state
    x = np.random.default_rng(0).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        want = torch_inception(
            {key: torch.from_numpy(value) for key, value in source.items()},
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        )
    got = features(x)
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def torch_inception(w, x):
    """Runs the network in plain torch as pytorch-fid does; returns its features."""
    import torch
    from torch.nn import functional as F

    out = {}

    def keep(x):
        out[str(x.shape[1])] = x.mean((2, 3))

    def conv(name, x, stride=1, padding=0):
        x = F.conv2d(x, w[f"{name}.conv.weight"], None, stride, padding)
        parts = ("running_mean", "running_var", "weight", "bias")
        statistics = [w[f"{name}.bn.{part}"] for part in parts]
        return F.relu(F.batch_norm(x, *statistics, training=False, eps=1e-3))

    def row(name, x, *layers):
        """Applies convolutions one after another, each given as (suffix, stride, padding)."""
        for suffix, stride, padding in layers:
            x = conv(name + suffix, x, stride, padding)
        return x

    def mean(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = conv("Conv2d_1a_3x3", x, 2)
    x = F.max_pool2d(conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), 1, 1), 3, 2)
    keep(x)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    keep(x)
    for name in ("Mixed_5b.branch", "Mixed_5c.branch", "Mixed_5d.branch"):
        parts = [
            row(name, x, ("1x1", 1, 0)),
            row(name, x, ("5x5_1", 1, 0), ("5x5_2", 1, 2)),
            row(name, x, ("3x3dbl_1", 1, 0), ("3x3dbl_2", 1, 1), ("3x3dbl_3", 1, 1)),
            row(name, mean(x), ("_pool", 1, 0)),
        ]
        x = torch.cat(parts, 1)
    name = "Mixed_6a.branch"
    parts = [
        row(name, x, ("3x3", 2, 0)),
        row(name, x, ("3x3dbl_1", 1, 0), ("3x3dbl_2", 1, 1), ("3x3dbl_3", 2, 0)),
        F.max_pool2d(x, 3, 2),
    ]
    x = torch.cat(parts, 1)
    flat, tall = (0, 3), (3, 0)
    for block in "bcde":
        name = f"Mixed_6{block}.branch"
        double = [("7x7dbl_1", 1, 0), ("7x7dbl_2", 1, tall), ("7x7dbl_3", 1, flat)]
        double += [("7x7dbl_4", 1, tall), ("7x7dbl_5", 1, flat)]
        parts = [
            row(name, x, ("1x1", 1, 0)),
            row(name, x, ("7x7_1", 1, 0), ("7x7_2", 1, flat), ("7x7_3", 1, tall)),
            row(name, x, *double),
            row(name, mean(x), ("_pool", 1, 0)),
        ]
        x = torch.cat(parts, 1)
    keep(x)
    name = "Mixed_7a.branch"
    seven = [("7x7x3_1", 1, 0), ("7x7x3_2", 1, flat), ("7x7x3_3", 1, tall), ("7x7x3_4", 2, 0)]
    parts = [
        row(name, x, ("3x3_1", 1, 0), ("3x3_2", 2, 0)),
        row(name, x, *seven),
        F.max_pool2d(x, 3, 2),
    ]
    x = torch.cat(parts, 1)
    flat, tall = (0, 1), (1, 0)
    for block in "bc":
        name = f"Mixed_7{block}.branch"
        three = row(name, x, ("3x3_1", 1, 0))
        double = row(name, x, ("3x3dbl_1", 1, 0), ("3x3dbl_2", 1, 1))
        parts = [
            row(name, x, ("1x1", 1, 0)),
            row(name, three, ("3x3_2a", 1, flat)),
            row(name, three, ("3x3_2b", 1, tall)),
            row(name, double, ("3x3dbl_3a", 1, flat)),
            row(name, double, ("3x3dbl_3b", 1, tall)),
            row(name, mean(x) if block == "b" else F.max_pool2d(x, 3, 1, 1), ("_pool", 1, 0)),
        ]
        x = torch.cat(parts, 1)
    keep(x)
    out["logits_unbiased"] = out["2048"] @ w["fc.weight"].T
    out["logits"] = out["logits_unbiased"] + w["fc.bias"]
    return out


def test_other_shapes_are_refused():
    net = InceptionV3()
    for shape in ((1, 256, 256, 3), (299, 299, 3), (1, 299, 299, 1)):
        with pytest.raises(ValueError, match=r"images must be \(n, 299, 299, 3\)"):
            jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))


def test_means_leave_the_border_out():
    """Means at the border do not count the padding: the table of section 14."""
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    want = [3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7]
    np.testing.assert_allclose(np.ravel(mean_3x3(x)), want, rtol=1e-6)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window, strides", [((3, 3), (2, 2)), ((3, 3), (1, 1)), ((2, 1), (2, 1))])
def test_maxima_are_those_of_lax(window, strides, padding):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32) - 5
    want = jax.lax.reduce_window(
        x, -np.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), padding
    )
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window, strides, padding), want)
