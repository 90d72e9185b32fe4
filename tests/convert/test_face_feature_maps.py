"""Files of the networks behind CSIM and EMO-SIM: converted in both directions; files that do not fit are refused."""

import dataclasses

import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.read import read, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED

# Small networks; the command reads their sizes from the file.
ARGUMENTS = {
    "arcface": {"layers": (1, 2, 1, 1), "widths": (4, 6, 8, 10), "embedding": 7, "size": 32},
    "emonet": {"expressions": 5, "width": 4, "landmarks": 6},
}


@pytest.fixture(scope="module", params=ARGUMENTS)
def checkpoint(request):
    network = command.NETWORKS[request.param]
    rng = np.random.default_rng(0)
    abstract = network.shapes(ARGUMENTS[request.param])
    flat = paths.flatten(abstract)
    variables = {path: rng.random(leaf.shape, np.float32) for path, leaf in flat.items()}
    source = engine.export(paths.unflatten(variables), network.rules)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in source
        if key.endswith("running_mean")
    }
    with pytest.MonkeyPatch.context() as patch:
        # Tracing the network takes seconds, and its shapes stay the same.
        traced = dataclasses.replace(network, shapes=lambda arguments: abstract)
        patch.setitem(command.NETWORKS, request.param, traced)
        yield request.param, source, counters


def run(network, *arguments):
    return command.main([network, *map(str, arguments)])


def test_there_and_back(tmp_path, checkpoint, capsys):
    name, source, counters = checkpoint
    src, out, back = tmp_path / "a.safetensors", tmp_path / "out", tmp_path / "b.safetensors"
    write_safetensors(src, source | counters)
    assert run(name, f"--src={src}", f"--out={out}") == EXIT_DONE
    assert f"ignored {len(counters)}: counts updates" in capsys.readouterr().out
    network, arguments, variables = folder.load(out)
    as_stored = {k: list(v) if isinstance(v, tuple) else v for k, v in ARGUMENTS[name].items()}
    assert (network, arguments) == (name, as_stored)
    params, stats = variables["params"], variables["batch_stats"]
    if name == "arcface":
        kernel = params["layer2_1"]["conv2"]["kernel"]
        assert kernel[1, 2, 3, 5] == source["layer2.1.conv2.weight"][5, 3, 1, 2]
        slope = source["layer2.1.prelu.weight"]
        np.testing.assert_array_equal(params["layer2_1"]["prelu"]["slope"], slope)
        np.testing.assert_array_equal(
            stats["layer3_0"]["downsample_bn"]["var"], source["layer3.0.downsample.1.running_var"]
        )
    else:
        kernel = params["m1"]["after_2"]["conv2"]["kernel"]
        assert kernel[1, 2, 3, 1] == source["m1.b3_2.conv2.weight"][1, 3, 1, 2]
        kernel = params["emo_net_2_3"]["conv1"]["kernel"]
        assert kernel[0, 2, 3, 1] == source["emo_net_2.6.conv1.weight"][1, 3, 0, 2]
        np.testing.assert_array_equal(
            stats["emo_fc_norm"]["mean"], source["emo_fc_2.1.running_mean"]
        )
    assert run(name, f"--src={out}", f"--out={back}", "--export") == EXIT_DONE
    exported = read(back)
    assert exported.keys() == source.keys()
    for key, value in exported.items():
        np.testing.assert_array_equal(value, source[key], err_msg=key)


def test_prefix_of_parallel_training(tmp_path, checkpoint):
    """A public EmoNet file whose keys all have the form module.KEY is accepted."""
    name, source, counters = checkpoint
    if name != "emonet":
        pytest.skip("ArcFace's files have no prefix")
    src, out = tmp_path / "a.safetensors", tmp_path / "out"
    write_safetensors(src, {f"module.{key}": x for key, x in (source | counters).items()})
    assert run(name, f"--src={src}", f"--out={out}") == EXIT_DONE
    assert folder.load(out)[1] == ARGUMENTS["emonet"]


def test_files_that_do_not_fit(tmp_path, checkpoint, capsys):
    name, source, _ = checkpoint
    src, out = tmp_path / "a.safetensors", f"--out={tmp_path / 'out'}"
    gone = "features.running_var" if name == "arcface" else "bl0.weight"
    wrong = {key: x for key, x in source.items() if key != gone} | {"odd.weight": np.ones(2)}
    write_safetensors(src, wrong)
    assert run(name, f"--src={src}", out) == EXIT_REFUSED
    said = capsys.readouterr().err
    assert f"no source {gone}" in said and "odd.weight: no rule uses it" in said
    write_safetensors(src, {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)})
    assert run(name, f"--src={src}", out) == EXIT_REFUSED
    published = {"arcface": "give --src=backbone.pth", "emonet": "give --src=emonet_8.pth"}
    assert published[name] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
