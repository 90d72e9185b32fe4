"""A trained run whose files have moved: which fields may be given anew when it is opened, and which may not."""

import argparse
import json
import re
import sys
import types
from pathlib import Path

import pytest

from vidmotion import encode, evaluation, paths, startup
from vidmotion.errors import ConfigError
from vidmotion.open_run import FREE_FIELDS, check_workdir, load_config, of_today, open_run
from vidmotion.run import Run


@pytest.fixture
def workdir(tmp_path):
    """Returns a workdir begun with a codec whose weights are gone."""
    config = load_config("lrs3:debug")
    config.system.codec.update({"network": "tiny", "weights": "/gone/vae.safetensors"})
    (tmp_path / "config.json").write_text(config.to_json())
    return tmp_path


def test_places_and_sampling_may_be_given(workdir):
    changes = {
        "system.codec.weights": "8.safetensors",
        "system.sampler.steps": "7",
        "system.guidance.scale": "2",
    }
    run = open_run(str(workdir), changes)
    assert run.system.codec.weights == "8.safetensors"
    assert (run.system.sampler.steps, run.system.guidance.scale) == (7, 2.0)
    assert open_run(str(workdir)).system.codec.weights == "/gone/vae.safetensors"
    recorded = json.loads((workdir / "config.json").read_text())
    assert recorded["system"]["codec"]["weights"] == "/gone/vae.safetensors"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("system.codec.weight", "a", "has no such field"),
        ("system.codec", "a", "has no such field"),
        ("system.codec.network", "patch", "stays 'tiny', since the run was trained with it"),
        ("system.frames", "8", "stays 4, since the run was trained with it"),
        ("system.sampler.steps", "many", "steps=many: expected a value like 2"),
        ("system.sampler.steps", "[1", r"expected a value like 2"),
        ("system.sampler.steps", "'a'", "expected a value like 2"),
    ],
)
def test_nothing_else_may_be_given(workdir, name, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_run(str(workdir), {name: text})
    assert str(caught.value).startswith(f"--config.{name}")


def test_weights_of_every_system_are_free_and_guarded_by_their_fingerprint():
    for path, free in (
        ("system/codec/weights", True),
        ("system/weights", True),
        ("system/losses/lpips/weights", True),
        ("system/codec/weights_scale", False),
        ("system/preweights", False),
        ("system/codec/network", False),
    ):
        assert bool(re.fullmatch(FREE_FIELDS, path)) == free, path


def test_a_run_of_before_evaluators_had_sections_opens_with_them(tmp_path):
    """Opens an old ``config.json`` of heads:demo, with an interval, fewer clips and drivers of the train split."""
    recorded = Path(__file__).parent / "config_before_evals.json"
    (tmp_path / "config.json").write_text(recorded.read_text())
    run = open_run(str(tmp_path), {"evals.swap.pairs": "3"})
    assert "eval" not in run.config
    assert set(evaluation.asked(run.config)) == {"swap", "drivers", "reading"}
    evals = run.config.evals
    assert {evals[name].every for name in ("swap", "drivers", "reading")} == {100}
    assert evals.leakage.to_dict() == {"every": -1, "batch": 16, "probe_clips": 2000}
    assert (evals.swap.pairs, evals.drivers.pairs, evals.drivers.split) == (3, 64, "train")
    assert evals.reading.reader == "heads_reader"
    protocol = evaluation.build("self_reenactment", run)
    assert (protocol.clips, protocol.gap, protocol.fvd) == (7, 0.2, "styleganv_np")
    assert "heads_reader" not in protocol.weights
    for name in evaluation.evaluators(run.system):
        evaluation.build(name, run)
    # The same training can go on with today's recipe.
    config = load_config("heads:demo")
    assert check_workdir(Run(config, str(tmp_path)))


def older(config):
    """Returns a config of heads as it was before the two stages of BCD became one run, and before queries and outputs
    could be chosen."""
    old = json.loads(config.to_json())
    del old["system"]["denoiser"]["temporal_from"], old["system"]["denoiser"]["gate_start"]
    del old["system"]["encoder"]["queries"], old["system"]["diffusion"]["output"]
    old["system"]["denoiser"]["temporal"] = True
    return old


def test_a_run_of_before_the_stages_were_one_opens_and_goes_on(tmp_path):
    config = load_config("heads:debug")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(older(config)))
    assert open_run(str(tmp_path)).system == Run(config, "").system
    assert check_workdir(Run(config, str(tmp_path)))
    # A first stage had no temporal blocks: they would join after its last step.
    first = older(config)
    first["system"]["denoiser"]["temporal"] = False
    path.write_text(json.dumps(first))
    assert open_run(str(tmp_path)).system.denoiser.temporal_from == config.steps
    with pytest.raises(ConfigError, match="temporal_from: 2 in that run, 0 in this config"):
        check_workdir(Run(config, str(tmp_path)))
    # A field may be absent only if the recipe keeps its default.
    path.write_text(json.dumps(older(config)))
    config.system.denoiser.gate_start = 1.0
    with pytest.raises(ConfigError, match=r"gate_start: 'absent' in that run, 1\.0 in this config"):
        check_workdir(Run(config, str(tmp_path)))


