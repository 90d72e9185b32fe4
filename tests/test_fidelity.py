"""docs/fidelity.md: what it says about configs and code is true, and its counts are those of its tables."""

import ast
import collections
import functools
import importlib
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from vidmotion.evaluation import PROTOCOLS
from vidmotion.open_run import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fidelity.md"
PAPERS = ("BCD", "VidTwin", "X-NeMo", "WarpFace")
HOW = ("as in the paper", "our choice", "not possible here", "not yet")
HEADER = "| in the paper | its value | here | how |"
OF_CONFIG = re.compile(r"([a-z]\w*(?::\S+)?) ([a-z][\w.]*)=(.+)")
OF_CODE = re.compile(r"((?:vidmotion|configs)(?:\.\w+)+)(?:=(.+))?")


class Row(NamedTuple):
    """A row of a table: its four cells."""

    what: str
    value: str
    here: str
    how: str

    @property
    def kind(self) -> str:
        """One of `HOW`, or whatever the cell holds instead."""
        return self.how.partition(":")[0]


def tables(text: str) -> dict[str, list[Row]]:
    """Returns the rows of each paper's section."""
    found = {}
    for section in text.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        if title not in PAPERS:
            continue
        lines = [line for line in body.splitlines() if line.startswith("|")]
        assert lines[0] == HEADER, title
        found[title] = [row(line) for line in lines[2:]]
    return found


def row(line: str) -> Row:
    """Returns the row that one line of a table holds."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    assert len(cells) == 4, line
    return Row(*cells)


@functools.cache
def config_of(name: str) -> dict:
    return load_config(name).to_dict()


def plain(value):
    """Turns lists into tuples at every depth."""
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def equal(a, b) -> bool:
    """Tells whether two values are equal, numbers up to the rounding of their last digits."""
    a, b = plain(a), plain(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return type(a) is type(b) and a == b


def at(holder, path: str):
    """Follows a dotted path from `holder` through keys, indices of sequences and attributes."""
    for name in path.split(".") if path else ():
        if isinstance(holder, dict):
            holder = holder[name]
        elif isinstance(holder, list | tuple) and name.isdecimal():
            holder = holder[int(name)]
        else:
            holder = getattr(holder, name)
    return holder


def in_code(path: str):
    """Returns the module, or the object in a module, at a dotted path.

    Raises:
      ImportError, AttributeError, KeyError: nothing is there.
    """
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            module = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        return at(module, ".".join(names[end:]))
    raise ImportError(path)


def faults_of(span: str) -> tuple[list[str], list]:
    """Returns the faults of one piece of code in the third column, and a list with the value it states, if any."""
    if match := OF_CONFIG.fullmatch(span):
        name, path, text = match.groups()
        look = lambda: at(config_of(name), path)  # noqa: E731
    elif match := OF_CODE.fullmatch(span):
        path, text = match.groups()
        look = lambda: in_code(path)  # noqa: E731
    elif match := re.fullmatch(r"--evals=(\w+)", span):
        return ([] if match[1] in PROTOCOLS else [f"{span}: no such protocol"]), []
    elif match := re.fullmatch(r"python -m ([\w.]+)( \w+)?", span):
        try:
            importlib.import_module(match[1])
        except ImportError:
            return [f"{span}: no such command"], []
        return [], []
    else:
        return ([] if (ROOT / span).is_file() else [f"{span}: no such file"]), []
    try:
        have = look()
    except (ImportError, AttributeError, KeyError, IndexError) as error:
        return [f"{span}: there is none ({error!r})"], []
    if text is None:
        return [], []
    said = ast.literal_eval(text)
    return ([] if equal(have, said) else [f"{span}: it is {have!r}"]), [said]


def faults(one: Row) -> list[str]:
    """Returns the faults of a row."""
    spans = re.findall(r"`([^`]+)`", one.here)
    if "`" in re.sub(r"`[^`]+`", "", one.here) or re.sub(r"`[^`]+`|\s", "", one.here):
        return [f"{one.what}: the third column holds code alone"]
    wrong, stated = [], []
    for span in spans:
        bad, values = faults_of(span)
        wrong += bad
        stated += values
    if one.kind not in HOW:
        wrong.append(f"{one.how!r} is none of {', '.join(HOW)}")
    elif bool(one.how.partition(": ")[2]) == (one.kind == HOW[0]):
        wrong.append(f"{one.how!r}: a reason, unless it is as in the paper")
    if one.kind == HOW[0] and not spans:
        wrong.append("where is it?")
    try:
        paper = ast.literal_eval(one.value)
    except (ValueError, SyntaxError):
        paper = None  # the cell holds words
    if (
        paper is not None
        and one.kind == HOW[0]
        and not all(equal(paper, x) for x in stated or [None])
    ):
        wrong.append(f"the paper has {one.value}, here stands {stated}")
    return [f"{one.what}: {fault}" for fault in wrong]


def counts(found: dict[str, list[Row]]) -> list[str]:
    """Returns the lines that the page's first table should have."""
    lines = []
    for paper, rows in found.items():
        kinds = collections.Counter(one.kind for one in rows)
        numbers = [len(rows), *(kinds[how] for how in HOW)]
        lines.append(f"| {paper} | {' | '.join(map(str, numbers))} |")
    return lines


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_is_true(page, paper):
    wrong = [fault for one in tables(page)[paper] for fault in faults(one)]
    assert not wrong, "\n".join(wrong)


