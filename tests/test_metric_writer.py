"""Metric files read back by the json module and by TensorBoard's own reader."""

import io
import json
import logging
import math
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.event_file_writer import EventsWriter

from vidmotion.metric_writer import DeferredMetrics, MetricWriter, Progress, read_metrics


def strict_lines(workdir):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def tensorboard(workdir):
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return events


def test_scalars_are_read_back_from_both(tmp_path):
    with MetricWriter(tmp_path / "run") as writer:
        writer.scalars(1, {"loss": 0.5, "rate": np.float32(0.25)})
        writer.scalars(2, {"loss": jnp.asarray(0.125)})
    first, second = strict_lines(tmp_path / "run")
    assert first.pop("time") > 1e9
    assert first == {"step": 1, "loss": 0.5, "rate": 0.25}
    assert (second["step"], second["loss"]) == (2, 0.125)
    scalars = tensorboard(tmp_path / "run").Scalars("loss")
    assert [(s.step, s.value) for s in scalars] == [(1, 0.5), (2, 0.125)]


def test_images_and_text_are_read_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    with MetricWriter(tmp_path) as writer:
        writer.images(3, {"grid": image})
        writer.text(3, {"config": "size = base, å"})
        with pytest.raises(ValueError, match=r"'grid' must be uint8 \(H, W, 3\)"):
            writer.images(3, {"grid": image / 255})
    events = tensorboard(tmp_path)
    (stored,) = events.Images("grid")
    assert stored.step == 3
    decoded = np.asarray(Image.open(io.BytesIO(stored.encoded_image_string)))
    np.testing.assert_array_equal(decoded, image)
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "size = base, å"
    assert strict_lines(tmp_path)[0]["config"] == "size = base, å"


def test_nonfinite_values_stay_strict_json(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    (line,) = strict_lines(tmp_path)
    assert math.isnan(float(line["a"]))
    assert (float(line["b"]), float(line["c"])) == (math.inf, -math.inf)


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 8):
            writer.scalars(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    with MetricWriter(tmp_path, resume_step=4) as writer:
        writer.scalars(5, {"loss": 50.0})
    assert [(r["step"], r["loss"]) for r in strict_lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
    ]
    scalars = tensorboard(tmp_path).Scalars("loss")
    assert [(s.step, s.value) for s in scalars][-2:] == [(4, 4.0), (5, 50.0)]
    assert not list(tmp_path.glob(".*"))


def test_append_keeps_everything_and_closes_a_torn_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 9, "time": 1.0, "x": 1.0}\n{"step": 1')
    with MetricWriter(tmp_path) as writer:
        writer.scalars(2, {"x": 2.0})
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [9, 2]


def test_other_hosts_write_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", is_host0=False) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, {"x": np.zeros((2, 2, 3), np.uint8)})
        writer.text(1, {"t": "x"})
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_mistakes_of_the_caller_raise(tmp_path):
    with MetricWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="'step' is reserved"):
            writer.scalars(1, {"step": 1.0})
        with pytest.raises(TypeError):
            writer.scalars(1, {"loss": np.zeros(3)})
    with pytest.raises(ValueError, match="local directory"):
        MetricWriter("gs://bucket/run")


@pytest.fixture(autouse=True)
def _log_reaches_caplog(monkeypatch):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)


def test_dropped_lines_are_said_in_the_log_of_the_project(tmp_path, caplog):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": 1.0})
    with caplog.at_level(logging.INFO, logger="vidmotion"):
        writer = MetricWriter(tmp_path, resume_step=1)
        writer.scalars(2, {"loss": 1.0})
        writer.close()
    said = [r.getMessage() for r in caplog.records if r.name.startswith("vidmotion")]
    assert len(said) == 1 and said[0].endswith("dropped 2 lines past step 1")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_warns_once_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING, logger="vidmotion"):
        writer = MetricWriter(tmp_path)
        for step in range(3):
            writer.scalars(step, {"loss": 1.0})
        writer.close()
    assert caplog.text.count("could not be written") == 1
    assert [s.step for s in tensorboard(tmp_path).Scalars("loss")] == [0, 1, 2]


def test_event_files_recover_from_a_failed_write(tmp_path, monkeypatch, caplog):
    real = EventsWriter.write_event

    def fails_at_step_2(self, event):
        if event.step == 2:
            raise OSError(28, "No space left on device")
        return real(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", fails_at_step_2)
    with caplog.at_level(logging.WARNING, logger="vidmotion"), MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": 1.0})
            writer.flush()
    assert [s.step for s in tensorboard(tmp_path).Scalars("loss")] == [1, 3]
    assert [r["step"] for r in strict_lines(tmp_path)] == [1, 2, 3]
    assert "No space left" in caplog.text


def test_deferred_metrics_come_one_step_late():
    deferred = DeferredMetrics()
    step = jax.jit(lambda x: {"loss": x * 2, "count": x.astype(int)})
    assert deferred.push(1, step(jnp.float32(1))) == []
    assert deferred.push(2, step(jnp.float32(2))) == [(1, {"loss": 2.0, "count": 1.0})]
    assert deferred.push(3, step(jnp.float32(3))) == [(2, {"loss": 4.0, "count": 2.0})]
    assert deferred.drain() == [(3, {"loss": 6.0, "count": 3.0})]
    assert deferred.drain() == []
    at_once = DeferredMetrics(delay=0)
    assert at_once.push(1, {"loss": 0.5}) == [(1, {"loss": 0.5})]


def test_progress_lines_are_few_but_have_first_and_last():
    clock = SimpleNamespace(now=0.0)
    stream = io.StringIO()
    with Progress(100, 0, stream=stream, every=10, clock=lambda: clock.now) as progress:
        for step in range(1, 101):
            clock.now += 0.5
            progress.update(step, loss=1 / step)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 1"
    # After 10 s at two steps a second, 79 steps are left.
    assert lines[1] == "step 21/100  loss 0.04762  2 steps/s  ETA 00:39"
    assert lines[-1] == "step 100/100  loss 0.01  2 steps/s  ETA 00:00"
    assert len(lines) == 6


def test_progress_tells_where_a_run_was_cut_short():
    stream = io.StringIO()
    with Progress(100, 40, stream=stream, every=1e9) as progress:
        for step in (41, 42, 43):
            progress.update(step)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["41/100", "43/100"]
    unused = io.StringIO()
    Progress(10, stream=unused).close()
    assert unused.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(10, 5, stream=stream) as progress:
        for step in range(6, 11):
            progress.update(step, loss=0.5)
    last = stream.getvalue().split("\r")[-1]
    assert "10/10" in last
    assert "loss=0.5" in last
    assert "step" in last
