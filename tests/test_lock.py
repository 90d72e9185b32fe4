"""One writer in a folder: refusals that name the owner, and locks that end with their process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from etils import epath

from vidmotion import lock
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import ConfigError

HOLD = """
import sys, time
from vidmotion import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder, and yields it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_folder_is_refused_with_the_owners_name(tmp_path, holder):
    for _ in range(2):  # a refusal does not take the lock away
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on .+, since 20"):
            lock.hold(tmp_path).__enter__()
    holder.communicate("go\n")
    with lock.hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_owner_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / lock.LOCK).exists()
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()


def test_a_process_does_not_hold_a_folder_twice(tmp_path):
    with lock.hold(tmp_path):
        (tmp_path.parent / "link").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            lock.hold(tmp_path.parent / "link").__enter__()
    with lock.hold(tmp_path.parent / "link"):
        pass


def test_two_writers_of_a_dataset_do_not_mix(tmp_path):
    with DatasetWriter(tmp_path, "a") as writer:
        writer.write("train", {"x": "first"})
        with pytest.raises(ConfigError, match="in use by process"), DatasetWriter(tmp_path, "b"):
            pass
        late = DatasetWriter(tmp_path, "c")  # made before the first is complete, entered after
    with pytest.raises(DatasetError, match="holds a dataset already"), late:
        pass
    assert json.loads((tmp_path / "dataset.json").read_text())["name"] == "a"
    assert not list(tmp_path.glob("*.partial")) and not (tmp_path / lock.LOCK).exists()


# -- leases ---------------------------------------------------------------------------------------


def test_a_lease_that_is_renewed_is_refused(tmp_path):
    folder, refused = epath.Path(tmp_path), []

    def newcomer():
        try:
            with lock._lease(folder, 0.6):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with lock._lease(folder, 0.6):
        thread = threading.Thread(target=newcomer)
        thread.start()
        thread.join()
    assert f"in use by process {os.getpid()}" in refused[0]
    assert not list(tmp_path.iterdir())


def test_a_lease_that_is_not_renewed_is_taken_over(tmp_path):
    path = tmp_path / lock.LEASE
    path.write_text(json.dumps({"pid": 1, "host": "gone", "token": "x", "renewed": 3}))
    with lock._lease(epath.Path(tmp_path), 0.3):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_that_lost_its_lease_is_asked_to_stop(tmp_path, monkeypatch):
    asked, told = [], threading.Event()

    def kill(pid, number):
        asked.append((pid, number))
        told.set()

    monkeypatch.setattr(os, "kill", kill)
    path = tmp_path / lock.LEASE
    with lock._lease(epath.Path(tmp_path), 0.3):
        path.write_text(json.dumps({"pid": 1, "host": "other", "token": "x"}))
        assert told.wait(10)
    assert asked == [(os.getpid(), signal.SIGTERM)]
    assert json.loads(path.read_text())["host"] == "other"  # the lease of the other process stays


def test_a_bucket_gets_a_lease_and_one_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    leased = []

    @contextlib.contextmanager
    def lease(folder):
        leased.append(str(folder))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(lock, "_lease", lease)
        with lock.hold("gs://bucket/run"):
            assert leased == ["gs://bucket/run"]

    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*lease\.json"):
        lock._lease(epath.Path(tmp_path / "file" / "run"), 0.3).__enter__()
