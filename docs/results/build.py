"""Builds docs/results/README.md from the run records beside it: no number there is typed.

    python docs/results/build.py

A record is the ``record.json`` of a run, copied to ``records/<name>.json``, or the card of a shipped network; a
picture of the same name in ``pictures`` is shown with it. Those of a sweep lie in ``records/<sweep>/`` and become one
table. Paper's figures, where there are any, are in ``PAPER`` and labelled as such.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "vidmotion" / "weights"  # whose cards are run records
CLIPS = ("heads", "sprites")
SYSTEMS = {"bcd": "BCD", "vidtwin": "VidTwin", "xnemo": "X-NeMo", "warpface": "WarpFace"}
# heading -> metric of the benchmark's records
QUESTIONS = {
    "PSNR, driven by itself": "psnr/self",
    "PSNR of the swap": "psnr/swap",
    "SSIM of the swap": "ssim/swap",
    "numbers per frame": "numbers_per_frame/motion",
    "identity from motion: accuracy": "probe/identity_from_motion/mlp/accuracy",
    "(chance)": "probe/identity_from_motion/mlp/accuracy/chance",
    "motion from motion: R2": "probe/motion_from_motion/linear/r2",
    "motion from motion: accuracy": "probe/motion_from_motion/mlp/accuracy",
    "motion from content: R2": "probe/motion_from_content/linear/r2",
    "motion from content: accuracy": "probe/motion_from_content/mlp/accuracy",
}

CAPTIONS = {"heads_codec": "heads that nobody has seen above, rebuilt below"}
# metric of a record -> (the paper's figure, where it stands)
PAPER = {
    "cross_driven/action": (1.0, "Table A1"),
    "cross_driven/skin": (1.0, "Table A1"),
    "cross_driven/pants": (1.0, "Table A1"),
    "cross_driven/top": (1.0, "Table A1"),
    "cross_driven/hair": (1.0, "Table A1"),
}


def describe(name: str, record: dict) -> list[str]:
    """Markdown lines of one run."""
    seconds = record["step_seconds"]
    facts = [
        ("hardware", _hardware(record)),
        ("steps run / planned", f"{record['steps_done']:,} / {record['steps_planned']:,}"),
        ("batch", record["config"]["batch_size"]),
        ("seconds per step", "-" if seconds is None else f"{seconds:.3f}"),
        ("model TFLOP/s", f"{record['model_tflops']:.3f}" if "model_tflops" in record else "-"),
        ("MFU", record["mfu"] if isinstance(record["mfu"], str) else f"{record['mfu']:.1%}"),
        ("share of time waiting for data", f"{record['data_wait_share'] or 0:.2%}"),
        ("peak memory", _memory(record["peak_memory"])),
        ("commit", _commit(record)),
        ("jax", record["libraries"]["jax"]),
    ]
    lines = [f"## {name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts]
    if record["results"]:
        lines += ["", "| metric | value | paper | n | convention |", "|---|---|---|---|---|"]
    for row in record["results"]:
        paper = PAPER.get(row["metric"])
        cell = f"{paper[0]:.4f} ({paper[1]})" if paper else ""
        note = f"; {row['note']}" if row.get("note") else ""  # older records have none
        lines.append(
            f"| {row['metric']} | {_value(row)} | {cell} | {row['n']} | {row['convention']}; weights: "
            f"{row['weights']}; {row['resolution']}{note} |"
        )
    picture = HERE / "pictures" / f"{name}.png"
    if picture.exists():
        shown = CAPTIONS.get(name, "content down, motion across, or what was generated")
        lines += ["", f"![{name}: {shown}](pictures/{name}.png)"]
    return [*lines, ""]


def compare(name: str, records: dict[str, dict]) -> list[str]:
    """Markdown lines of a sweep: a row per run, a column per metric that all have a value of."""
    results = {
        run: {row["metric"]: row["value"] for row in record["results"]}
        for run, record in records.items()
    }
    first, *others = results.values()
    metrics = [m for m in first if all(row.get(m) is not None for row in [first, *others])]
    rows = []
    for run, values in results.items():
        speed = records[run].get("examples_per_second")
        facts = [f"{records[run]['steps_done']:,}", "-" if speed is None else f"{speed:.1f}"]
        cells = [f"{values[metric]:.3f}" for metric in metrics]
        rows.append([run.replace("_", " "), *facts, *cells])
    hardware = ", ".join(sorted({_hardware(record) for record in records.values()}))
    commits = sorted({_commit(record) for record in records.values()})
    lines = [f"## {name}", "", f"{hardware}, commit {', '.join(commits)}.", ""]
    return [*lines, *_grid(["run", "steps", "examples/s", *metrics], rows), ""]


def protocols(files: list[Path]) -> list[str]:
    """Markdown lines of what `--mode=eval --evals=...` wrote, a table for each file."""
    lines = []
    for file in files:
        record = json.loads(file.read_text())
        rows = [
            [row["metric"], _value(row), str(row["n"]), row["convention"], row["resolution"]]
            for row in record["results"]
        ]
        absent = sorted({row["note"] for row in record["results"] if row["value"] is None})
        lines += [
            f"### {file.stem.replace('_', ' ')}",
            "",
            f"{_hardware(record)}, commit {_commit(record)}, {record['clips']} clips.",
            "",
            *_grid(["metric", "value", "n", "convention", "resolution"], rows),
            "",
            *[f"- {reason}" for reason in absent],
            *([""] if absent else []),
        ]
    return lines


def benchmark() -> str:
    """The page of the four systems side by side."""
    lines = [
        "# Benchmark: four ideas, the same clips",
        "",
        "Built by `python docs/results/build.py` from the run records in `records/benchmark/`. Every run is of "
        "`configs/benchmark.py`: 6 to 8 million parameters, the same budget of arithmetic, one protocol. What the "
        "budget was stands in the table; at that of a few CPU minutes no network here is trained to its end, and the "
        "order says what learns fast rather than what is best.",
        "",
    ]
    for clips in CLIPS:
        found = {
            system: json.loads(path.read_text())
            for system in SYSTEMS
            if (path := HERE / "records" / "benchmark" / f"{system}_{clips}.json").exists()
        }
        lines += _side_by_side(clips, found) if found else []
    return "\n".join(lines)


def _side_by_side(clips: str, records: dict[str, dict]) -> list[str]:
    """Markdown lines of one kind of clips."""
    values = {
        system: {row["metric"]: row["value"] for row in record["results"]}
        for system, record in records.items()
    }
    rows = []
    for system, record in records.items():
        seconds, tflops = record["step_seconds"], record.get("model_tflops")
        done = (
            "-" if None in (seconds, tflops) else f"{seconds * tflops * record['steps_done']:.1f}"
        )
        rows.append(
            [
                SYSTEMS[system],
                f"{record['parameters']['model'] / 1e6:.2f} M",
                f"{record['steps_done']:,} x {record['config']['batch_size']}",
                done,
                "-" if seconds is None else f"{seconds:.2f}",
                _memory(record["peak_memory"]),
                _commit(record),
            ]
        )
    heading = [
        "system",
        "parameters",
        "steps x batch",
        "TFLOP",
        "s per step",
        "peak memory",
        "commit",
    ]
    first = next(iter(records.values()))
    lines = [f"## {clips.capitalize()}", "", f"{_hardware(first)}.", "", *_grid(heading, rows), ""]

    asked = {
        label: metric
        for label, metric in QUESTIONS.items()
        if any(row.get(metric) is not None for row in values.values())
    }
    rows = [
        [SYSTEMS[system], *(_cell(row.get(metric)) for metric in asked.values())]
        for system, row in values.items()
    ]
    given = next(iter(values.values()))
    copies = [
        f"copying the {what} clip {given[f'psnr/copy_{what}']:.2f} dB, SSIM {given[f'ssim/copy_{what}']:.3f}"
        for what in ("content", "motion")
    ]
    lines += [
        *_grid(["system", *asked], rows),
        "",
        f"Trivial answers to the swap: {'; '.join(copies)}.",
        "",
    ]
    names = {f"benchmark_{clips}": "what the motion code costs, transfers and gives away"}
    names |= {
        f"benchmark_{s}_{clips}": f"{SYSTEMS[s]}: content down, motion across" for s in records
    }
    for name, text in names.items():
        if (HERE / "pictures" / f"{name}.png").exists():
            lines += [f"![{text}](pictures/{name}.png)", ""]
    return lines


def _hardware(record: dict) -> str:
    processes = record.get("processes", 1)
    joined = f" in {processes} processes" if processes > 1 else ""
    return f"{record['devices']} x {record['device_kind']} ({record['platform']}){joined}"


def _commit(record: dict) -> str:
    """Its first twelve digits, and ``+changes`` where there were any."""
    return record["commit"][:12] + record["commit"][40:]


def _value(row: dict) -> str:
    return "not computed" if row["value"] is None else f"{row['value']:.4f}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _grid(heading: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows)]


def _memory(peak: dict) -> str:
    which = "device" if "device_bytes" in peak else "process"
    return f"{peak[f'{which}_bytes'] / 2**30:.2f} GiB ({which})"


def build() -> str:
    """The whole page."""
    lines = [
        "# Results",
        "",
        "Built by `python docs/results/build.py` from the run records in `records/`. The column `paper` is the paper's "
        "figure for its full recipe; a demo is not that recipe. Of networks that are shipped, the card is the record.",
        "",
    ]
    runs = [*(HERE / "records").glob("*.json"), *SHIPPED.glob("*.json")]
    for path in sorted(runs, key=lambda path: path.stem):
        lines += describe(path.stem, json.loads(path.read_text()))
    for folder in sorted(path for path in (HERE / "records").iterdir() if path.is_dir()):
        if folder.name == "benchmark":
            lines += ["## benchmark", "", "[Four ideas, the same clips](benchmark.md)", ""]
            continue
        if folder.name == "faults":
            lines += ["## faults", "", "[Reliability](../reliability.md)", ""]
            continue
        runs = sorted(folder.glob("*.json"))
        if folder.name == "protocols":
            lines += ["## protocols", "", *protocols(runs)]
            continue
        lines += compare(folder.name, {path.stem: json.loads(path.read_text()) for path in runs})
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "README.md").write_text(build())
    if (HERE / "records" / "benchmark").is_dir():
        (HERE / "benchmark.md").write_text(benchmark())
