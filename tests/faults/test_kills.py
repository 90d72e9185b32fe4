"""The kill campaign: after SIGKILL at random moments, a run ends bit for bit as it would have without them.

    pytest tests/faults/test_kills.py --kills=200 --faults_record=FILE

A training of tests/tiny.py, which saves after every step, and the preparation of a dataset are started and killed over
and over in the same folders, so that kills meet starting, restoring, training, saving and preparing alike. After each
kill, every checkpoint under a final name must be whole; each run that reaches its end is compared with an undisturbed
one.
"""

import dataclasses
import hashlib
import json
import signal
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from server import Server

from vidmotion import media, run_record
from vidmotion.checkpoint import Checkpointer
from vidmotion.metric_writer import read_metrics
from vidmotion.run import Run

SEED = 0
PREPARING = 0.25  # the share of the kills
STEPS = 8
KEEP = 2  # checkpoints kept


@dataclasses.dataclass
class Training:
    """A training of eight steps that saves after each."""

    folder: Path
    name = "train"

    @property
    def words(self):
        return [
            f"--config={tiny.__file__}",
            f"--workdir={self.folder}",
            "--config.checkpoint.every=1",
            "--config.log_every=1",
            f"--config.checkpoint.keep={KEEP}",
        ]

    def moment(self) -> str:
        """Returns what the training was doing when it was killed, as the folder tells; checks that the kept checkpoints
        are whole."""
        with Checkpointer(self.folder, read_only=True) as checkpointer:
            done = checkpointer.steps()
            for step in done[-KEEP:]:  # an older one may be half removed
                assert checkpointer._damage(step) is None
        if not done:
            return "starting"
        if any("tmp" in path.name for path in (self.folder / "checkpoints").iterdir()):
            return "saving"
        last = max(row["step"] for row in read_metrics(self.folder / "metrics.jsonl"))
        return "training" if last > done[-1] else "restoring or between steps"

    def end(self):
        """Returns all that a finished run holds: its state, its place in the data, and each number of each step,
        once."""
        config = tiny.get_config()
        run = Run(config, str(self.folder))
        with Checkpointer(self.folder, read_only=True) as checkpointer:
            state, position = run.restore(checkpointer)
        numbers = [
            (row["step"], name, value)
            for row in read_metrics(self.folder / "metrics.jsonl")
            for name, value in row.items()
            if name.startswith(("loss/", "grad_norm/"))
        ]
        leaves = jax.tree.leaves(jax.tree.map(np.asarray, state))
        bits = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
        return bits, position, sorted(numbers)


@dataclasses.dataclass
class Preparing:
    """The preparation of a dataset from three videos."""

    folder: Path
    videos: Path
    name = "prepare"

    @property
    def words(self):
        words = ["videos", f"--src={self.videos}", f"--out={self.folder}", "--size=16"]
        return [
            *words,
            "--fps=8",
            "--cut=255",
            "--seconds=0.5",
            "--codec=raw",
            "--jobs=1",
            "--test_share=0.4",
        ]

    def moment(self) -> str:
        complete = (self.folder / "dataset.json").exists()
        return "preparing, complete" if complete else "preparing"

    def end(self):
        """Returns the index, without the command, which names the folder; the bytes of the shards; and the names of all
        files."""
        index = json.loads((self.folder / "dataset.json").read_text())
        del index["provenance"]["command"]
        shards = {path.name: path.read_bytes() for path in self.folder.glob("*.array_record")}
        return index, shards, sorted(path.name for path in self.folder.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_what_was_killed_ends_bit_for_bit_as_what_was_not(tmp_path, monkeypatch, request):
    tiny.register(monkeypatch)
    kills = request.config.getoption("--kills")
    rng = np.random.default_rng(SEED)
    (tmp_path / "videos").mkdir()
    for i in range(3):
        frames = rng.integers(0, 256, (40, 16, 16, 3), np.uint8)
        media.write_mp4(tmp_path / "videos" / f"{i}.mp4", frames, fps=8)

    def begin(kind, number):
        folder = tmp_path / f"{kind}-{number}"
        return Training(folder) if kind == "train" else Preparing(folder, tmp_path / "videos")

    # The cache is the test's own, because kills damage its entries, too.
    with Server(tmp_path, cache=str(tmp_path / "cache")) as server:
        expected, seconds = {}, {}
        for kind in ("train", "prepare"):
            for name in ("warm", "whole"):  # the first run compiles
                task, start = begin(kind, name), time.perf_counter()
                assert server.run(task.name, task.words) == 0, server.log.read_text()
                seconds[kind] = time.perf_counter() - start
            expected[kind] = task.end()
        moments, ended, there = Counter(), Counter(), {}
        while moments.total() < kills:
            kind = "prepare" if rng.random() < PREPARING else "train"
            task = there.setdefault(kind, begin(kind, ended[kind]))
            code = server.run(task.name, task.words, rng.uniform(0, 1.1 * seconds[kind]))
            assert code in (0, -signal.SIGKILL), server.log.read_text()
            if code:
                moments[task.moment()] += 1
            else:
                assert task.end() == expected[kind]
                ended[kind] += 1
                del there[kind]
        for kind, task in there.items():
            assert server.run(task.name, task.words) == 0, server.log.read_text()
            assert task.end() == expected[kind]
            ended[kind] += 1
    figures = {"kills": kills, "moments": dict(moments), "compared": dict(ended), "seed": SEED}
    print(figures)
    if path := request.config.getoption("--faults_record"):
        run_record.write(epath.Path(path), {**run_record.environment(), **figures, "differing": 0})
