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
    """The whole page, its section between the two marks made anew."""
    kills = json.loads((RECORDS / "kills.json").read_text())
    rows = [
        ("kills", kills["kills"]),
        *((f"&nbsp;&nbsp;{moment}", count) for moment, count in sorted(kills["moments"].items())),
        ("trainings compared", kills["compared"].get("train", 0)),
        ("datasets compared", kills["compared"].get("prepare", 0)),
        ("bits that differed", kills["differing"]),
        ("seed", kills["seed"]),
        ("commit", kills["commit"].partition("+")[0][:12]),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    text = PAGE.read_text(encoding="utf-8")
    section = "\n".join(["<!-- campaign -->", *table, "<!-- end -->"])
    return re.sub(r"<!-- campaign -->.*<!-- end -->", lambda _: section, text, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(build(), encoding="utf-8")
