"""Writes the figures of the last campaigns into docs/reliability.md from their records, so that none is typed by hand.

python docs/reliability.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "reliability.md"
RECORDS = HERE / "results" / "records" / "faults"


def build() -> str:
    """Returns the whole page with its two tables, each between two marks, built anew; one without a record is empty."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("campaign", _campaign), ("inputs", _inputs)):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        lines = "\n".join([begin, *table(), end])
        text = re.sub(f"{begin}.*{end}", lambda _, lines=lines: lines, text, flags=re.S)
    return text


def _read(name: str) -> dict | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _campaign() -> list[str]:
    kills = _read("kills")
    if not kills:
        return []
    rows = [
        ("kills", kills["kills"]),
        *((f"while {moment}", count) for moment, count in sorted(kills["moments"].items())),
        ("trainings compared", kills["compared"].get("train", 0)),
        ("datasets compared", kills["compared"].get("prepare", 0)),
        ("differing in any bit", kills["differing"]),
        ("seed", kills["seed"]),
        ("commit", _commit(kills)),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _inputs() -> list[str]:
    found = _read("inputs")
    if not found:
        return []
    classes = ("refused", "skipped", "right", "either")
    kinds = {
        kind: [counts.get(name, 0) for name in classes] for kind, counts in found["inputs"].items()
    }
    kinds["all"] = [sum(column) for column in zip(*kinds.values())]
    rows = [f"| {kind} | {' | '.join(map(str, row))} | {sum(row)} |" for kind, row in kinds.items()]
    head = [f"| | {' | '.join(classes)} | all |", "|---|" + "---|" * (len(classes) + 1)]
    return [*head, *rows, "", f"Commit {_commit(found)}."]


def _commit(record: dict) -> str:
    return record["commit"].partition("+")[0][:12]


if __name__ == "__main__":
    PAGE.write_text(build(), encoding="utf-8")
