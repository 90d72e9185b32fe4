"""Sheets of clips moved by others: which clips are shown, and which failures are picked out."""

import types
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vidmotion.data.clip_source import ClipSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import analyse, sheets

SIZE, FRAMES, COUNT = 96, 4, 5
CELL = SIZE + 2


class Clips(ClipSource):
    """A source whose clip i has grey levels 40 i + 5 t; the first video has two clips, every other video one."""

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        levels = (40 * i + 5 * np.arange(FRAMES)).astype(np.uint8)
        video = np.broadcast_to(levels[:, None, None, None], (FRAMES, SIZE, SIZE, 3))
        return {"video": video.copy()}

    def origin(self, i):
        return f"{max(i, 1)}.mp4"


def run_of(folder, made, names, system="stub", evaluators=("swap",), source=None):
    """Returns a run whose sampler is `made`, (content, motion) in [0, 1] -> video."""

    def jit_sample(**_):
        return lambda vars, batch, key: {
            "video": made(batch["content"] / np.float32(255), batch["motion"] / np.float32(255))
        }

    sample = {"analyses": names, "rows": 2, "columns": 2, "clips": COUNT}
    config = {
        "seed": 0,
        "system": {"name": system},
        "sample": sample,
        "evals": {"swap": {"batch": 2}},
    }
    return types.SimpleNamespace(
        config=ConfigDict(config),
        workdir=Path(folder),
        source=lambda split: source or Clips(),
        rows=lambda count: count,
        put_rows=lambda batch: batch,
        jit_sample=jit_sample,
        system=types.SimpleNamespace(evaluators=lambda: evaluators, face_side=0, content_frames=1),
    )


def cells(path):
    """Returns the grey level in the middle of each cell."""
    picture = np.asarray(Image.open(path))[..., 0]
    return picture[2 + SIZE // 2 :: CELL, 2 + SIZE // 2 :: CELL].astype(int)


def test_a_comparison_shows_drivers_of_other_people_above_what_they_moved(tmp_path):
    analyse(run_of(tmp_path, lambda content, motion: 1 - motion, ("comparison",)), None)
    found = cells(tmp_path / "samples" / "comparison.png")
    assert found.shape == (4, 3)
    for i, (above, below) in enumerate((found[:2], found[2:])):
        driver = above[1] // 40
        # The first and last frame of the driver.
        assert above[1:].tolist() == [40 * driver, 40 * driver + 15]
        assert max(driver, 1) != max(i, 1)  # the driver comes from another video
        assert below.tolist() == [40 * i, *(255 - above[1:])]


def test_failures_are_the_worst_frames_of_the_worst_clips(tmp_path):
    """`wrong` says by how many grey levels frame t of clip i is wrong; frame 0 is the source."""
    wrong = np.zeros((COUNT, FRAMES), int)
    wrong[1, 2], wrong[3, 1], wrong[4, 3] = 10, 60, 30
    batches = iter(np.split(wrong[:, 1:], [2, 4]))

    def made(content, motion):
        by = next(batches)
        by = np.resize(by, (len(motion), FRAMES - 1))  # the last batch is padded
        return motion + by[..., None, None, None] / np.float32(255)

    analyse(run_of(tmp_path, made, ("failures",)), None)
    found = cells(tmp_path / "samples" / "failures.png")
    assert found.tolist() == [[120, 125, 185], [160, 175, 205]]


def test_what_cannot_be_drawn_is_said(tmp_path):
    run = run_of(tmp_path, None, ("comparison",), "image_autoencoder", ("codec",))
    with pytest.raises(
        ConfigError, match="'comparison' shows clips moved by others, but image_auto"
    ):
        analyse(run, None)
    run = run_of(tmp_path, None, ("failures",), source=[{"video": Clips()[0]["video"]}])
    with pytest.raises(ConfigError, match="at least two clips"):
        analyse(run, None)
    assert set(sheets.SHEETS) == {"comparison", "failures"}