def test_no_row_stands_twice(page):
    for paper, rows in tables(page).items():
        names = collections.Counter(one.what for one in rows)
        assert not [name for name, times in names.items() if times > 1], paper


def test_the_counts_are_those_of_the_tables(page):
    want = counts(tables(page))
    print("\n".join(want))
    there = page.split("\n## ")[1].splitlines()
    assert there[0] == "Counts"
    assert [line for line in there if line.startswith("|")][2:] == want


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_and_equation_of_the_paper_has_a_row(page, paper):
    """Checks what the papers number; VidTwin's tables are those of its main text, BCD's those of its supplement."""
    last = {"BCD": 11, "VidTwin": 0, "X-NeMo": 7, "WarpFace": 13}[paper]
    text = "\n".join(one.what for one in tables(page)[paper])
    assert {f"Eq. {i}" for i in range(1, last + 1)} <= set(re.findall(r"Eq\. \d+", text))
    named = {
        "BCD": "A1 A2 A3 A4 A5 A6",
        "VidTwin": "1 2 3 4 5 6",
        "X-NeMo": "1 2 3",
        "WarpFace": "2 3 4 5 6",
    }
    for number in named[paper].split():
        assert re.search(rf"\b(Table|Tables) {number}[abc]?\b", text), number


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("| x | 512 | `lrs3 system.encoder.width=384` | as in the paper |", "it is 512"),
        ("| x | 384 | `lrs3 system.encoder.width=512` | as in the paper |", "the paper has 384"),
        ("| x | 512 | `vidmotion.models.t5.T5Encoder` | as in the paper |", "the paper has 512"),
        ("| x | - | `lrs3 system.encoder.wide=512` | as in the paper |", "there is none"),
        ("| x | - | `vidmotion.models.t6` | as in the paper |", "there is none"),
        ("| x | - | `vidmotion.models.t5.T6` | our choice: so |", "there is none"),
        ("| x | - | `configs/lrs4.py` | as in the paper |", "no such file"),
        ("| x | - | `--evals=swap` | as in the paper |", "no such protocol"),
        ("| x | - | `python -m vidmotion.mane` | as in the paper |", "no such command"),
        ("| x | - | see `configs/lrs3.py` | as in the paper |", "code alone"),
        ("| x | - |  | as in the paper |", "where is it"),
        ("| x | - |  | our choice |", "a reason"),
        ("| x | - |  | as in the paper: nearly |", "a reason"),
        ("| x | - |  | hardly |", "is none of"),
    ],
)
def test_a_row_that_is_not_true_is_found(line, fault):
    assert any(fault in found for found in faults(row(line))), faults(row(line))


def test_values_are_compared_as_values():
    good = "| x | [0, 2] | `lrs3 optimizer.model.betas=[0.9, 0.999]` | our choice: so |"
    assert faults(row(good)) == []
    assert equal((1e-4, "a"), [0.0001, "a"]) and not equal((1, 2), (1, 2, 3)) and not equal("1", 1)
    assert equal(0.1 + 0.2, 0.3) and not equal(1.0, 1.0001) and equal(True, True)
