"""Rows made from the files of other programs, with numbers worked out by hand; and the pictures given to these
programs."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vidmotion.errors import ConfigError
from vidmotion.evaluation.measured import Measured, keep_pictures
from vidmotion.evaluation.measures import Batch
from vidmotion.metrics import expression, head_pose

CLIPS, FRAMES = 2, 3
FACE = (
    ("aed", "mediapipe_51"),
    ("apd", "mediapipe_degrees"),
    ("aed_mean", "3dmm"),
    ("aed_l1sum", "3dmm"),
    ("apd_rad_mean", "3dmm"),
    ("apd_deg_mean", "3dmm"),
    ("ard", "euler_degrees"),
    ("auh_count", "openface"),
    ("auh_fraction", "openface"),
)
# 22 / 3 degrees apart on average.
TURNED = np.deg2rad([[10.0, 20, 30]]), np.deg2rad([[-5.0, 25, 28]])


def arrays(side):
    """Returns what is measured on the driving clip (side 0) or on the made one (side 1), whose last frame has no
    face."""
    matrices = np.tile(np.eye(4), (FRAMES, 1, 1))
    matrices[:, :3, :3] = 2 * head_pose.rotation(TURNED[side])
    deep3d = np.zeros((FRAMES, 257))
    deep3d[:, 80:144] = 0.25 * side
    deep3d[:, 224:227] = TURNED[side]
    return {
        "blendshapes": np.full((FRAMES, 52), 0.5 + 0.125 * side),
        "matrices": matrices,
        "deep3d": deep3d,
        "seen": np.array([True, True, not side]),
    }


def openface(side):
    """Returns OpenFace's table of a clip; two of 18 action units differ between the two sides."""
    names = [f"AU{unit:02d}_c" for unit in expression.ACTION_UNITS]
    units = ["1"] * 2 + ["0"] * 16 if side else ["0"] * 18
    line = ",".join(["1", *units])
    return "\n".join([",".join(["success", *names]), *[line] * FRAMES])


@pytest.fixture
def folder(tmp_path):
    for i in range(CLIPS):
        place = tmp_path / f"{i:06d}"
        place.mkdir()
        for side, name in enumerate(("driving", "made")):
            np.savez(place / f"{name}.npz", **arrays(side))
            (place / f"{name}.csv").write_text(openface(side))
    return tmp_path


def rows_of(folder):
    rows = Measured(str(folder), CLIPS, "64x64").rows(FACE)
    assert [(row.metric, row.convention) for row in rows] == [*FACE]
    return {row.metric: row for row in rows}


def test_figures(folder):
    rows = rows_of(folder)
    expected = {
        "aed": 0.125,
        "apd": 22 / 3,
        "ard": 22 / 3,
        "aed_mean": 0.25,
        "aed_l1sum": 16.0,
        "apd_deg_mean": 22 / 3,
        "apd_rad_mean": np.deg2rad(22 / 3),
        "auh_count": 2.0,
        "auh_fraction": 2 / 18,
    }
    assert {name: row.value for name, row in rows.items()} == pytest.approx(expected)
    assert rows["aed"].n == 4 and "detected in 4 of 6 pairs" in rows["aed"].note
    assert rows["aed_mean"].n == CLIPS and rows["auh_count"].n == 6


def test_what_was_not_measured_says_what_it_needs(folder, tmp_path):
    for place in folder.iterdir():
        for path in place.glob("*.npz"):
            np.savez(path, matrices=arrays(0)["matrices"])
    rows = rows_of(folder)
    assert rows["ard"].value == rows["apd"].value == 0
    assert "Face Landmarker" in rows["aed"].note and "Deep3DFaceRecon" in rows["aed_mean"].note
    assert all(row.value is None for row in Measured("", 5, "64x64").rows(FACE))
    assert all(row.value is None for row in Measured("", 5, "64x64").mesh_rows(""))


def test_a_mean_over_some_clips_is_no_result(folder):
    (folder / "000001" / "made.csv").unlink()
    with pytest.raises(
        ConfigError, match=r"1 of 4 \.csv files are missing, for example .*000001/made\.csv"
    ):
        rows_of(folder)
    (folder / "000001" / "made.csv").write_text(openface(1) + "\n" + openface(1).splitlines()[1])
    with pytest.raises(ConfigError, match=r"000001/made\.csv: action units to compare"):
        rows_of(folder)
    lacking = {k: v for k, v in arrays(1).items() if k != "blendshapes"}
    np.savez(folder / "000001" / "made.npz", **lacking)
    with pytest.raises(
        ConfigError, match=r"000001/made\.npz: lacks blendshapes, which other files have"
    ):
        rows_of(folder)
    np.savez(folder / "000001" / "made.npz", **{**arrays(1), "blendshapes": np.zeros((2, 52))})
    with pytest.raises(ConfigError, match=r"000001: blendshapes to compare have shapes"):
        rows_of(folder)
    with pytest.raises(ConfigError, match="'nowhere': no such folder"):
        rows_of("nowhere")


def test_meshes_of_a_head_model(folder):
    """Uses a head of one vertex, which identity moves along x and expression along y, without pose."""
    np.savez(
        folder / "head.npz",
        v_template=np.zeros((1, 3)),
        shapedirs=np.float64([[[1], [0], [0]]]),
        exprdirs=np.float64([[[0], [1], [0]]]),
    )
    still = {"euler": np.zeros((FRAMES, 3)), "trans": np.zeros((FRAMES, 3))}
    fits = {"reference": (3.0, 0.0), "driving": (0.0, 5.0), "made": (2.0, 3.0)}
    for i in range(CLIPS):
        for side, (beta, psi) in fits.items():
            place = folder / f"{i:06d}" / f"{side}.npz"
            np.savez(place, beta=np.array([beta]), psi=np.full((FRAMES, 1), psi), **still)
    rows = Measured(str(folder), CLIPS, "64x64").mesh_rows(str(folder / "head.npz"))
    # Squared differences over three coordinates: (3 - 2)^2, (5 - 3)^2, and their sum.
    assert [row.value for row in rows] == pytest.approx([1 / 3, 4 / 3, 5 / 3])
    assert rows[0].weights == "head" and rows[0].n == CLIPS


def test_clips_are_kept_as_pictures_without_loss(tmp_path):
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 8, 8, 3), np.uint8)
    batch = Batch(clips / np.float32(255), clips[::-1], clips[:, 0])
    keep_pictures(epath.Path(tmp_path), 7, batch)
    for i in range(2):
        place = tmp_path / f"{7 + i:06d}"
        for side, want in {"made": clips[i], "driving": clips[1 - i]}.items():
            paths = sorted((place / side).iterdir())
            np.testing.assert_array_equal([np.asarray(Image.open(p)) for p in paths], want)
        assert len([*(place / "reference").iterdir()]) == 1
