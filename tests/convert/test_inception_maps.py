"""Files of the networks behind FID and FVD: converted in both directions; files that do not fit are refused."""

import functools

import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.read import read, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED

# Keys and shapes as in the authors' code: (entries without counters, counters, examples).
FILES = {
    "fid_inception": (
        472,
        94,
        {
            "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
            "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
            "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
            "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
            "Mixed_7c.branch3x3dbl_3b.bn.running_var": (384,),
            "fc.bias": (1008,),
        },
    ),
    "i3d": (
        287,
        57,
        {
            "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
            "Mixed_3b.b1b.conv3d.weight": (128, 96, 3, 3, 3),
            "Mixed_5c.b2b.bn.running_mean": (128,),
            "logits.conv3d.weight": (400, 1024, 1, 1, 1),
        },
    ),
}


@functools.cache
def abstract(name):
    return command.NETWORKS[name].shapes({})


@pytest.fixture(scope="module", params=FILES)
def checkpoint(request):
    network = command.NETWORKS[request.param]
    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in paths.flatten(abstract(request.param)).items()}
    params = {path: rng.random(shape, np.float32) for path, shape in shapes.items()}
    source = engine.export(paths.unflatten(params), network.rules)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in source
        if key.endswith("running_mean")
    }
    return request.param, source, counters


def run(network, *arguments):
    return command.main([network, *map(str, arguments)])


def test_there_and_back(tmp_path, checkpoint, capsys):
    name, source, counters = checkpoint
    entries, counted, examples = FILES[name]
    assert (len(source), len(counters)) == (entries, counted)
    for key, shape in examples.items():
        assert source[key].shape == shape
    src, out, back = tmp_path / "a.safetensors", tmp_path / "out", tmp_path / "b.safetensors"
    write_safetensors(src, source | counters)
    assert run(name, f"--src={src}", f"--out={out}") == EXIT_DONE
    assert f"ignored {counted}: counts updates" in capsys.readouterr().out
    network, arguments, variables = folder.load(out)
    assert (network, arguments) == (name, {})
    if name == "i3d":
        kernel = variables["params"]["Mixed_3b"]["b1b"]["conv3d"]["kernel"]
        weight = source["Mixed_3b.b1b.conv3d.weight"]
        assert kernel[0, 1, 2, 5, 7] == weight[7, 5, 0, 1, 2]
        np.testing.assert_array_equal(
            variables["params"]["logits"]["kernel"], source["logits.conv3d.weight"][..., 0, 0, 0].T
        )
    else:
        kernel = variables["params"]["Mixed_6b"]["branch7x7dbl_2"]["conv"]["kernel"]
        assert kernel[4, 0, 5, 7] == source["Mixed_6b.branch7x7dbl_2.conv.weight"][7, 5, 4, 0]
        np.testing.assert_array_equal(
            variables["batch_stats"]["Mixed_7a"]["branch3x3_2"]["bn"]["var"],
            source["Mixed_7a.branch3x3_2.bn.running_var"],
        )
    assert run(name, f"--src={out}", f"--out={back}", "--export") == EXIT_DONE
    exported = read(back)
    assert exported.keys() == source.keys()
    for key, value in exported.items():
        np.testing.assert_array_equal(value, source[key], err_msg=key)


def test_files_that_do_not_fit(tmp_path, checkpoint, capsys):
    name, source, _ = checkpoint
    last = "Mixed_5c.b0.conv3d" if name == "i3d" else "Mixed_7c.branch1x1.conv"
    wrong = dict(source) | {"stranger.weight": np.ones(2, np.float32)}
    del wrong[f"{last}.weight"]
    src = tmp_path / "a.safetensors"
    write_safetensors(src, wrong)
    assert run(name, f"--src={src}", f"--out={tmp_path / 'out'}") == EXIT_REFUSED
    said = capsys.readouterr().err
    assert f"no source {last}.weight" in said and "stranger.weight: no rule uses it" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_no_other_key_is_taken(name):
    """A classifier with 1000 classes, such as torchvision's, behaves differently: its file is refused."""
    network = command.NETWORKS[name]
    flat = paths.flatten(abstract(name))
    empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat.items()}
    shapes = {
        key: x.shape for key, x in engine.export(paths.unflatten(empty), network.rules).items()
    }
    engine.check(abstract(name), shapes, network.rules)
    key = "logits.conv3d.bias" if name == "i3d" else "fc.bias"
    with pytest.raises(engine.ConversionError, match=r"shape \((400|1008),\), but .* \(1000,\)"):
        engine.check(abstract(name), shapes | {key: (1000,)}, network.rules)
