"""The loop: resumed runs, signals, refusals, and what a run leaves behind."""

import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from etils import epath

from vidmotion import lock, metric_writer, paths
from vidmotion import train as training
from vidmotion.checkpoint import Checkpointer, CheckpointError
from vidmotion.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_UNMEASURED, ConfigError
from vidmotion.metric_writer import Mirror, read_metrics
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import check_workdir, claim_workdir
from vidmotion.run import Run
from vidmotion.train import NonFiniteError, train

HERE = Path(__file__).resolve().parent
MESH = {"data": 4, "fsdp": 2, "tensor": 1}


def tiny_config(**changes):
    config = tiny.get_config()
    config.mesh.update(MESH)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny.register(monkeypatch)
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Returns the workdir of a run of eight steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.register(monkeypatch)
        assert train(tiny_config(), str(workdir)) == EXIT_DONE
    return workdir


def final(workdir, **changes):
    """Returns all that a run ended with, as numpy: state, position in the data and saved steps, and the next batch."""
    run = Run(tiny_config(**changes), str(workdir))
    with Checkpointer(workdir, read_only=True) as checkpointer:
        state, position = run.restore(checkpointer)
        steps = checkpointer.steps()
    loader = run.loader("train")
    batch = loader.batch(loader.check(position))
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return jax.tree.map(np.asarray, fields), {"position": position, "steps": steps}, batch


def assert_equal_runs(left, right, but=()):
    """Checks that two runs ended with the same bits, except for the entries of the position named in `but`."""
    ends = [final(left), final(right)]
    for _, rest, _ in ends:
        for name in but:
            del rest["position"][name]
    for a, b in zip(*ends):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_two_runs_to_compare_do_learn(uninterrupted):
    state, rest, _ = final(uninterrupted)
    assert rest["steps"] == [6, 8] and int(state["step"]) == 8
    before = jax.tree.map(np.asarray, Run(tiny_config(), "").fresh_state().params)
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, state["params"])
    assert moved["model"] == {
        "down": {"kernel": True},
        "up": {"kernel": True},
        "frozen": {"bias": False},
    }
    assert moved["critic"] == {"size": True}
    losses = [r["loss/model"] for r in records(uninterrupted) if "loss/model" in r]
    assert losses[-1] < 0.8 * losses[0]


def records(workdir):
    return list(read_metrics(Path(workdir) / "metrics.jsonl"))


def command(*arguments, **environment):
    """Runs the command line in a process of its own."""
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in MESH.items()]
    return subprocess.run(
        [sys.executable, str(HERE / "tiny.py"), f"--config={HERE / 'tiny.py'}", *mesh, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            **environment,
        },
    )


# -- interruptions --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def killed(tmp_path_factory):
    """Returns a workdir whose run died by SIGKILL after step 5; its last checkpoint is of step 3."""
    workdir = tmp_path_factory.mktemp("killed")
    signal_at = f"SIGKILL 5 {workdir / 'checkpoints' / '3'}"
    done = command(f"--workdir={workdir}", TINY_SIGNAL=signal_at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return workdir


def test_a_killed_run_resumes_bit_for_bit(uninterrupted, killed, caplog):
    with Checkpointer(killed, read_only=True) as checkpointer:
        assert checkpointer.steps() == [3]
    assert max(r["step"] for r in records(killed)) > 3  # the run had gone on after its checkpoint
    with caplog.at_level(logging.INFO, "vidmotion"):
        assert train(tiny_config(), str(killed)) == EXIT_DONE
    assert "resumed from step 3" in caplog.text
    assert_equal_runs(uninterrupted, killed)
    # Each number of each step is there once, as if nothing had happened.
    seen = Counter((r["step"], name) for r in records(killed) for name in r)
    assert set(seen.values()) == {1}
    trained = {r["step"]: r["loss/model"] for r in records(uninterrupted)[1:]}
    resumed = {r["step"]: r["loss/model"] for r in records(killed)[1:]}
    assert trained.keys() <= resumed.keys() and trained[8] == resumed[8]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_same_command_goes_on(uninterrupted, tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert train(tiny_config(), str(tmp_path)) == EXIT_PREEMPTED
    assert signal.getsignal(number) is before
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.steps() == [3, 5]
    assert json.loads((tmp_path / "record.json").read_text())["steps_done"] == 5
    monkeypatch.undo()
    tiny.register(monkeypatch)
    assert train(tiny_config(), str(tmp_path)) == EXIT_DONE
    assert final(tmp_path)[1]["steps"] == [6, 8] and final(uninterrupted)[1]["steps"] == [6, 8]
    assert_equal_runs(uninterrupted, tmp_path)


def at_step(monkeypatch, step, act):
    """Calls `act` when that many updates of a run are complete."""
    take = training.DeferredMetrics.push

    def push(self, now, metrics):
        if now == step:
            act()
        return take(self, now, metrics)

    monkeypatch.setattr(training.DeferredMetrics, "push", push)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), str(tmp_path))
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.steps() == [3]


