"""Launchers: the commands they print and run, recorded by stand-ins for ssh, srun and gcloud on PATH."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidmotion.checkpoint import Checkpointer
from vidmotion.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_REFUSED

ROOT = Path(__file__).resolve().parents[1]
RUN = ["--config=configs/heads.py", "--workdir=gs://bucket/a run's folder"]

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None, reason="the launchers are bash scripts and there is no bash"
)

STAND_IN = """#!/usr/bin/env bash
call=0  # a file a call: programs run at the same time never write into one
until (set -o noclobber && : >"$RECORD/$call") 2>/dev/null; do call=$((call + 1)); done
printf '%s\\0' "$(basename "$0")" "$@" >"$RECORD/$call"
{body}
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Returns `stand_in(name, body)`, which puts a program on PATH that records its arguments; `.calls()` reads
    them."""
    folder, recorded = tmp_path / "bin", tmp_path / "record"
    folder.mkdir()
    recorded.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(recorded))

    def make(name, body="exit 0"):
        path = folder / name
        path.write_text(STAND_IN.replace("{body}", body))
        path.chmod(0o755)

    make.calls = lambda: [
        path.read_text().removesuffix("\0").split("\0")
        for path in sorted(recorded.iterdir(), key=lambda path: int(path.name))
    ]
    return make


def launch(name, *arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


def printed(result):
    """Returns the commands of a dry run, split into words as by a shell."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


# -- local ----------------------------------------------------------------------------------------


def test_local_prints_one_command_a_process():
    commands = printed(launch("local.sh", "3", "--dry_run", *RUN, PYTHON="/opt/my python"))
    assert len(commands) == 3
    for index, command in enumerate(commands):
        assert command[:2] == ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT"]
        assert command[2:4] == ["JAX_NUM_PROCESSES=3", f"JAX_PROCESS_ID={index}"]
        assert command[4:] == ["/opt/my python", "-m", "vidmotion.main", *RUN]


@pytest.mark.parametrize(
    ("name", "before", "count"),
    [
        ("local.sh", ["2"], 2),
        ("gpu.sh", ["--hosts=gpu-a,gpu-b"], 2),
        ("slurm.sbatch", [], 1),
        ("tpu_vm.sh", ["pod", "--zone=z", "--type=v4-8", "--"], 6),
    ],
)
def test_a_dry_run_is_one_wherever_it_is_asked_for(stand_in, name, before, count):
    for tool in ("ssh", "srun", "gcloud"):
        stand_in(tool)
    commands = printed(launch(name, *before, *RUN, "--dry_run", PYTHON="worker"))
    assert len(commands) == count
    assert not any("--dry_run" in word for command in commands for word in command)
    assert stand_in.calls() == []


def test_local_refuses_what_is_no_number():
    result = launch("local.sh", *RUN)
    assert result.returncode == EXIT_REFUSED
    assert "number of processes" in result.stderr


WORKER = """
[[ $1 == -c ]] && { echo 12345; exit; }
trap 'exit 75' TERM
case "$JAX_PROCESS_ID $MODE" in
    '1 dies') exit 9 ;;
    *' ends') exit 0 ;;
esac
for ((i = 0; i < 100; i++)); do sleep 0.1; done
"""


@pytest.mark.parametrize(("mode", "code"), [("ends", 0), ("dies", 9)])
def test_local_ends_with_the_first_process_that_fails(stand_in, mode, code):
    stand_in("worker", WORKER)
    begun = time.monotonic()
    result = launch("local.sh", "2", *RUN, PYTHON="worker", MODE=mode)
    assert result.returncode == code
    assert time.monotonic() - begun < 8  # the survivor was told to end rather than waited for
    assert ("process 1 ended with code 9" in result.stderr) == (mode == "dies")


@pytest.mark.slow
def test_local_trains_two_processes_is_killed_and_resumes(tmp_path):
    command = ["bash", str(ROOT / "launch/local.sh"), "2", "--config=configs/heads.py:debug"]
    command += [
        f"--workdir={tmp_path / 'a run'}",
        "--config.batch_size=4",
        "--config.steps=8",
        "--config.sample.rows=0",
    ]
    command += ["--config.checkpoint.every=1", "--config.log_every=1", "--evals=none"]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "VIDMOTION_HEARTBEAT_SECONDS": "10",
        "XLA_FLAGS": "",
    }
    begun = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
    )
    checkpoints = tmp_path / "a run" / "checkpoints"
    deadline = time.monotonic() + 240
    while not (checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert begun.poll() is None, begun.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.2)
    begun.send_signal(signal.SIGTERM)
    said = begun.communicate(timeout=240)[0]
    assert begun.returncode == EXIT_PREEMPTED, said
    with Checkpointer(tmp_path / "a run", read_only=True) as checkpointer:
        reached = checkpointer.steps()[-1]
    assert 1 <= reached < 8
    again = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=240
    )
    assert again.returncode == EXIT_DONE, again.stderr
    assert f"resumed from step {reached}" in again.stderr
    with Checkpointer(tmp_path / "a run", read_only=True) as checkpointer:
        assert checkpointer.steps()[-1] == 8


