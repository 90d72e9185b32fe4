"""A run written as StableHLO and read by the loader that is written beside it."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from vidmotion import export
from vidmotion.errors import ConfigError
from vidmotion.open_run import open_run


@pytest.fixture(scope="module")
def folder(heads_run, tmp_path_factory):
    pytest.importorskip("flatbuffers", reason="jax keeps programs by flatbuffers")
    return export.export(open_run(str(heads_run)), str(tmp_path_factory.mktemp("export") / "new"))


def clips(about):
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, entry["shape"], np.uint8)
        for name, entry in about["inputs"].items()
    }


@pytest.mark.slow
def test_the_loader_gives_what_the_run_gives(folder, heads_run):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    model = load.Model(folder)
    run = open_run(str(heads_run))
    vars, batch = run.trained_vars(), clips(model.about)
    wanted = jax.jit(run.system.sample)(vars, batch, jax.random.key(5))["video"]
    made = np.asarray(model.sample(**batch, seed=5))
    assert list(made.shape) == model.about["inputs"]["motion"]["shape"]
    np.testing.assert_allclose(made, wanted, atol=1e-4)
    assert np.abs(made - np.asarray(model.sample(**batch, seed=6))).max() > 1e-3
    codes = jax.jit(run.system.read_codes)(vars, batch)
    for name, value in model.encode(**batch).items():
        np.testing.assert_allclose(value, codes[name], atol=1e-4)
    assert model.about["weights"] == run.weights_digest()


@pytest.mark.slow
def test_the_loader_is_short_and_needs_no_more_than_jax(folder):
    text = (folder / "load.py").read_text()
    assert len(text.splitlines()) <= 40
    about = json.loads((folder / "model.json").read_text())
    np.savez(folder.parent / "clips.npz", **clips(about))
    program = (
        "import sys, numpy; from load import Model; "
        f"clips = numpy.load({str(folder.parent / 'clips.npz')!r}); "
        "print(Model('.').sample(clips['content'], clips['motion']).shape); "
        "assert not {'vidmotion', 'flax', 'ml_collections', 'orbax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tuple(about["inputs"]["motion"]["shape"]))


@pytest.mark.slow
def test_a_folder_that_holds_something_is_refused(folder, heads_run):
    with pytest.raises(ConfigError, match="is not empty"):
        export.export(open_run(str(heads_run)), str(folder))


def test_what_transfers_no_motion_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot transfer motion"):
        export.export(open_run("heads_reader"), str(tmp_path / "new"))
