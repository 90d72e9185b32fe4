"""Networks that evaluators read samples with, found by name or by workdir."""

import re

import pytest

from vidmotion.errors import ConfigError
from vidmotion.evaluation.trained import trained
from vidmotion.systems.sprites_judge import SpritesJudge

CONFIG = "configs/sprites_judge.py"


def test_a_shipped_network_is_found_by_its_name():
    found = trained("sprites_judge", "it.judge", SpritesJudge, CONFIG)
    assert isinstance(found.run.system, SpritesJudge)
    assert re.fullmatch("[0-9a-f]{12}", found.identity)
    assert trained("", "it.judge", SpritesJudge, CONFIG) is None


@pytest.mark.parametrize(
    "where, message",
    [
        ("heads_reader", f"it.judge='heads_reader' holds a run of 'heads_reader'; expected a run of {CONFIG}"),
        ("no_judge", "no_judge holds no run"),
    ],
)  # fmt: skip
def test_another_network_is_refused(where, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trained(where, "it.judge", SpritesJudge, CONFIG)
