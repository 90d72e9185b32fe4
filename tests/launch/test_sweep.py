"""The sweep runner: what it would run, what it leaves out, what its table says."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "sweep.py"


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import sweep

    return sweep


def test_dry_run_prints_one_command_per_run_and_writes_nothing(tmp_path, capsys, sweep):
    folder = tmp_path / "with space"
    assert sweep.main(["bcd_bitrate", f"--workdir={folder}", "--steps=7", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and not folder.exists()
    assert "--config=configs/heads.py:demo,cross=off" in lines[5]
    assert all("--config.steps=7" in line for line in lines)
    assert f"'--workdir={folder}/no_rate_loss'" in lines[4]  # quoted for a shell


def test_table_reads_records_and_says_what_was_not_run(tmp_path, sweep):
    two = types.SimpleNamespace(
        CONFIG="configs/heads.py",
        OVERRIDES={},
        COLUMNS=("psnr/swap",),
        ARGUMENTS={"a": "demo", "b c": "demo"},
    )
    runs = sweep.commands(two, tmp_path, None)
    assert runs["b c"][0] == tmp_path / "b_c"
    (tmp_path / "a").mkdir()
    record = {
        "steps_done": 5,
        "steps_planned": 5,
        "results": [{"metric": "psnr/swap", "value": 20.25}],
    }
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    assert sweep.table(two, runs).splitlines()[2:] == ["| a | 5 | 20.250 |", "| b c | not run |  |"]


def test_a_failing_run_ends_the_sweep_with_its_code(tmp_path, monkeypatch, sweep):
    codes = iter([0, 75])
    asked = []

    def run(command):
        asked.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(sweep.subprocess, "run", run)
    assert sweep.main(["bcd_bitrate", f"--workdir={tmp_path}"]) == 75
    assert len(asked) == 2


def test_an_unknown_sweep_lists_those_there_are(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "nope", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "bcd_bitrate" in done.stderr
