"""The reader of Heads: its crop against the renderer's geometry, its losses against sums by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import system as systems
from vidmotion.data import heads
from vidmotion.data.heads import cartoon
from vidmotion.errors import ConfigError
from vidmotion.system import Vars, check_batch
from vidmotion.systems.heads_reader import (
    CLASSES,
    MOTION,
    NUMBERS,
    POSE,
    REACH,
    _face_frame,
    _statistics,
)

TINY = dict(name="heads_reader", frames=2, size=16, crop=8, widths=(8, 8), blocks=(1, 1), hidden=8)
CLIPS = 4


def batch_of(clips=CLIPS):
    source = heads.HeadsSource(size=16, frames=2, clips=clips, seed=3)
    return {name: np.stack([source[i][name] for i in range(clips)]) for name in source[0]}


@pytest.fixture(scope="module")
def reader():
    """Returns (system, random variables, compiled loss, compiled sample)."""
    system = systems.build(TINY)
    shapes = jax.eval_shape(system.init, jax.random.key(0), None)
    loss = quick_jit(lambda v, batch: system.loss("model", v, batch, jax.random.key(0), 0, ()))
    sample = quick_jit(lambda v, batch: system.sample(v, batch, jax.random.key(0)))
    return system, Vars(random_like(shapes), {}, {}), loss, sample


def blank(reader):
    """Returns variables of a reader whose outputs are all 0: the mean motion, and equal class probabilities."""
    return reader[1]._replace(params=jax.tree.map(jnp.zeros_like, reader[1].params))


# -- the crop -------------------------------------------------------------------------------------


def test_the_crop_lies_where_the_renderer_puts_the_head():
    assert MOTION[: len(POSE)] == POSE
    rng, size, side = np.random.default_rng(0), 64, 6
    mean, std = (values[: len(POSE)] for values in _statistics())
    who = heads.sample_identity(rng)
    for motion in heads.sample_motion(rng, 5, fps=0.5):
        pose = (motion[: len(POSE)] - mean) / std
        columns, rows = _face_frame(side, jnp.asarray(pose[None]), size)
        assert columns.shape == rows.shape == (1, side, side)
        head = cartoon.Head(who, {n: motion[k : k + 1] for k, n in enumerate(MOTION)}, size)
        # The centre of the crop is seven tenths of the way to the front of the skull, and .12 below the skull's centre.
        x, y = (0.7 * cartoon.DEPTH * np.sin(motion[k]) for k in (0, 1))
        for i, j in ((0, 0), (2, 5), (4, 1)):
            u, v = (((k + 0.5) / side * 2 - 1) * REACH for k in (j, i))
            (point,) = head.plane((x + u, y + 0.12 + v), (0, 0), (0, 0)).origin
            # The renderer counts from the corner of the first pixel, the sampler from its centre.
            got = columns[0, i, j] + 0.5, rows[0, i, j] + 0.5
            np.testing.assert_allclose(got, point, atol=1e-3)


def test_the_crop_of_any_answer_stays_on_a_head():
    columns, _ = _face_frame(4, jnp.full((1, 6), 1e6), 64)
    assert np.all(np.isfinite(columns)) and np.abs(columns).max() < 128


# -- losses ---------------------------------------------------------------------------------------


def test_losses_of_a_reader_that_knows_nothing(reader):
    batch = batch_of()
    batch["seen"] = np.ones_like(batch["seen"])
    mean, std = _statistics()
    value, out = reader[2](blank(reader), batch)
    motion = ((batch["motion"].reshape(-1, 14) - mean[:14]) / std[:14]) ** 2
    assert float(out.metrics["error/motion"]) == pytest.approx(motion.mean(), rel=1e-5)
    assert float(out.metrics["error/first_look"]) == pytest.approx(motion[:, :6].mean(), rel=1e-5)
    # Identities are stored as numbers in [-1, 1] with a variance of 1/3.
    places = [heads.IDENTITY_SLICES[name].start for name in NUMBERS]
    numbers = 3 * batch["identity"][:, places] ** 2
    assert float(out.metrics["error/identity"]) == pytest.approx(numbers.mean(), rel=1e-5)
    chance = np.mean([math.log(classes) for classes in CLASSES.values()])
    assert float(out.metrics["error/classes"]) == pytest.approx(chance, rel=1e-6)
    assert float(value) == pytest.approx(
        motion.mean() + motion[:, :6].mean() + numbers.mean() + chance, rel=1e-5
    )
    weighted = systems.build({**TINY, "identity_weight": 2.0, "class_weight": 3.0})
    value, _ = quick_jit(lambda v: weighted.loss("model", v, batch, jax.random.key(0), 0, ()))(
        blank(reader)
    )
    expected = motion.mean() + motion[:, :6].mean() + 2 * numbers.mean() + 3 * chance
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_statistics_standardise_drawn_factors():
    mean, std = _statistics()
    rng = np.random.default_rng(1)
    drawn = np.concatenate([heads.sample_motion(rng, 8, fps=0.25) for _ in range(400)])
    standard = (drawn - mean[:14]) / std[:14]
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=0.08)
    people = [heads.sample_identity(rng) for _ in range(2000)]
    numbers = np.array([[who[name] for name in NUMBERS] for who in people])
    standard = (numbers - mean[14:]) / std[14:]
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=0.04)


def test_what_is_hidden_does_not_count(reader):
    _, variables, loss, _ = reader
    batch = batch_of()
    batch["seen"][:, :, heads.FACTORS.index("gaze_x")] = False
    batch["seen"][1, :, heads.FACTORS.index("iris_colour")] = False
    before, _ = loss(variables, batch)
    changed = {name: value.copy() for name, value in batch.items()}
    changed["motion"][..., heads.MOTION_COLUMN["gaze_x"]] *= -1
    part = heads.IDENTITY_SLICES["iris_colour"]
    changed["identity"][1, part] = np.roll(changed["identity"][1, part], 1)
    assert float(loss(variables, changed)[0]) == pytest.approx(float(before), rel=1e-6)
    changed["identity"][0, part] = np.roll(changed["identity"][0, part], 1)
    assert abs(float(loss(variables, changed)[0]) - float(before)) > 1e-4
    none = {**batch, "seen": np.zeros_like(batch["seen"])}
    assert np.isfinite(loss(variables, none)[0])


def test_the_place_of_the_crop_takes_no_gradient(reader):
    """The first look learns the pose, and features for the second look, but not to move the crop."""
    system, variables, _, _ = reader
    batch = batch_of()

    def without_first(params):
        _, out = system.loss(
            "model", variables._replace(params=params), batch, jax.random.key(0), 0, ()
        )
        return out.metrics["error/motion"]

    system_grads = quick_jit(jax.grad(without_first))(variables.params)["model"]
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(system_grads["first"]))
    assert np.abs(system_grads["near"]["stem"]["kernel"]).max() > 0


# -- readings -------------------------------------------------------------------------------------


def test_readings_come_in_the_factors_own_units(reader):
    outputs = reader[3](blank(reader), {"video": batch_of()["video"]})
    assert set(outputs) == set(heads.FACTORS)
    mean, _ = _statistics()
    for k, name in enumerate(MOTION):
        np.testing.assert_allclose(outputs[name], np.full((CLIPS, 2), mean[k]), atol=1e-6)
    for factor in heads.IDENTITY_FACTORS:
        if factor.kind == "continuous":
            middle = np.full((CLIPS, 2), (factor.low + factor.high) / 2)
            np.testing.assert_allclose(outputs[factor.name], middle, atol=1e-6)
        else:
            shares = np.full((CLIPS, 2, factor.values), 1 / factor.values)
            np.testing.assert_allclose(outputs[factor.name], shares, atol=1e-6)


def test_every_frame_is_read_by_itself_bytes_or_floats(reader):
    _, variables, _, sample = reader
    video = batch_of()["video"]
    outputs = sample(variables, {"video": video})
    assert np.std(outputs["yaw"]) > 1e-3
    turned = sample(variables, {"video": video[::-1, ::-1].astype(np.float32) / 255})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[::-1, ::-1], b, atol=1e-4), turned, outputs
    )


def test_the_expected_batch(reader):
    batch = batch_of()
    check_batch(reader[0], batch, CLIPS)
    with pytest.raises(ConfigError, match="seen: missing"):
        check_batch(reader[0], {n: v for n, v in batch.items() if n != "seen"}, CLIPS)


# -- worn frames ----------------------------------------------------------------------------------


def test_frames_are_worn_by_blur_and_grain():
    frames = jnp.zeros((400, 4, 4, 3)).at[:, 1, 1].set(1.0)
    clean = systems.build(TINY)
    np.testing.assert_array_equal(clean._worn(frames, jax.random.key(0)), frames)
    soft = np.asarray(systems.build({**TINY, "soften": 0.8})._worn(frames, jax.random.key(0)))
    # Blurred by (1, 2, 1) / 4 both ways, a point keeps a quarter; its loss gives the share of the blur in the frame.
    share = (1 - soft[:, 1, 1, 0]) / 0.75
    assert share.max() <= 0.8 and abs(np.mean(share == 0) - 0.5) < 0.1
    np.testing.assert_allclose(soft[:, 1, 2, 0], share / 8, atol=1e-6)
    np.testing.assert_allclose(soft[:, 2, 2, 0], share / 16, atol=1e-6)
    np.testing.assert_allclose(soft.sum(axis=(1, 2)), 1, atol=1e-5)
    noisy = systems.build({**TINY, "noise": 0.1})._worn(
        jnp.zeros((400, 8, 8, 3)), jax.random.key(0)
    )
    spread = np.std(noisy, axis=(1, 2, 3))
    assert spread.max() < 0.12 and abs(spread.mean() - 0.05) < 0.01
