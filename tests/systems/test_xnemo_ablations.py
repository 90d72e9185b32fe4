"""X-NeMo's ablations with networks of their own: a ControlNet for motion, a temporal motion encoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import checkpoint, paths
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.metric_writer import read_metrics
from vidmotion.models.motion_attention import TemporalModule
from vidmotion.open_run import load_config, open_run
from vidmotion.system import Vars, build
from vidmotion.train import train


def abstract(argument):
    """Returns a system of the debug config, and the shapes of its parameters."""
    system = build(load_config(f"xnemo:debug,{argument}").system)
    batch = {x: jnp.zeros(leaf.shape, leaf.dtype) for x, leaf in system.input_spec(1).items()}
    return system, jax.eval_shape(system.init, jax.random.key(0), batch)


# -- without cross-attention (Table 2) --------------------------------------------------------------


def test_a_control_takes_the_place_of_all_motion_modules():
    trees = [abstract(f"stage=4,cross_attention={flag}")[1]["model"] for flag in ("on", "off")]
    on, off = ({path for path in paths.flatten(tree)} for tree in trees)
    assert {path.split("/")[1] for path in off - on} == {"control"}
    assert on - off == {path for path in on if path.split("/")[2].startswith("motion_")} != set()


@pytest.mark.parametrize(("stage", "learns"), [(1, False), (2, True), (3, False), (4, True)])
def test_the_control_learns_with_motion(stage, learns):
    config = load_config(f"xnemo:cross_attention=off,stage={stage}")
    assert ("motion" in config.system.stage.skip) == (stage == 1)
    leaves = ["denoiser/control/map/constant", "denoiser/control/up_0/res_0/norm1/scale"]
    leaves += ["denoiser/control/leave_mid/kernel"]
    tree = paths.unflatten(dict.fromkeys(leaves, 0))
    found = paths.flatten(paths.assign(config.optimizer.model.trainable, tree))
    assert set(found.values()) == {learns}


def test_the_control_begins_as_the_unet():
    """Copied parameters exist in the UNet and fit; the others read skips in the UNet, or exist in no UNet."""
    _, params = abstract("stage=1,cross_attention=off")
    numbers = np.random.default_rng(0).normal
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    base = {
        path: numbers(size=leaf.shape)
        for path, leaf in paths.flatten(params).items()
        if path.startswith(("model/reference/", "model/denoiser/"))
        and not any(part in path for part in ("/control/", "/temporal_"))
    }
    rules = load_config("xnemo:debug,stage=1,cross_attention=off").init_rules
    loaded = paths.flatten(checkpoint.load_into(fresh, paths.unflatten(base), rules))
    control = {
        path.removeprefix("model/denoiser/control/"): leaf
        for path, leaf in loaded.items()
        if "/control/" in path
    }
    left = {path for path, leaf in control.items() if not np.any(leaf)}
    reads_skips = re.compile(r"up_\d/res_\d/(norm1|conv1|shortcut)/.*")
    assert {path for path in left if path.startswith("up_")} == {
        path for path in control if reads_skips.fullmatch(path)
    }
    assert {path.split("/")[0].split("_")[0] for path in left} == {"map", "leave", "up"}
    np.testing.assert_array_equal(
        control["up_0/attn_0/ff/in/kernel"],
        base["model/denoiser/up_0/attn_0/ff/in/kernel"].astype("f4"),
    )


def test_a_map_of_another_side_is_refused():
    section = load_config("xnemo:debug,cross_attention=off").system
    section.modules.control_side = 8
    with pytest.raises(
        ConfigError, match=r"control_side=8 must be .* in the middle of the UNets, here 4"
    ):
        build(section)


# -- the temporal motion encoder (Table 3) ----------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "frames", "batch", "gan_frames"),
    [
        ("stage=1", 1, 64, 0),
        ("stage=1,joint=off", 16, 8, 4),
        ("stage=2", 16, 8, 4),
        ("stage=3", 16, 16, 0),
        ("stage=4", 16, 16, 4),
        ("stage=all", 16, 16, 4),
    ],
)
def test_stages_that_run_the_encoder_learn_from_clips(argument, frames, batch, gan_frames):
    config = load_config(f"xnemo:motion_frames=16,{argument}")
    stage, pair = config.system.stage, config.data.train.pair
    assert (stage.frames, config.batch_size, stage.gan_frames) == (frames, batch, gan_frames)
    assert pair.frames == frames and ("gap" in pair) == (frames > 1)
    assert config.system.motion.frames == config.system.sampler.window == 16


def test_clips_are_encoded_window_by_window():
    """Five frames, as many as a driver's, are encoded in windows of two, in use and in training; compared by parts."""
    system, params = abstract("stage=4,motion_frames=16")
    assert system.encoder.frames == system.stage.frames == 2
    params = random_like(params["model"]["motion"], scale=0.3)
    vars = Vars({"model": {"motion": params}}, quick_jit(system.init_mutable)(), {})
    rng = np.random.default_rng(0)
    crops = jnp.asarray(rng.integers(0, 256, (2, 5, 32, 32, 3)), jnp.uint8)

    @quick_jit
    def encoded(vars, crops):
        trained, _ = system._encode(vars, crops, jax.random.key(0))
        return system.motion_of(vars, crops), trained

    @quick_jit
    def single(vars, crops):
        flat = crops.reshape(-1, *crops.shape[2:]).astype(jnp.float32) / 127.5 - 1
        tree = {"params": vars.params["model"]["motion"], "batch_stats": vars.mutable["motion"]}
        apply = system.encoder.apply
        vectors = apply(tree, flat, method="encode")
        trained, _ = apply(tree, flat, True, method="encode", mutable="batch_stats")
        return vectors, trained

    module = TemporalModule(system.encoder.heads, groups=1)
    for got, alone in zip(encoded(vars, crops), single(vars, crops)):
        alone = alone.reshape(2, 5, -1)
        for window in ([0, 1], [2, 3], [4, 4]):
            picked = alone[:, window][:, :, None, None]
            want = module.apply({"params": params["across"]}, picked)[:, :, 0, 0]
            real = sorted(set(window))
            np.testing.assert_allclose(got[:, real], want[:, : len(real)], atol=2e-4)
        assert np.abs(got - alone).max() > 0.01
    picture = encoded(vars, crops[:, 4:])[0]
    np.testing.assert_allclose(picture, encoded(vars, crops)[0][:, 4:], atol=1e-5)


# -- both -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("argument", ["cross_attention=off", "motion_frames=16"])
def test_two_steps(argument, tmp_path, unoptimised, one_device):
    """Trains the debug config with UNets of one resolution, then samples more frames than one window holds."""
    config = load_config(f"xnemo:debug,{argument}")
    config.batch_size, config.evals, config.sample.rows = 2, {}, 0
    config.system.unet.update({"channels": (32,), "attention": (False,)})
    if argument == "cross_attention=off":
        config.system.modules.control_side = 8
    config.optimizer.model.clip, config.ema.decay = ((".*", 0.0),), 0.0
    assert train(config, str(tmp_path)) == EXIT_DONE
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss/model" in row]
    assert len(rows) == 2 and all(np.isfinite(row["loss/model"]) for row in rows)
    run = open_run(str(tmp_path))
    clips = {
        name: np.zeros((1, frames, 32, 32, 3), np.uint8)
        for name, frames in (("content", 1), ("motion", 3))
    }
    sample = quick_jit(lambda v, b: run.system.sample(v, b, jax.random.key(0)))
    assert np.isfinite(np.asarray(sample(run.trained_vars(), clips)["video"])).all()
