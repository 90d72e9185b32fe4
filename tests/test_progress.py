"""Log lines about long work, with a clock that the test controls."""

import logging

from vidmotion.progress import watched


def test_a_line_now_and_then(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    # The times at the start and before each item. The first item takes 60 s, which must not count for the others; each
    # of those takes 10 s.
    now = iter([0, 0, 60, 70, 80, 90, 100])
    with caplog.at_level(logging.INFO, "vidmotion"):
        passed = list(watched(list("abcdef"), "copying", every=20, clock=lambda: next(now)))
    assert passed == list("abcdef")
    assert [record.getMessage() for record in caplog.records] == [
        "copying: 1 of 6 batches",
        "copying: 3 of 6 batches, about 00:30 left",
        "copying: 5 of 6 batches, about 00:10 left",
    ]


def test_without_an_end_there_is_no_time_left(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)
    now = iter(range(0, 1000, 10))
    with caplog.at_level(logging.INFO, "vidmotion"):
        list(watched(iter("abc"), "reading", unit="files", every=25, clock=lambda: next(now)))
    assert [record.getMessage() for record in caplog.records] == ["reading: 2 files"]