def test_another_mesh_takes_the_run_up(uninterrupted, tmp_path, monkeypatch):
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tiny_config(), str(tmp_path)) == EXIT_PREEMPTED
    monkeypatch.undo()
    tiny.register(monkeypatch)
    other = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    other["sharding"] = ((".*kernel", ("fsdp", "tensor")), (".*", None))
    assert train(tiny_config(**other), str(tmp_path)) == EXIT_DONE
    (left, _, batch), (right, _, same) = final(uninterrupted), final(tmp_path, **other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), left, right)
    jax.tree.map(np.testing.assert_array_equal, batch, same)


# -- refusals -------------------------------------------------------------------------------------


def test_nan_stops_the_run_and_is_not_saved(tmp_path):
    config = tiny_config(**{"system.nan_at": 4, "checkpoint.every": 1})
    with pytest.raises(NonFiniteError, match=r"loss/model is nan at step 5.*checkpoint is step 4"):
        train(config, str(tmp_path))
    state, rest, _ = final(tmp_path, **{"system.nan_at": 4})
    assert rest["steps"][-1] == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    last = records(tmp_path)[-1]
    assert last["step"] == 5 and math.isnan(float(last["loss/model"]))  # kept for the post-mortem


def test_a_state_that_overflows_after_a_finite_loss_is_not_saved(tmp_path):
    # This is the last update, so no later loss could tell.
    config = tiny_config(**{"system.overflow_at": 7})
    with pytest.raises(NonFiniteError, match=r"mutable/mean became.*step 8.*checkpoint is step 6"):
        train(config, str(tmp_path))
    state, rest, _ = final(tmp_path, **{"system.overflow_at": 7})
    assert rest["steps"] == [3, 6]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_parameters_that_overflow_in_the_first_update_are_not_saved(tmp_path):
    config = tiny_config(**{"optimizer.model.rate": 1e39, "steps": 1})
    with pytest.raises(NonFiniteError, match=r"params/model/down/kernel.*step 1.*no checkpoint"):
        train(config, str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"system.width": 9, "seed": 1},
            r"seed: 0 in that run, 1 in this config.*system/width: 8 in that run, 9 in this config",
        ),
        (
            {"optimizer.model.rate": 0.5},
            r"optimizer/model/rate: 0.01 in that run, 0.5 in this config",
        ),
        ({"data.train.clips": 25}, r"data/train/clips: 24 in that run, 25 in this config"),
    ],
)
def test_a_workdir_of_another_config_is_refused(uninterrupted, changes, named):
    with pytest.raises(ConfigError, match=named):
        train(tiny_config(**changes), str(uninterrupted))


def test_free_fields_may_change(uninterrupted):
    changes = {"log_every": 7, "checkpoint.keep": 5, "data.threads": 1, "sample.fps": 4.0}
    assert check_workdir(Run(tiny_config(**changes), str(uninterrupted)))


