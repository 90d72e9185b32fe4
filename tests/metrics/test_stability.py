"""Flicker and change against hand computations, and what is refused."""

import numpy as np
import pytest

from vidmotion.metrics.stability import change_error, flicker, seam


def video(levels):
    return np.broadcast_to(
        np.asarray(levels, np.float32)[:, None, None, None], (len(levels), 4, 5, 3)
    )


def test_flicker_by_hand():
    assert flicker(video([0.5] * 5)) == 0
    assert flicker(video([0.0, 0.25, 0.5, 0.75])) == 0
    assert flicker(video([0.25, 0.5, 0.25, 0.5])) == pytest.approx(0.5)
    both = np.stack([video([0.0, 1.0, 0.0]), video([0.0, 0.0, 1.0])])
    np.testing.assert_allclose(flicker(both), [2, 1])
    np.testing.assert_allclose(flicker((255 * both).astype(np.uint8)), [2, 1])


def test_a_seam_by_hand():
    """The second window is brighter by a tenth; the windows share no frame, or one frame."""
    x = video([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    y = video([0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    np.testing.assert_allclose(seam(x, y, 3), [0.1, 0.0], atol=1e-6)
    faded = video([0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8])
    longer = video([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    # Windows of four begin at 0 and 3, so the changes into frames 3 and 4 belong to the border; both are off by 0.05.
    np.testing.assert_allclose(seam(longer, faded, 4, 1), [0.05, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        seam(x, longer, 3)


def test_change_error_by_hand():
    x = video([0.0, 0.1, 0.3])
    assert change_error(x, x + 0.5) == pytest.approx(0, abs=1e-6)
    assert change_error(x, video([0.0, 0.3, 0.3])) == pytest.approx(0.2)


def test_refusals():
    with pytest.raises(ValueError, match="3 frames or more"):
        flicker(video([0.0, 0.0]))
    with pytest.raises(ValueError, match=r"shapes \(2, 4, 5, 3\) and \(3, 4, 5, 3\)"):
        change_error(video([0.0, 0.0]), video([0.0] * 3))
    for wrong in (video([0.0, 2.0, 0.0]), video([0.0, np.nan, 0.0])):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            flicker(wrong)
    with pytest.raises(ValueError, match="uint8 or floats"):
        flicker(np.zeros((3, 4, 4, 3), np.int32))
