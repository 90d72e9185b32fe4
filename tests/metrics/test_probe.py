"""Probes against closed forms and least squares, and on codes whose content is known."""

import numpy as np
import pytest

from vidmotion.metrics import probe


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read_one(reader, code, factor, seed=0, groups=None):
    groups = np.arange(len(code)) if groups is None else groups
    return probe.read(reader, code, {"f": factor}, probe.split(groups, seed), groups)["f"]


# -- parts ----------------------------------------------------------------------------------------


def test_no_group_is_in_two_parts_and_none_is_lost(rng):
    groups = rng.integers(0, 50, 400)
    parts = probe.split(groups, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(400))
    who = [set(groups[part]) for part in parts]
    assert not (who[0] & who[1] or who[0] & who[2] or who[1] & who[2])
    assert [len(names) for names in who] == [30, 10, 10]
    again, other = probe.split(groups, seed=3), probe.split(groups, seed=4)
    np.testing.assert_array_equal(parts.test, again.test)
    assert set(groups[other.test]) != who[2]
    with pytest.raises(ValueError, match="at least three groups, got 2"):
        probe.split([7, 7, 9])


# -- the linear probe -----------------------------------------------------------------------------


def test_weak_ridge_is_least_squares_with_an_intercept(rng):
    code, weights = rng.normal(size=(300, 6)) * 5 + 3, rng.normal(size=(6, 2))
    course = code @ weights + rng.normal(size=(300, 2)) + 40
    parts = probe.split(np.arange(300))
    ridge = probe._Ridge(
        probe._kernels("linear", code, parts),
        course[parts.fit] - course[parts.fit].mean(axis=0),
    )
    predicted = course[parts.fit].mean(axis=0) + ridge.predict(1, 1e-7)
    design = np.hstack([code, np.ones((300, 1))])
    solution, *_ = np.linalg.lstsq(design[parts.fit], course[parts.fit])
    np.testing.assert_allclose(predicted, design[parts.test] @ solution, atol=1e-5)


def test_ridge_is_its_normal_equations(rng):
    code, factor = rng.normal(size=(200, 5)) * [1, 2, 3, 4, 5], rng.normal(size=200)
    parts = probe.split(np.arange(200))
    fit, mean = parts.fit, factor[parts.fit].mean()
    kernels = probe._kernels("linear", code, parts)
    predicted = probe._Ridge(kernels, (factor[fit] - mean)[:, None]).predict(1, 0.3)[:, 0]
    z = (code - code[fit].mean(axis=0)) / code[fit].std(axis=0)
    # The kernel is z z' / 5, so that its eigenvalues sum to the number of fitted examples: hence the factor of 5.
    penalty = 0.3 * 5 * np.eye(5)
    weights = np.linalg.solve(z[fit].T @ z[fit] + penalty, z[fit].T @ (factor[fit] - mean))
    np.testing.assert_allclose(predicted, z[parts.test] @ weights, atol=1e-9)


def test_r2_of_a_linear_gaussian_model_is_its_share_of_the_variance(rng):
    code = rng.normal(size=(1000, 8)).astype(np.float32)
    weights = rng.normal(size=8)
    signal = code @ weights
    for share in (0.2, 0.8):
        noise = np.sqrt(weights @ weights * (1 / share - 1)) * rng.normal(size=1000)
        reading = read_one("linear", code, signal + noise)
        whole = probe.estimate([reading])
        assert whole.value == pytest.approx(share, abs=0.12)
        assert whole.low < share < whole.high and whole.chance == 0
    assert read_one("linear", code, signal).value > 0.999


def test_r2_by_hand(rng):
    code, factor = rng.normal(size=(150, 3)), rng.normal(size=(150, 4))
    factor[:, 0] += 2 * code[:, 0]
    groups = np.arange(150)
    parts = probe.split(groups)
    reading = probe.read("linear", code, {"f": factor}, parts, groups)["f"]
    mean = factor[parts.fit].mean(axis=0)
    ridge = probe._Ridge(probe._kernels("linear", code, parts), factor[parts.fit] - mean)
    predicted = mean + ridge.predict(1, reading.strength)
    truth = factor[parts.test]
    expected = 1 - ((truth - predicted) ** 2).sum() / ((truth - mean) ** 2).sum()
    assert reading.value == pytest.approx(expected) and 0.2 < expected < 0.7


# -- the mlp probe --------------------------------------------------------------------------------


def test_arc_cosine_kernel_is_a_wide_layer_of_random_relus(rng):
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    weights = rng.normal(size=(3, 1_000_000))
    hidden = [np.maximum(v @ weights, 0) for v in (x, y)]
    expected = 2 * hidden[0] @ hidden[1].T / weights.shape[1]
    squares = [(v**2).sum(axis=1) for v in (x, y)]
    np.testing.assert_allclose(probe._arc_cosine(x @ y.T, *squares), expected, atol=0.05)
    # Parallel vectors give the product of their lengths; opposite vectors give zero.
    one = np.ones((1, 1))
    assert probe._arc_cosine(6 * one, 4 * one[0], 9 * one[0])[0, 0] == pytest.approx(6)
    assert probe._arc_cosine(-6 * one, 4 * one[0], 9 * one[0])[0, 0] == pytest.approx(0)


