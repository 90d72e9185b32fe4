"""The networks that this package ships, and what happens when they are opened or trained further."""

import hashlib

import jax
import ml_collections
import numpy as np
import pytest

from vidmotion import demo, evaluation, media, paths, weights
from vidmotion.convert import read
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.open_run import load_config, open_run
from vidmotion.reenact import reenact
from vidmotion.run import Run
from vidmotion.train import train

# Two figures of each card: evaluator, metric, and by how much float16 and the order of sums may change it.
FIGURES = {
    "heads_codec": ("codec", {"psnr/codec": 0.02, "ssim/codec": 0.001}),
    "heads_reader": ("heads_reader", {"read/motion/yaw": 0.001, "read/identity/glasses": 0.002}),
    "sprites_judge": ("sprites_judge", {"judge/action": 0.001, "judge/hair": 0.001}),
    "image_motion": ("swap", {"psnr/swap": 0.05, "psnr/self": 0.05}),
}
MEBI = 2**20


@pytest.mark.parametrize("name", weights.names())
def test_each_is_small_and_says_where_it_comes_from(name):
    file, card = weights.FOLDER / f"{name}.safetensors", weights.card(name)
    values = read.read(file)
    # In the file the names of the arrays take some more.
    assert sum(value.nbytes for value in values.values()) <= 6 * MEBI
    assert file.stat().st_size <= 6.1 * MEBI
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
    assert len(card["commit"]) == 40 and card["steps_done"] == card["config"]["steps"] > 0
    assert card["licence"] == "Apache-2.0" and card["results"]
    assert {value.dtype for value in values.values()} == {np.dtype(np.float16)}


def test_all_of_them_are_small_together():
    assert sum(file.stat().st_size for file in weights.FOLDER.iterdir()) <= 32 * MEBI


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.names())
def test_each_reaches_what_its_card_says(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # pictures go into a folder of that name
    evaluator, metrics = FIGURES.get(name, FIGURES["image_motion"])
    changes = {}
    if weights.card(name)["config"]["data"]["kind"] == "sprites":
        changes["data.common.sheets_dir"] = str(request.getfixturevalue("sheets_dir"))
    run = open_run(name, changes)
    rows = evaluation.evaluate(evaluator, run, run.trained_vars())
    found = {row.metric: row.value for row in rows}
    said = {row["metric"]: row["value"] for row in weights.card(name)["results"]}
    for metric, tolerance in metrics.items():
        assert found[metric] == pytest.approx(said[metric], abs=tolerance), metric
    # Near zero, the motion code would be the same for all drivers.
    assert found.get("code_spread", 1.0) > 0.05


@pytest.mark.parametrize("name, network", [("heads_xnemo", "motion"), ("sprites_judge", "")])
def test_running_statistics_are_shipped(name, network):
    """Fresh statistics are means of 0 and variances of 1."""
    mutable = open_run(name).trained_vars().mutable
    for path, leaf in paths.flatten(mutable[network] if network else mutable).items():
        assert np.any(np.asarray(leaf) != (0 if path.endswith("mean") else 1)), path


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory):
    """Returns the workdir of a run whose encoder does not learn."""
    workdir = tmp_path_factory.mktemp("runs") / "half"
    assert train(frozen(), str(workdir)) == EXIT_DONE
    return workdir


def frozen() -> ml_collections.ConfigDict:
    config = load_config("heads:debug")
    config.optimizer.model.trainable = ((r"encoder/.*", False), (".*", True))
    return config


def test_what_did_not_learn_is_not_shipped_and_comes_from_the_seed(
    half_trained, tmp_path, monkeypatch
):
    trained = weights.read(str(half_trained), "workdir")["model"]
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    file = weights.ship(str(half_trained), "half", tmp_path)
    assert not [path for path in read.read(file) if path.startswith("model/encoder/")]
    opened = jax.device_get(open_run("half").trained_vars().params["model"])
    whole, again = paths.flatten(trained), paths.flatten(opened)
    assert again.keys() == whole.keys()
    for path, leaf in whole.items():
        exact = path.startswith("encoder/")
        np.testing.assert_allclose(
            again[path], leaf, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6, err_msg=path
        )
    config = frozen()
    config.init_from, config.init_rules = "half", ((r"model/encoder/.*", None), (".*", True))
    fresh = paths.flatten(jax.device_get(Run(config, "").fresh_state().params["model"]))
    for path, leaf in again.items():
        np.testing.assert_array_equal(fresh[path], leaf, err_msg=path)


