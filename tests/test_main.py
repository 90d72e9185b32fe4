"""The command line: exit codes, and one message without a traceback for each kind of mistake."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from vidmotion import main
from vidmotion.errors import ConfigError
from vidmotion.open_run import load_config
from vidmotion.run import Run

HERE = Path(__file__).resolve().parent
TINY = str(HERE / "tiny.py")

# name: (arguments, exit code, what the message must contain); {tmp} is an empty folder.
CASES = {
    "no config": ([], 2, ["--config=configs/<name>.py is missing"]),
    "no such file": (
        ["--config=nowhere/none.py"],
        2,
        ["there is no file 'nowhere/none.py'", "heads_codec       A small"],
    ),
    "bad argument": ([f"--config={TINY}:huge"], 2, ["'huge'", "demo, debug, kind=heads|sprites"]),
    "unknown field": (
        [f"--config={TINY}", "--config.bach_size=4"],
        2,
        ["--config.bach_size: the config has no such field; did you mean 'batch_size'?\n"],
    ),
    "unknown deep field": (
        ["--config=heads:debug", "--config.system.encoder.wdth=4"],
        2,
        ["--config.system.encoder.wdth: the config has no such field; did you mean 'width'?\n"],
    ),
    "field of no section": (
        [f"--config={TINY}", "--config.sistem.width=4"],
        2,
        ["--config.sistem.width: the config has no such field; did you mean 'system'?\n"],
    ),
    "bad type": ([f"--config={TINY}", "--config.batch_size=four"], 2, ["batch_size", "'four'"]),
    "unknown flag": ([f"--config={TINY}", "--workdri=x"], 2, ["workdri"]),
    "unknown mode": ([f"--config={TINY}", "--mode=play"], 2, ["play", "train|eval|sample|plan"]),
    "stray word": ([f"--config={TINY}", "play"], 2, ["unexpected arguments: play"]),
    "no workdir": ([f"--config={TINY}"], 2, ["--workdir"]),
    "batch and mesh": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--config.batch_size=20"],
        2,
        ["batch_size=20", "8 mesh shards", "2 microbatches", "use 16 or 32"],
    ),
    "mesh and devices": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--config.mesh.data=3"],
        2,
        ["config.mesh", "needs 3 devices, but there are 8"],
    ),
    "no data folder": (
        [
            f"--config={TINY}:kind=sprites",
            "--workdir={tmp}/w",
            "--config.data.common.sheets_dir={tmp}/no",
        ],
        2,
        ["{tmp}/no: no such folder of sprite sheets"],
    ),
    "empty data folder": (
        [
            f"--config={TINY}:kind=sprites",
            "--workdir={tmp}/w",
            "--config.data.common.sheets_dir={tmp}/void",
        ],
        2,
        ["{tmp}/void", "is empty"],
    ),
    "data of another size": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--config.data.common.frames=3"],
        2,
        ["video: uint8(16, 3, 16, 16, 3), expected uint8(16, 2, 16, 16, 3)"],
    ),
    "data refused": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--config.data.train.clips=0"],
        2,
        ["config.data (heads)", "clips"],
    ),
    "workdir is a file": ([f"--config={TINY}", "--workdir={tmp}/file"], 2, ["{tmp}/file"]),
    "nothing to evaluate": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--mode=eval"],
        2,
        ["{tmp}/w holds no checkpoint", "--mode=train"],
    ),
    "processes without a number": (
        [f"--config={TINY}", "--workdir={tmp}/w", "JAX_COORDINATOR_ADDRESS=127.0.0.1:1"],
        2,
        ["JAX_NUM_PROCESSES"],
    ),
    "nan": (
        [f"--config={TINY}", "--workdir={tmp}/nan", "--config.system.nan_at=1"],
        3,
        ["loss/model is nan at step 2", "no checkpoint yet"],
    ),
    "no such recipe": (
        ["--config=hads:demo"],
        2,
        ["no config 'hads'; did you mean 'heads'?", "  sprites           BCD on Sprites: Table A5"],
    ),
    "traced evaluation": (
        [f"--config={TINY}", "--workdir={tmp}/w", "--mode=eval", "--profile=3"],
        2,
        ["--profile traces a training"],
    ),
    "plan": ([f"--config={TINY}", "--mode=plan"], 0, ["26,113"]),
    "plan by name": (["--config", "heads:debug", "--mode=plan"], 0, ["tokens per batch"]),
    "devices and versions": (
        [f"--config={TINY}", "--mode=plan"],
        0,
        ["on 8 cpu devices (cpu), jax"],
    ),
}

# The program imports once, then forks a child for each command line: a start costs seconds, a fork nothing.
FORKS = """
    import json, os, sys
    import vidmotion.evaluation, vidmotion.plan, vidmotion.train
    from vidmotion import main, system
    system.SYSTEMS["tiny"] = "tiny:Tiny"
    results = {}
    for name, arguments in json.load(sys.stdin).items():
        path = os.path.join(sys.argv[1], name)
        child = os.fork()
        if not child:
            with open(path, "wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            variables = [a for a in arguments if not a.startswith("-") and "=" in a]
            os.environ.update(dict(v.split("=") for v in variables))
            sys.argv = ["vidmotion", *[a for a in arguments if a not in variables]]
            main.cli()
        results[name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), path]
    json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("main")
    (tmp / "void").mkdir()
    (tmp / "file").write_text("")
    (tmp / "out").mkdir()
    commands = {
        name: [word.replace("{tmp}", str(tmp)) for word in words]
        for name, (words, _, _) in CASES.items()
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKS), str(tmp / "out")],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    outcome = {name: (code, Path(path).read_text()) for name, (code, path) in results.items()}
    return SimpleNamespace(tmp=str(tmp), of=outcome)


@pytest.mark.parametrize("name", CASES)
def test_exit_code_and_message(outcomes, name):
    code, said = outcomes.of[name]
    _, expected, parts = CASES[name]
    assert code == expected, said
    for part in parts:
        assert part.replace("{tmp}", outcomes.tmp) in said
    assert "Traceback" not in said


# The messages of these cases list the configs, one per line.
LISTS = {"no such file", "no such recipe"}


@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if case[1] == 2 and n not in LISTS]
)
def test_a_refusal_is_short_and_leaves_no_workdir(outcomes, name):
    assert len(outcomes.of[name][1].strip().splitlines()) <= 4
    assert not Path(outcomes.tmp, "w").exists()


def test_evaluation_by_nothing_is_refused_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "trained_vars", lambda self: None)
    with pytest.raises(
        ConfigError, match=r"nothing to evaluate.*--evals=NAME,NAME from swap, drivers"
    ):
        main.run_mode("eval", load_config("heads:debug"), str(tmp_path), evals=[])
