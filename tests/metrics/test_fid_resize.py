"""Resizing for FID and FVD in each convention against Pillow, torch and hand computations; bad input is refused."""

import jax
import numpy as np
import pytest

from vidmotion.metrics.resize import (
    CLIP_CONVENTIONS,
    IMAGE_CONVENTIONS,
    for_i3d,
    for_inception,
    matrix,
    resize,
)

SIZES = [(5, 9), (12, 7), (7, 7), (40, 11), (3, 30)]


def test_golden_lines():
    """Checks the table of the spec metrics.md, section 14: the line 0, 1, 2, 3 resized to seven values."""
    line = np.arange(4.0)
    np.testing.assert_allclose(
        matrix("tf1", 4, 7) @ line,
        [0, 0.571429, 1.142857, 1.714286, 2.285714, 2.857143, 3],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        matrix("half_pixel", 4, 7) @ line,
        [0, 0.357143, 0.928571, 1.5, 2.071429, 2.642857, 3],
        atol=1e-6,
    )


@pytest.mark.parametrize("old, new", SIZES)
def test_tf1_by_its_definition(old, new):
    line = np.random.default_rng(0).random(old)
    place = np.arange(new) * (old / new)
    low = np.floor(place + 1e-9).astype(int)
    part = place - low
    want = line[low] * (1 - part) + line[np.minimum(low + 1, old - 1)] * part
    np.testing.assert_allclose(matrix("tf1", old, new) @ line, want, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("old, new", SIZES)
def test_half_pixel_is_torch(old, new):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((2, old, old + 3, 3), np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), (new, new + 1), mode="bilinear"
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(x, "half_pixel", (new, new + 1)), want, atol=3e-6)


@pytest.mark.parametrize("old, new", SIZES)
def test_bicubic_is_pillow(old, new):
    image = pytest.importorskip("PIL.Image")
    x = (255 * np.random.default_rng(0).random((old, old + 3, 3))).astype(np.float32)
    want = [
        np.asarray(image.fromarray(x[..., c]).resize((new + 1, new), image.Resampling.BICUBIC))
        for c in range(3)
    ]
    got = resize(x[None], "pil_bicubic", (new, new + 1))[0]
    np.testing.assert_allclose(got, np.stack(want, -1), atol=1e-3)


@pytest.mark.parametrize("convention", IMAGE_CONVENTIONS)
def test_images_of_every_convention(convention):
    """An image of the network's size is only rescaled; overshoots beyond black and white are clipped."""
    flat = np.zeros((2, 299, 299, 3), np.uint8)
    flat[1] = 255
    got = np.asarray(for_inception(flat, convention))
    centre = 127.5 if convention == "pytorch_fid" else 128
    np.testing.assert_allclose(got[0], -1, atol=1e-6)
    np.testing.assert_allclose(got[1], (255 - centre) / centre, atol=1e-6)
    edge = np.zeros((1, 20, 20, 3), np.uint8)
    edge[:, 10:] = 255  # an edge at which bicubic interpolation overshoots
    got = np.asarray(for_inception(edge, convention))
    assert got.min() >= -1 - 1e-6 and got.max() <= (255 - centre) / centre + 1e-6
    floats = np.random.default_rng(0).random((1, 20, 31, 3), np.float32)
    np.testing.assert_array_equal(
        for_inception(floats, convention),
        for_inception(np.round(255 * floats).astype(np.uint8), convention),
    )


@pytest.mark.oracle
@pytest.mark.parametrize("h, w", [(30, 41), (41, 30), (300, 260)])
def test_clips_of_every_convention(h, w):
    torch = pytest.importorskip("torch")
    clip = np.random.default_rng(0).random((1, 2, h, w, 3), np.float32)
    frames = torch.from_numpy(clip[0].transpose(0, 3, 1, 2))

    def bilinear(x, size):
        return torch.nn.functional.interpolate(x, size, mode="bilinear").permute(0, 2, 3, 1)

    short = min(h, w)
    size = [-(-side * 224 // short) for side in (h, w)]
    top, left = ((side - 224) // 2 for side in size)
    cut = np.s_[:, top : top + 224, left : left + 224]
    # Torch computes pixel positions in float32, which at 300 pixels is off by 2e-5 of the distance between two pixels.
    want = {
        "styleganv_np": bilinear(frames, size)[cut],
        "styleganv": bilinear(torch.round(255 * frames) / 255, (224, 224)),
        "videogpt": bilinear(torch.floor(255 * frames) / 255, size)[cut],
    }
    for convention, expected in want.items():
        got = np.asarray(for_i3d(clip, convention))[0]
        np.testing.assert_allclose(got, 2 * expected - 1, atol=1e-4, err_msg=convention)
    rounded = np.round(255 * clip[0])
    rows, columns = matrix("tf1", h, 224), matrix("tf1", w, 224)
    expected = np.einsum("uh,thwc,vw->tuvc", rows, rounded, columns, optimize=True) / 127.5 - 1
    np.testing.assert_allclose(for_i3d(clip, "tf")[0], expected, atol=2e-5)


def test_conventions_are_those_of_the_spec():
    assert {k: (v.bn_eps, v.divide_by) for k, v in CLIP_CONVENTIONS.items()} == {
        "styleganv_np": (1e-3, "N-1"),
        "styleganv": (1e-3, "N"),
        "videogpt": (1e-5, "N-1"),
        "tf": (1e-3, "N-1"),
    }


def test_refusals():
    image, clip = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 2, 8, 8, 3), np.float32)
    for wrong in (image + 1.01, image - 0.1, image + np.nan):
        with pytest.raises(ValueError, match=r"frames must lie in \[0, 1\]"):
            for_inception(wrong)
        with pytest.raises(ValueError, match=r"frames must lie in \[0, 1\]"):
            for_i3d(wrong[None])
    with pytest.raises(ValueError, match="uint8 or floats"):
        for_inception(image.astype(np.int32))
    for wrong in (image[0], image[..., :1], image[:, :0]):
        with pytest.raises(ValueError, match=r"images must be \(n, h, w, 3\)"):
            for_inception(wrong)
    with pytest.raises(ValueError, match=r"clips must be \(n, t, h, w, 3\)"):
        for_i3d(image)
    with pytest.raises(ValueError, match="one of pytorch_fid, tf_graph, clean, got 'pil'"):
        for_inception(image, "pil")
    with pytest.raises(ValueError, match="one of styleganv_np"):
        for_i3d(clip, "clean")
    with pytest.raises(ValueError, match="kind must be one of"):
        matrix("area", 3, 4)
    # Under jit only shapes can be checked, not values.
    assert jax.eval_shape(for_i3d, clip).shape == (1, 2, 224, 224, 3)