@pytest.mark.parametrize("name", ["gpu.sh", "local.sh", "slurm.sbatch", "sweep.py", "tpu_vm.sh"])
def test_a_launcher_is_a_program_that_says_how_it_is_used(name):
    done = subprocess.run(
        [str(ROOT / "launch" / name), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stderr
    assert f"launch/{name} " in done.stdout and "SBATCH" not in done.stdout


# -- gpu ------------------------------------------------------------------------------------------


def test_one_gpu_host_is_one_process():
    (command,) = printed(launch("gpu.sh", "--dry_run", *RUN))
    assert command == ["python", "-m", "vidmotion.main", *RUN]


def test_gpu_hosts_get_one_process_each_where_the_first_is_met(stand_in):
    stand_in("ssh")
    arguments = ["--hosts=gpu-a,me@10.0.0.2", "--port=77", "--dir=/shared/my code"]
    planned = printed(launch("gpu.sh", *arguments, "--dry_run", *RUN))
    assert launch("gpu.sh", *arguments, *RUN).returncode == 0
    assert sorted(stand_in.calls()) == sorted(planned)
    for index, (host, command) in enumerate(zip(["gpu-a", "me@10.0.0.2"], planned)):
        assert command[:-1] == ["ssh", "-tt", "-o", "BatchMode=yes", host]
        remote = shlex.split(command[-1])
        assert remote[:5] == ["cd", "/shared/my code", "&&", "exec", "env"]
        assert remote[5:8] == [
            "JAX_COORDINATOR_ADDRESS=gpu-a:77",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={index}",
        ]
        assert remote[8:] == ["python", "-m", "vidmotion.main", *RUN]


def test_hosts_may_meet_at_an_ipv6_address():
    (_, command) = printed(launch("gpu.sh", "--hosts=fd00::1,gpu-b", "--dry_run", *RUN))
    assert "JAX_COORDINATOR_ADDRESS=[fd00::1]:29500" in shlex.split(command[-1])


def test_a_gpu_host_that_fails_is_named(stand_in):
    stand_in("ssh", "[[ $* == *gpu-b* ]] && exit 3\nexit 0")
    result = launch("gpu.sh", "--hosts=gpu-a,gpu-b", *RUN)
    assert result.returncode == 3
    assert "gpu-b ended with code 3" in result.stderr


def test_a_list_of_hosts_that_is_none_is_refused():
    result = launch("gpu.sh", "--hosts=a b", "--dry_run", *RUN)
    assert result.returncode == EXIT_REFUSED and "'a b' is not a host" in result.stderr


# -- SLURM ----------------------------------------------------------------------------------------


def test_slurm_prints_and_runs_one_srun(stand_in):
    stand_in("srun")
    (command,) = printed(launch("slurm.sbatch", "--dry_run", *RUN))
    assert command == ["srun", "--kill-on-bad-exit=1", "python", "-m", "vidmotion.main", *RUN]
    assert launch("slurm.sbatch", *RUN, SLURM_JOB_ID="7").returncode == 0
    assert stand_in.calls() == [command]


def test_slurm_goes_back_into_the_queue_when_interrupted(stand_in):
    stand_in("srun", f"exit {EXIT_PREEMPTED}")
    stand_in("scontrol")
    assert launch("slurm.sbatch", *RUN, SLURM_JOB_ID="7").returncode == EXIT_PREEMPTED
    assert stand_in.calls()[1:] == [["scontrol", "requeue", "7"]]


def test_slurm_outside_a_job_says_how_to_submit():
    environment = {"SLURM_JOB_ID": ""}
    result = launch("slurm.sbatch", *RUN, **environment)
    assert result.returncode == EXIT_REFUSED and "sbatch launch/slurm.sbatch" in result.stderr


# -- TPU VM ---------------------------------------------------------------------------------------

SLICE = ["pod-1", "--zone=us-central2-b", "--type=v4-32", "--project=my-project"]
PLACE = ["--zone=us-central2-b", "--project=my-project"]
GCLOUD = """
case "$*" in
    *describe*) [[ -f $STATE ]] && cat "$STATE" || exit 1 ;;
    *create*) echo READY >"$STATE" ;;
    *delete*) rm -f "$STATE" ;;
    *vidmotion.main*)
        if [[ -n $TAKEN && ! -f $STATE.taken ]]; then
            echo PREEMPTED >"$STATE"; touch "$STATE.taken"; exit 255
        fi
        exit "${CODE:-0}" ;;
esac
"""


def tpu_calls(stand_in):
    """Returns the verbs of gcloud's calls, without `describe`, and all calls."""
    calls = [call for call in stand_in.calls() if call[0] == "gcloud"]
    assert all(call[1:4] == ["compute", "tpus", "tpu-vm"] for call in calls)
    return [call[4] for call in calls if call[4] != "describe"], calls


@pytest.fixture
def gcloud(stand_in, tmp_path, monkeypatch):
    stand_in("gcloud", GCLOUD)
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VIDMOTION_RETRY_SECONDS", "0")
    return stand_in


def test_tpu_creates_copies_installs_runs_and_deletes(gcloud):
    result = launch("tpu_vm.sh", *SLICE, "--", *RUN)
    assert result.returncode == 0, result.stderr
    verbs, calls = tpu_calls(gcloud)
    assert verbs == ["create", "scp", "ssh", "ssh", "delete"]
    create, copy, install, run, delete = [call for call in calls if call[4] != "describe"]
    assert create[5:] == [
        "pod-1",
        *PLACE,
        "--accelerator-type=v4-32",
        "--version=tpu-ubuntu2204-base",
    ]
    assert copy[6:] == ["pod-1:vidmotion.tar.gz", *PLACE, "--worker=all"]
    assert install[5:-1] == run[5:-1] == ["pod-1", *PLACE, "--worker=all"]
    assert "tar -xzf vidmotion.tar.gz" in install[-1] and '".[tpu]"' in install[-1]
    remote = shlex.split(run[-1].removeprefix("--command="))
    assert remote == [
        "cd",
        "vidmotion",
        "&&",
        "exec",
        "env/bin/python",
        "-m",
        "vidmotion.main",
        *RUN,
    ]
    assert delete[5:] == ["pod-1", *PLACE, "--quiet"]


def test_the_dry_run_prints_what_would_run_and_runs_nothing(gcloud):
    planned = printed(launch("tpu_vm.sh", *SLICE, "--dry_run", "--", *RUN))
    assert gcloud.calls() == []
    assert [command[4] for command in planned[1:]] == ["create", "scp", "ssh", "ssh", "delete"]
    assert planned[0][0] == "git"


def test_a_slice_that_is_there_is_used_and_kept_on_request(gcloud, tmp_path):
    (tmp_path / "state").write_text("READY\n")
    assert launch("tpu_vm.sh", *SLICE, "--keep", "--", *RUN).returncode == 0
    assert tpu_calls(gcloud)[0] == ["scp", "ssh", "ssh"]


def test_a_spot_slice_that_was_taken_away_is_made_again(gcloud):
    result = launch("tpu_vm.sh", *SLICE, "--spot", "--", *RUN, TAKEN="1")
    assert result.returncode == 0, result.stderr
    assert "taken away (PREEMPTED)" in result.stderr
    verbs, calls = tpu_calls(gcloud)
    once = ["create", "scp", "ssh", "ssh"]
    assert verbs == [*once, "delete", *once, "delete"]
    assert all("--spot" in call for call in calls if call[4] == "create")


def test_a_run_that_fails_keeps_the_slice(gcloud):
    result = launch("tpu_vm.sh", *SLICE, "--", *RUN, CODE="3")
    assert result.returncode == 3
    assert "pod-1 is kept" in result.stderr
    assert "delete" not in tpu_calls(gcloud)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the slice's name"),
        (["pod", "--type=v4-8", "--", *RUN], "--zone is missing"),
        (["pod", "--zone=z", "--", *RUN], "--type is missing"),
        (["pod", "--zone=z", "--type=v4-8"], "nothing to run"),
        (["pod", "--zone=z", "--type=v4-8", "--spots", "--", *RUN], "unknown option --spots"),
        (["pod", "--zone=z", "--type=v4-8", "--spot", "--", "--workdir=here"], "in a bucket"),
    ],
)
def test_tpu_says_what_is_missing(gcloud, arguments, message):
    result = launch("tpu_vm.sh", *arguments)
    assert result.returncode == EXIT_REFUSED and message in result.stderr
    assert gcloud.calls() == []


def test_tpu_without_gcloud_or_project_says_so(stand_in, tmp_path):
    tools = tmp_path / "only"
    tools.mkdir()
    for tool in ("bash", "dirname", "git", "mktemp", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = launch("tpu_vm.sh", *SLICE, "--", *RUN, PATH=str(tools))
    assert result.returncode == EXIT_REFUSED and "gcloud is not installed" in result.stderr
    stand_in("gcloud", "echo '(unset)'")
    result = launch("tpu_vm.sh", *SLICE[:3], "--", *RUN)
    assert result.returncode == EXIT_REFUSED and "no project" in result.stderr
