"""Exit codes and messages that all commands share, and how they set up processes and configs."""

import logging
import re

import jax
import pytest

from vidmotion import startup
from vidmotion.checkpoint import CheckpointError
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError


def outcome(error, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)

    def work():
        raise error

    return startup.exit_code_of(work, "stopped here"), [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("bad field"),
        DatasetError("bad data"),
        CheckpointError("bad state"),
        MediaError("bad film"),
        PermissionError(13, "Permission denied", "/there"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_2(error, caplog, monkeypatch):
    assert outcome(error, caplog, monkeypatch) == (2, [str(error)])


def test_ctrl_c_is_130(caplog, monkeypatch):
    assert outcome(KeyboardInterrupt(), caplog, monkeypatch) == (130, ["stopped here"])


def test_a_fault_of_ours_keeps_its_traceback(caplog, monkeypatch):
    for error in (RuntimeError("ours"), OSError("no file of the user's")):
        with pytest.raises(type(error)):
            outcome(error, caplog, monkeypatch)


def test_done_is_what_the_work_says():
    assert startup.exit_code_of(lambda: 75, "") == 75


def test_commands_share_a_process():
    # Each has flags of its own: importing one must not claim flag names that another needs.
    import vidmotion.encode
    import vidmotion.main
    import vidmotion.reenact  # noqa: F401


# -- processes ------------------------------------------------------------------------------------

ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}  # set by sbatch and salloc


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({}, False),
        (ALLOCATION, False),  # a script run by sbatch, or a shell of salloc
        ({**ALLOCATION, "SLURM_STEP_NUM_TASKS": "1"}, False),  # an interactive step
        ({**ALLOCATION, "SLURM_STEP_NUM_TASKS": "4"}, True),  # srun
        ({"SLURM_NTASKS": ""}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"JAX_COORDINATOR_ADDRESS": ""}, False),
    ],
)
def test_processes_are_joined_where_they_were_started(monkeypatch, caplog, variables, joins):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: joined.append(True))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    startup.set_up_devices()
    assert bool(joined) == joins
    alone = variables.get("SLURM_NTASKS") == "4" and not joins
    assert ("srun did not start this process" in caplog.text) == alone


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"SLURM_NTASKS": "4(x2)"}, "SLURM_NTASKS must be a number; it is '4(x2)'"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
            "JAX_PROCESS_ID must be a number; it is '', and JAX_COORDINATOR_ADDRESS needs it",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 asks for several .*: no address"),
    ],
)
def test_processes_that_do_not_meet_are_one_sentence(monkeypatch, variables, named):
    def initialize(**_):
        raise ValueError("no address\nand more")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(named).replace(r"\.\*", ".*")):
        startup.set_up_devices()


@pytest.mark.parametrize("value", ["", "relative/folder", None])
def test_a_cache_is_never_made_below_the_current_folder(monkeypatch, value):
    monkeypatch.setenv("HOME", "/home/somebody")
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert startup.cache_folder() == "/home/somebody/.cache/vidmotion"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert startup.cache_folder() == "/caches/vidmotion"


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_at_least(text):
    number = startup.at_least(1)
    assert number("1") == 1
    with pytest.raises((ValueError, startup.argparse.ArgumentTypeError)):
        number(text)


# -- names of configs, and what the log begins with --------------------------------------------------


def test_a_config_goes_by_its_name_or_path_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = startup.recipes()["heads"]
    assert recipe.name == "heads.py" and recipe.is_file()
    for name in ("heads:demo", "configs/heads.py:demo", f"{recipe}:demo"):
        assert startup.config_file(name) == f"{recipe}:demo"
    # A config in the current folder takes precedence over the project's.
    mine = tmp_path / "configs" / "heads.py"
    mine.parent.mkdir()
    mine.write_text("")
    assert startup.config_file("configs/heads.py") == "configs/heads.py"
    for name in ("elsewhere/heads.py", "heads.py", "configs/heads", "hads"):
        with pytest.raises(ConfigError, match="  heads             BCD on Heads"):
            startup.config_file(name)


@pytest.mark.parametrize(
    ("platforms", "gpus", "warned"),
    [(None, ["/dev/nvidia0"], True), ("cpu", ["/dev/nvidia0"], False), (None, [], False)],
)
def test_a_gpu_that_jax_cannot_use_is_named(monkeypatch, caplog, platforms, gpus, warned):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    monkeypatch.setattr(startup, "_gpus", lambda: gpus)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with caplog.at_level(logging.INFO, "vidmotion"):
            startup.set_up_devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert re.search(r"vidmotion \S+ on 8 cpu devices \(cpu\), jax \d", caplog.text)
    assert ("pip install 'vidmotion[cuda]'" in caplog.text) == warned
