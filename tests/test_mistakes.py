"""Mistakes of the first day: each ends with exit code 2 and one sentence that tells what is wrong and what to do."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_own import clips

from vidmotion import media
from vidmotion.__main__ import main as vidmotion_command
from vidmotion.errors import EXIT_REFUSED
from vidmotion.open_run import load_config

HERE = Path(__file__).resolve().parent
TRAIN = "train --config=heads:debug --workdir=runs/x"
OWN = "train --config=own:debug,system=bcd --workdir=runs/x"
MOVE = "reenact --content=A.png --motion=videos/B.mp4 --out=C.mp4"

# (what is typed after `vidmotion`, what the sentence must contain). The folder holds videos whose first 1.2 seconds
# have no cut, a picture, an empty file, prepared clips of other sizes and lengths, and runs that have begun.
MISTAKES = [
    # the command itself
    ("trian --config=heads:demo", ["'trian' is not a command; did you mean 'train'?"]),
    ("train heads:debug --workdir=runs/x", ["--config=", "did you mean --config=heads:debug?"]),
    ("train --config=xnemo:dmeo --workdir=runs/x", ["'dmeo': choose from demo, debug, mini, sta"]),
    (f"{TRAIN} --steps=5", ["flag 'steps'", "the field of the config is set with --config.steps"]),
    (f"{TRAIN} --config.steps=2.5", ["--config.steps must be a whole number, not '2.5'"]),
    (
        f"{TRAIN} --config.system.sampler.stps=4",
        ["--config.system.sampler.stps", "no such field; did you mean 'steps'?"],
    ),
    (
        "bench --config=sprits --out=bench",
        ["no config 'sprits'; did you mean 'sprites'? Give one of these names"],
    ),
    # the beginning of a training
    (
        "train --config=heads:debug --workdir=runs/judge",
        [
            "runs/judge belongs to a run with another config",
            "'sprites' in that run",
            "another --workdir",
        ],
    ),
    (
        OWN,
        [
            "data/own: no such dataset folder",
            "vidmotion prepare videos --src=FOLDER --out=data/own --size=16",
        ],
    ),
    (
        f"{OWN} --config.data.common.directory=videos",
        ["videos: not a dataset", "vidmotion.data.prepare videos --src=videos --out=DIR"],
    ),
    (
        f"{OWN} --config.data.common.directory=data/large",
        ["24, 24, 3), expected uint8(8, 4, 16, 16, 3)", "clips of that size: prepare --size=16"],
    ),
    (
        f"{OWN} --config.data.common.directory=data/brief",
        ["span 4 frames, but the stored clips have 3", "prepare longer clips (--seconds)"],
    ),
    (
        f"{TRAIN} --config.init_from=heads_codek",
        ["config.init_from=heads_codek is not a trained run", "shipped networks, ", "heads_codec"],
    ),
    (
        "train --config=heads:demo --workdir=runs/x --config.system.codec.weights=heads_codek",
        ["config.system.codec.weights='heads_codek'", "shipped networks (", "heads_codec"],
    ),
    (f"{TRAIN} --evals=psnr", ["'psnr'; bcd can be evaluated by swap, drivers", "--evals=none"]),
    # commands that need a trained run
    (
        "eval --config=heads:debug --workdir=runs/bcd",
        ["runs/bcd holds no checkpoint; train first (vidmotion train"],
    ),
    (
        "plan --config=heads:debug --config.plan.chip=b300 --config.plan.devices=8",
        ["config.plan.chip='b300' is not known; choose from v4, v5e"],
    ),
    (
        "plan --config=heads:debug --config.plan.compiler=cpu --config.plan.devices=3",
        ["config.batch_size=8 cannot be cut into 3 mesh shards", "use 6 or 9"],
    ),
    (
        f"{MOVE} --workdir=runs/none",
        ["runs/none holds no run", "shipped networks are ", "heads_codec"],
    ),
    (
        f"{MOVE} --workdir=heads_codec",
        ["image_autoencoder, which cannot transfer motion; runs of BCD, X-NeMo"],
    ),
    (
        f"{MOVE} --workdir=runs/bcd --motion=A.png",
        ["--motion=A.png is a picture, which does not move: give a video, a GIF"],
    ),
    (f"{MOVE} --workdir=runs/bcd --content=empty.png", ["empty.png is not a picture that can be"]),
    (f"{MOVE} --workdir=runs/bcd --motion=empty.mp4", ["empty.mp4: not a readable video"]),
    (f"{MOVE} --workdir=runs/bcd --out=C", ["--out=C: the name must end in .mp4"]),
    (
        f"{MOVE} --workdir=runs/bcd --out=videos/B.mp4",
        ["--out=videos/B.mp4 would overwrite one of the inputs; choose another name"],
    ),
    (
        f"{MOVE} --workdir=runs/bcd --part=structure",
        ["--part=structure: runs/bcd holds a bcd, not a VidTwin"],
    ),
    (
        f"{MOVE} --workdir=runs/bcd --strength=2",
        ["--strength", "holds a bcd, which looks at whole pictures; leave them out, or use a run"],
    ),
    (f"{MOVE} --workdir=runs/xnemo", ["A.png", "--box=whole"]),
    (
        "encode --workdir=heads_codec --out=data/x",
        ["image_autoencoder, which has no motion codes or latents", "runs of bcd"],
    ),
    # preparation
    ("prepare video --src=videos --out=data/x", ["invalid choice: 'video' (choose from", "videos"]),
    (
        "prepare videos --src=videos/A.mp4 --out=data/x",
        ["videos/A.mp4: is a file; --src must be the folder that holds it"],
    ),
    ("prepare videos --src=videos --out=videos", ["--out=videos is the folder of --src; choose"]),
    ("prepare videos --src=videos --out=A.png", ["--out=A.png is a file", "choose another name"]),
    (
        "prepare videos --src=videos --out=data/large",
        ["data/large: holds another dataset", "Choose another --out, or replace it with --force"],
    ),
    (
        "prepare videos --src=videos --out=data/x",
        [
            "no clip came from 2 files: all 2 pieces",
            "shorter than --seconds=4; choose a smaller value",
        ],
    ),
    (
        "prepare videos --src=videos --out=data/x --size=64px",
        ["--size: expected a whole number, got '64px'"],
    ),
    (
        "prepare videos --src=videos --out=data/x --fps=fast",
        ["--fps: must be a number, got 'fast'"],
    ),
    # other commands
    ("demo --pairs=1", ["--pairs: must be at least 2, got 1"]),
    ("weights --name=mine", ["--workdir and --name go together"]),
    ("convert vidtwin --src=none.ckpt --out=data/x", ["none.ckpt: no such file"]),
]

# The flags of vidmotion.main can be defined only once in a process. This program imports once, then forks a child for
# each command line: a start costs seconds, a fork nothing.
FORKED = ("train", "eval", "plan")
FORKS = """
    import json, os, sys
    import vidmotion.data.heads, vidmotion.evaluation.pictures, vidmotion.plan, vidmotion.train
    from vidmotion.__main__ import main
    results = {}
    for k, command in enumerate(json.load(sys.stdin)):
        child = os.fork()
        if not child:
            with open(f"said{k}", "wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            sys.argv = ["vidmotion", *command.split()]
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        results[command] = code, open(f"said{k}").read()
    json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("mistakes")
    still = np.full((30, 32, 32, 3), 99, np.uint8)
    (place / "videos").mkdir()
    for name in ("A.mp4", "B.mp4"):
        media.write_mp4(place / "videos" / name, still)
    media.write_png(place / "A.png", still[0])
    for name in ("empty.png", "empty.mp4"):
        (place / name).touch()
    clips(place / "data" / "large", 24)
    clips(place / "data" / "brief", 16, frames=3)
    for name, config in {"bcd": "heads", "judge": "sprites_judge", "xnemo": "xnemo"}.items():
        (place / "runs" / name).mkdir(parents=True)
        begun = load_config(f"{config}:debug").to_json()
        (place / "runs" / name / "config.json").write_text(begun)
    return place


@pytest.fixture(scope="module")
def forked(place):
    """Returns exit code and output by command; checks that none of the commands makes a workdir."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKS)],
        input=json.dumps([command for command, _ in MISTAKES if command.startswith(FORKED)]),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert not (place / "runs" / "x").exists()
    return json.loads(done.stdout)


@pytest.fixture
def outcome(place, monkeypatch, capfd, request):
    """Returns a function: command -> (exit code, output)."""

    def run(command):
        if command.startswith(FORKED):
            return request.getfixturevalue("forked")[command]
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["vidmotion", *command.split()])
        with pytest.raises(SystemExit) as ended:
            vidmotion_command()
        return ended.value.code, "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize(("command", "parts"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_gets_a_sentence(place, outcome, command, parts):
    before = {path for path in place.rglob("*") if path.parent != place}
    code, said = outcome(command)
    assert code == EXIT_REFUSED and "Traceback" not in said, said
    assert any(all(part in line for part in parts) for line in said.splitlines()), said
    left = {path for path in place.rglob("*") if path.parent != place} - before
    # A preparation that gives no clip leaves a report that says why for each file.
    assert all(path.is_relative_to(place / "data" / "x") for path in left)


def test_a_port_that_cannot_be_had_or_a_missing_extra_is_a_sentence(outcome):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 99999):
            code, said = outcome(f"studio --port={port}")
            assert code == EXIT_REFUSED and "Traceback" not in said, said
            assert "choose another --port" in said or "pip install 'vidmotion[studio]'" in said
