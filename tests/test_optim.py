"""AdamW against an explicit recursion and against torch; schedules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from vidmotion.errors import ConfigError
from vidmotion.optim import Optimizer, Schedule
from vidmotion.paths import RuleError

PARAMS = {"a": {"kernel": (4, 3), "bias": (3,)}, "b": {"kernel": (2,)}}
LEAVES = ("a/kernel", "a/bias", "b/kernel")
RATES = {"a/kernel": 0.1, "a/bias": 0.1, "b/kernel": 0.02}
DECAYS = {"a/kernel": 0.05, "a/bias": 0.0, "b/kernel": 0.05}
CLIP, STEPS = 3.0, 12
SETTINGS = {
    "rate": (("a/.*", 0.1), (".*", 0.02)),
    "weight_decay": 0.05,
    "decay": ((".*bias", False), (".*", True)),
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "clip": CLIP,
    "schedule": Schedule("linear", warmup=4, end=0.2),
}


def tree(values):
    return {
        "a": {"kernel": values["a/kernel"], "bias": values["a/bias"]},
        "b": {"kernel": values["b/kernel"]},
    }


def problem(seed=0):
    """Returns starting values, and gradients of which some exceed the clipping norm."""
    rng = np.random.default_rng(seed)
    shapes = {"a/kernel": (4, 3), "a/bias": (3,), "b/kernel": (2,)}
    start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    grads = [
        {name: rng.normal(size=shape) * (0.3 + 0.2 * step) for name, shape in shapes.items()}
        for step in range(STEPS)
    ]
    return start, grads


def factor(count):
    """Returns the schedule's factor: warm-up 1/4, 2/4, 3/4, 1, then linear from 1 towards 0.2 at step 12."""
    if count < 4:
        return (count + 1) / 4
    return 1.0 - 0.8 * (count - 4) / 8


def ours():
    start, grads = problem()
    as_float = lambda values: jax.tree.map(jnp.float32, tree(values))  # noqa: E731
    params = as_float(start)
    transform = Optimizer(**SETTINGS).transform(params, STEPS)
    state, update, path = transform.init(params), jax.jit(transform.update), []
    for grad in grads:
        updates, state = update(as_float(grad), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def clipped(grad):
    norm = math.sqrt(sum((value**2).sum() for value in grad.values()))
    return {name: value * min(1.0, CLIP / norm) for name, value in grad.items()}, norm


def test_adamw_with_rates_decay_clipping_and_schedule_by_hand():
    start, grads = problem()
    values, first, second = dict(start), dict.fromkeys(LEAVES, 0.0), dict.fromkeys(LEAVES, 0.0)
    norms = []
    for count, (grad, got) in enumerate(zip(grads, ours())):
        grad, norm = clipped(grad)
        norms.append(norm)
        for name in LEAVES:
            first[name] = 0.8 * first[name] + 0.2 * grad[name]
            second[name] = 0.95 * second[name] + 0.05 * grad[name] ** 2
            m = first[name] / (1 - 0.8 ** (count + 1))
            v = second[name] / (1 - 0.95 ** (count + 1))
            step = m / (np.sqrt(v) + 1e-6) + DECAYS[name] * values[name]
            values[name] = values[name] - RATES[name] * factor(count) * step
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, tree(values)
        )
    assert min(norms) < CLIP < max(norms)  # some gradients were clipped, others were not


