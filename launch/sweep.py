"""Run every config of a sweep one after another, then write one table from their run records.

    python launch/sweep.py NAME --workdir=DIR [--steps=N] [--dry_run]

NAME is a file of configs/sweeps: arguments of one config, common overrides, and the columns of the table. A run
that is complete is not run again; an interrupted one resumes. The table is DIR/table.md.
"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def commands(sweep, workdir: Path, steps: int | None) -> dict[str, tuple[Path, list[str]]]:
    """``{name: (workdir, command)}`` of every run."""
    overrides = {**sweep.OVERRIDES, **({"steps": steps} if steps else {})}
    runs = {}
    for name, argument in sweep.ARGUMENTS.items():
        folder = workdir / name.replace(" ", "_")
        runs[name] = (
            folder,
            [
                sys.executable,
                "-m",
                "vidmotion.main",
                f"--config={sweep.CONFIG}:{argument}",
                f"--workdir={folder}",
                *(f"--config.{field}={value}" for field, value in overrides.items()),
            ],
        )
    return runs


def table(sweep, runs: dict[str, tuple[Path, list[str]]]) -> str:
    """A Markdown table with a row per run, from the records in the workdirs."""
    rows = [["run", "steps", *sweep.COLUMNS]]
    for name, (folder, _) in runs.items():
        path = folder / "record.json"
        if not path.exists():
            rows.append([name, "not run", *("" for _ in sweep.COLUMNS)])
            continue
        record = json.loads(path.read_text())
        values = {row["metric"]: row["value"] for row in record["results"]}
        cells = ["" if values.get(c) is None else f"{values[c]:.3f}" for c in sweep.COLUMNS]
        rows.append([name, str(record["steps_done"]), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a file of configs/sweeps, without .py")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--steps", type=int, help="instead of the sweep's")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    arguments = parser.parse_args(argv)
    try:
        sweep = importlib.import_module(f"configs.sweeps.{arguments.name}")
    except ModuleNotFoundError:
        known = sorted(p.stem for p in Path(__file__).parents[1].glob("configs/sweeps/[a-z]*.py"))
        parser.error(f"there is no sweep {arguments.name!r}; there are {', '.join(known)}")
    runs = commands(sweep, arguments.workdir, arguments.steps)
    for name, (folder, command) in runs.items():
        print(f"{name}: {shlex.join(command)}", flush=True)
        if arguments.dry_run or _complete(folder):
            continue
        code = subprocess.run(command).returncode
        if code:
            print(f"{name} ended with code {code}; the same command goes on", file=sys.stderr)
            return code
    if not arguments.dry_run:
        path = arguments.workdir / "table.md"
        path.write_text(table(sweep, runs))
        print(path.read_text(), end="")
    return 0


def _complete(folder: Path) -> bool:
    path = folder / "record.json"
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    return record["steps_done"] >= record["steps_planned"]


if __name__ == "__main__":
    sys.exit(main())
