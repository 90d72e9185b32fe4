"""Two processes of four fake devices each run a job as one process of eight would run it."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from vidmotion import train as training
from vidmotion.checkpoint import Checkpointer
from vidmotion.errors import EXIT_DONE, EXIT_PREEMPTED
from vidmotion.metric_writer import read_metrics
from vidmotion.run import Run
from vidmotion.train import train

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def tiny_config():
    config = tiny.get_config()
    config.mesh.update(MESH)
    return config


def two_processes(workdir, changes=({}, {})):
    """Runs the command line as two processes, with `changes` of their environments, which `tiny` explains; returns
    (exit code, output) of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "tiny.py"), f"--config={HERE / 'tiny.py'}"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.mesh.{axis}={size}" for axis, size in MESH.items()]
    processes = []
    for index, changed in enumerate(changes):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "VIDMOTION_HEARTBEAT_SECONDS": "10",
            **changed,
        }
        processes.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
        )
    try:
        said = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said)]


def final(workdir):
    run = Run(tiny_config(), str(workdir))
    with Checkpointer(workdir, read_only=True) as checkpointer:
        state, position = run.restore(checkpointer)
    assert run.loader("train").check(position) == int(state.step) == 8
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return jax.tree.map(np.asarray, fields)


def assert_close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), left, right)


def test_a_job_of_two_is_the_job_of_one(tmp_path, monkeypatch):
    """One process begins; two go on and are interrupted; then one process finishes a copy, and two finish the
    original."""
    tiny.register(monkeypatch)
    assert train(tiny_config(), str(tmp_path / "whole")) == EXIT_DONE
    expected = final(tmp_path / "whole")

    relay, step = tmp_path / "relay", 3
    take = training.DeferredMetrics.push

    def push(self, now, metrics):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, now, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(training.DeferredMetrics, "push", push)
        assert train(tiny_config(), str(relay)) == EXIT_PREEMPTED

    # Only the second process is told to stop.
    (code0, said0), (code1, said1) = two_processes(
        relay, ({}, {"TINY_SIGNAL": f"SIGTERM 4 {relay}"})
    )
    assert (code0, code1) == (EXIT_PREEMPTED, EXIT_PREEMPTED), said0 + said1
    assert "resumed from step 3" in said0
    assert "the same command resumes" in said0 and "resumes" not in said1
    with Checkpointer(relay, read_only=True) as checkpointer:
        assert 4 <= checkpointer.steps()[-1] < 8

    shutil.copytree(relay, tmp_path / "by one")
    assert train(tiny_config(), str(tmp_path / "by one")) == EXIT_DONE
    assert_close(final(tmp_path / "by one"), expected)

    (code0, said0), (code1, said1) = two_processes(relay)
    assert (code0, code1) == (EXIT_DONE, EXIT_DONE), said0 + said1
    assert_close(final(relay), expected)
    ends = [list(read_metrics(d / "metrics.jsonl"))[-1] for d in (relay, tmp_path / "whole")]
    assert ends[0]["step"] == ends[1]["step"] == 8
    assert ends[0]["loss/model"] == pytest.approx(ends[1]["loss/model"], rel=0.2)


def test_a_killed_peer_ends_the_other_and_its_checkpoint_stays(tmp_path):
    # The survivor hangs in a collective until jax's coordination service misses the heartbeats; it
    # then aborts the process, which no Python code can catch or reword.
    killed = {"TINY_SIGNAL": f"SIGKILL 5 {tmp_path / 'checkpoints' / '3'}"}
    (code0, said0), (code1, said1) = two_processes(tmp_path, ({}, killed))
    assert code1 == -signal.SIGKILL, said1
    assert code0 not in (EXIT_DONE, EXIT_PREEMPTED), said0
    assert "another task died" in said0
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.steps() == [3]


def test_processes_agree_where_one_sees_the_folder_that_the_other_has_just_made(tmp_path):
    late = {"TINY_LATE": str(tmp_path / "checkpoints")}
    (code0, said0), (code1, said1) = two_processes(tmp_path, ({}, late))
    assert (code0, code1) == (EXIT_DONE, EXIT_DONE), said0 + said1
