"""configs/own.py: any system on any folder of clips; what does not fit is reported before the first step."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from configs import benchmark, own
from vidmotion import evaluation
from vidmotion.data import prepare
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.train import train

SIDE = {"bcd": 16, "vidtwin": 16, "xnemo": 32, "warpface": 32}


def clips(folder, side=32, frames=8, boxes=False, test=2, train=12):
    """Writes a folder of noise as `prepare` would: `train` clips to train on, and `test` others."""
    rng = np.random.default_rng(0)
    made_by = {"command": f"prepare --size={side} --force"}
    with DatasetWriter(folder, "videos", provenance=made_by) as writer:
        for split, count in (("train", train), ("test", test)):
            for k in range(count):
                record = {
                    "video": rng.integers(0, 256, (frames, side, side, 3), np.uint8),
                    "length": np.int32(frames),
                    "fps": np.float32(25),
                    "source": f"{split}{k}.mp4",
                    "start": np.float64(0),
                    "box": np.float32([0, 0, side, side]),
                }
                if boxes:
                    record["boxes"] = np.float32([[4, 4, 20, 20]] * frames)
                writer.write(split, record)
    return str(folder)


def config_of(system, folder):
    config = load_config(f"own:debug,system={system}")
    config.data.common.directory = folder
    return config


@pytest.mark.slow
@pytest.mark.parametrize("system", benchmark.SYSTEMS)
def test_two_steps_on_a_folder_of_clips(system, tmp_path, unoptimised, one_device):
    config = config_of(system, clips(tmp_path / "data", SIDE[system]))
    assert train(config, str(tmp_path / "run")) == EXIT_DONE
    (protocol,) = evaluation.asked(config)
    rows = json.loads((tmp_path / "run" / "eval" / f"{protocol}.json").read_text())["results"]
    values = {row["metric"]: row["value"] for row in rows}
    made, copied = {
        "self_reenactment": ("psnr", "psnr/copy_reference"),
        "reconstruction": ("psnr/reconstruction", "psnr/mean_frame"),
    }[protocol]
    assert math.isfinite(values[made]) and math.isfinite(values[copied])
    assert (tmp_path / "run" / "samples" / "transfer-2.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("test", [0, 1])
def test_a_single_video_is_moved_by_itself(test, tmp_path, unoptimised, one_device, caplog):
    config = config_of("bcd", clips(tmp_path / "data", 16, test=test, train=1))
    assert train(config, str(tmp_path / "run")) == EXIT_DONE
    # One row and one column besides the headers, of 128 pixels each.
    with Image.open(tmp_path / "run" / "samples" / "transfer-2.png") as sheet:
        assert sheet.width < 3 * 128 and sheet.height < 3 * 128


def refused(config, workdir, message, error=ConfigError):
    with pytest.raises(error, match=message):
        train(config, str(workdir))
    assert not workdir.exists() or not any(workdir.iterdir())


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path):
    run = tmp_path / "run"
    config = config_of("bcd", str(tmp_path / "none"))
    refused(config, run, "no such dataset folder", DatasetError)
    message = r"24, 24, 3\), expected.*To make clips of that size: prepare --size=16 --force"
    refused(config_of("bcd", clips(tmp_path / "large", 24)), run, message)
    message = "evaluate on have 64 x 64 pixels, but config.system has 32 x 32. To make.*--size=32"
    config = config_of("warpface", clips(tmp_path / "wide", 64))
    config.data.train.pair = {**config.data.train.pair.to_dict(), "size": 32}  # scaled in training
    refused(config, run, message)
    config = config_of("vidtwin", clips(tmp_path / "short", 16, frames=3))
    refused(config, run, "prepare longer clips")
    config = config_of("vidtwin", clips(tmp_path / "short_test", 16))
    config.data.eval.split = "validation"
    refused(config, run, "validation.*To train without samples and evaluation", DatasetError)
    config = config_of("warpface", clips(tmp_path / "still", 32, frames=1))
    refused(config, run, "prepare longer clips")


def test_without_boxes_the_whole_picture_is_the_face(tmp_path):
    whole = Run(config_of("xnemo", clips(tmp_path / "whole")), "").loader("train").batch(0)
    assert np.all(whole["f_rts"] == np.float32([0, 0, 1]))
    boxes = config_of("xnemo", clips(tmp_path / "boxes", boxes=True))
    source = Run(boxes, "").source("train")
    # The driver is a face of 16 px and its surroundings, not all 32 px.
    record, pair = source[0], source.transforms[0]
    found = pair.random_map(record, np.random.default_rng(0))
    without = {name: value for name, value in record.items() if name != "boxes"}
    other = pair.random_map(without, np.random.default_rng(0))
    assert np.array_equal(found["target"], other["target"])
    assert not np.array_equal(found["driving_clean"], other["driving_clean"])
    corners = {**record, "boxes": np.float32([[0, 0, 32, 32]] * 8)}
    same = pair.random_map(corners, np.random.default_rng(0))
    assert all(np.array_equal(same[name], other[name]) for name in same)


def test_without_boxes_a_recipe_refuses(tmp_path):
    config = config_of("xnemo", clips(tmp_path / "data"))
    config.data.train.whole = False
    refused(config, tmp_path / "run", "expected clips with their faces' boxes", DatasetError)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize("system", benchmark.SYSTEMS)
def test_published_weights_are_asked_for_by_name(system, size):
    """The config names the files in docs/weights.md for the paper's own network at that size."""
    config = load_config(f"own:weights=published,system={system},size={size}")
    paths = {
        "bcd": {"system.codec.weights": "weights/sd_vae"},
        "vidtwin": {"system.perceptual.weights": "weights/lpips_vgg"},
        "xnemo": {
            "init_from": "weights/xnemo_base",
            "system.codec.weights": "weights/svd_vae",
            "system.clip.weights": "weights/clip_vision",
        },
        "warpface": {"init_from": "weights/sd15", "system.codec.weights": "weights/sd15/vae"},
    }[system]
    for name, value in paths.items():
        holder = config
        for part in name.split("."):
            holder = holder[part]
        assert holder == value
    spec = Run(config, "", abstract=True).batch
    assert {"video", "target"} & spec.keys()
    assert all(size in leaf.shape for name, leaf in spec.items() if name in ("video", "target"))


def test_sizes_give_as_many_places(tmp_path):
    assert tuple(own.SIDES) == prepare.OWN_SIZES  # `prepare` suggests these sizes
    for size, side in own.SIDES.items():
        assert size % side == 0 and (size // side) % own.PLACES == 0
