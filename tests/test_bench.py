"""The bench on the CPU, for a system whose costs are known."""

import json

import jax
import pytest
import test_plan
from test_plan import _stack, config  # noqa: F401  (a fixture used by all)

from vidmotion import bench, hardware, run_record
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, EXIT_UNMEASURED, ConfigError
from vidmotion.run import Run


@pytest.fixture
def record(tmp_path):
    return bench.bench(Run(config(), ""), tmp_path, steps=3)


def test_rates_are_those_of_the_median_step(record):
    step = record["step_seconds"]
    assert sorted(step["all"])[1] == step["median"] and len(step["all"]) == 3
    assert step["min"] <= step["median"] <= step["max"]
    assert record["examples_per_second"] == pytest.approx(test_plan.ROWS / step["median"])
    # Six FLOPs per parameter and token, less those for the gradient of the first layer's input.
    flops = (6 * test_plan.LAYERS - 2) * test_plan.WIDTH**2 * test_plan.ROWS
    assert record["model_tflops"] == pytest.approx(flops / step["median"] / 1e12, rel=0.02)
    assert record["mfu"] == "unknown"  # a CPU has no published peak
    assert "PaLM" in record["mfu_convention"]


def test_mfu_is_model_flops_over_the_peak_of_all_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "peak_flops", lambda kind: 1e12)
    record = bench.bench(Run(config(), ""), tmp_path, steps=2)
    expected = record["flops"] / record["step_seconds"]["median"] / (8 * 1e12)
    assert record["mfu"] == pytest.approx(expected)


def test_a_forecast_stands_beside_the_measurement_of_the_same_update(record, tmp_path, monkeypatch):
    kind = hardware.chip("h100").kind
    record = {**record, "device_kind": kind}
    plan = {
        "own_compiler": True,
        "chip": "h100",
        "compiler": "some compiler",
        "plan_devices": 8,
        "batch_size": test_plan.ROWS,
        "config": {"system": record["config"]["system"]},
        "step_seconds": 0.5,
        "efficiency": 0.4,
        "peak_bytes": 10,
        "commit": "abc",
    }
    run_record.write(bench.epath.Path(tmp_path / "a.json"), {**plan, "plan_devices": 4})
    assert bench.forecast(record, bench.epath.Path(tmp_path)) is None
    run_record.write(bench.epath.Path(tmp_path / "b.json"), plan)
    found = bench.forecast(record, bench.epath.Path(tmp_path))
    assert (found["plan"], found["step_seconds"]) == ("b.json", 0.5)
    assert "0.5 s, 10 bytes (b.json)" in bench.describe({**record, "forecast": found})


def test_too_large_a_batch_is_one_sentence(monkeypatch, tmp_path):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")

    monkeypatch.setattr(bench, "compile_update", refuse)
    with pytest.raises(ConfigError, match=r"512 examples takes more memory .* lower") as caught:
        bench.bench(Run(config(), ""), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "load_config", lambda name: config())
    arguments = [f"--out={tmp_path}", "--steps=1", "--config.batch_size=16", f"--plans={tmp_path}"]
    assert bench.main(["--config=configs/stack.py:a=b,debug", *arguments]) == EXIT_DONE
    written = json.loads((tmp_path / "stack-py-a-b-debug.json").read_text())
    assert written["batch_size"] == 16 and written["forecast"] is None
    assert "examples per second" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--config.no.such=1", "--config.batch_size=many"])
def test_a_field_that_does_not_fit_is_refused(monkeypatch, tmp_path, flag):
    monkeypatch.setattr(bench, "load_config", lambda name: config())
    assert bench.main(["--config=x", f"--out={tmp_path}", flag]) == EXIT_REFUSED


def test_one_command_goes_through_all_recipes(monkeypatch, tmp_path):
    asked = []

    class Done:
        def __init__(self, code):
            self.returncode = code

    def process(command):
        asked.append(command[3:])
        return Done(len(asked) == 2)  # the second one fails, and the others still follow

    monkeypatch.setattr(bench.subprocess, "run", process)
    assert bench.main([f"--out={tmp_path}"]) == EXIT_UNMEASURED
    assert [words[0] for words in asked] == [f"--config={name}" for name in bench.RECIPES]
    assert all(words[1:] == [f"--out={tmp_path}"] for words in asked)