def test_a_judge_that_an_evaluator_trained_itself_is_named_by_its_workdir():
    old = {"evals": {"sprites_transfer": {"judge": "sprites_judge", "judge_workdir": "runs/judge"}}}
    assert of_today(old) == {"evals": {"sprites_transfer": {"judge": "runs/judge"}}}
    assert old["evals"]["sprites_transfer"]["judge"] == "sprites_judge"


def test_overrides_are_taken_apart(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--content")
    args, changes = startup.parse_with_config(
        parser, ["--content=a", "--config.b.c=d=e", "--config.f="]
    )
    assert args.content == "a" and changes == {"b.c": "d=e", "f": ""}
    for word in ("--config.b", "--config=b", "--contend=a", "b"):
        with pytest.raises(SystemExit) as caught:
            startup.parse_with_config(parser, [word])
        assert caught.value.code == 2 and word in capsys.readouterr().err


def test_the_commands_pass_them_on(workdir, monkeypatch, caplog):
    for name in ("set_up_log", "set_up_devices"):
        monkeypatch.setattr(startup, name, lambda: None)
    monkeypatch.setattr(startup.logging.getLogger("vidmotion"), "propagate", True)
    arguments = [f"--workdir={workdir}", f"--out={workdir / 'out'}"]
    assert encode.main([*arguments, "--config.system.size=8"]) == 2
    assert "--config.system.size stays 64, since" in caplog.text


def test_the_config_of_a_new_run_names_its_weights():
    fields = paths.flatten(json.loads(load_config("lrs3").to_json()))
    assert fields["system/codec/weights"] == ""


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("library", r"gs://bucket/run is in a bucket.*pip install 'vidmotion\[gcs\]'"),
        (
            "credentials",
            r"gs://bucket/run: there are no Google Cloud credentials here: run `gcloud",
        ),
    ],
)
def test_a_bucket_that_cannot_be_reached_is_one_sentence(monkeypatch, missing, message):
    class NoCredentials(Exception):
        pass

    def default():
        raise NoCredentials

    auth = types.ModuleType("google.auth")
    auth.default = default
    auth.exceptions = types.ModuleType("google.auth.exceptions")
    auth.exceptions.GoogleAuthError = NoCredentials
    google = types.ModuleType("google")
    google.auth = auth
    library = None if missing == "library" else types.ModuleType("gcsfs")
    for module in (google, auth, auth.exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "gcsfs", library)
    with pytest.raises(ConfigError, match=message) as caught:
        open_run("gs://bucket/run")
    assert "\n" not in str(caught.value)
