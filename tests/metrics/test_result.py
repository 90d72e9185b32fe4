"""Rows of results: what they refuse, and how they are written."""

import json

import pytest

from vidmotion.metrics.result import MetricResult, markdown, not_computed


def test_a_row_in_json_and_in_a_table():
    row = MetricResult("fid", 12.34567, "pytorch_fid", "1f3a", "256x256", 2000, "a | b")
    assert json.loads(json.dumps(row.to_dict())) == {
        "metric": "fid",
        "value": 12.34567,
        "convention": "pytorch_fid",
        "weights": "1f3a",
        "resolution": "256x256",
        "n": 2000,
        "note": "a | b",
    }
    lacking = not_computed("fvd", "tf", "i3d.pt (example.org)", "64x64", 3)
    assert lacking.to_dict()["value"] is None
    lines = markdown([row, lacking], digits=2).splitlines()
    assert lines[0] == "| metric | value | convention | weights | resolution | n | note |"
    assert lines[2] == r"| fid | 12.35 | pytorch_fid | 1f3a | 256x256 | 2000 | a \| b |"
    assert lines[3].startswith("| fvd | not computed | tf | none | 64x64 | 3 | not computed: needs")


@pytest.mark.parametrize(
    "value, n, note, said",
    [
        (None, 1, "", "note must say why"),
        (float("nan"), 1, "x", "is not a result"),
        (float("inf"), 1, "", "is not a result"),
        (1.0, -1, "", "n=-1"),
    ],
)
def test_rows_that_would_mislead(value, n, note, said):
    with pytest.raises(ValueError, match=said):
        MetricResult("fid", value, "clean", "none", "8x8", n, note)
