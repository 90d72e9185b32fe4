"""Tables of VidTwin's loss networks: the released keys, conversion in both directions, and missing files."""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.maps import lpips as maps
from vidmotion.convert.maps import patchgan
from vidmotion.convert.read import read, read_manifest, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED
from vidmotion.models.features.lpips import SCALE, SHIFT
from vidmotion.models.patchgan import PatchDiscriminator

PREFIX = "loss.perceptual_loss."


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.random(shape, np.float32) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files():
    """Returns random values for AlexNet's two public files, with the keys and shapes of torchvision and lpips."""
    convs = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    trunk = {}
    for place, (outputs, inputs, size) in convs.items():
        trunk[f"features.{place}.weight"] = (outputs, inputs, size, size)
        trunk[f"features.{place}.bias"] = (outputs,)
    heads = {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    rest = {"classifier.1.weight": (8, 4), "classifier.1.bias": (8,)}
    return random(trunk | rest), random(heads, seed=1)


def run(network, *arguments):
    return command.main([network, *map(str, arguments)])


def test_two_files_there_and_back(tmp_path, files, capsys):
    trunk, heads = files
    src, lins, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out"
    write_safetensors(src, trunk)
    write_safetensors(lins, heads)
    assert run("lpips_alex", f"--src={src}", f"--heads={lins}", f"--out={out}") == EXIT_DONE
    assert "ignored 2: the dense layers" in capsys.readouterr().out
    network, arguments, params = folder.load(out)
    assert (network, arguments) == ("lpips_alex", {"trunk": "alex"})
    kernel = params["net"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel[1, 2, 3, 4], trunk["features.3.weight"][4, 3, 1, 2])
    np.testing.assert_array_equal(
        params["head_3"]["kernel"][:, 0], heads["lin3.model.1.weight"][0, :, 0, 0]
    )
    back = tmp_path / "back.safetensors"
    assert run("lpips_alex", f"--src={out}", f"--out={back}", "--export") == EXIT_DONE
    want = {key: x for key, x in (trunk | heads).items() if not key.startswith("classifier")}
    exported = read(back)
    assert exported.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


def test_a_file_is_missing(tmp_path, files, capsys):
    trunk, heads = files
    src, lins = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_safetensors(src, trunk)
    write_safetensors(lins, heads)
    out = f"--out={tmp_path / 'out'}"

    def refused(network, *arguments):
        assert run(network, *arguments, out) == EXIT_REFUSED
        return capsys.readouterr().err

    said = refused("lpips_alex", f"--src={src}")
    assert "give --heads=lpips/weights/v0.1/alex.pth, in the package lpips of PyPI" in said
    assert "trunk" not in said
    said = refused("lpips_alex", f"--src={lins}")
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in said
    assert "--heads" not in said
    said = refused("lpips_vgg", f"--src={lins}")
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in said
    # The heads belong to the other trunk.
    said = refused("lpips_vgg", f"--src={src}", f"--heads={lins}")
    assert "net/conv1_2/kernel: no source features.2.weight" in said
    said = refused("lpips_alex", f"--src={src}", f"--heads={tmp_path / 'none.pth'}")
    assert "none.pth: no such file" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def released(fixtures_dir):
    """Returns the keys and shapes of VidTwin's released checkpoint."""
    return read_manifest(fixtures_dir / "manifests" / "vidtwin_released.txt")


def discriminator_shapes():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    net = PatchDiscriminator()
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), x)


def test_every_loss_tensor_has_its_place(released):
    """The checkpoint has 56 loss tensors: 31 of LPIPS, 19 of the discriminator and 6 that are ignored for a reason."""
    network = command.NETWORKS["lpips_vgg"]
    arguments = network.arguments(released, {"heads": None})
    engine.check(network.shapes(arguments), released, network.rules)
    mine = {key: s for key, s in released.items() if key.startswith("loss.discriminator.")}
    engine.check(discriminator_shapes(), mine, patchgan.RULES)

    loss = {key for key in released if key.startswith("loss.")}
    assert len(loss) == 56

    def zeros(tree):
        return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)

    # Export uses the first spelling in the table; for LPIPS this is the spelling of its own two files.
    perceptual = len(engine.export(zeros(network.shapes(arguments)), network.rules))
    discriminator = engine.export(zeros(discriminator_shapes()), patchgan.RULES).keys()
    assert perceptual == 31 and len(discriminator) == 19 and discriminator < loss
    ignores = [
        rule
        for rule in (*network.rules, *patchgan.RULES)
        if isinstance(rule, engine.Ignore) and rule.source != "loss.discriminator.*"
    ]
    ignored = {k for k in loss for rule in ignores if fnmatch.fnmatchcase(k, rule.source)}
    assert ignored == {
        "loss.logvar",
        f"{PREFIX}scaling_layer.shift",
        f"{PREFIX}scaling_layer.scale",
        *(f"loss.discriminator.main.{i}.num_batches_tracked" for i in (3, 6, 9)),
    }


def test_lpips_from_a_vidtwin_checkpoint(tmp_path, released, capsys):
    """LPIPS is read from a VidTwin checkpoint cut down to LPIPS and two tensors; wrong constants are refused."""
    shapes = {
        key: shape
        for key, shape in released.items()
        if key.startswith(PREFIX) or key in ("conv_in.bias", "loss.logvar")
    }
    source = random(shapes) | maps.constants(SHIFT, SCALE)
    assert source.keys() == shapes.keys()
    src, out = tmp_path / "x.safetensors", tmp_path / "out"
    write_safetensors(src, source)
    assert run("lpips_vgg", f"--src={src}", f"--out={out}") == EXIT_DONE
    said = capsys.readouterr().out
    assert "14,716,160 parameters from 31 keys; 0 missing" in said
    assert "ignored 2: other parts of VidTwin" in said
    _, arguments, params = folder.load(out)
    assert arguments == {"trunk": "vgg"}
    weight = source[f"{PREFIX}net.slice4.19.weight"]
    kernel = params["net"]["conv4_2"]["kernel"]
    np.testing.assert_array_equal(kernel[2, 0, :5, :7], weight[:7, :5, 2, 0].T)

    write_safetensors(src, source | {f"{PREFIX}scaling_layer.shift": np.zeros((1, 3, 1, 1))})
    assert run("lpips_vgg", f"--src={src}", f"--out={out}") == EXIT_REFUSED
    assert (
        "scaling_layer.shift: differs from the values that the port computes"
        in capsys.readouterr().err
    )


def test_discriminator_there_and_back(released):
    shapes = {key: s for key, s in released.items() if key.startswith("loss.discriminator.")}
    source = random(shapes)
    variables = engine.convert(discriminator_shapes(), source, patchgan.RULES)
    flat = paths.flatten(variables)
    kernel, weight = flat["params/conv_3/kernel"], source["loss.discriminator.main.8.weight"]
    np.testing.assert_array_equal(kernel[1, 2, 3], weight[:, 3, 1, 2])
    np.testing.assert_array_equal(
        flat["batch_stats/norm_2/var"], source["loss.discriminator.main.6.running_var"]
    )
    for key, value in engine.export(variables, patchgan.RULES).items():
        np.testing.assert_array_equal(value, source[key], err_msg=key)
