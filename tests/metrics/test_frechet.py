"""Frechet distances against scipy, closed forms and the spec's golden values; streaming; bad input is refused."""

import math

import numpy as np
import pytest

from vidmotion.metrics.frechet import (
    FeatureSet,
    Moments,
    collect,
    compare,
    frechet_distance,
    without_weights,
)


def moments(features):
    features = np.asarray(features, np.float64)
    return Moments.empty(features.shape[1]).update(features)


def normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


GOLDEN_A = normal(0, 50, 8)
GOLDEN_B = normal(1, 60, 8) @ np.diag(np.linspace(0.5, 2, 8)) + 0.1


def test_golden_values():
    a, b = moments(GOLDEN_A), moments(GOLDEN_B)
    assert frechet_distance(a, b) == pytest.approx(3.7320585752, abs=5e-10)
    assert frechet_distance(a, b, "N") == pytest.approx(3.6861340269, abs=5e-10)
    # Rank 19 of 64. The expected value is from the nuclear norm of the product of centred features, which the code
    # never forms.
    a, b = moments(normal(0, 20, 64)), moments(1.2 * normal(1, 20, 64))
    assert frechet_distance(a, b) == pytest.approx(92.118174256, abs=2e-9)


def test_scipy_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(3, 300, 40) @ normal(4, 40, 40), normal(5, 200, 40) * np.linspace(0.1, 3, 40)
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a, rowvar=False))
    want += np.trace(np.cov(b, rowvar=False)) - 2 * np.trace(linalg.sqrtm(product)).real
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(want, rel=1e-9)


def test_diagonal_gaussians():
    """The distance is sum (m1 - m2)^2 + (s1 - s2)^2; plus and minus the unit axes have an exact covariance."""
    axes = np.concatenate([np.eye(5), -np.eye(5)])  # the scatter matrix is 2 I
    s1, s2 = np.array([1, 2, 0.5, 0, 3]), np.array([2, 2, 0, 0, 1])
    m1, m2 = np.arange(5.0), np.array([0, 1, 2, 5, 4.0])
    unit = 2 / 9
    want = np.sum((m1 - m2) ** 2) + unit * np.sum((s1 - s2) ** 2)
    got = frechet_distance(moments(axes * s1 + m1), moments(axes * s2 + m2))
    assert got == pytest.approx(want, rel=1e-12)


