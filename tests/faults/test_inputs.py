"""Every broken or odd input has the outcome it should: one clear error, a report, or the right values."""

import collections

import pytest
import tiny
from etils import epath
from inputs import EITHER, KINDS, REFUSED, RIGHT, SKIPPED, weights

from vidmotion import run_record
from vidmotion.checkpoint import CheckpointError
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError

CLEAR = (MediaError, DatasetError, ConfigError, CheckpointError, FileNotFoundError)
CLEAR_OF_WEIGHTS = (*CLEAR, ValueError)  # `vidmotion.convert` documents ValueError
LEAST = 300


@pytest.fixture(scope="module")
def counts():
    """Returns a dict to be filled, by kind, with the number of cases for each expected outcome."""
    return {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_inputs_become_what_they_should(kind, tmp_path, monkeypatch, caplog, capsys, counts):
    tiny.register(monkeypatch)
    wrong, clear = [], CLEAR_OF_WEIGHTS if kind is weights else CLEAR
    expected = collections.Counter()
    for case in kind(tmp_path):
        named = case.named or case.path.name
        caplog.clear()
        capsys.readouterr()
        try:
            same = case.same(case.reader(case.path))
            said = caplog.text + "".join(capsys.readouterr())
            outcome = (SKIPPED if named in said else RIGHT) if same else "other values"
        except clear as error:
            outcome = REFUSED if named in str(error) else f"an error without {named}: {error}"
        except Exception as error:
            outcome = f"a traceback: {error!r}"
        expected[case.expected] += 1
        allowed = {
            EITHER: (REFUSED, SKIPPED, RIGHT),
            RIGHT: (RIGHT, SKIPPED),  # the file may be named in the output for other reasons
        }.get(case.expected, (case.expected,))
        if outcome not in allowed:
            wrong.append(f"{case.name}: {outcome[:300]}, expected {case.expected}")
    counts[kind.__name__] = dict(expected)
    assert not wrong, "\n".join(wrong)


def test_there_are_enough(counts, request):
    if len(counts) < len(KINDS):
        pytest.skip("only some of the kinds were tried")
    assert len(KINDS) >= 8 and sum(map(sum, (kind.values() for kind in counts.values()))) >= LEAST
    if path := request.config.getoption("--faults_record"):
        run_record.write(epath.Path(path), {**run_record.environment(), "inputs": counts})
