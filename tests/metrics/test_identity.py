"""CSIM: alignment against scikit-image, cosines by hand, and faces that are not detected."""

import numpy as np
import pytest

from vidmotion.metrics import identity
from vidmotion.metrics.identity import (
    TEMPLATE,
    align,
    cosine,
    similarity_transform,
    template,
    update,
    warp,
)
from vidmotion.metrics.paired import PairedScore

POINTS = np.array([(100, 120), (160, 118), (131, 150), (108, 185), (155, 183)], float)


def test_golden_transform():
    """Checks the transform of section 14 of the spec."""
    want = [[0.614826942, -0.0141571873, -22.2526373], [0.0141571873, 0.614826942, -22.9128137]]
    np.testing.assert_allclose(similarity_transform(POINTS, TEMPLATE), want, rtol=1e-8)


@pytest.mark.oracle
def test_transforms_are_scikit_images():
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 5, 2)) * 40 + 100
    # Mirrored points, for which a reflection would fit best but must not be returned.
    points[1, :, 0] = 255 - points[1, :, 0]
    points[2] = POINTS[0] + np.arange(5)[:, None] * [2.0, 1.0]  # points on a line
    got = similarity_transform(points, TEMPLATE)
    for mine, five in zip(got, points):
        want = transform.SimilarityTransform.from_estimate(five, TEMPLATE).params[:2]
        np.testing.assert_allclose(mine, want, atol=1e-9)
        np.testing.assert_allclose(similarity_transform(five, TEMPLATE), want, atol=1e-9)
    assert np.all(np.linalg.det(got[..., :2]) > 0)


@pytest.mark.oracle
def test_warps_are_scikit_images():
    transform = pytest.importorskip("skimage.transform")
    images = np.random.default_rng(0).random((2, 40, 50, 3))
    matrices = similarity_transform(np.stack([POINTS / 4, POINTS / 3 - 20]), template(112))
    got = np.asarray(warp(images, matrices, 112))
    assert got.shape == (2, 112, 112, 3) and got.dtype == np.float32
    for mine, image, matrix in zip(got, images, matrices):
        map_ = transform.AffineTransform(matrix=np.vstack([matrix, [0, 0, 1]]))
        want = transform.warp(image, map_.inverse, output_shape=(112, 112), order=1)
        np.testing.assert_allclose(mine, want, atol=2e-4)
        assert (want == 0).any() and (want != 0).any()


def test_aligned_faces():
    image = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8)
    kept = np.asarray(align(image, TEMPLATE[None]))  # the points already match the template
    np.testing.assert_allclose(kept, image / 127.5 - 1, atol=1e-4)
    np.testing.assert_allclose(align(image / 255.0, TEMPLATE[None]), kept, atol=1e-5)
    away = np.asarray(align(image, TEMPLATE[None] + 500.0))
    np.testing.assert_array_equal(away, np.full_like(away, -1))
    assert align(image[:0], TEMPLATE[None][:0]).shape == (0, 112, 112, 3)
    np.testing.assert_allclose(template(224), 2 * TEMPLATE)
    np.testing.assert_allclose(template(256), 2 * TEMPLATE + [16, 0])


def test_what_cannot_be_aligned():
    image = np.zeros((1, 8, 8, 3), np.float32)
    for points, words in (
        (np.full((1, 5, 2), np.nan), "not finite"),
        (np.full((1, 5, 2), 7.0), "one place"),
        (POINTS, r"must be \(1, 5, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            align(image, points)
    for wrong, words in (
        (image + 2, r"must lie in \[0, 1\]"),
        (image * np.nan, r"must lie in \[0, 1\]"),
        (image.astype(int), "uint8 or floats"),
        (image[0], "n, h, w, 3"),
    ):
        with pytest.raises(ValueError, match=words):
            align(wrong, POINTS[None])
    for size in (0, 100, -112):
        with pytest.raises(ValueError, match="multiples of 112 or 128"):
            template(size)
    with pytest.raises(ValueError, match="2 or more"):
        similarity_transform(POINTS[:1], POINTS[:1])
    with pytest.raises(ValueError, match="cannot be aligned to"):
        similarity_transform(POINTS, POINTS[:3])


def test_cosines_by_hand():
    first = np.array([[1.0, 0], [2, 0], [0, 3], [1, 1], [0, 0], [np.nan, 1]])
    second = np.array([[5.0, 0], [-1, 0], [4, 0], [0, 9], [1, 0], [1, 1]])
    want = [1, -1, 0, np.sqrt(0.5), np.nan, np.nan]
    np.testing.assert_allclose(cosine(first, second), want, atol=1e-15)
    with pytest.raises(ValueError, match=r"shapes \(6, 2\) and \(5, 2\)"):
        cosine(first, second[:5])


def test_faces_that_are_not_found():
    """A real image without a face drops the pair; a generated image without a face counts as 0."""
    same = np.eye(4)
    score = update(
        PairedScore(), same, same, np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    )
    assert score.compute() == 0.5 and (score.mean.count, score.skipped, score.zeroed) == (2, 2, 1)
    row = score.row("csim", identity.CONVENTION, "w", "256x256")
    assert (row.value, row.n, row.weights) == (0.5, 2, "w")
    assert row.note == "detected in 1 of 4 pairs; 1 generated without a face count as 0"
    with pytest.raises(ValueError, match="masks must be 4 booleans"):
        update(PairedScore(), same, same, np.ones(4))


def test_parts_merge_to_the_whole():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 23, 6))
    found = rng.random((2, 23)) > 0.2
    whole = update(PairedScore(), a, b, *found)
    parts = PairedScore()
    for part in (slice(0, 1), slice(1, 1), slice(1, 9), slice(9, 23)):
        parts = parts.merge(update(PairedScore(), a[part], b[part], *found[:, part]))
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-15)
    counts = [(s.mean.count, s.pairs, s.skipped, s.zeroed) for s in (parts, whole)]
    assert counts[0] == counts[1]
    want = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in range(23)]
    want = [w * made for w, real, made in zip(want, *found) if real]
    assert whole.compute() == pytest.approx(np.mean(want), abs=1e-12)


def test_rows_without_a_number():
    row = PairedScore().row("csim", identity.CONVENTION, "w", "256x256")
    assert row.value is None and row.n == 0 and "needs a pair that shows a face" in row.note
    nan = update(PairedScore(), np.eye(2), np.array([[1, 0], [0, np.nan]]))
    row = nan.row("csim", identity.CONVENTION, "w", "256x256")
    assert row.value is None and row.note.startswith("not computed: values are not finite")
    row = identity.without_weights("256x256", 7)
    assert row.value is None and row.n == 7
    assert "not computed: needs backbone.pth of arcface_torch" in row.note
