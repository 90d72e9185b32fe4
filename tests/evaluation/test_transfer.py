"""Transfer protocols on stand-ins for trained networks whose answers are known."""

import logging
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from skimage.metrics import peak_signal_noise_ratio

from vidmotion.config_schema import from_config
from vidmotion.data.heads import HeadsSource
from vidmotion.data.sprites import SpritesSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import evaluate, sprites_judge, sprites_transfer
from vidmotion.evaluation.pictures import grid
from vidmotion.evaluation.sprites_transfer import SpritesTransfer
from vidmotion.evaluation.swap import Swap
from vidmotion.evaluation.transfer import derangement, to_uint8, transfer


class StubRun:
    """A run whose `System.sample` is a numpy function; batches are multiples of `unit`."""

    def __init__(self, sample, source=None, unit=4, entries=4, **settings):
        self.config = ConfigDict({"seed": 3, "evals": {"stub": settings}, "data": {"common": {}}})
        self.config.data.common.sheets_dir = getattr(source, "sheets_dir", "")
        self.system = types.SimpleNamespace(
            face_side=0,
            quantizer=types.SimpleNamespace(entries=entries),
            evaluators=lambda: ("swap",),
            read_codes=lambda vars, batch: {"motion": np.zeros((*batch["motion"].shape[:2], 5))},
            size=64,
        )
        self.workdir = None
        self._sample, self._source, self._unit = sample, source, unit
        self.keys, self.sizes = [], []

    def source(self, split):
        assert split == "eval"
        return self._source

    def rows(self, count):
        return -(-count // self._unit) * self._unit

    def put_rows(self, batch):
        return batch

    def jit_sample(self, **options):
        def sample(vars, batch, key):
            self.keys.append(str(key))
            self.sizes.append(len(next(iter(batch.values()))))
            return self._sample(vars, batch, **options)

        return sample


def evaluated(cls, run, vars=None):
    """Returns the rows of an evaluator with the fields of the run's ``config.evals.stub``."""
    evaluator = from_config(cls, run.config.evals.stub, "evals.stub")
    return evaluator.evaluate(run, vars)


def rows_of(results):
    return {row.metric: row for row in results}


# -- pairs and batches ----------------------------------------------------------------------------


def test_derangement_moves_every_clip():
    for count in [*range(2, 40), 2664]:
        paired = derangement(count)
        np.testing.assert_array_equal(np.sort(paired), np.arange(count))
        assert np.all(paired != np.arange(count))
    np.testing.assert_array_equal(derangement(30), derangement(30, seed=0))
    assert np.any(derangement(30) != derangement(30, seed=1))
    for count in (0, 1):
        with pytest.raises(ValueError, match="at least two"):
            derangement(count)


def test_transfer_pairs_batches_and_drops_the_padding():
    rng = np.random.default_rng(0)
    contents, motions = (list(rng.integers(0, 99, (11, 2, 3, 3, 3))) for _ in range(2))

    def sample(vars, batch, gain):
        return {
            "sum": vars * (batch["content"] + gain * batch["motion"]),
            "first": batch["content"],
        }

    run = StubRun(sample)
    outputs = list(transfer(run, 7, contents, motions, 6, "testing", gain=100))
    assert run.sizes == [8, 8]  # 6 is rounded up to a multiple of 4; the second batch is padded
    assert [len(part["sum"]) for part in outputs] == [8, 3]
    assert len(set(run.keys)) == 2  # fresh noise for each batch
    joined = np.concatenate([part["sum"] for part in outputs])
    np.testing.assert_array_equal(joined, 7 * (np.array(contents) + 100 * np.array(motions)))


def test_rounding_to_bytes():
    values = np.array([-1, 0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1, 2])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 0, 1, 255, 255, 255])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(every.astype(np.float32) / 255), every)


def test_unfitting_protocols_are_refused():
    for name in ("sprites_transfer", "fid"):
        with pytest.raises(ConfigError, match=rf"asks for '{name}'; stub can be evaluated by swap"):
            run = StubRun(None)
            run.config.system = ConfigDict({"name": "stub"})
            evaluate(name, run, None)


# -- heads ----------------------------------------------------------------------------------------


def lookup(source, count):
    """Returns a function that finds the index of a clip, one of the first `count`, by its bytes."""
    index = {source[i]["video"].tobytes(): i for i in range(count)}
    assert len(index) == count
    return lambda video: index[np.ascontiguousarray(video).tobytes()]


