"""WarpFace's analyses: edits of codes by hand, the collapse indicator, and the files a run writes."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vidmotion.errors import ConfigError
from vidmotion.evaluation import analyse
from vidmotion.evaluation.warpface_analysis import collapse, scaled, shifted
from vidmotion.open_run import load_config
from vidmotion.system import Vars, build


def test_one_group_is_scaled():
    code = np.arange(6, dtype=np.float32)[None]
    np.testing.assert_array_equal(scaled(code, 3, 1, -2.0), [[0, 1, -4, -6, 4, 5]])
    np.testing.assert_array_equal(code, [[0, 1, 2, 3, 4, 5]])  # the code itself is not changed


def test_coefficients_of_one_group_are_shifted():
    # The basis has columns (1, 0) and (3/5, 4/5): 2 of the first and 5 of the second are (5, 4).
    basis = np.array([np.eye(2), [[1.0, 0.6], [0.0, 0.8]]])
    code = np.ones((1, 4))
    np.testing.assert_allclose(shifted(code, basis, 1, np.array([2.0, 5.0])), [[1, 1, 6, 5]])


def test_collapse_of_codes_that_move_and_of_codes_that_do_not():
    # Two clips of two frames; the first coordinate differs within clips, the second between, the third never.
    own = np.array([[1, 2, 5], [-1, 2, 5], [1, -2, 5], [-1, -2, 5]], np.float32)
    found = collapse(own, clips=2)
    size = np.sqrt((1 + 4 + 25) / 3)
    assert found["spread"] == pytest.approx(1.0)  # the mean of 1, 2 and 0
    assert found["relative"] == pytest.approx(1 / size)
    assert found["within"] == pytest.approx(1 / 5)  # a variance of 1 within clips, out of 1 + 4
    assert found["still"] == pytest.approx(1 / 3)
    still = collapse(np.ones((4, 3)), clips=2)
    assert (still["spread"], still["within"], still["still"]) == (0.0, 0.0, 1.0)


class FewClips:
    """A source of six clips of two frames of noise."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {"video": rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)}


@pytest.fixture(scope="module")
def trained():
    """Returns a function (argument) -> (config, system, vars), whose network has random parameters."""

    def make(argument=""):
        config = load_config(f"warpface:debug{argument}")
        system = build(config.system)
        batch = {n: np.zeros(s.shape, s.dtype) for n, s in system.input_spec(1).items()}
        shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
        return config, system, Vars(params, {}, {})

    return make


def run_of(config, system, folder, **sample):
    config = ConfigDict(config.to_dict())
    config.sample.update({"clips": 3, **sample})
    return types.SimpleNamespace(
        config=config, system=system, workdir=Path(folder), source=lambda split: FewClips()
    )


def test_every_analysis_writes_its_file(trained, tmp_path):
    config, system, vars = trained()
    names = ("canonical", "subspace", "vector", "curves", "collapse", "noises")
    analyse(run_of(config, system, tmp_path, analyses=names, vectors=((2, 4), (1, 1))), vars)
    folder = tmp_path / "samples"
    cell = 3 * 32 + 2  # enlarged to at least 96 px, plus the line between
    for name, rows, columns in (
        ("canonical", 1, 3),
        ("subspace", 2, 13),
        ("vector", 2, 8),
        ("noises", 1, 3),
    ):
        width, height = Image.open(folder / f"{name}.png").size
        assert (width, height) == (columns * cell + 2, rows * cell + 2), name
    curves = json.loads((folder / "curves.json").read_text())
    assert curves["time"] == [501, 1]
    params = vars.params["model"]["denoiser"]
    assert len(curves["gamma"]) == len(curves["delta"]) == 2 and params
    assert set(json.loads((folder / "collapse.json").read_text())) == {
        "spread",
        "relative",
        "within",
        "still",
    }


def test_without_a_motion_encoder_there_are_noises_alone(trained, tmp_path):
    config, system, vars = trained(",motion=none")
    analyse(run_of(config, system, tmp_path, analyses=("noises",), rows=2, columns=3), vars)
    picture = np.asarray(Image.open(tmp_path / "samples" / "noises.png"))
    cell = 3 * 32 + 2
    assert picture.shape == (2 * cell + 2, 4 * cell + 2, 3)
    first, second = (picture[2 : cell - 20, 2 + k * cell : (k + 1) * cell] for k in (1, 2))
    assert not np.array_equal(first, second)  # another noise gives another picture
    with pytest.raises(ConfigError, match="needs motion codes, not 'none'"):
        analyse(run_of(config, system, tmp_path, analyses=("collapse",)), vars)


def test_keypoints_have_a_collapse_indicator_and_no_sheets(trained, tmp_path):
    config, system, vars = trained(",motion=ip,inject=ca")
    analyse(run_of(config, system, tmp_path, analyses=("collapse",)), vars)
    assert json.loads((tmp_path / "samples" / "collapse.json").read_text())["spread"] > 0
    with pytest.raises(ConfigError, match="needs motion codes, not 'ip'"):
        analyse(run_of(config, system, tmp_path, analyses=("canonical",)), vars)
    with pytest.raises(ConfigError, match="modulated by time"):
        analyse(run_of(config, system, tmp_path, analyses=("curves",)), vars)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            {"analyses": ("faces",)},
            "choose from canonical, subspace, vector, curves, collapse, noises",
        ),
        (
            {"analyses": ("vector",), "vectors": ((3, 1),)},
            "no group 3 vector 1; groups are 1 to 2",
        ),
        ({"analyses": ("collapse",), "clips": 1}, "at least 2 clips"),
    ],
)
def test_what_cannot_be_analysed_is_named(trained, tmp_path, sample, message):
    config, system, vars = trained()
    with pytest.raises(ConfigError, match=message):
        analyse(run_of(config, system, tmp_path, **sample), vars)


def test_nothing_is_done_unasked_and_other_systems_have_none(tmp_path):
    config = ConfigDict({"system": {"name": "bcd"}, "sample": {}})
    run = types.SimpleNamespace(config=config, workdir=tmp_path)
    analyse(run, None)
    assert not list(tmp_path.iterdir())
    config.sample.analyses = ("collapse",)
    with pytest.raises(ConfigError, match="there is no 'collapse' for bcd, only comparison"):
        analyse(run, None)