def test_what_did_not_learn_ships_where_it_came_from_another_run(
    half_trained, tmp_path, monkeypatch
):
    record = half_trained / "record.json"
    before = record.read_text()
    record.write_text(before.replace('"init_from": ""', '"init_from": "runs/another"'))
    try:
        file = weights.ship(str(half_trained), "half", tmp_path)
    finally:
        record.write_text(before)
    assert [path for path in read.read(file) if path.startswith("model/encoder/")]


@pytest.mark.slow
def test_the_demo_moves_heads_by_all_four(tmp_path, capsys):
    assert demo.main([f"--out={tmp_path / 'new'}", "--pairs=2"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert all(f"  {title} " in said for title in demo.TITLES.values())
    for name in ("faces.png", "demo.png", "demo.gif", "demo.mp4"):
        assert (tmp_path / "new" / name).stat().st_size > 0
    # Two rows of seven cells: source, driver, exact answer and four systems.
    cell = demo.SCALE * demo.FACES["size"]
    video = np.stack(list(media.iter_video(tmp_path / "new" / "demo.mp4")))
    assert video.shape[0] == demo.FACES["frames"]
    assert video.shape[1] // cell == 2 and video.shape[2] // cell == 7


@pytest.mark.slow
def test_the_demo_shows_runs_beside_each_other(tmp_path, capsys):
    assert demo.main([f"--out={tmp_path}", "--pairs=2", "--runs", "heads_vidtwin"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "  VidTwin " in said and "  BCD " not in said
    assert demo.titled(["heads_vidtwin", "heads_bcd"]) == {
        "VidTwin": "heads_vidtwin",
        "BCD": "heads_bcd",
    }


def test_what_the_demo_cannot_show_is_refused(heads_run, tmp_path):
    for places, message in (
        (
            ["heads_bcd", "sprites_judge"],
            "sprites_judge holds a run of sprites_judge, which cannot",
        ),
        (
            [str(heads_run)],
            r"trained on data of kind 'heads' \(size 16\), but this shows heads of 64",
        ),
        ([str(tmp_path)], "holds no run"),
        (["heads_bcd", "heads_bcd"], "two of heads_bcd, heads_bcd have the same name"),
    ):
        with pytest.raises(ConfigError, match=message):
            demo.titled(places)


def test_the_demo_needs_two_pairs_and_networks(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="at least two are needed"):
        demo.drawn(1)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="this package ships no network that moves heads"):
        demo.demo(tmp_path / "out")


@pytest.mark.slow
def test_a_shipped_warpface_makes_each_frame_of_a_video_by_itself(tmp_path, monkeypatch):
    """It matters neither how many frames are made together, nor where a video of another length ends."""
    source = demo.make_source("heads", clips=2, **{**demo.FACES, "frames": 10})
    picture, motion = str(tmp_path / "A.png"), str(tmp_path / "B.mp4")
    media.write_png(picture, source[0]["video"][0])
    media.write_mp4(motion, source[1]["video"], fps=4)
    run = open_run("heads_warpface")
    videos, write = [], media.write_mp4

    def kept(path, frames, *arguments, **named):
        frames = list(frames)
        videos.append(np.stack(frames).astype(int))
        return write(path, frames, *arguments, **named)

    monkeypatch.setattr(media, "write_mp4", kept)  # the frames, before a video codec touches them
    for together in (1, 2):
        out = str(tmp_path / f"{together}.mp4")
        assert reenact(run, picture, motion, out, together=together) == 10
    one, two = videos
    assert one.shape == (10, 64, 64, 3)
    moved = np.abs(one[0] - one[-1]).mean()
    assert moved > 5  # out of 255
    # Each size of batch is a program of its own; on some processors sampling may magnify its rounding.
    assert np.abs(one - two).mean() < 0.05 * moved
