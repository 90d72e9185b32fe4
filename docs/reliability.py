"""Writes the figures of the last campaigns into docs/reliability.md, from their records: no number there is typed.

python docs/reliability.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "reliability.md"
RECORDS = HERE / "results" / "records" / "faults"


def build() -> str:
    """The whole page, its section between the two marks made anew; empty as long as there is no record."""
    lines = ["<!-- campaign -->", *_campaign(RECORDS / "kills.json"), "<!-- end -->"]
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"<!-- campaign -->.*<!-- end -->", lambda _: "\n".join(lines), text, flags=re.S)


def _campaign(path: Path) -> list[str]:
    if not path.exists():
        return []
    kills = json.loads(path.read_text())
    rows = [
        ("kills", kills["kills"]),
        *((f"while {moment}", count) for moment, count in sorted(kills["moments"].items())),
        ("trainings compared", kills["compared"].get("train", 0)),
        ("datasets compared", kills["compared"].get("prepare", 0)),
        ("that differed in a bit", kills["differing"]),
        ("seed", kills["seed"]),
        ("commit", kills["commit"].partition("+")[0][:12]),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


if __name__ == "__main__":
    PAGE.write_text(build(), encoding="utf-8")
