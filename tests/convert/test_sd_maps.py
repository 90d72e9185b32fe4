"""Tables of the Stable Diffusion family against the released key manifests; only shapes are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert import __main__ as command
from vidmotion.convert import folder
from vidmotion.convert.engine import ConversionError, check, convert, export
from vidmotion.convert.maps import clip as clip_maps
from vidmotion.convert.maps import temporal_vae as vae_maps
from vidmotion.convert.maps import unet as unet_maps
from vidmotion.convert.read import read_manifest, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED
from vidmotion.models.features.clip import SIZES as CLIP_SIZES
from vidmotion.models.features.clip import ClipVision
from vidmotion.models.motion_attention import DenoisingUNet
from vidmotion.models.temporal_vae import SIZES as VAE_SIZES
from vidmotion.models.temporal_vae import TemporalAutoencoder
from vidmotion.models.unet import SIZES, ReferenceUNet


def shapes_of(net, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


LATENT, CONTEXT, MOTION = (1, 8, 8, 4), (1, 1, 768), (1, 2, 32, 16)
FRAMES, TIME = (1, 2, 8, 8, 4), (1,)
# Function that returns the tree at the released size, manifest, table, number of entries, number of parameters (spec
# xnemo.md, section 0).
RELEASED = {
    "reference": (
        lambda: shapes_of(ReferenceUNet(**SIZES["sd15"]), LATENT, CONTEXT),
        "xnemo_reference_unet",
        unet_maps.REFERENCE,
        682,
        859_508_800,
    ),
    "denoising": (
        lambda: shapes_of(DenoisingUNet(**SIZES["sd15"]), FRAMES, TIME, CONTEXT, MOTION),
        "xnemo_denoising_unet",
        unet_maps.RULES,
        1820,
        1_684_818_244,
    ),
    "temporal_vae": (
        lambda: shapes_of(TemporalAutoencoder(**VAE_SIZES["svd"]), (1, 8, 8, 3)),
        "svd_temporal_vae",
        vae_maps.RULES,
        374,
        97_742_847,
    ),
    "clip": (
        lambda: shapes_of(ClipVision(**CLIP_SIZES["vit_l14"]), (1, 224, 224, 3)),
        "clip_vit_l14_vision",
        clip_maps.RULES,
        392,
        303_966_208,
    ),
}


@pytest.fixture(scope="module")
def denoising():
    return RELEASED["denoising"][0]()


@pytest.fixture(scope="module")
def reference():
    return RELEASED["reference"][0]()


def manifest(fixtures_dir, name):
    return read_manifest(fixtures_dir / "manifests" / f"{name}.txt")


@pytest.mark.parametrize("name", RELEASED)
def test_covers_the_released_network(fixtures_dir, name, denoising, reference):
    make, file, rules, entries, parameters = RELEASED[name]
    known = {"denoising": denoising, "reference": reference}
    tree = known[name] if name in known else make()
    shapes = manifest(fixtures_dir, file)
    assert len(shapes) == entries
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters
    check(tree, shapes, rules)
    codes = {key for key in shapes if key.endswith("pos_encoder.pe")}
    assert len(codes) == (42 if name == "denoising" else 0)
    assert sum(np.prod(shape) for key, shape in shapes.items() if key not in codes) == parameters


def part(tree, name):
    """Returns the leaves of the modules called `name` ("motion" or "temporal"), or those of neither kind for ""."""
    flat = paths.flatten(tree)
    kinds = {
        path: next((k for k in ("motion", "temporal") if f"/{k}_" in path), "") for path in flat
    }
    return paths.unflatten({path: leaf for path, leaf in flat.items() if kinds[path] == name})


def test_families_of_modules(denoising):
    sizes = {name: jax.tree.leaves(part(denoising, name)) for name in ("", "motion", "temporal")}
    count = {name: (len(leaves), sum(x.size for x in leaves)) for name, leaves in sizes.items()}
    assert count == {
        "": (686, 859_520_964),
        "motion": (546, 372_088_000),
        "temporal": (546, 453_209_280),
    }


def stand_ins(shapes):
    return {key: np.broadcast_to(np.zeros((), np.float32), shape) for key, shape in shapes.items()}


def test_animatediff_modules_are_the_temporal_ones(fixtures_dir, denoising):
    """An AnimateDiff file holds only the temporal modules, which it calls motion modules."""
    shapes = manifest(fixtures_dir, "xnemo_denoising_unet")
    mine = {key: shape for key, shape in shapes.items() if ".temporal_modules." in key}
    theirs = {key.replace("temporal_modules", "motion_modules"): s for key, s in mine.items()}
    for file in (mine, theirs):
        found = unet_maps.as_temporal(stand_ins(file))
        assert found.keys() == {key for key in mine if not key.endswith("pos_encoder.pe")}
        check(part(denoising, "temporal"), {k: x.shape for k, x in found.items()}, unet_maps.RULES)
    whole = unet_maps.as_temporal(stand_ins(shapes))  # X-NeMo's file holds both kinds
    assert whole.keys() == {key for key in shapes if not key.endswith("pos_encoder.pe")}


def test_reference_from_a_whole_unet(fixtures_dir, denoising, reference):
    """The denoising network without its modules is a whole UNet of Stable Diffusion, which the reference accepts."""
    whole = {
        key: shape
        for key, shape in manifest(fixtures_dir, "xnemo_denoising_unet").items()
        if "_modules." not in key
    }
    assert len(whole) == 686
    check(part(denoising, ""), whole, unet_maps.RULES)
    check(reference, whole, unet_maps.REFERENCE)
    with pytest.raises(ConversionError) as caught:
        check(reference, {k: s for k, s in whole.items() if k != "conv_in.bias"}, unet_maps.RULES)
    assert len(caught.value.problems) == 5  # four tensors of the output layer, one missing


def test_sizes_are_read_off_the_shapes(fixtures_dir):
    found = unet_maps.sizes(manifest(fixtures_dir, "xnemo_denoising_unet"))
    want = {k: list(v) if isinstance(v, tuple) else v for k, v in SIZES["sd15"].items()}
    assert found.pop("head") and found == {k: want[k] for k in found}
    assert found.keys() == want.keys() - {"heads", "norm_groups"}
    assert not unet_maps.sizes(manifest(fixtures_dir, "xnemo_reference_unet"))["head"]
    found = clip_maps.sizes(manifest(fixtures_dir, "clip_vit_l14_vision"))
    assert found == CLIP_SIZES["vit_l14"]
    for read, message in (
        (unet_maps.sizes, "missing, so this is not a UNet's file"),
        (clip_maps.sizes, "missing; the sizes are read from it"),
    ):
        with pytest.raises(ConversionError, match=message):
            read({"a.weight": (3, 3)})


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_older_names_of_the_temporal_autoencoder():
    tree = shapes_of(TemporalAutoencoder(**VAE_SIZES["tiny"]), (1, 8, 8, 3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
    state = export(params, vae_maps.RULES)

    def older(key):
        for new, old in OLD.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        return key

    renamed = {older(key): x for key, x in state.items()}
    assert len(renamed.keys() - state.keys()) == 16  # in the encoder and the decoder
    jax.tree.map(np.testing.assert_array_equal, convert(tree, renamed, vae_maps.RULES), params)


def test_there_and_back():
    size = {"channels": (32,), "attention": (True,), "context_width": 12, "norm_groups": 8}
    tree = shapes_of(
        DenoisingUNet(**SIZES["tiny"] | size), (1, 2, 2, 2, 4), TIME, (1, 1, 12), MOTION
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
    state = export(params, unet_maps.RULES)
    assert len(state) == len(jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, convert(tree, state, unet_maps.RULES), params)


def test_command_takes_single_networks(tmp_path, capsys):
    """X-NeMo's denoising network is converted in both directions; a wrong position code is refused."""
    size = {"channels": [32], "attention": [True], "layers_per_block": 1, "context_width": 12}
    network = command.NETWORKS["xnemo_denoising_unet"]
    arguments = size | {"heads": 4, "head": True}
    rng = np.random.default_rng(0)
    shapes = network.shapes(arguments)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    state = export(params, unet_maps.RULES)
    codes = network.constants(arguments)
    assert len(codes) == 2 * 4
    for wrong in (False, True):
        src, out = tmp_path / f"{wrong}.safetensors", tmp_path / f"{wrong}"
        extra = {key: code + wrong for key, code in codes.items()}
        write_safetensors(src, state | extra)
        given = ["xnemo_denoising_unet", f"--src={src}", f"--out={out}", "--heads=4"]
        assert command.main(given) == (EXIT_REFUSED if wrong else EXIT_DONE)
    said = capsys.readouterr()
    assert "0 missing" in said.out and "ignored 8: a fixed position code, recomputed" in said.out
    assert said.err.count("differs from the values that the port computes") == 8
    name, found, converted = folder.load(tmp_path / "False")
    assert (name, found) == ("xnemo_denoising_unet", arguments)
    jax.tree.map(np.testing.assert_array_equal, converted, params)


@pytest.mark.parametrize(
    ("name", "manifest_name"),
    [
        ("xnemo_reference_unet", "xnemo_reference_unet"),
        ("svd_vae", "svd_temporal_vae"),
        ("clip_vision", "clip_vit_l14_vision"),
    ],
)
def test_command_knows_the_released_sizes(fixtures_dir, name, manifest_name):
    network, shapes = command.NETWORKS[name], manifest(fixtures_dir, manifest_name)
    arguments = network.arguments(shapes, dict.fromkeys(network.options))
    check(network.shapes(arguments), shapes, network.rules)