def test_swap_of_the_true_render_is_perfect_and_copies_are_not():
    source = HeadsSource(size=16, frames=3, clips=7, split="eval")
    find = lookup(source, 6)

    def sample(vars, batch):
        pairs = [(find(c), find(m)) for c, m in zip(batch["content"], batch["motion"])]
        videos = np.stack([source.swap(i, j) for i, j in pairs])
        # There are two codebooks: the codes of the first alternate between two entries, those of the second stay: one
        # bit.
        ids = np.tile(np.int32([0, 3, 0, 3])[None, :, None], (len(pairs), 1, 2))
        ids[..., 1] = 2
        return {"video": videos.astype(np.float32) / 255, "ids": ids}

    run = StubRun(sample, source, pairs=6, batch=4)
    rows = rows_of(evaluated(Swap, run))
    assert set(rows) == {
        *(
            f"{m}/{n}"
            for m in ("psnr", "sharpness", "ssim")
            for n in ("swap", "self", "copy_content", "copy_motion")
        ),
        "bits_per_frame/hard",
        "numbers_per_frame/motion",
    }
    assert rows["psnr/self"].value == 100
    assert rows["numbers_per_frame/motion"].value == 2
    assert rows["psnr/swap"].value == 100  # the value that the convention gives for equal frames
    assert rows["ssim/swap"].value == pytest.approx(1, abs=1e-5)
    assert rows["sharpness/swap"].value == pytest.approx(1, abs=1e-6)
    assert rows["bits_per_frame/hard"].value == pytest.approx(1)
    assert all(row.n in (1, 6) and row.resolution == "16x16" for row in rows.values())
    paired, decibel = derangement(6), {"copy_content": [], "copy_motion": []}
    for i, j in enumerate(paired):
        truth = source.swap(i, j)
        for name, copy in (("copy_content", i), ("copy_motion", j)):
            video = source[copy]["video"]
            decibel[name] += [peak_signal_noise_ratio(*frames) for frames in zip(truth, video)]
    for name, values in decibel.items():
        assert rows[f"psnr/{name}"].value == pytest.approx(np.mean(values), abs=1e-3)
        assert rows[f"ssim/{name}"].value < 0.99


def test_swap_takes_all_clips_and_needs_no_codes():
    source = HeadsSource(size=16, frames=1, clips=3, split="eval")
    run = StubRun(
        lambda vars, batch: {"video": batch["motion"].astype(np.float32) / 255},
        source,
        pairs=0,
        batch=8,
    )
    rows = rows_of(evaluated(Swap, run))
    assert "bits_per_frame/hard" not in rows
    assert rows["numbers_per_frame/motion"].value == 5
    assert rows["psnr/self"].value == 100
    assert rows["psnr/swap"].n == 3
    assert rows["psnr/swap"].value == rows["psnr/copy_motion"].value
    assert rows["psnr/swap"].value != rows["psnr/copy_content"].value


@pytest.mark.parametrize(
    "code, spread",
    [
        (lambda i: [3.0, 4.0], 0.0),  # all drivers have one code
        (lambda i: [0.0, 0.0], 0.0),
        (lambda i: [(-1.0) ** i, 0.0], 1.0),  # nothing but differences
        # Means 2 and 0, variances 1 and 0: sqrt((1 + 0) / 2) over sqrt((4 + 1 + 0) / 2).
        (lambda i: [2.0 + (-1.0) ** i, 0.0], 5**-0.5),
    ],
)
def test_how_much_the_code_differs_between_drivers(code, spread):
    source = HeadsSource(size=16, frames=2, clips=4, split="eval")
    count = iter(range(100))

    def sample(vars, batch):
        codes = [[code(next(count))] * 2 for _ in batch["motion"]]
        return {"video": batch["motion"].astype(np.float32) / 255, "code": np.array(codes)}

    rows = rows_of(evaluated(Swap, StubRun(sample, source, pairs=4, batch=4)))
    assert rows["code_spread"].value == pytest.approx(spread)


def test_swap_on_sprites_and_data_that_cannot_render_one(sheets_dir):
    source = SpritesSource(sheets_dir, "test")
    run = StubRun(
        lambda vars, batch: {"video": batch["content"].astype(np.float32) / 255},
        source,
        pairs=4,
        batch=4,
    )
    rows = rows_of(evaluated(Swap, run))
    paired = derangement(4)
    whom, what = source[0]["character"], source[int(paired[0])]["action"]
    np.testing.assert_array_equal(source.swap(0, int(paired[0])), source.render(whom, what))
    assert rows["psnr/swap"].value == rows["psnr/copy_content"].value < 100
    run._source, run.config.data.kind = [source[0], source[1]], "videos"
    with pytest.raises(ConfigError, match="cannot render the true answer"):
        evaluated(Swap, run)


# -- Sprites --------------------------------------------------------------------------------------

CLIPS = 180
LABELS = (("action", 9), ("skin", 6), ("pants", 6), ("top", 6), ("hair", 6))


