"""README and docs: links lead somewhere, commands and fields exist, the worked example is a system."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from configs import _shared
from vidmotion import evaluation, plan, system
from vidmotion.data import pipeline
from vidmotion.errors import EXIT_DONE
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.train import train

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_configs_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m (vidmotion[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r"\b((?:launch|configs)/[\w/]+\.(?:py|sh|sbatch))\b", text):
        assert (ROOT / file).exists(), file
    for field in re.findall(r"--config\.plan\.(\w+)", text):
        assert field in _shared.trunk().plan, field


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in listed, page.name


def test_modules_of_the_api_page_exist():
    for module in re.findall(r"^::: (\S+)", (ROOT / "docs/api.md").read_text(), re.M):
        assert importlib.util.find_spec(module), module


def test_hardware_page_is_that_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import plans

    assert (ROOT / "docs/hardware.md").read_text(encoding="utf-8") == plans.build()


def test_reliability_page_has_the_figures_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import reliability

    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.build()


def test_rows_of_the_readmes_hardware_table_are_those_of_the_page():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Hardware")[2]
    rows = re.findall(r"^\| \w.*$", section.partition("\n## ")[0], re.M)
    assert len(rows) > 3
    assert set(rows) <= set((ROOT / "docs/hardware.md").read_text(encoding="utf-8").splitlines())


def test_worked_example_is_a_system(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    monkeypatch.setitem(system.SYSTEMS, "brightness", "brightness:Brightness")
    import brightness_config

    text = plan.plan(Run(brightness_config.get_config("debug"), ""))
    # A weight for each of the seven frames that are read.
    assert re.search(r"^all +7$", text, re.M)
    assert re.search(r"^tokens per batch +56$", text, re.M)
    sys.modules.pop("brightness_config")


def test_worked_source_evaluator_and_recipe_learn_together(monkeypatch, tmp_path):
    """On ramps the next frame is 2 b - a of the last two: least squares of uint8 ramps are wrong by rounding alone."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    monkeypatch.setitem(system.SYSTEMS, "brightness", "brightness:Brightness")
    monkeypatch.setitem(pipeline.SOURCES, "ramps", ("ramps", "Ramps"))
    monkeypatch.setitem(evaluation.EVALUATORS, "next_frame", "next_frame:NextFrame")
    next_frame = importlib.import_module("next_frame")
    monkeypatch.setitem(sys.modules, "vidmotion.evaluation.next_frame", next_frame)
    config = load_config(f"{ROOT}/docs/examples/ramps_config.py")
    assert train(config, str(tmp_path)) == EXIT_DONE
    rows = json.loads((tmp_path / "eval.json").read_text())["results"]
    error = {row["metric"]: row["value"] for row in rows}
    # The ends of a ramp are uniform: they differ by 1/3 on average, and the frames by a seventh of that.
    assert error["brightness/unchanged"] == pytest.approx(1 / 21, rel=0.5)
    assert error["brightness/predicted"] < 0.1 * error["brightness/unchanged"]
    debug = load_config(f"{ROOT}/docs/examples/ramps_config.py:debug")
    assert debug.steps == 2
