"""Long runs of two thousand steps or three thousand frames do not keep taking more memory, threads and open files."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny

from vidmotion import media

COUNT = """
    import json, os, sys

    seen = []

    def look(now):
        pages = int(open("/proc/self/statm").read().split()[1])
        seen.append({
            "now": now,
            "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "threads": len(os.listdir("/proc/self/task")),
            "files": len(os.listdir("/proc/self/fd")),
        })
"""

TRAINING = """
    import tiny
    from vidmotion import system, train

    system.SYSTEMS["tiny"] = "tiny:Tiny"
    config = tiny.get_config()
    config.update_from_flattened_dict({
        "steps": 2000, "batch_size": 2, "accumulate": 1, "log_every": 10, "checkpoint.every": 100,
    })
    push = train.DeferredMetrics.push

    def pushed(self, now, metrics):
        if now % 500 == 50:
            look(now)
        return push(self, now, metrics)

    train.DeferredMetrics.push = pushed
    code = train.train(config, sys.argv[1])
    print(json.dumps({"code": code, "seen": seen}))
"""

REENACTING = """
    from vidmotion import media, reenact
    from vidmotion.open_run import open_run

    write = media.write_mp4

    def watched(path, frames, *rest, **options):
        def passing():
            for now, frame in enumerate(frames, start=1):
                if now % 700 == 200:
                    look(now)
                yield frame

        write(path, passing(), *rest, **options)

    media.write_mp4 = watched
    workdir, video, out = sys.argv[1:]
    count = reenact.reenact(open_run(workdir), video, video, out)
    print(json.dumps({"count": count, "seen": seen}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
]


def outcome_of(code, *arguments):
    """Runs a program and returns what it prints in its last line."""
    tests = Path(tiny.__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COUNT) + textwrap.dedent(code)]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_constant(early, late):
    assert late["threads"] <= early["threads"] + 1
    assert late["files"] <= early["files"] + 1
    assert late["mib"] <= early["mib"] + 16


def test_training_leaves_memory_threads_and_files_as_they_are(tmp_path):
    outcome = outcome_of(TRAINING, tmp_path)
    seen = outcome["seen"]
    print(seen)
    assert outcome["code"] == 0 and [row["now"] for row in seen] == [50, 550, 1050, 1550]
    # At step 50 nothing has been saved yet, and saving leaves threads; from the next reading on, nothing grows.
    assert_constant(seen[1], seen[-1])


def test_reenacting_leaves_memory_threads_and_files_as_they_are(heads_run, tmp_path):
    numbers = np.arange(3000)
    frames = (np.full((32, 32, 3), k % 251, np.uint8) for k in numbers)
    media.write_mp4(tmp_path / "b.mp4", frames)
    outcome = outcome_of(REENACTING, heads_run, tmp_path / "b.mp4", tmp_path / "c.mp4")
    seen = outcome["seen"]
    print(seen)
    assert outcome["count"] == 3000
    assert [row["now"] for row in seen] == [200, 900, 1600, 2300, 3000]
    assert_constant(seen[1], seen[-1])