def test_changed_data_are_refused_at_a_resume(uninterrupted, monkeypatch):
    monkeypatch.setattr("vidmotion.data.heads.HeadsSource.fingerprint", "other pixels")
    with pytest.raises(ConfigError, match=r"source was .* and is now 'other pixels'"):
        train(tiny_config(), str(uninterrupted))


def test_a_damaged_config_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not a config"):
        train(tiny_config(), str(tmp_path))


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """Returns a copy of the uninterrupted run, to be damaged."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    return tmp_path / "run"


def test_a_lost_config_file_is_made_up_for_by_the_checkpoints(finished, monkeypatch):
    (finished / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"checkpoints of .*optimizer/model/rate: 0.01 in that run"
    ):
        train(tiny_config(**{"optimizer.model.rate": 0.5}), str(finished))
    assert not (finished / "config.json").exists()
    claim_workdir(Run(tiny_config(log_every=5), str(finished)))
    assert json.loads((finished / "config.json").read_text())["log_every"] == 5
    (finished / "config.json").unlink()
    # Older checkpoints do not say what they were trained with.
    monkeypatch.setattr("vidmotion.checkpoint.read_position", lambda _: {"step": 8})
    with pytest.raises(ConfigError, match=r"config\.json is missing, and the checkpoints"):
        claim_workdir(Run(tiny_config(), str(finished)))


def test_an_edited_config_file_does_not_pass_for_another_training(finished):
    config = tiny_config(**{"optimizer.model.rate": 0.5})
    (finished / "config.json").write_text(config.to_json())
    with pytest.raises(
        ConfigError, match=r"checkpoints of .*optimizer/model/rate: 0.01 in that run"
    ):
        train(config, str(finished))


def test_lost_checkpoints_are_not_replaced_in_silence(finished, caplog):
    shutil.rmtree(finished / "checkpoints")
    with pytest.raises(ConfigError, match=r"record\.json says .* trained to step 8.*move"):
        train(tiny_config(), str(finished))
    (finished / "record.json").unlink()
    old = (finished / "metrics.jsonl").read_bytes()
    training._check_fresh(Run(tiny_config(), str(finished)))
    assert (finished / "metrics-lost-0.jsonl").read_bytes() == old
    assert not (finished / "metrics.jsonl").exists()
    assert "the run starts again, and those are kept as metrics-lost-0.jsonl" in caplog.text


def test_a_second_training_of_a_workdir_names_the_first(finished):
    with lock.hold(finished), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}"):
        train(tiny_config(), str(finished))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evals": {"swap": {"every": 0}}}, r"asks for 'swap'; tiny can be evaluated by nothing"),
        ({"sample.rows": 2, "data.eval.split": "dev"}, r"'dev'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=f"{named}.*To train without samples and evaluation"):
        train(tiny_config(**changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_evaluation_never_costs_training(uninterrupted, tmp_path, monkeypatch, caplog):
    """An evaluator fails, then a signal ends it, then it works: training is complete after the first time."""
    row = MetricResult("b", 0.5, "share", "none", "16x16", 8)
    behave, asked = {}, []

    def evaluate(name, *_):
        asked.append(name)
        return behave[name]()

    def full_disk():
        raise OSError(28, "No space left on device", "/full/transfer.png")

    monkeypatch.setattr(training.evaluation, "check", lambda run, names: None)
    monkeypatch.setattr(training.evaluation, "evaluate", evaluate)
    config = tiny_config(evals={"a": {"every": 4}, "b": {"every": -1}})

    def measured():
        content = json.loads((tmp_path / "record.json").read_text())
        return [entry["metric"] for entry in content["results"]], content["not_measured"]

    behave.update(a=full_disk, b=lambda: [row])
    assert train(config, str(tmp_path), evals=("a", "b")) == EXIT_UNMEASURED
    assert asked == ["a", "a", "b"]  # each at its own steps, and all again at the end
    assert "a at step 4 failed" in caplog.text and "a at step 8 failed" in caplog.text
    results, missed = measured()
    assert results == ["b"] and list(missed) == ["a"] and "No space left" in missed["a"]
    assert_equal_runs(uninterrupted, tmp_path, {"config"})

    behave.update(a=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(config, str(tmp_path), evals=("a", "b")) == EXIT_PREEMPTED
    results, missed = measured()
    assert results == ["b"] and missed == {"a": "interrupted", "b": "interrupted"}

    (tmp_path / "record.json").write_text('{"torn')
    behave.update(a=lambda: [dataclasses.replace(row, metric="a")])
    assert train(config, str(tmp_path), evals=("a", "b")) == EXIT_DONE
    assert measured() == (["a", "b"], {})
    assert json.loads((tmp_path / "record.json").read_text())["steps_done"] == 8


def test_evaluating_nothing_makes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint; train first"):
        Run(tiny_config(), str(tmp_path / "new")).trained_vars()
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_used_reads_no_optimizer(uninterrupted):
    state, _, _ = final(uninterrupted)
    want = paths.merge(state["params"], state["ema"])
    # Muon keeps other moments than those on disk, so reading the moments would fail.
    run = Run(tiny_config(**{"optimizer.model.kind": "muon"}), str(uninterrupted))
    have = run.trained_vars()
    jax.tree.map(np.testing.assert_array_equal, have.params, want)
    jax.tree.map(np.testing.assert_array_equal, have.mutable, state["mutable"])
    kernel = have.params["model"]["down"]["kernel"]
    assert kernel.sharding == run.state_shardings.params["model"]["down"]["kernel"]
    assert kernel.sharding.spec[0] == "fsdp"
    with (
        Checkpointer(uninterrupted, read_only=True) as checkpointer,
        pytest.raises(CheckpointError, match="another network or optimizer"),
    ):
        run.restore(checkpointer)


def test_another_batch_size_is_another_run_of_the_same_network():
    run = Run(tiny_config(), "")
    other = run.with_batch_size(32)
    assert other.batch["video"].shape[0] == 32 and run.batch["video"].shape[0] == 16
    assert other.abstract_params == run.abstract_params


def test_the_record_is_complete(uninterrupted):
    record = json.loads((uninterrupted / "record.json").read_text())
    assert record["steps_done"] == record["steps_planned"] == 8
    assert record["config"]["optimizer"]["model"]["rate"] == 0.01
    assert record["data_fingerprint"] == Run(tiny_config(), "").loader("train").fingerprint
    assert record["session_steps"] == 7  # the first is warm-up
    assert record["examples_per_second"] == pytest.approx(16 / record["step_seconds"])
    assert 0 <= record["data_wait_share"] <= 1
    assert record["devices"] == 8 and record["processes"] == 1 and record["seed"] == 0
    assert record["libraries"]["jax"] == jax.__version__
    assert record["peak_memory"]["process_bytes"] > 1e7
    assert 0 < record["last_metrics"]["loss/model"] < 0.1
    assert {"commit", "python", "platform", "device_kind", "model_tflops", "results"} <= set(record)


def test_log_lines_average_the_steps_since_the_last(uninterrupted, tmp_path):
    coarse = [r for r in records(uninterrupted) if "loss/model" in r]
    # The first step, every second one, and those at checkpoints.
    assert [r["step"] for r in coarse] == [1, 2, 3, 4, 6, 8]
    assert train(tiny_config(log_every=1), str(tmp_path)) == EXIT_DONE
    fine = {r["step"]: r["loss/model"] for r in records(tmp_path) if "loss/model" in r}
    assert sorted(fine) == list(range(1, 9))
    for record, steps in zip(coarse, [(1,), (2,), (3,), (4,), (5, 6), (7, 8)]):
        expected = np.mean([fine[step] for step in steps])
        assert record["loss/model"] == pytest.approx(expected, rel=1e-6)
    assert "speed/steps_per_second" not in coarse[0]  # the first step is warm-up
    assert coarse[1]["speed/examples_per_second"] == pytest.approx(
        16 * coarse[1]["speed/steps_per_second"]
    )


def test_a_start_from_scratch_replaces_what_a_lost_start_wrote(tmp_path, monkeypatch):
    def give_up():
        raise RuntimeError("lost")

    at_step(monkeypatch, 2, give_up)
    with pytest.raises(RuntimeError, match="lost"):
        train(tiny_config(), str(tmp_path))
    assert [r["step"] for r in records(tmp_path)] == [0, 1]
    monkeypatch.undo()
    tiny.register(monkeypatch)
    assert train(tiny_config(steps=2), str(tmp_path)) == EXIT_DONE
    assert [r["step"] for r in records(tmp_path)] == [0, 1, 2]


def test_a_failed_save_does_not_stop_training_but_the_last_must_succeed(
    tmp_path, monkeypatch, caplog
):
    save, refused = Checkpointer.save, []

    def disk_full(self, step, *rest):
        if step in refused:
            raise CheckpointError(f"could not save step {step}: no space left")
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpointer, "save", disk_full)
    refused[:] = [3]
    assert train(tiny_config(), str(tmp_path / "a")) == EXIT_DONE
    assert "could not save step 3" in caplog.text and "Training goes on" in caplog.text
    assert final(tmp_path / "a")[1]["steps"] == [6, 8]
    refused[:] = [8]
    with pytest.raises(CheckpointError, match="step 8"):
        train(tiny_config(), str(tmp_path / "b"))


# -- speed ----------------------------------------------------------------------------------------


def test_the_loop_neither_waits_nor_transfers_nor_compiles(tmp_path, monkeypatch):
    """The numbers of step n are read while step n + 1 is under way; later steps neither transfer nor compile."""
    events, compiled = [], []
    compile_, to_host = training.compile_update, metric_writer._to_host

    def watched(*asked):
        update, seconds = compile_(*asked)
        step = itertools.count(1)

        def run(*arguments):
            events.append(("run", next(step)))
            with jax.transfer_guard("disallow"):
                return update(*arguments)

        return run, seconds

    def read(step, metrics):
        events.append(("read", step))
        return to_host(step, metrics)

    def on_compile(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(len([e for e in events if e[0] == "run"]))

    monkeypatch.setattr(training, "compile_update", watched)
    monkeypatch.setattr(metric_writer, "_to_host", read)
    jax.monitoring.register_event_duration_secs_listener(on_compile)
    try:
        config = tiny_config(**{"log_every": 0, "checkpoint.every": 0, "steps": 6})
        assert train(config, str(tmp_path)) == EXIT_DONE
    finally:
        jax.monitoring.unregister_event_duration_listener(on_compile)
    # The first step is waited for, to start the clock, and so is the last.
    order = (
        "run 1, read 1, run 2, run 3, read 2, run 4, read 3, run 5, read 4, run 6, read 5, read 6"
    )
    assert ", ".join(f"{what} {step}" for what, step in events) == order
    assert compiled and max(compiled) == 0  # compiled before the first step, never after


def test_metric_files_of_a_remote_workdir_travel_both_ways(tmp_path):
    remote = epath.Path(tmp_path / "bucket")
    remote.mkdir()
    (remote / "metrics.jsonl").write_text("old\n")
    with Mirror(remote, ("metrics.jsonl",), remote=True) as files:
        assert (files.local / "metrics.jsonl").read_text() == "old\n"
        (files.local / "metrics.jsonl").write_text("old\nnew\n")
        (files.local / "tensorboard").mkdir()
        (files.local / "tensorboard" / "events").write_bytes(b"\x00")
        assert (remote / "metrics.jsonl").read_text() == "old\n"
        files.copy_out()
        assert (remote / "metrics.jsonl").read_text() == "old\nnew\n"
        (files.local / "metrics.jsonl").write_text("old\nnew\nlast\n")
    assert (remote / "metrics.jsonl").read_text() == "old\nnew\nlast\n"
    assert (remote / "tensorboard" / "events").read_bytes() == b"\x00"
    assert not Path(files.local).exists()
    with Mirror(remote, ("metrics.jsonl",)) as files:
        assert files.local == remote  # a local workdir is written to directly