@pytest.fixture(scope="module")
def sprites(sheets_dir):
    """Returns (test clips, a judge that recognises any clip of their characters and any action)."""
    source = SpritesSource(sheets_dir, "test")
    clips = [source[i] for i in range(CLIPS)]
    known = {}
    for clip in clips:
        for action in range(9):
            video = source.render(clip["character"], action)
            known[video.tobytes()] = (action, *clip["attributes"])

    def judge(vars, batch):
        labels = np.array([known[video.tobytes()] for video in batch["video"]])
        return {
            name: np.eye(classes, dtype=np.float32)[labels[:, i]]
            for i, (name, classes) in enumerate(LABELS)
        }

    return source, clips, judge


def run_transfer(sprites, sample):
    source, _, judge = sprites
    run = StubRun(sample, source, pairs=CLIPS, batch=64, judge="a judge")
    found = StubRun(judge), None, "0123"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sprites_transfer, "trained_judge", lambda workdir, field: found)
        rows = rows_of(evaluated(SpritesTransfer, run))
    assert all(row.n == CLIPS for row in rows.values())
    return {name: row.value for name, row in rows.items()}


def outputs(videos):
    """Returns sampler outputs whose codes cycle through four entries."""
    count = len(videos)
    ids = np.tile(np.arange(8, dtype=np.int32)[None, :, None] % 4, (count, 1, 1))
    usage = np.full((count, 1, 4), 0.25, np.float32)
    return {"video": np.stack(videos) / np.float32(255), "ids": ids, "soft_usage": usage}


def test_sprites_transfer_of_the_true_sprite_is_perfect(sprites):
    source, clips, _ = sprites
    find = {clip["video"].tobytes(): clip for clip in clips}

    def sample(vars, batch):
        pairs = [
            (find[c.tobytes()], find[m.tobytes()])
            for c, m in zip(*map(batch.get, ("content", "motion")))
        ]
        return outputs([source.render(c["character"], m["action"]) for c, m in pairs])

    values = run_transfer(sprites, sample)
    for name, _ in LABELS:
        assert values[f"cross_driven/{name}"] == 1
    assert values["psnr/true_sprite"] == 100
    assert values["inception_score"] == pytest.approx(9)
    assert values["H(y|x)"] == pytest.approx(0, abs=1e-6)
    assert values["H(y)"] == pytest.approx(np.log(9))
    assert values["bits_per_frame/hard"] == pytest.approx(2)
    assert values["bits_per_frame/soft"] == pytest.approx(2)


def test_sprites_transfer_takes_action_from_motion_and_looks_from_content(sprites):
    _, clips, _ = sprites
    action = np.array([clip["action"] for clip in clips])
    looks = np.array([clip["attributes"] for clip in clips])
    paired = derangement(CLIPS)
    values = run_transfer(sprites, lambda vars, batch: outputs(list(batch["content"])))
    assert values["cross_driven/action"] == np.mean(action == action[paired]) < 0.3
    assert values["cross_driven/skin"] == values["cross_driven/hair"] == 1
    values = run_transfer(sprites, lambda vars, batch: outputs(list(batch["motion"])))
    assert values["cross_driven/action"] == 1
    for i, name in enumerate(("skin", "pants", "top", "hair")):
        assert values[f"cross_driven/{name}"] == np.mean(looks[:, i] == looks[paired][:, i]) < 0.5


def test_judge_reads_every_clip_once(sprites):
    _, clips, judge = sprites
    run = StubRun(judge, unit=3)
    some = clips[:70]  # a full batch of 66 and a padded one
    probabilities, labels = sprites_judge.judge_clips(run, None, some)
    assert run.sizes == [66, 66]
    for name, classes in LABELS:
        assert probabilities[name].shape == (70, classes)
        np.testing.assert_array_equal(probabilities[name].argmax(axis=1), labels[name])


# -- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "clips", "expected"),
    [
        (3, 4, 7, (3, 4)),
        (3, 4, 6, (3, 3)),
        (6, 5, 8, (4, 4)),
        (1, 9, 4, (1, 3)),
        (5, 1, 2, (1, 1)),
    ],
)
def test_a_grid_shrinks_to_the_clips_that_there_are(
    caplog, monkeypatch, rows, columns, clips, expected
):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    config = ConfigDict({"sample": {"rows": rows, "columns": columns}})
    assert grid(types.SimpleNamespace(config=config), range(clips)) == expected
    assert ("the eval split has" in caplog.text) == (expected != (rows, columns))


def test_one_clip_is_moved_by_itself_and_none_makes_no_grid():
    run = types.SimpleNamespace(config=ConfigDict({"sample": {"rows": 2, "columns": 3}}))
    assert grid(run, range(1)) == (1, 1)
    with pytest.raises(ConfigError, match="no clip"):
        grid(run, range(0))
