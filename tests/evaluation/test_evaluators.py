"""Which evaluators run, and how a section of the config becomes an evaluator."""

import dataclasses
import types

import pytest
from ml_collections import ConfigDict

from vidmotion import evaluation
from vidmotion.errors import ConfigError


def run_of(**evals):
    config = ConfigDict({"system": {"name": "stub"}, "evals": evals})
    system = types.SimpleNamespace(evaluators=lambda: ("swap", "leakage"))
    return types.SimpleNamespace(config=config, system=system)


def test_those_that_wait_to_be_asked_for_run_by_name_alone():
    run = run_of(swap={"every": 0}, leakage={"every": -1}, reading={"every": 50})
    assert evaluation.asked(run.config) == ("reading", "swap")
    assert evaluation.asked(run.config, ["leakage"]) == ("leakage",)
    assert evaluation.asked(run.config, []) == ()


def test_a_section_is_the_fields_of_one_dataclass():
    built = evaluation.build("swap", run_of(swap={"every": 5, "pairs": 3, "batch": 2}))
    assert dataclasses.asdict(built) == {"every": 5, "pairs": 3, "batch": 2}
    with pytest.raises(ConfigError, match=r"config\.evals\.swap: .*'pair'.*every, pairs, batch"):
        evaluation.build("swap", run_of(swap={"pair": 3, "batch": 2}))
    with pytest.raises(ConfigError, match=r"config\.evals\.swap: .*'pairs'"):
        evaluation.build("swap", run_of(swap={"batch": 2}))


def test_what_makes_no_sense_or_has_no_section_is_refused():
    run = run_of(swap={"pairs": 3, "batch": 2})
    with pytest.raises(ConfigError, match="has no section 'leakage'; it has swap"):
        evaluation.build("leakage", run)
    with pytest.raises(ConfigError, match="asks for 'codec'; stub can be evaluated by swap, leak"):
        evaluation.build("codec", run)
    assert set(evaluation.PROTOCOLS) < set(evaluation.EVALUATORS)
