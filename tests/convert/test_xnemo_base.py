"""What X-NeMo's training starts from: Stable Diffusion's UNet, AnimateDiff's module and ImageNet's ResNet-50."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.checkpoint import load_into
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.maps import resnet as resnet_maps
from vidmotion.convert.maps import unet as unet_maps
from vidmotion.convert.read import write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import build
from vidmotion.train import train

UNET = {"channels": [32], "attention": [True], "layers_per_block": 1}
UNET |= {"context_width": 4, "heads": 2, "head": True}
MODULE = {"channels": [32], "layers_per_block": 1}


def file_of(path, name, arguments, rules):
    """Writes random parameters as a published file; returns the parameters and the file's content."""
    rng = np.random.default_rng(len(name))
    shapes = command.NETWORKS[name].shapes(arguments)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype("f4"), shapes)
    state = engine.export(params, rules)
    write_safetensors(path, state)
    return params, state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes the three files; returns name -> (path, parameters, content of the file)."""
    here = tmp_path_factory.mktemp("xnemo_base")
    made = {}
    for option, name, arguments, rules in (
        ("base", "sd_unet", UNET, unet_maps.RULES),
        ("temporal", "animatediff", MODULE, unet_maps.ANIMATEDIFF),
        ("appearance", "resnet50", {}, resnet_maps.RULES),
    ):
        path = here / f"{name}.safetensors"
        made[option] = path, *file_of(path, name, arguments, rules)
    return made


def convert(files, out, *options):
    flags = [f"--{option}={files[option][0]}" for option in options]
    return command.main(["xnemo", *flags, "--heads=2", f"--out={out}"])


@pytest.fixture(scope="module")
def begun(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("xnemo_0") / "out"
    assert convert(files, out, "base", "temporal", "appearance") == EXIT_DONE
    return out


def config_of(folder_there, stage):
    config = load_config(f"xnemo:debug,stage={stage}")
    config.system.unet.update({"channels": (32,), "attention": (True,)})
    config.system.codec.patch = 4
    config.system.gan.appearance = {"features": 8}
    config.init_from = str(folder_there)
    return config


def test_the_module_is_spelled_as_animatediff_spells_it(files):
    """Version 2 has one module per layer and one in the middle, named as in its published file."""
    module = "temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q.weight"
    keys = files["temporal"][2].keys()
    for place in ("down_blocks.0.motion_modules.0", "mid_block.motion_modules.0"):
        assert f"{place}.{module}" in keys
    assert f"up_blocks.0.motion_modules.1.{module}" in keys
    assert len(keys) == 26 * 4  # one layer on the way down, the middle, two layers on the way up


def test_every_part_lands_where_it_belongs_and_the_rest_stays_fresh(files, begun):
    config = config_of(begun, 1)
    system = build(config.system)
    batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in system.input_spec(1).items()}
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    # The debug codec lays pixels out in twelve times as many channels as a latent has, so Stable Diffusion's first and
    # last layers do not fit it; ones of the right shapes take their place.
    source = paths.flatten(system.released(folder.load(begun)[2]))
    flat = paths.flatten(shapes["model"])
    ends = {f"model/{path}": leaf.shape for path, leaf in flat.items() if "/conv_" in path}
    source |= {path: np.ones(shape, np.float32) for path, shape in ends.items()}
    fresh = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes)
    found = paths.flatten(load_into(fresh, paths.unflatten(source), config.init_rules))
    temporal = paths.flatten(files["temporal"][1])
    trunk = paths.flatten(files["appearance"][1]["params"])
    assert temporal and trunk
    for path, leaf in found.items():
        if "/temporal_" in path:
            want = temporal[path.removeprefix("model/denoiser/")]
        elif path.startswith("head/appearance/trunk/"):
            want = trunk[path.removeprefix("head/appearance/trunk/")]
        elif path.startswith(("head", "disc", "model/motion/")) or "/motion_" in path:
            want = np.full(leaf.shape, 7.0)
        else:
            assert path.startswith(("model/reference/", "model/denoiser/"))
            continue
        np.testing.assert_array_equal(leaf, want, err_msg=path)
    statistics = paths.flatten(system.released_mutable(folder.load(begun)[2])["appearance"])
    want = paths.flatten(files["appearance"][1]["batch_stats"])
    assert {path.removeprefix("trunk/") for path in statistics} == want.keys()
    for path, leaf in statistics.items():
        np.testing.assert_array_equal(leaf, want[path.removeprefix("trunk/")])


@pytest.mark.slow
def test_a_run_begins_with_them_and_trains(files, begun, tmp_path, unoptimised, one_device):
    config = config_of(begun, 1)
    config.system.codec = {"network": "patch", "mean": (0.0,) * 4, "std": (2.745,) * 4}
    config.evals, config.sample.rows = {}, 0
    config.ema.decay = 0.0
    assert train(config, str(tmp_path / "run")) == EXIT_DONE
    learnt = paths.flatten(Run(config, str(tmp_path / "run")).trained_vars().params)
    for path, leaf in paths.flatten(files["temporal"][1]).items():
        # Not trained in stage 1.
        np.testing.assert_array_equal(learnt[f"model/denoiser/{path}"], leaf)
    for path, leaf in paths.flatten(files["appearance"][1]["params"]).items():
        np.testing.assert_array_equal(learnt[f"head/appearance/trunk/{path}"], leaf)


def test_stage_all_begins_with_the_base_weights():
    together, last = (load_config(f"xnemo:stage={stage}") for stage in ("all", 4))
    assert together.init_rules == load_config("xnemo:stage=1").init_rules != last.init_rules
    assert together.steps == 30_000 + 100_000 + 10_000 + 10_000
    assert together.optimizer.to_json() == last.optimizer.to_json()
    assert together.system.to_json() == last.system.to_json()


def test_files_of_other_kinds_are_refused_with_all_their_keys(files, tmp_path, capsys):
    path, _, state = files["temporal"]
    # Version 1 has no module in the middle.
    other = tmp_path / "mm_v1.safetensors"
    write_safetensors(other, {k: x for k, x in state.items() if not k.startswith("mid_block")})
    assert convert({**files, "temporal": (other,)}, tmp_path / "out", "base", "temporal") == (
        EXIT_REFUSED
    )
    said = capsys.readouterr().err
    assert said.count("mid_block.motion_modules.0") == 26
    swapped = {**files, "temporal": files["base"], "appearance": files["temporal"]}
    assert convert(swapped, tmp_path / "out", "base", "temporal", "appearance") == EXIT_REFUSED
    said = capsys.readouterr().err
    assert "not AnimateDiff's motion module" in said and "resnet50: " in said
    given = ["xnemo", f"--src={tmp_path}", f"--temporal={path}", f"--out={tmp_path / 'out'}"]
    assert command.main(given) == EXIT_REFUSED
    assert "--temporal: the released files have all of X-NeMo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