@pytest.mark.oracle
def test_adamw_is_torchs():
    torch = pytest.importorskip("torch")
    start, grads = problem()
    leaves = {name: torch.nn.Parameter(torch.tensor(start[name])) for name in LEAVES}
    groups = [
        {"params": [leaves[name]], "lr": RATES[name], "weight_decay": DECAYS[name]}
        for name in LEAVES
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for grad, got in zip(grads, ours()):
        for name in LEAVES:
            leaves[name].grad = torch.tensor(grad[name])
        torch.nn.utils.clip_grad_norm_(leaves.values(), CLIP)
        optimizer.step()
        schedule.step()
        want = tree({name: leaf.detach().numpy() for name, leaf in leaves.items()})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Schedule(), {0: 1.0, 99: 1.0}),
        (Schedule(warmup=10), {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 99: 1.0}),
        (Schedule("linear"), {0: 1.0, 25: 0.75, 50: 0.5, 100: 0.0, 120: 0.0}),
        (Schedule("linear", end=0.5), {0: 1.0, 50: 0.75, 100: 0.5}),
        (Schedule("cosine"), {0: 1.0, 25: (2 + math.sqrt(2)) / 4, 50: 0.5, 100: 0.0, 130: 0.0}),
        # 80 steps are left after 20 steps of warm-up: half of the decay is reached after 40 of them
        (Schedule("cosine", warmup=20, end=0.1), {0: 0.05, 19: 1.0, 20: 1.0, 60: 0.55, 100: 0.1}),
        (Schedule("cosine", warmup=200), {0: 0.005, 99: 0.5}),  # a run shorter than its warm-up
    ],
)
def test_schedules_at_points_known_in_closed_form(schedule, points):
    got = {count: float(schedule.factor(jnp.int32(count), 100)) for count in points}
    assert got == pytest.approx(points, abs=1e-6)


def test_one_rate_may_stand_for_all():
    params = jax.tree.map(jnp.ones, PARAMS, is_leaf=lambda x: isinstance(x, tuple))
    transform = Optimizer(rate=0.5).transform(params, 10)
    updates, _ = transform.update(params, transform.init(params), params)
    jax.tree.map(lambda u: np.testing.assert_allclose(u, -0.5, rtol=1e-5), updates)


def test_mistakes_are_refused_with_names():
    params = jax.tree.map(jnp.ones, PARAMS, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(RuleError, match=r"optimizer\.rate: .*b/kernel"):
        Optimizer(rate=(("a/.*", 1.0),)).transform(params, 10)
    with pytest.raises(RuleError, match=r"optimizer\.trainable: .*a/bias"):
        Optimizer(rate=1.0, trainable=((".*kernel", True),)).trainable_mask(params)
    with pytest.raises(ConfigError, match=r"kind='step'.*constant, cosine or linear"):
        Schedule(kind="step")
    with pytest.raises(ConfigError, match="warmup=-1"):
        Schedule(warmup=-1)


def test_muon_moves_kernels_by_orthogonal_matrices_and_the_rest_as_adam():
    key = jax.random.key(0)
    params = {
        "wide": {"kernel": jnp.ones((3, 12)), "bias": jnp.ones(12)},
        "conv": {"kernel": jnp.ones((3, 3, 2, 8))},
        "stacked": {"kernel": jnp.ones((2, 3, 4))},
    }
    rates = (("(wide|conv)/kernel", 0.5), (".*", 0.1))
    transform = Optimizer(rate=rates, kind="muon").transform(params, 10)
    grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    updates, _ = transform.update(grads, transform.init(params), params)
    # The first momentum is the gradient; the nearest orthogonal matrix is U V^T of its singular vectors. The quintic
    # iteration of Muon leaves singular values between about 0.7 and 1.2.
    for name, shape, gain in (("wide", (3, 12), 2.0), ("conv", (18, 8), 1.0)):
        update = np.asarray(updates[name]["kernel"]).reshape(shape) / (-0.5 * gain)
        left, _, right = np.linalg.svd(
            np.asarray(grads[name]["kernel"]).reshape(shape), full_matrices=False
        )
        values = np.diag(left.T @ update @ right.T)
        assert np.all((values > 0.6) & (values < 1.3)), values
    # Adam's first update is the sign of the gradient.
    for name, leaf in (("wide", "bias"), ("stacked", "kernel")):
        expected = -0.1 * np.sign(grads[name][leaf])
        np.testing.assert_allclose(updates[name][leaf], expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 12), (3, 3, 2, 8), (6, 6), (1, 5), (5, 1)])
def test_muon_moves_a_kernel_as_optax_does(shape):
    """Ours iterates on the product of the matrix with itself, optax on the matrix."""
    wide = max(1.0, shape[-1] / math.prod(shape[:-1])) ** 0.5
    dims = optax.contrib.MuonDimensionNumbers(tuple(range(len(shape) - 1)), len(shape) - 1)
    theirs = optax.contrib.scale_by_muon(weight_dimension_numbers={"kernel": dims})
    ours = Optimizer(rate=1.0, kind="muon").transform({"kernel": jnp.ones(shape)}, 10)
    params = {"kernel": jnp.ones(shape)}
    state, expected_state = ours.init(params), theirs.init(params)
    for count in range(3):
        grads = {"kernel": jax.random.normal(jax.random.key(count), shape)}
        got, state = ours.update(grads, state, params)
        expected, expected_state = theirs.update(grads, expected_state, params)
        np.testing.assert_allclose(got["kernel"], -wide * expected["kernel"], atol=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="choose adamw or muon"):
        Optimizer(rate=1e-3, kind="sgd")