def test_only_the_mlp_reads_a_product(rng):
    code = rng.normal(size=(700, 2))
    product, sign = code[:, 0] * code[:, 1], (code[:, 0] * code[:, 1] > 0).astype(int)
    assert read_one("linear", code, product).value < 0.05
    assert read_one("mlp", code, product).value > 0.9
    assert read_one("linear", code, sign).value < 0.6
    assert read_one("mlp", code, sign).value > 0.9


# -- chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", probe.PROBES)
def test_independent_codes_read_at_chance(rng, reader):
    groups = np.arange(400)
    covered = 0
    for seed in range(6):
        code = rng.normal(size=(400, 40))
        numbers = {str(k): rng.normal(size=(400, 3)) for k in range(6)}
        classes = {f"class {k}": rng.choice(3, 400, p=(0.6, 0.3, 0.1)) for k in range(3)}
        readings = probe.read(reader, code, numbers | classes, probe.split(groups, seed), groups)
        r2 = probe.estimate([readings[name] for name in numbers])
        accuracy = probe.estimate([readings[name] for name in classes])
        assert abs(r2.value) < 0.02 and abs(accuracy.value - accuracy.chance) < 0.05
        assert accuracy.chance == pytest.approx(0.6, abs=0.1)
        covered += (r2.low <= 0 <= r2.high) + (accuracy.low <= accuracy.chance <= accuracy.high)
    assert covered >= 10  # out of 12 intervals at 95 %


def test_chance_is_the_commonest_class_of_the_fitting_part(rng):
    labels = np.repeat([0, 1], [350, 150])
    parts = probe.split(np.arange(500))
    reading = read_one("linear", np.zeros((500, 4)), labels)
    assert reading.chance == reading.value == np.mean(labels[parts.test] == 0)
    assert np.isinf(reading.strength)


def test_classes_that_the_code_tells_apart_are_read(rng):
    labels = rng.integers(0, 4, 400)
    code = np.eye(4)[labels] @ rng.normal(size=(4, 10)) + 0.05 * rng.normal(size=(400, 10))
    for reader in probe.PROBES:
        assert read_one(reader, code, labels).value == 1


def test_a_person_met_in_fitting_is_not_in_the_test(rng):
    """A code of the person cannot predict a habit drawn per person once whole persons are held out."""
    who = np.repeat(np.arange(60), 8)
    habit = rng.normal(size=60)[who]
    code = np.eye(60)[who] + 0.01 * rng.normal(size=(480, 60))
    assert read_one("linear", code, habit).value > 0.9  # every example is its own group
    assert abs(read_one("linear", code, habit, groups=who).value) < 0.05


# -- what does not vary ---------------------------------------------------------------------------


def test_constant_features_are_left_out_and_constant_factors_are_not_read(rng):
    code = rng.normal(size=(200, 3)).astype(np.float32)
    factor = code @ [1.0, 2.0, 3.0] + rng.normal(size=200)
    padded = np.hstack([code, np.full((200, 50), 1000.1, np.float32)])
    assert read_one("mlp", padded, factor).value == read_one("mlp", code, factor).value
    for constant in (np.ones(200), np.ones(200, int)):
        assert np.isnan(read_one("linear", code, constant).value)
    readings = [read_one("linear", code, f) for f in (factor, np.ones(200))]
    assert probe.estimate(readings) == probe.estimate(readings[:1])
    with pytest.raises(ValueError, match="none of the factors varies"):
        probe.estimate(readings[1:])


# -- the interval ---------------------------------------------------------------------------------


def test_width_of_the_interval_of_a_share_is_the_normal_one(rng):
    right = (rng.random(800) < 0.7).astype(float)
    share = probe.estimate([probe.Reading(right, np.ones(800), 0.5, 1.0)])
    p = right.mean()
    half = 1.96 * np.sqrt(p * (1 - p) / 800)
    assert share.value == p and share.chance == 0.5
    assert share.low == pytest.approx(p - half, abs=0.1 * half)
    assert share.high == pytest.approx(p + half, abs=0.1 * half)


def test_examples_of_one_group_are_resampled_together(rng):
    right = np.repeat((rng.random(200) < 0.5).astype(float), 4)
    alone = probe.estimate([probe.Reading(right, np.ones(800), 0.5, 1.0)])
    joined = right.reshape(200, 4).sum(axis=1)
    together = probe.estimate([probe.Reading(joined, np.full(200, 4.0), 0.5, 1.0)])
    assert together.value == alone.value
    ratio = (together.high - together.low) / (alone.high - alone.low)
    # Four copies of one draw: the interval is sqrt(4) times as wide.
    assert ratio == pytest.approx(2, rel=0.15)


def test_factors_are_resampled_together(rng):
    """Two identical factors have the interval of one factor, not one narrower by sqrt(2)."""
    one = probe.Reading((rng.random(400) < 0.5).astype(float), np.ones(400), 0.5, 1.0)
    assert probe.estimate([one, one]) == pytest.approx(probe.estimate([one]))


# -- what is refused ------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    groups = np.arange(20)
    parts, code = probe.split(groups), np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(ValueError, match="probe must be one of"):
        probe.read("forest", code, {}, parts, groups)
    with pytest.raises(ValueError, match="finite floats"):
        probe.read("linear", code * np.nan, {}, parts, groups)
    with pytest.raises(ValueError, match="factor f must be 20"):
        probe.read("linear", code, {"f": np.ones(19)}, parts, groups)
    with pytest.raises(ValueError, match="factor f must be 20"):
        probe.read("linear", code, {"f": np.ones((20, 2), int)}, parts, groups)
    assert probe.read("linear", code, {}, parts, groups) == {}
