"""A trace of training steps: it holds the requested steps, in the files that viewers open."""

import gzip
import json

import pytest
import tiny

from vidmotion.errors import EXIT_DONE
from vidmotion.train import train


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "traced"), [(3, {2, 3, 4}), (100, {2, 3, 4, 5, 6, 7})])
def test_the_steps_after_the_first_two_are_traced(tmp_path, monkeypatch, asked, traced):
    tiny.register(monkeypatch)
    config = tiny.get_config()
    config.checkpoint.every = 0
    assert train(config, str(tmp_path), profile=asked) == EXIT_DONE
    (found,) = tmp_path.glob("profile/plugins/profile/*")
    assert list(found.glob("*.xplane.pb"))
    with gzip.open(found / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    steps = {int(e["args"]["step_num"]) for e in events if e.get("name") == "train"}
    assert steps == traced
