"""Test-wide settings: eight fake CPU devices, strict ranks, a warm compilation cache."""

import functools
import logging
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"vidmotion-test-cache-{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
import quick

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]

# What `pytest -m fast` runs, except tests marked slow or oracle: pure functions, the trunk, a training of the tiny
# system, and one config.
FAST = (
    *("diffusion/", "losses/", "metrics/", "data/test_records.py", "evaluation/test_measured.py"),
    *("test_config_schema.py", "test_files.py", "test_imports.py", "test_optim.py"),
    *("test_paths.py", "test_chunked_map.py", "test_run_record.py", "test_sharding.py"),
    *("test_startup.py", "test_step.py", "test_system.py", "test_metric_writer.py"),
    "test_train.py::test_a_run_that_is_used_reads_no_optimizer",
    "test_configs.py::test_every_variant_builds_its_run[heads-debug]",
)


def pytest_ignore_collect(collection_path, config):
    """Skips the files without fast tests for `pytest -m fast`: importing them takes longer than the fast tests."""
    if config.option.markexpr != "fast" or collection_path.suffix != ".py":
        return None
    name = collection_path.relative_to(ROOT / "tests").as_posix()
    return not any(name.startswith(fast.split("::")[0]) for fast in FAST) or None


def pytest_collection_modifyitems(items):
    """Marks the tests that `FAST` names."""
    for item in items:
        named = item.nodeid.removeprefix("tests/").startswith(FAST)
        if named and not any(item.get_closest_marker(name) for name in ("slow", "oracle")):
            item.add_marker(pytest.mark.fast)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="of tests/faults/test_kills.py")
    parser.addoption("--faults_record", default="", help="JSON file for the campaign's figures")


def _shared(what: str, variable: str, default: str) -> Path:
    """Returns a folder that is given beside the repository; skips the test if it is missing."""
    path = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"{what} not found at {path}; set {variable} to run this test")
    return path


@pytest.fixture(autouse=True)
def log_as_it_was():
    """Restores the log, so that a test that sets it up, as a command does, does not change what later tests capture."""
    log = logging.getLogger("vidmotion")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, level = before
    log.setLevel(level)


@pytest.fixture
def unoptimised(monkeypatch):
    """Compiles every program of the test as `quick.unoptimised` does, and does not count the FLOPs of updates, because
    an update would be traced again for that."""
    from vidmotion.run import Run

    monkeypatch.setattr(Run, "flops_per_step", lambda self: None)
    with quick.unoptimised():
        yield


@pytest.fixture
def one_device(monkeypatch):
    """Gives runs a mesh of one device, because programs for several devices take longer to compile."""
    from vidmotion import sharding

    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)


@pytest.fixture(scope="session")
def sheets_dir() -> Path:
    """Returns the folder of the public Sprites sheets (README, section Data); absent on most machines."""
    return _shared("Sprites sheets", "VIDMOTION_SHEETS", "data/sprite_sheets")


@pytest.fixture(scope="session")
def hard() -> Path:
    """Returns a folder of small videos and pictures that are easily read wrong; absent on most machines."""
    return _shared("hard inputs", "VIDMOTION_HARD_INPUTS", "hard_inputs")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Returns the folder of inputs and outputs of reference networks; absent on most machines."""
    return _shared("reference fixtures", "VIDMOTION_FIXTURES", "fixtures")


@pytest.fixture(scope="session")
def heads_run(tmp_path_factory) -> Path:
    """Returns the workdir of a finished ``configs/heads.py:debug`` run: a BCD that is hardly trained."""
    from vidmotion.open_run import load_config
    from vidmotion.train import train

    workdir = tmp_path_factory.mktemp("heads_run")
    with quick.unoptimised():
        assert train(load_config("heads:debug"), str(workdir)) == 0
    return workdir


@pytest.fixture(scope="session")
def heads_codes(heads_run, tmp_path_factory) -> Path:
    """Returns the folder of motion codes of the clips of `heads_run`, eight frames of each."""
    from vidmotion.encode import encode
    from vidmotion.open_run import open_run

    folder = tmp_path_factory.mktemp("codes") / "heads"
    with quick.unoptimised():
        counts = encode(open_run(str(heads_run)), str(folder), frames=8)
    assert counts == {"train": 16, "eval": 4}
    return folder


@pytest.fixture
def judge_workdir(tmp_path) -> Path:
    """Returns a workdir begun for a system that has neither motion codes nor a renderer."""
    from vidmotion.open_run import load_config

    workdir = tmp_path / "judge"
    workdir.mkdir()
    (workdir / "config.json").write_text(load_config("sprites_judge:debug").to_json())
    return workdir
