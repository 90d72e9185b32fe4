"""A long run: two thousand steps leave memory, threads and open files where they were."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny

SOAK = """
    import json, os, sys
    import tiny
    from vidmotion import system, train

    system.SYSTEMS["tiny"] = "tiny:Tiny"
    config = tiny.get_config()
    config.update_from_flattened_dict({
        "steps": 2000, "batch_size": 2, "accumulate": 1, "log_every": 10, "checkpoint.every": 100,
    })
    push, seen = train.DeferredMetrics.push, []

    def pushed(self, now, metrics):
        if now % 500 == 50:
            pages = int(open("/proc/self/statm").read().split()[1])
            seen.append({
                "step": now,
                "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "threads": len(os.listdir("/proc/self/task")),
                "files": len(os.listdir("/proc/self/fd")),
            })
        return push(self, now, metrics)

    train.DeferredMetrics.push = pushed
    code = train.train(config, sys.argv[1])
    print(json.dumps({"code": code, "seen": seen}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_memory_threads_and_files_stay_as_they_are(tmp_path):
    tests = Path(tiny.__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SOAK), str(tmp_path)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["code"] == 0
    seen = outcome["seen"]
    print(seen)
    assert [row["step"] for row in seen] == [50, 550, 1050, 1550]
    # At step 50 nothing has been saved yet, whose threads stay; from then on all is as it was.
    early, late = seen[1], seen[-1]
    assert late["threads"] <= early["threads"] + 1
    assert late["files"] <= early["files"] + 1
    assert late["mib"] <= early["mib"] + 16