def test_groups_are_clipped_apart_by_hand():
    """The long gradient of one group does not change another group; a single number clips all leaves together."""
    params = {"long": {"w": jnp.zeros(2)}, "short": {"w": jnp.zeros(1), "b": jnp.zeros(1)}}
    grads = {
        "long": {"w": jnp.array([18.0, 24.0])},  # norm 30
        "short": {"w": jnp.array([0.6]), "b": jnp.array([0.8])},  # norm 1
    }

    def clipped(clip):
        """Returns the size of each clipped gradient: with beta_2 = 0 Adam's second moment is its square."""
        chain = Optimizer(rate=1.0, betas=(0.0, 0.0), clip=clip).transform(params, 10)
        adam = chain.update(grads, chain.init(params), params)[1]
        (nu,) = (part.nu for part in adam if hasattr(part, "nu"))
        return jax.tree.map(lambda x: np.sqrt(np.asarray(x)), nu)

    apart = clipped(((r"long/.*", 3.0), (".*", 2.0)))
    np.testing.assert_allclose(apart["long"]["w"], [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(
        [apart["short"]["w"][0], apart["short"]["b"][0]], [0.6, 0.8], rtol=1e-6
    )
    together = clipped(1.0)
    length = math.sqrt(901.0)
    np.testing.assert_allclose(together["long"]["w"], [18 / length, 24 / length], rtol=1e-6)
    np.testing.assert_allclose(together["short"]["w"], [0.6 / length], rtol=1e-6)
    free = clipped(((r"long/.*", 0.0), (".*", 0.5)))
    np.testing.assert_allclose(free["long"]["w"], [18.0, 24.0], rtol=1e-6)
    np.testing.assert_allclose(
        [free["short"]["w"][0], free["short"]["b"][0]], [0.3, 0.4], rtol=1e-6
    )
    with pytest.raises(RuleError, match=r"optimizer\.clip.*short/w"):
        clipped((("long/.*", 1.0),))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_leaf_that_starts_later_neither_moves_nor_decays_and_then_is_fresh(kind):
    # The leaf moves as if it met its optimizer at update 3, except that the schedule does not start again.
    params = {"old": {"bias": jnp.ones(3)}, "new": {"kernel": jnp.ones((2, 3))}}
    settings = dict(rate=0.1, kind=kind, weight_decay=0.5)
    steps = dict(schedule=Schedule("linear"))
    late = Optimizer(**settings, **steps, start=(("new/.*", 3), (".*", 0))).transform(params, 10)
    fresh = Optimizer(**settings).transform(params, 10)
    key = jax.random.key(0)
    grads = [
        jax.tree.map(lambda x, i=i: jax.random.normal(jax.random.fold_in(key, i), x.shape), params)
        for i in range(5)
    ]
    state, alone, moved = late.init(params), fresh.init(params), fresh.init(params)
    update = jax.jit(late.update)
    for count, grad in enumerate(grads):
        got, state = update(grad, state, params)
        always, alone = fresh.update(grad, alone, params)
        factor = 1 - count / 10
        np.testing.assert_allclose(got["old"]["bias"], factor * always["old"]["bias"], rtol=1e-5)
        if count < 3:
            np.testing.assert_array_equal(got["new"]["kernel"], 0)
        else:
            then, moved = fresh.update(grad, moved, params)
            expected = factor * then["new"]["kernel"]
            np.testing.assert_allclose(got["new"]["kernel"], expected, rtol=1e-4)
            if (
                kind == "adamw" and count == 3
            ):  # rate * factor * (sign + decay), with no trace of older gradients
                sign = np.sign(grad["new"]["kernel"])
                np.testing.assert_allclose(
                    got["new"]["kernel"], -0.1 * 0.7 * (sign + 0.5), rtol=1e-4
                )
