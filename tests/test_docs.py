"""README and docs: links lead somewhere, commands and fields exist, and the worked example is a system."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import _shared
from vidmotion import __main__ as commands
from vidmotion import evaluation, plan, system
from vidmotion.data import pipeline
from vidmotion.errors import EXIT_DONE
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.train import train

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted((ROOT / "docs/papers").glob("*.md"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *PAPERS])


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


def commands_of(page):
    """Yields the words of each command of this package in a page's blocks and text, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    parts = re.split(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    lines = re.split(r"\n|&&", "\n".join(parts[1::2]))
    lines += " ".join(parts[::2]).replace("\n", " ").split("`")[1::2]
    for line in lines:
        if re.match(r"\s*(python -m vidmotion\b|vidmotion [a-z]+(\s|$))", line):
            yield shlex.split(line.partition(" #")[0])


def written_in(words):
    """Returns the source of the module that a command runs, or of all files if it is a package."""
    module = words[2] if words[0] == "python" else commands.COMMANDS[words[1]][0]
    file = Path(importlib.util.find_spec(module).origin)
    files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_can_be_given(page):
    """The module has the flags; the config accepts its argument and has the fields and evaluators."""
    for words in commands_of(page):
        written = written_in(words)
        flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
        config = flags.pop("config", "")
        config = load_config(config) if config and "<" not in config else None
        evals = set(flags.get("evals", "").split(",")) - {"", "NAME", "none"}
        assert evals <= set(config.evals if config else evaluation.EVALUATORS), words
        for flag in flags:
            if not flag.startswith("config."):
                assert flag == "help" or re.search(f"[\"'](--)?{flag}[\"']", written), words
            elif config:
                assert flag.removeprefix("config.") in flat(config), words


def flat(config):
    """Returns the paths of all fields of a config, including its sections."""
    paths = set()
    for name, value in config.items():
        inner = flat(value) if isinstance(value, ConfigDict) else ()
        paths |= {name, *(f"{name}.{path}" for path in inner)}
    return paths


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_variants_and_files_of_a_papers_page_exist(page):
    text = page.read_text(encoding="utf-8")
    recipes = "|".join(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
    named = re.findall(rf"`((?:{recipes}):[\w=.,]+)`", text)
    assert len(named) > 2
    for config in named:
        load_config(config)
    files = re.findall(r"`((?:vidmotion|configs)/[\w/]+\.py)`", text)
    assert f"vidmotion/systems/{page.stem}.py" in files
    for file in files:
        assert (ROOT / file).exists(), file


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in listed, page.name
    for page in PAPERS:
        assert f"papers/{page.name}" in listed, page.name


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


@pytest.fixture
def build():
    """Returns the module docs/results/build.py."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs/results/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_papers_pages_have_the_figures_of_the_records(page, build):
    text = page.read_text(encoding="utf-8")
    assert text == build.paper_page(page.stem), "python docs/results/build.py makes it anew"
    before, _, rest = text.partition("<!-- reached -->")
    typed = before + rest.partition("<!-- end of reached -->")[2]
    assert rest and not re.search(r"\d+\.\d+ ?(dB|%)", typed)


def test_what_was_reached_is_of_the_runs_that_have_records(build, monkeypatch, tmp_path):
    def record(steps, **psnr):
        return {
            "steps_done": steps,
            "commit": "c" * 40,
            "config": {"batch_size": 8, "system": {"name": "bcd"}},
            "results": [{"metric": f"psnr/{name}", "value": value} for name, value in psnr.items()],
        }

    shipped = tmp_path / "shipped"
    shipped.mkdir()
    copies = {"copy_content": 14.5, "copy_motion": 11.0}
    learnt = record(1500, swap=17.25, wrong_driver=15.0, mean_picture=None, **copies)
    (tmp_path / "heads_demo.json").write_text(json.dumps(learnt))
    (shipped / "small.json").write_text(json.dumps(record(20, swap=14.0, **copies)))
    monkeypatch.setattr(build, "RECORDS", tmp_path)
    monkeypatch.setattr(build, "SHIPPED", shipped)
    lines = build.reached("bcd")
    demo, small = "(../results/README.md#heads_demo)", "(../results/README.md#small) (shipped)"
    tail = "14.50 | 11.00 | - |"
    assert f"| [heads_demo]{demo} | 17.25 | 15.00 | {tail} 1,500 x 8 | cccccccccccc |" in lines
    assert f"| [small]{small} | 14.00 | - | {tail} 20 x 8 | cccccccccccc |" in lines
    assert (
        sum("closer to the exact picture than the swaps of [small](" in line for line in lines) == 1
    )
    assert "| CSIM of motion transfer, LRS3 | not measured | 0.692 (Table A2) |  |  |  |" in lines
    text = "\n".join(lines)
    assert "heads_mini" not in text and "Sprites" not in text
    assert "small" not in "\n".join(build.reached("xnemo"))


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
    # One weight for each of the seven frames that are read.
    assert re.search(r"^all +7$", text, re.M)
    assert re.search(r"^tokens per batch +56$", text, re.M)
    sys.modules.pop("brightness_config")


def test_worked_source_evaluator_and_recipe_learn_together(monkeypatch, tmp_path):
    """On ramps the frame after a and b is 2 b - a, so a least-squares fit to uint8 ramps errs by rounding alone."""
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
    # The ends of a ramp are uniform: they differ by 1/3 on average, and successive frames by a seventh of that.
    assert error["brightness/unchanged"] == pytest.approx(1 / 21, rel=0.5)
    assert error["brightness/predicted"] < 0.1 * error["brightness/unchanged"]
    debug = load_config(f"{ROOT}/docs/examples/ramps_config.py:debug")
    assert debug.steps == 2
