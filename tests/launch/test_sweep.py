"""The sweep runner: what it would run, what it leaves out, and what its table says."""

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


def test_more_arguments_follow_the_sweeps_own(tmp_path, capsys, sweep):
    wanted = ["benchmark", f"--workdir={tmp_path}", "--arguments=minutes=3", "--dry_run"]
    assert sweep.main(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "--config=configs/benchmark.py:system=warpface,clips=sprites,minutes=3 " in lines[-1]


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


def record(folder, steps=5, **results):
    folder.mkdir()
    rows = [{"metric": metric, "value": value} for metric, value in results.items()]
    content = {"steps_done": steps, "steps_planned": 5, "results": rows}
    (folder / "record.json").write_text(json.dumps(content))


def test_a_complete_run_is_run_again_only_for_a_missing_column(tmp_path, sweep):
    record(tmp_path / "full", a=1.0, b=None, c=2.0)
    record(tmp_path / "lacking", a=1.0)
    record(tmp_path / "begun", steps=4, a=1.0, b=2.0)
    states = [
        sweep._complete(tmp_path / name, ("a", "b"))
        for name in ("full", "lacking", "begun", "absent")
    ]
    assert states == [True, False, False, False]


def test_the_picture_shows_what_the_records_hold(tmp_path, monkeypatch, sweep):
    Figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append((self, path)))
    three = types.SimpleNamespace(
        CONFIG="configs/heads.py",
        OVERRIDES={},
        COLUMNS=(),
        ARGUMENTS={"a": "demo", "b": "demo", "not run": "demo", "without x": "demo"},
        PLOT={
            "x": ("bits", "bits per frame"),
            "panels": (("left", {"error": "e"}), ("right", {"one": "r", "two": "absent"})),
        },
    )
    record(tmp_path / "a", **{"bits": 7.0, "e": 1.0, "r": 0.5, "r/low": 0.4, "r/high": 0.8})
    record(tmp_path / "b", bits=9.0, e=2.0, r=None)
    record(tmp_path / "without_x", e=2.0)
    sweep.draw(three, sweep.commands(three, tmp_path, None), tmp_path / "rate.png")
    (figure, path) = drawn[0]
    left, right = figure.axes
    assert path == tmp_path / "rate.png"
    assert (left.get_xlabel(), left.get_ylabel()) == ("bits per frame", "left")
    assert left.lines[0].get_xydata().tolist() == [[7, 1], [9, 2]]
    assert [text.get_text() for text in left.texts] == ["a", "b"]
    (points, _, (bar,)) = right.containers[0]
    assert points.get_xydata().tolist() == [[7, 0.5]]
    assert bar.get_segments()[0].tolist() == [[7, 0.4], [7, pytest.approx(0.8)]]


def test_the_sweep_draws_metrics_that_its_runs_measure(sweep):
    from configs.sweeps import bcd_bitrate

    assert bcd_bitrate.OVERRIDES["evals.leakage.every"] == 0
    metrics = [m for _, panel in bcd_bitrate.PLOT["panels"] for m in panel.values()]
    evaluators = ("psnr/", "ssim/", "bits_per_frame/", "probe/")
    assert all(m.startswith(evaluators) for m in [*metrics, *bcd_bitrate.COLUMNS])


def test_without_matplotlib_the_table_is_written_all_the_same(tmp_path, monkeypatch, capsys, sweep):
    from configs.sweeps import bcd_bitrate

    for name in bcd_bitrate.ARGUMENTS:
        folder = tmp_path / name.replace(" ", "_")
        record(folder, **dict.fromkeys(bcd_bitrate.COLUMNS, 1.0))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert sweep.main(["bcd_bitrate", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "table.md").read_text().count("| 5 | 1.000 |") == 6
    assert "vidmotion[plot]" in capsys.readouterr().out and not (tmp_path / "rate.png").exists()


def test_a_failing_run_ends_the_sweep_with_its_code(tmp_path, monkeypatch, sweep):
    codes = iter([0, 75])
    asked = []

    def run(command):
        asked.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(sweep.subprocess, "run", run)
    assert sweep.main(["bcd_bitrate", f"--workdir={tmp_path}"]) == 75
    assert len(asked) == 2


def test_what_one_run_could_not_measure_costs_the_others_nothing(tmp_path, monkeypatch, sweep):
    codes = iter([4, 0, 0, 4, 0, 0])

    def run(command):
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(sweep.subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert sweep.main(["bcd_bitrate", f"--workdir={tmp_path}"]) == 4
    assert next(codes, None) is None and (tmp_path / "table.md").exists()


def test_a_torn_record_is_measured_again(tmp_path, sweep):
    record(tmp_path / "run", a=1.0)
    (tmp_path / "run" / "record.json").write_text('{"steps_done": 5')
    assert not sweep._complete(tmp_path / "run", ("a",))


def test_an_unknown_sweep_lists_those_there_are(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "nope", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "bcd_bitrate" in done.stderr


def test_seeds_and_changes_of_single_runs(tmp_path, sweep):
    four = types.SimpleNamespace(
        CONFIG="configs/heads.py",
        OVERRIDES={"steps": 3},
        ARGUMENTS={"full": "mini", "no loss": "mini"},
        CHANGES={"no loss": {"system.rate.weight": 0.0}},
        SEEDS=(0, 7),
    )
    runs = sweep.commands(four, tmp_path, None)
    assert list(runs) == ["full 0", "full 7", "no loss 0", "no loss 7"]
    folder, command = runs["no loss 7"]
    assert folder == tmp_path / "no_loss_7"
    assert command[-3:] == [
        "--config.steps=3",
        "--config.system.rate.weight=0.0",
        "--config.seed=7",
    ]
    assert "--config.system.rate.weight=0.0" not in runs["full 0"][1]
