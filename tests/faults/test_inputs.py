"""Every broken or odd input becomes what it should: one clear error, or the right values."""

import pytest
from inputs import EITHER, KINDS, REFUSED, RIGHT, weights

from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError

CLEAR = (MediaError, DatasetError, ConfigError, FileNotFoundError)
CLEAR_OF_WEIGHTS = (*CLEAR, ValueError)  # which `vidmotion.convert` documents


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_inputs_become_what_they_should(kind, tmp_path):
    wrong, clear = [], CLEAR_OF_WEIGHTS if kind is weights else CLEAR
    for case in kind(tmp_path):
        try:
            found = case.reader(case.path)
            outcome = RIGHT if case.same(found) else "other values"
        except clear as error:
            outcome = (
                REFUSED if case.path.name in str(error) else f"an error without its file: {error}"
            )
        except Exception as error:
            outcome = f"a traceback: {error!r}"
        if outcome != case.expected and not (
            case.expected == EITHER and outcome in (REFUSED, RIGHT)
        ):
            wrong.append(f"{case.name}: {outcome[:200]}, expected {case.expected}")
    assert not wrong, "\n".join(wrong)


def test_there_are_enough(tmp_path):
    count = 0
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        count += sum(1 for _ in kind(tmp_path / kind.__name__))
    assert count >= 300
