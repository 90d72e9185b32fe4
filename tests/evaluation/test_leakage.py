"""The leakage protocol on codes whose content is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_transfer import evaluated

from vidmotion.data.clip_source import Renders
from vidmotion.data.heads import IDENTITY_FACTORS, MOTION_FACTORS, HeadsSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation.leakage import READINGS, Leakage
from vidmotion.system import MotionTransfer

CLIPS, FRAMES = 320, 2
REAL = [f.name for f in IDENTITY_FACTORS if f.kind == "continuous"]


class Numbered(Renders):
    """A source of heads without their pictures: the first two bytes of a clip are its number."""

    def __init__(self, clips):
        self._heads = HeadsSource(16, FRAMES, clips, split="eval")
        self.factors, self.identity_id = self._heads.factors, self._heads.identity_id

    def __len__(self):
        return len(self._heads)

    def __getitem__(self, i):
        video = np.zeros((FRAMES, 16, 16, 3), np.uint8)
        video[0, 0, 0, :2] = divmod(i, 256)
        return {"video": video}


class StubRun:
    """A run of a system that looks codes up by the number of the clip."""

    def __init__(self, content, motion, clips=CLIPS, **settings):
        def read_codes(vars, batch):
            number = {k: v[:, 0, 0, 0, 0] * 256 + v[:, 0, 0, 0, 1] for k, v in batch.items()}
            return {k: jnp.asarray(v)[number[k]] for k, v in tables.items()}

        tables = {"content": content, "motion": motion}
        self.config = ConfigDict(
            {
                "seed": 0,
                "evals": {"stub": {"batch": 64, **settings}},
                "data": {"kind": "heads", "eval": {}},
            }
        )
        self.config.data.eval.clips = clips
        self.system = types.SimpleNamespace(read_codes=read_codes, face_side=0)

    def source(self, split, **changes):
        assert split == "eval"
        return Numbered(changes.get("clips", self.config.data.eval.clips))

    def rows(self, count):
        return -(-count // 8) * 8

    def jit(self, function):
        return jax.jit(function)

    def put_rows(self, batch):
        return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


@pytest.fixture(scope="module")
def truth():
    """Returns (identity vectors, courses of motion, noise), each usable as a code."""
    heads = HeadsSource(16, FRAMES, CLIPS, split="eval")
    made_of = [heads.factors(i) for i in range(CLIPS)]
    identity = np.float32([[clip["identity"][name] for name in REAL] for clip in made_of])
    motion = np.float32([np.stack([*clip["motion"].values()], axis=1) for clip in made_of])
    return identity, motion, np.random.default_rng(5).normal(size=(CLIPS, FRAMES, 15))


def rows_of(results):
    return {row.metric: row for row in results}


def test_codes_that_hold_what_they_should_not(truth):
    identity, motion, _ = truth
    who_in_motion = np.concatenate([motion, identity[:, None].repeat(FRAMES, axis=1)], axis=2)
    run = StubRun(motion.reshape(CLIPS, -1), who_in_motion)
    results = evaluated(Leakage, run)
    rows = rows_of(results)
    assert len(rows) == len(results) == 2 * (2 * (3 + 4) + 2 * 3)
    for reading in ("identity_from_motion", "motion_from_content", "motion_from_motion"):
        assert rows[f"probe/{reading}/linear/r2"].value > 0.95, reading
        assert rows[f"probe/{reading}/mlp/r2"].value > 0.7, reading
    assert "leakage" in rows["probe/identity_from_motion/linear/r2"].convention
    assert "wanted high" in rows["probe/motion_from_motion/linear/r2"].convention
    for name, row in rows.items():
        assert row.n == 64 and row.resolution == "16x16"
        if name.endswith(("/r2", "/accuracy")):
            assert rows[f"{name}/low"].value <= row.value <= rows[f"{name}/high"].value
    # The content holds no identity at all.
    row = rows["probe/identity_from_content/linear/r2"]
    assert abs(row.value) < 0.05
    row = rows["probe/identity_from_content/linear/accuracy"]
    chance = rows[f"{row.metric}/chance"].value
    assert rows[f"{row.metric}/low"].value - 0.02 < chance < rows[f"{row.metric}/high"].value + 0.02


def test_codes_of_noise_read_at_chance(truth):
    noise = truth[2]
    for probe in ("linear", "mlp"):
        rows = rows_of(evaluated(Leakage, StubRun(noise.reshape(CLIPS, -1), noise)))
        for reading in READINGS:
            row = rows[f"probe/{'_from_'.join(reading)}/{probe}/r2"]
            assert abs(row.value) < 0.05
            low, high = (rows[f"{row.metric}/{end}"].value for end in ("low", "high"))
            assert low - 0.01 <= 0 <= high + 0.01


def test_untrained_encoders_read_at_chance_what_they_were_not_shown():
    """Random features of drawn heads tell who is shown, but nothing about another clip."""
    heads = HeadsSource(16, FRAMES, CLIPS, split="eval")
    pixels = np.stack([heads[i]["video"] for i in range(CLIPS)]).reshape(CLIPS, FRAMES, -1) / 255.0
    weights = np.random.default_rng(0).normal(size=(2, pixels.shape[-1], 64)) / 16
    motion, content = (np.maximum((pixels - 0.5) @ w, 0).astype(np.float32) for w in weights)
    run = StubRun(content.mean(axis=1), motion)
    seen = rows_of(evaluated(Leakage, run))
    row = seen["probe/identity_from_content/linear/r2"]
    assert seen[f"{row.metric}/low"].value > 0.02

    other, order = Numbered(CLIPS), np.random.default_rng(1).permutation(CLIPS)
    factors, identity = other.factors, other.identity_id
    other.factors, other.identity_id = (lambda i: factors(order[i])), (lambda i: identity(order[i]))
    run.source = lambda split, **changes: other
    rows = rows_of(evaluated(Leakage, run))
    intervals = [name.removesuffix("/low") for name in rows if name.endswith("/low")]
    assert len(intervals) == 2 * (4 + 2)
    for name in intervals:
        chance = rows[f"{name}/chance"].value if name.endswith("accuracy") else 0.0
        low, high = (rows[f"{name}/{end}"].value for end in ("low", "high"))
        assert low - 0.02 <= chance <= high + 0.02, name


def test_a_procedural_source_draws_as_many_clips_as_are_asked_for(truth):
    noise = truth[2]
    rows = evaluated(Leakage, StubRun(noise[:, 0], noise, clips=4, probe_clips=50))
    assert {row.n for row in rows} == {10}


def test_what_cannot_be_probed_is_said(truth):
    noise = truth[2]
    with pytest.raises(ConfigError, match="4 clips of 4 identities"):
        evaluated(Leakage, StubRun(noise[:, 0], noise, clips=4))
    run = StubRun(noise[:, 0], noise)
    run.config.data.kind = "videos"
    run.source = lambda split, **changes: [{}]
    with pytest.raises(
        ConfigError, match="for data of kind 'videos' the factors of the clips are not known"
    ):
        evaluated(Leakage, run)
    with pytest.raises(ConfigError, match="Stub has no codes"):
        MotionTransfer.read_codes(type("Stub", (), {})(), None, None)


def test_factors_of_heads_are_those_of_its_elements():
    source = HeadsSource(16, 3, 4, split="eval")
    factors = source.factors(2)
    np.testing.assert_array_equal(np.stack([*factors["motion"].values()], 1), source[2]["motion"])
    assert [*factors["motion"]] == [f.name for f in MOTION_FACTORS]
    assert factors["identity"] == source.identity(2)


def test_factors_of_sprites_are_those_of_its_elements(sheets_dir):
    from vidmotion.data.sprites import SpritesSource

    source = SpritesSource(sheets_dir, "test")
    factors, element = source.factors(7), source[7]
    assert [*factors["identity"].values()] == element["attributes"].tolist()
    assert factors["motion"] == {"action": element["action"]}
    assert source.identity_id(7) == element["character"]


@pytest.mark.slow
def test_a_trained_run_is_probed(heads_run):
    """Follows the command's own path with a real system: the smallest BCD after two steps."""
    from vidmotion.evaluation import evaluate
    from vidmotion.open_run import open_run

    run = open_run(str(heads_run), {"evals.leakage.probe_clips": "20"})
    vars = run.trained_vars()
    rows = rows_of(evaluate("leakage", run, vars))
    assert rows["probe/identity_from_motion/linear/accuracy"].n == 4
    assert all(np.isfinite(row.value) for row in rows.values() if row.value is not None)

    video = np.stack([run.source("eval")[i]["video"] for i in range(2)])
    codes, read = jax.jit(lambda *args: (run.system.read_codes(*args), run.system.read(*args)))(
        vars, {"content": video, "motion": video}
    )
    assert codes["motion"].shape == (2, 4, run.system.motion_width)
    np.testing.assert_array_equal(codes["content"], read["content"].reshape(2, -1))
    # A motion code is chosen from a codebook, so equal ids mean equal codes.
    ids = np.asarray(read["ids"]).reshape(8, -1)
    code = np.asarray(codes["motion"]).reshape(8, -1)
    assert len(np.unique(ids, axis=0)) == len(np.unique(code.round(5), axis=0))
