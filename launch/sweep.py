#!/usr/bin/env python3
"""Runs every config of a sweep, one after another, then writes one table and one picture from their run records.

    python launch/sweep.py NAME --workdir=DIR [--steps=N] [--arguments=KEY=VALUE,...] [--dry_run]

NAME is a file in configs/sweeps, which has the arguments of one config, common overrides, the columns of the table,
and the axes of the picture. Its ``CHANGES``, if any, are further overrides of single runs; with ``SEEDS``, each run is
made once with every seed. A complete run is not run again, unless its record lacks a column: the same command then
trains nothing and only evaluates again. An interrupted run resumes. The table is DIR/table.md; the picture,
DIR/rate.png, needs matplotlib.
"""

import argparse
import importlib
import itertools
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from etils import epath

from vidmotion import run_record
from vidmotion.errors import EXIT_UNMEASURED


def commands(
    sweep, workdir: Path, steps: int | None, more: str = ""
) -> dict[str, tuple[Path, list[str]]]:
    """Returns ``{name: (workdir, command)}`` of every run; the arguments in `more` follow the sweep's own arguments."""
    common = {**sweep.OVERRIDES, **({"steps": steps} if steps else {})}
    changes, seeds = (vars(sweep).get(name, {}) for name in ("CHANGES", "SEEDS"))
    runs = {}
    for (name, argument), seed in itertools.product(sweep.ARGUMENTS.items(), seeds or [None]):
        overrides = {**common, **changes.get(name, {})}
        if seed is not None:
            name, overrides = f"{name} {seed}", {**overrides, "seed": seed}
        folder = workdir / name.replace(" ", "_")
        runs[name] = (
            folder,
            [
                sys.executable,
                "-m",
                "vidmotion.main",
                f"--config={sweep.CONFIG}:{','.join(filter(None, (argument, more)))}",
                f"--workdir={folder}",
                *(f"--config.{field}={value}" for field, value in overrides.items()),
            ],
        )
    return runs


def table(sweep, runs: dict[str, tuple[Path, list[str]]]) -> str:
    """Returns a Markdown table with a row per run, from the records in the workdirs."""
    rows = [["run", "steps", *sweep.COLUMNS]]
    for name, (folder, _) in runs.items():
        record = _record(folder)
        if record is None:
            rows.append([name, "not run", *("" for _ in sweep.COLUMNS)])
            continue
        values = _values(record)
        cells = ["" if values.get(c) is None else f"{values[c]:.3f}" for c in sweep.COLUMNS]
        rows.append([name, str(record["steps_done"]), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def draw(sweep, runs: dict[str, tuple[Path, list[str]]], path: Path) -> None:
    """Draws the panels of `sweep.PLOT` side by side, with a point per run, and its interval if the record has one.

    `PLOT` is ``{"x": (metric, label), "panels": ((label, {legend: metric}), ...)}``. A run that lacks a number is left
    out of the panel that needs it.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    (x_metric, x_label), panels = sweep.PLOT["x"], sweep.PLOT["panels"]
    records = {name: _record(folder) for name, (folder, _) in runs.items()}
    values = {name: _values(record) for name, record in records.items() if record is not None}
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, (label, metrics) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for legend, metric in metrics.items():
            points = {
                name: (
                    row[x_metric],
                    row[metric],
                    row.get(f"{metric}/low"),
                    row.get(f"{metric}/high"),
                )
                for name, row in values.items()
                if row.get(x_metric) is not None and row.get(metric) is not None
            }
            if not points:
                continue
            x, y, low, high = zip(*points.values())
            ends = None if None in low + high else [_less(y, low), _less(high, y)]
            axes.errorbar(x, y, ends, fmt="o", capsize=3, label=legend)
            if metric == next(iter(metrics.values())):
                for name, (where, height, *_) in points.items():
                    axes.annotate(
                        name, (where, height), (4, 4), textcoords="offset points", fontsize=8
                    )
        axes.margins(x=0.2)  # room for the names
        axes.set_xlabel(x_label)
        axes.set_ylabel(label)
        if len(metrics) > 1 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _less(upper, lower) -> list[float]:
    """Returns the lengths of error bars; none is negative, even after a rounding error."""
    return [max(0.0, u - l) for u, l in zip(upper, lower)]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      The exit code of the first run that could not be trained, else that of a run that could not be measured, else 0.
    """
    parser = argparse.ArgumentParser(prog="launch/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a file of configs/sweeps, without .py")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--steps", type=int, help="steps of each run, instead of the sweep's")
    parser.add_argument(
        "--arguments", default="", help="further arguments of the config for every run"
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    arguments = parser.parse_args(argv)
    try:
        sweep = importlib.import_module(f"configs.sweeps.{arguments.name}")
    except ModuleNotFoundError:
        known = sorted(p.stem for p in Path(__file__).parents[1].glob("configs/sweeps/[a-z]*.py"))
        parser.error(f"there is no sweep {arguments.name!r}; choose one of {', '.join(known)}")
    unmeasured = 0
    runs = commands(sweep, arguments.workdir, arguments.steps, arguments.arguments)
    for name, (folder, command) in runs.items():
        print(f"{name}: {shlex.join(command)}", flush=True)
        if arguments.dry_run or _complete(folder, sweep.COLUMNS):
            continue
        code = subprocess.run(command).returncode
        if code:
            print(f"{name} ended with code {code}; the same command resumes it", file=sys.stderr)
        if code == EXIT_UNMEASURED:  # its column stays empty, and the other runs go on
            unmeasured = code
        elif code:
            return code
    if not arguments.dry_run:
        path = arguments.workdir / "table.md"
        path.write_text(table(sweep, runs))
        print(path.read_text(), end="")
        try:
            draw(sweep, runs, arguments.workdir / "rate.png")
        except ModuleNotFoundError:
            print(
                "rate.png is not drawn, because matplotlib is missing: pip install 'vidmotion[plot]'"
            )
    return unmeasured


def _record(folder: Path) -> dict | None:
    return run_record.read(epath.Path(folder) / run_record.RECORD)


def _values(record: dict) -> dict[str, float | None]:
    return {row["metric"]: row["value"] for row in record["results"]}


def _complete(folder: Path, columns: tuple[str, ...]) -> bool:
    """Returns whether nothing is left to train or to measure."""
    record = _record(folder)
    if record is None or record["steps_done"] < record["steps_planned"]:
        return False
    return set(columns) <= _values(record).keys()


if __name__ == "__main__":
    sys.exit(main())
