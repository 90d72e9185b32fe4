"""What a run record holds, and what it omits."""

import json

import pytest
from etils import epath

from vidmotion import run_record
from vidmotion.metrics.result import MetricResult, not_computed


def test_a_record_names_no_folder_of_this_machine(tmp_path):
    config = {
        "data": {"sheets_dir": str(tmp_path / "sheets"), "directory": "data/videos"},
        "rules": ((".*/kernel", True), (str(tmp_path / "a"), 1)),
        "steps": 5,
    }
    clean = run_record.without_places(config)
    assert clean["data"] == {"sheets_dir": "sheets", "directory": "data/videos"}
    assert clean["rules"] == [[".*/kernel", True], ["a", 1]]
    assert clean["steps"] == 5
    assert str(tmp_path) not in json.dumps(clean)


def test_a_record_is_whole_or_absent(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "record.json"
    run_record.write(path, {"a": 1})
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        run_record.write(path, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("text", ["", '{"steps_done": 8', "[]", "\x00\x00"])
def test_a_torn_record_counts_as_absent(tmp_path, text):
    path = epath.Path(tmp_path) / run_record.RECORD
    assert run_record.read(path) is None
    path.write_text(text)
    assert run_record.read(path) is None
    run_record.write(path, {"steps_done": 8})
    assert run_record.read(path) == {"steps_done": 8}


def test_table_says_what_was_not_computed():
    rows = [
        MetricResult("psnr", 20.125, "common", "none", "64x64", 3, "mean of frames"),
        not_computed("fid", "clean", "weights", "64x64", 0),
    ]
    lines = run_record.table(rows).splitlines()
    assert lines[1].split() == ["psnr", "20.1250", "3", "common;", "mean", "of", "frames"]
    assert lines[2].endswith("0  clean; not computed: needs weights")
