"""`python -m vidmotion.convert`: conversion in both directions, and the messages for files that do not fit."""

import json

import jax
import numpy as np
import pytest

from vidmotion.convert import __main__ as command
from vidmotion.convert import engine, folder
from vidmotion.convert.maps import vidtwin as maps
from vidmotion.convert.read import read, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED

SIZE = {
    "width": 8,
    "depth": 1,
    "heads": 2,
    "queries": 2,
    "structure_channels": 2,
    "structure_blocks": 2,
    "dynamics_channels": 3,
    "dynamics_blocks": 1,
    "frames": 2,
    "size": 12,
    "patch": [1, 2, 2],
    "query_width": 8,
    "query_layers": 1,
    "query_heads": 2,
    "query_mlp": 12,
    "structure_width": 4,
}
WITH_JUDGE = {**SIZE, "discriminator_width": 4}
VIDTWIN = command.NETWORKS["vidtwin"]


@pytest.fixture(scope="module")
def checkpoint():
    """Returns every array that a released checkpoint holds, in a small size."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), VIDTWIN.shapes(WITH_JUDGE)
    )
    rest = {
        "encoder.final_layer.scale_shift_table": (2, 8),
        "encoder.final_layer.linear.weight": (12, 8),
        "encoder.final_layer.linear.bias": (12,),
        "decoder.x_embedder.proj.weight": (8, 3, 1, 2, 2),
        "decoder.x_embedder.proj.bias": (8,),
        "loss.perceptual_loss.lin0.model.1.weight": (1, 64, 1, 1),
    }
    codes = {key: x.astype(np.float64) for key, x in VIDTWIN.constants(SIZE).items()}
    return (
        engine.export(params, maps.RULES)
        | {key: np.ones(shape, np.float32) for key, shape in rest.items()}
        | codes
    )


def run(*arguments):
    return command.main(["vidtwin", *map(str, arguments)])


HEADS = ("--heads=2", "--query_heads=2")


def refused(capsys, *arguments):
    assert run(*arguments) == EXIT_REFUSED
    return capsys.readouterr().err


def test_there_and_back(tmp_path, checkpoint, capsys):
    src, out, back = tmp_path / "x.safetensors", tmp_path / "out", tmp_path / "back.safetensors"
    write_safetensors(src, checkpoint)
    assert run(f"--src={src}", f"--out={out}", *HEADS) == EXIT_DONE
    said = capsys.readouterr().out
    assert "0 missing" in said and "ignored 4: a fixed position code, recomputed" in said
    assert "ignored 1: perceptual network" in said
    assert sorted(x.name for x in out.iterdir()) == ["network.json", "params.safetensors"]
    network, arguments, params = folder.load(out)
    assert (network, arguments) == ("vidtwin", WITH_JUDGE)
    want = VIDTWIN.shapes(WITH_JUDGE)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, want)
    loss = params["loss"]  # resumed training of the checkpoint needs these
    assert loss["logvar"] == checkpoint["loss.logvar"]
    kernel = checkpoint["loss.discriminator.main.2.weight"]
    np.testing.assert_array_equal(
        loss["disc"]["params"]["conv_1"]["kernel"][3, 2, 1], kernel[:, 1, 3, 2]
    )
    running = checkpoint["loss.discriminator.main.6.running_var"]
    np.testing.assert_array_equal(loss["disc"]["batch_stats"]["norm_2"]["var"], running)

    assert run(f"--src={out}", f"--out={back}", "--export") == EXIT_DONE
    exported = read(back)
    assert exported.keys() == engine.export(params, maps.RULES).keys()
    for key, value in exported.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, checkpoint[key], err_msg=key)
    assert run(f"--src={out}", f"--out={tmp_path / 'more'}", "--export") == EXIT_DONE
    assert (tmp_path / "more" / "vidtwin.safetensors").read_bytes() == back.read_bytes()


def test_a_checkpoint_without_its_judges(tmp_path, checkpoint):
    src, out = tmp_path / "x.safetensors", tmp_path / "out"
    write_safetensors(src, {k: x for k, x in checkpoint.items() if not k.startswith("loss.")})
    assert run(f"--src={src}", f"--out={out}", *HEADS) == EXIT_DONE
    _, arguments, params = folder.load(out)
    assert "discriminator_width" not in arguments and "loss" not in params


@pytest.mark.oracle
def test_lightning_checkpoint(tmp_path, checkpoint):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(np.array(x)) for key, x in checkpoint.items()}
    src = tmp_path / "x.ckpt"
    torch.save({"epoch": 3, "global_step": 7, "state_dict": tensors}, src)
    assert run(f"--src={src}", f"--out={tmp_path / 'out'}", *HEADS) == EXIT_DONE
    _, _, params = folder.load(tmp_path / "out")
    for key, value in engine.export(params, maps.RULES).items():
        np.testing.assert_array_equal(value, checkpoint[key], err_msg=key)


def test_all_offenders_in_one_message(tmp_path, checkpoint, capsys):
    src = tmp_path / "x.safetensors"
    wrong = dict(checkpoint)
    del wrong["decoder.blocks.0.mlp.fc1.bias"], wrong["conv_out.bias"]
    wrong |= {"motion_head.bias": np.ones(8, np.float32), "surplus.weight": np.ones(1, np.float32)}
    write_safetensors(src, wrong)
    said = refused(capsys, f"--src={src}", f"--out={tmp_path / 'out'}", *HEADS)
    assert said.startswith(f"error: {src}: weights do not fit, 4 problem(s):")
    for offender in ("decoder.blocks.0.mlp.fc1.bias", "conv_out.bias", "motion_head.bias"):
        assert offender in said
    assert "source surplus.weight: no rule uses it" in said
    assert not (tmp_path / "out").exists()


def test_position_codes_must_be_ours(tmp_path, checkpoint, capsys):
    """A checkpoint whose position codes have rows and columns exchanged is refused."""
    code = checkpoint["encoder.pos_embed"].reshape(1, 6, 6, 8).swapaxes(1, 2).reshape(1, 36, 8)
    write_safetensors(tmp_path / "x.safetensors", checkpoint | {"encoder.pos_embed": code})
    said = refused(capsys, f"--src={tmp_path / 'x.safetensors'}", f"--out={tmp_path}", *HEADS)
    assert "source encoder.pos_embed: differs from the values" in said and "decoder.pos" not in said


def test_files_of_another_kind(tmp_path, checkpoint, capsys):
    out = f"--out={tmp_path / 'out'}"
    src = tmp_path / "x.safetensors"
    assert "no such file" in refused(capsys, f"--src={src}", out)
    write_safetensors(src, {"a": np.ones(2, np.float32)})
    said = refused(capsys, f"--src={src}", out)
    assert (
        "cont_emb.2.weight: expected an array with 3 axes" in said and "motion_emb.0.weight" in said
    )
    write_safetensors(src, checkpoint)
    assert "give it as --heads=N" in refused(capsys, f"--src={src}", out)
    assert "must be divisible by heads=3" in refused(capsys, f"--src={src}", out, "--heads=3")
    assert "--out must be a folder" in refused(capsys, f"--src={src}", f"--out={src}", *HEADS)
    src.write_bytes(src.read_bytes()[:-1000])
    assert "damaged" in refused(capsys, f"--src={src}", out, *HEADS)
    (tmp_path / "x.txt").write_text("hello")
    assert "the name must end in .safetensors" in refused(
        capsys, f"--src={tmp_path / 'x.txt'}", out
    )
    (tmp_path / "x.safetensors").write_text("hello")
    assert "damaged" in refused(capsys, f"--src={src}", out)
    assert not (tmp_path / "out").exists()


@pytest.mark.oracle
def test_truncated_torch_file(tmp_path, checkpoint, capsys):
    torch = pytest.importorskip("torch")
    src = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.ones(10_000)}}, src)
    for content in (src.read_bytes()[:20_000], b"", b"hello"):
        src.write_bytes(content)
        said = refused(capsys, f"--src={src}", f"--out={tmp_path / 'out'}")
        assert str(src) in said and len(said.splitlines()) < 12


def test_folders_that_do_not_fit(tmp_path, checkpoint, capsys):
    out = tmp_path / "out"
    write_safetensors(tmp_path / "x.safetensors", checkpoint)
    run(f"--src={tmp_path / 'x.safetensors'}", f"--out={out}", *HEADS)
    capsys.readouterr()
    back = "--export", f"--out={tmp_path / 'y.safetensors'}"
    assert "has completed" in refused(capsys, f"--src={tmp_path}", *back)
    said = refused(capsys, f"--src={out}", "--export", f"--out={tmp_path / 'y.bin'}")
    assert "must end in .safetensors" in said
    file = out / folder.NETWORK
    content = json.loads(file.read_text())
    for broken, message in [
        (content | {"network": "t5"}, "holds the network t5, not vidtwin"),
        ({"network": "vidtwin"}, "does not name a network and its arguments"),
        (content | {"arguments": SIZE | {"depths": 2}}, "not the arguments of a VidTwin.*depths"),
        (content | {"arguments": SIZE | {"depth": 3}}, "encoder/trunk/block_2"),
    ]:
        file.write_text(json.dumps(broken))
        said = refused(capsys, f"--src={out}", *back)
        assert message.split(".*")[0] in said and message.split(".*")[-1] in said
    (out / folder.PARAMS).unlink()
    assert "params.safetensors: no such file" in refused(capsys, f"--src={out}", *back)
    assert not (tmp_path / "y.safetensors").exists()


def test_names_no_network(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["vidtwins"])
    assert caught.value.code == EXIT_REFUSED
    assert "choose from" in capsys.readouterr().err
