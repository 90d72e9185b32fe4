"""WarpFace initialised from Stable Diffusion's files: coverage, two training steps, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.checkpoint import CheckpointError, load_into
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.maps import unet as unet_maps
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.convert.read import read_manifest, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.models.vae import SIZES as VAE_SIZES
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import build
from vidmotion.train import train

UNET = {"channels": [32], "attention": [True], "layers_per_block": 1}
UNET |= {"context_width": 12, "heads": 8, "head": True}
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def random_of(name, arguments, rules):
    """Returns random parameters of a network, and the same as a published file would hold them."""
    rng = np.random.default_rng(len(name))
    shapes = command.NETWORKS[name].shapes(arguments)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype("f4"), shapes)
    return params, engine.export(params, rules)


@pytest.fixture(scope="module")
def unet():
    return random_of("sd_unet", UNET, unet_maps.RULES)


@pytest.fixture(scope="module")
def vae():
    size = {key: VAE_SIZES["tiny"][key] for key in ("channels", "layers_per_block")}
    return random_of("sd_vae", size, vae_maps.DIFFUSERS)


@pytest.fixture(scope="module")
def files(unet, vae, tmp_path_factory):
    """Writes both files under their published names, converts them, and returns the folder of the result."""
    here = tmp_path_factory.mktemp("sd15")
    for part, state in (("unet", unet[1]), ("vae", vae[1])):
        (here / part).mkdir()
        write_safetensors(here / part / "diffusion_pytorch_model.safetensors", state)
    base, autoencoder = (
        here / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    )
    given = ["warpface", f"--base={base}", f"--vae={autoencoder}", f"--out={here / 'out'}"]
    assert command.main(given) == EXIT_DONE
    return here / "out"


def test_a_run_begins_with_both_files_and_learns(
    files, unet, vae, tmp_path, unoptimised, one_device
):
    """At a rate of 1e-6, two steps of Adam move no parameter by more than a few millionths."""
    config = load_config("warpface:debug")
    config.system.unet.update({"channels": (32,), "attention": (True,)})
    numbers = {"mean": (0.0,) * 4, "std": (2.745,) * 4}
    config.system.codec = {"network": "tiny", "weights": str(files / "vae"), **numbers}
    config.init_from = str(files)
    config.optimizer.model.rate = ((".*", 1e-6),)
    config.ema.decay = 0.0
    config.evals, config.sample.rows = {}, 0
    assert config.steps == 2
    assert train(config, str(tmp_path / "run")) == EXIT_DONE
    run = Run(config, str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, run.consts["vae"], vae[0])
    learnt = run.trained_vars().params["model"]
    assert learnt.keys() == {"reference", "denoiser", "motion"}
    want = paths.flatten(unet_maps.without_text(unet[0]))
    moved = 0
    for part in ("reference", "denoiser"):
        for path, leaf in paths.flatten(learnt[part]).items():
            if "/within/" not in path:
                np.testing.assert_allclose(leaf, want[path], atol=5e-6, err_msg=path)
                moved += not np.array_equal(leaf, want[path])
    assert moved > 100


def test_another_run_of_it_gives_motion_and_warps_too():
    """Stable Diffusion has neither motion nor warps: starting from it, both keep their initial values."""
    config = load_config("warpface:debug")
    system = build(config.system)
    batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in system.input_spec(1).items()}
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    whole = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    for path, leaf in paths.flatten(load_into(fresh, whole, config.init_rules)).items():
        assert np.all(leaf == 1), path
    new = re.compile(r"model/(motion|denoiser/.*/within)/.*")
    base = {path: x for path, x in paths.flatten(whole).items() if not new.fullmatch(path)}
    for path, leaf in paths.flatten(
        load_into(fresh, paths.unflatten(base), config.init_rules)
    ).items():
        assert np.all(leaf == (0 if new.fullmatch(path) else 1)), path
    del base[next(path for path in base if path.startswith("model/reference/"))]
    with pytest.raises(CheckpointError, match="model/reference/"):
        load_into(fresh, paths.unflatten(base), config.init_rules)


def test_the_message_counts_keys_and_says_how_to_go_on(unet, vae, tmp_path, capsys):
    write_safetensors(tmp_path / "unet.safetensors", unet[1])
    write_safetensors(tmp_path / "vae.safetensors", vae[1])
    out = tmp_path / "out"
    given = ["warpface", f"--base={tmp_path / 'unet.safetensors'}", f"--out={out}"]
    assert command.main(given) == EXIT_DONE
    said = capsys.readouterr().out
    assert f"from {len(unet[1])} keys; 0 missing" in said and "/vae" not in said
    assert command.main([*given, f"--vae={tmp_path / 'vae.safetensors'}"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert f"from {len(vae[1])} keys; 0 missing" in said
    assert f"--config.init_from={out} --config.system.codec.weights={out / 'vae'}" in said
    assert folder.load(out)[0] == "warpface"
    back = [
        "sd_unet",
        f"--src={out / 'unet'}",
        f"--out={tmp_path / 'back.safetensors'}",
        "--export",
    ]
    assert command.main(back) == EXIT_DONE
    assert command.read(tmp_path / "back.safetensors").keys() == unet[1].keys()


def test_a_unet_that_never_read_a_text_serves_as_well(unet, tmp_path):
    params = unet_maps.without_text(unet[0])
    state = engine.export(params, unet_maps.RULES)
    assert not any(".attn2." in key for key in state)
    write_safetensors(tmp_path / "unet.safetensors", state)
    given = ["warpface", f"--base={tmp_path / 'unet.safetensors'}", f"--out={tmp_path / 'out'}"]
    assert command.main(given) == EXIT_DONE
    found = folder.load(tmp_path / "out")[2]["unet"]
    jax.tree.map(np.testing.assert_array_equal, dict(found), params)


# -- what is refused ------------------------------------------------------------------------------


def refused(tmp_path, capsys, base, vae=None):
    given = ["warpface", f"--out={tmp_path / 'out'}"]
    for flag, state in (("base", base), ("vae", vae)):
        if state is not None:
            write_safetensors(tmp_path / f"{flag}.safetensors", state)
            given.append(f"--{flag}={tmp_path / f'{flag}.safetensors'}")
    assert command.main(given) == EXIT_REFUSED
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "stable-diffusion-v1-5 on Hugging Face" in said
    return said


def test_stable_diffusion_2_is_refused_by_all_its_layers(unet, tmp_path, capsys):
    """Version 2 has matrices at both ends of a transformer, where version 1.5 has convolutions of size 1."""
    projections = [k for k in unet[1] if k.endswith(("proj_in.weight", "proj_out.weight"))]
    assert len(projections) == 2 * 4
    second = unet[1] | {key: unet[1][key][:, :, 0, 0] for key in projections}
    said = refused(tmp_path, capsys, second)
    assert all(f"sd_unet: source {key}: pointwise(2): needs 4 axes" in said for key in projections)


def test_half_a_file_is_refused_by_all_that_it_lacks(unet, tmp_path, capsys):
    half = dict(list(unet[1].items())[: len(unet[1]) // 2])
    said = refused(tmp_path, capsys, half)
    assert all(key in said for key in unet[1].keys() - half.keys())
    lost = [f"{BLOCK}.attn2.to_q.weight", f"{BLOCK}.norm2.bias"]
    said = refused(tmp_path, capsys, {k: x for k, x in unet[1].items() if k not in lost})
    assert said.count("no source") == 2 and all(key in said for key in lost)


def test_both_files_are_looked_at_before_anything_is_said(unet, vae, tmp_path, capsys):
    strange = unet[1] | {"add_embedding.linear_1.weight": np.ones((2, 2), "f4")}
    lacking = {key: x for key, x in vae[1].items() if key != "post_quant_conv.bias"}
    said = refused(tmp_path, capsys, strange, lacking)
    assert "sd_unet: source add_embedding.linear_1.weight: no rule uses it" in said
    assert "sd_vae: target post_quant/bias: no source post_quant_conv.bias" in said
    said = refused(tmp_path, capsys, vae[1], unet[1])
    assert "so this is not a UNet's file" in said and "so this is not an autoencoder's" in said


def test_files_of_the_published_size_must_read_texts_of_768_numbers(fixtures_dir):
    shapes = base_manifest(fixtures_dir)
    assert unet_maps.other_texts(shapes, 768) == []
    wide = {k: (s[0], 1024) if "attn2.to_k" in k else s for k, s in shapes.items()}
    said = unet_maps.other_texts(wide, 768)
    assert len(said) == 16 and all(line.endswith("of width 1024, expected 768") for line in said)


def test_a_folder_of_another_network_is_refused():
    system = build(load_config("warpface:debug").system)
    with pytest.raises(
        ConfigError, match=r"holds reference, denoiser, but WarpFace begins with.*--base=FILE"
    ):
        system.released({"reference": {}, "denoiser": {}})


# -- the published size ---------------------------------------------------------------------------


def base_manifest(fixtures_dir):
    """Returns keys and shapes of Stable Diffusion 1.5's UNet: X-NeMo's denoising network without its modules."""
    shapes = read_manifest(fixtures_dir / "manifests" / "xnemo_denoising_unet.txt")
    return {key: shape for key, shape in shapes.items() if "_modules." not in key}


@pytest.mark.slow
def test_the_published_unet_fills_both_networks_of_the_recipe(fixtures_dir):
    shapes = base_manifest(fixtures_dir)
    network = command.NETWORKS["sd_unet"]
    tree = network.shapes(network.arguments(shapes, dict.fromkeys(network.options)))
    engine.check(tree, shapes, network.rules)
    kept = paths.flatten(unet_maps.without_text(tree))
    # Query, key, value, output and its bias, two of the norm.
    assert len(shapes) == 686 and len(kept) == 686 - 16 * 7
    assert sum(leaf.size for leaf in kept.values()) == 815_533_444  # spec warpface.md, 5.1
    for msa in ("down+mid", "all"):
        config = load_config(f"warpface:msa={msa}")
        config.system.codec.network = "patch"  # needs no weights
        system = build(config.system)
        batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in system.input_spec(1).items()}
        params = jax.eval_shape(system.init, jax.random.key(0), batch)
        asked = paths.flatten(paths.assign(config.init_rules, params))
        given = paths.flatten(system.released({"unet": tree}))
        for path, leaf in paths.flatten(params).items():
            assert asked[path] is None or given[path].shape == leaf.shape, path
            assert (path in given) == (asked[path] is True), path
        used = {path.partition("/")[2].partition("/")[2] for path in asked if asked[path]}
        assert used == kept.keys()  # every array is read, at least by the denoiser