def test_batches_hosts_and_order_do_not_matter():
    features = (1000 + normal(7, 101, 6)).astype(np.float32)
    whole = np.cov(features.astype(np.float64), rowvar=False)
    for parts in (1, 7, 50, 101):
        hosts = [Moments.empty(6) for _ in range(3)]
        for i, batch in enumerate(np.array_split(features, parts)):
            hosts[i % 3] = hosts[i % 3].update(batch)
        merged = hosts[2].merge(hosts[0]).merge(hosts[1])
        assert merged.count == 101
        np.testing.assert_allclose(merged.scatter / 100, whole, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(merged.mean, features.mean(0, np.float64), rtol=1e-14)


def test_masked_rows_count_for_nothing():
    features = np.concatenate([GOLDEN_A, np.full((3, 8), np.nan)])
    got = Moments.empty(8).update(features, np.arange(53) < 50)
    assert got.count == 50
    np.testing.assert_array_equal(got.scatter, moments(GOLDEN_A).scatter)
    assert Moments.empty(8).update(features, np.zeros(53, bool)).count == 0


def test_degenerate_sets():
    a = moments(GOLDEN_A)
    assert 0 <= frechet_distance(a, a) < 1e-12
    constant = moments(np.full((9, 8), 3.0))
    want = np.sum((GOLDEN_A.mean(0) - 3) ** 2) + np.trace(np.cov(GOLDEN_A, rowvar=False))
    assert frechet_distance(a, constant) == pytest.approx(want, rel=1e-12)
    assert frechet_distance(constant, moments(np.full((4, 8), 1.0))) == 8 * 4
    # Repeated samples: the rank is below N - 1.
    few = normal(2, 4, 8)
    copies = moments(np.repeat(few, 5, axis=0))
    x, y = GOLDEN_A - GOLDEN_A.mean(0), np.repeat(few - few.mean(0), 5, axis=0)
    nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt(49 * 19)
    want = np.sum((GOLDEN_A.mean(0) - few.mean(0)) ** 2) + (x**2).sum() / 49 + (y**2).sum() / 19
    assert frechet_distance(a, copies) == pytest.approx(want - 2 * nuclear, rel=1e-10)


def test_features_that_are_not_finite_show():
    for bad in (np.nan, np.inf):
        features = GOLDEN_A.copy()
        features[3, 2] = bad
        assert math.isnan(frechet_distance(moments(features), moments(GOLDEN_B)))
        both = Moments.empty(8).update(features[:10]).merge(moments(GOLDEN_A))
        assert not both.finite


def test_refusals():
    a = moments(GOLDEN_A)
    for small in (Moments.empty(8), moments(GOLDEN_A[:1])):
        with pytest.raises(ValueError, match="at least 2 samples in each set"):
            frechet_distance(a, small)
    with pytest.raises(ValueError, match="features of 8 and of 7 numbers"):
        frechet_distance(a, Moments.empty(7))
    with pytest.raises(ValueError, match="features of 8 and of 7 numbers"):
        a.merge(Moments.empty(7))
    with pytest.raises(ValueError, match=r"features must be \(b, 8\), got \(3, 7\)"):
        a.update(np.ones((3, 7)))
    with pytest.raises(ValueError, match="must be floats, got int64"):
        a.update(np.ones((3, 8), np.int64))
    with pytest.raises(ValueError, match="3 booleans"):
        a.update(np.ones((3, 8)), np.ones(3))
    with pytest.raises(ValueError, match="divide_by"):
        frechet_distance(a, a, "n")


def image_set(convention="pytorch_fid", weights="w", resolution="4x6", dim=8):
    return FeatureSet.empty("fid", convention, weights, resolution, dim=dim)


def test_rows_carry_what_they_are_of():
    real, made = image_set().update(GOLDEN_A), image_set().update(GOLDEN_B)
    row = compare(real, made)
    assert (row.metric, row.convention, row.weights) == ("fid", "pytorch_fid", "w")
    assert (row.resolution, row.n, row.note) == ("4x6", 60, "60 generated and 50 real images")
    assert row.value == pytest.approx(3.7320585752, abs=5e-10)
    sets = [
        FeatureSet.empty("fvd", "styleganv", "w", "4x6", dim=8).update(x)
        for x in (GOLDEN_A, GOLDEN_B)
    ]
    row = compare(*sets)  # this convention divides by N
    assert row.value == pytest.approx(3.6861340269, abs=5e-10)
    assert "50 real clips of 16 frames" in row.note
    row = without_weights("fvd", "videogpt", "4x6", 7)
    assert row.value is None and row.note.startswith("not computed: needs i3d_pretrained_400.pt")


def test_rows_without_a_number():
    real = image_set().update(GOLDEN_A)
    row = compare(real, image_set())
    assert row.value is None and row.n == 0
    assert row.note.startswith("not computed: needs 2 samples or more of each; 0 generated and 50")
    row = compare(real, image_set().update(GOLDEN_A * np.nan))
    assert row.value is None and "not computed: features are not finite" in row.note


@pytest.mark.parametrize(
    "other, said",
    [
        (dict(convention="clean"), "different convention .* pytorch_fid and clean"),
        (dict(weights="v"), "different weights"),
        (dict(resolution="8x8"), "different resolution"),
    ],
)
def test_sets_that_are_not_alike(other, said):
    with pytest.raises(ValueError, match=said):
        compare(image_set(), image_set(**other))
    with pytest.raises(ValueError, match=said):
        image_set().merge(image_set(**other))
    clips = [FeatureSet.empty("fvd", "tf", "w", "4x6", frames=n) for n in (16, 128)]
    with pytest.raises(
        ValueError, match="different frames cannot be compared or merged: 16 and 128"
    ):
        compare(*clips)
    with pytest.raises(ValueError, match="one of styleganv_np, styleganv, videogpt, tf"):
        FeatureSet.empty("fvd", "clean", "w", "4x6")
    with pytest.raises(ValueError, match="metric must be one of fid, fvd"):
        FeatureSet.empty("kid", "clean", "w", "4x6")


def test_collecting_does_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 4, 6, 3), np.uint8)
    shapes = set()

    def extract(x):
        shapes.add(x.shape)
        return x.reshape(len(x), -1)[:, :8] / np.float32(255)

    want = moments(images.reshape(11, -1)[:, :8] / np.float32(255))
    for rows in (1, 4, 32):
        shapes.clear()
        got = collect(extract, iter(images), image_set(), rows).moments
        assert shapes == {(rows, 4, 6, 3)} and got.count == 11
        np.testing.assert_allclose(got.scatter, want.scatter, rtol=1e-12)
    assert collect(extract, [], image_set(), 4).moments.count == 0


def test_collecting_refuses():
    def gather(*samples):
        return collect(lambda x: x, samples, image_set(), 2)

    good = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=r"sample 2 must be \(4, 6, 3\), got \(4, 5, 3\)"):
        collect(lambda x: np.zeros((2, 8)), [good, good, good[:, :5]], image_set(), 2)
    for wrong in (good - 0.5, good + 255.0, good + np.nan, good.astype(np.int32)):
        with pytest.raises(ValueError, match=r"sample 1 must be uint8 or floats in \[0, 1\]"):
            gather(good, wrong)
    clips = FeatureSet.empty("fvd", "tf", "w", "4x6")
    with pytest.raises(ValueError, match=r"must be \(16, 4, 6, 3\), got \(9, 4, 6, 3\)"):
        collect(lambda x: x, [np.zeros((9, 4, 6, 3), np.uint8)], clips, 2)
