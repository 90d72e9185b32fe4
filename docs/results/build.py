"""Builds docs/results/README.md from the run records beside it, so that no number on the page is typed by hand.

    python docs/results/build.py

It also builds benchmark.md and claims.md beside it, and in each page of docs/papers the section between two marks that
says what was reached.

A record is the ``record.json`` of a run, copied to ``records/<name>.json``, or the card of a shipped network; a
picture of the same name in ``pictures`` is shown with it. The records of a sweep are in ``records/<sweep>/`` and become
one table. The papers' own figures are in ``PAPER`` and are labelled as the paper's.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy import stats

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records"
PAPERS = HERE.parent / "papers"
sys.path.insert(0, str(HERE.parents[1]))  # the folder that holds `configs`
SHIPPED = HERE.parents[1] / "vidmotion" / "weights"  # the cards of its networks are run records
CLIPS = ("heads", "sprites")
SYSTEMS = {"bcd": "BCD", "vidtwin": "VidTwin", "xnemo": "X-NeMo", "warpface": "WarpFace"}
# What the benchmark asks: a sentence above each table, and its columns, heading -> metric.
QUESTIONS = {
    "Swaps against the exact picture: PSNR in dB, SSIM, and sharpness (gradient energy, made over true; below 1 is "
    "blurred)": {
        "driven by itself": "psnr/self",
        "swap": "psnr/swap",
        "SSIM": "ssim/swap",
        "sharpness": "sharpness/swap",
        "no driver": "psnr/no_driver",
        "wrong driver": "psnr/wrong_driver",
        "wrong source": "psnr/wrong_source",
    },
    "What the shipped reader sees in the swaps: R2 of the driver's motion, and the source's identity": {
        "yaw, x, y, scale": "read/motion/place",
        "roll, pitch": "read/motion/tilt",
        "mouth, eyes, brows": "read/motion/face",
        "numbers of the identity, R2": "read/identity/numbers",
        "classes of the identity, accuracy": "read/identity/classes",
    },
    "What the motion code costs": {
        "numbers per frame": "numbers_per_frame/motion",
        "numbers per second": "numbers_per_second",
        "bits per frame": "bits_per_frame/hard",
        "bits per second": "bits_per_second",
    },
    "What probes read from the codes (95 % intervals). Identity in the motion code, and motion in the content code, "
    "are leakage": {
        "identity from motion: accuracy": "probe/identity_from_motion/mlp/accuracy",
        "(chance)": "probe/identity_from_motion/mlp/accuracy/chance",
        "identity from content: accuracy": "probe/identity_from_content/mlp/accuracy",
        "motion from motion: R2": "probe/motion_from_motion/linear/r2",
        "motion from motion: accuracy": "probe/motion_from_motion/mlp/accuracy",
        "motion from content: R2": "probe/motion_from_content/linear/r2",
        "motion from content: accuracy": "probe/motion_from_content/mlp/accuracy",
    },
}
# The rows of the first table that need no network -> the metrics of their scores.
TRIVIAL = {
    "copy of the content": {"swap": "psnr/copy_content", "SSIM": "ssim/copy_content"}
    | {"sharpness": "sharpness/copy_content"},
    "copy of the driver": {"swap": "psnr/copy_motion", "SSIM": "ssim/copy_motion"}
    | {"sharpness": "sharpness/copy_motion"},
    "mean picture": {"swap": "psnr/mean_picture"},
}

CAPTIONS = {
    "heads_codec": "unseen heads above, the same heads rebuilt below",
    "heads_foundation": "heads sampled from noise",
    "vidtwin_mini_clip": "unseen heads, rebuilt, from each latent alone, and with the dynamics of another head",
}
# metric of a record -> (the paper's figure, its table in the paper)
PAPER = {
    "cross_driven/action": (1.0, "Table A1"),
    "cross_driven/skin": (1.0, "Table A1"),
    "cross_driven/pants": (1.0, "Table A1"),
    "cross_driven/top": (1.0, "Table A1"),
    "cross_driven/hair": (1.0, "Table A1"),
}

# page of docs/papers -> runs in which heads are moved as other heads; a name before a slash is the run's sweep. The
# system's shipped networks are added to them.
SWAPS = {
    "bcd": ("heads_mini", "heads_demo"),
    "vidtwin": ("vidtwin_mini", "vidtwin_demo"),
    "xnemo": (
        "xnemo_mini",
        "xnemo_demo_stage2_no_gan",
        "xnemo_demo_stage2",
        "xnemo_demo_stage4_no_gan",
        "xnemo_demo_stage4",
    ),
    "warpface": (
        "warpface_mini",
        "warpface_demo",
        "warpface_tables/full_model",
        "warpface_tables/table_3_CA_keypoints",
    ),
}
# heading -> metrics; the first one that a record has is used
ANSWERS = {
    "swap": ("psnr/swap",),
    "wrong driver": ("psnr/wrong_driver",),
    "copy of source": ("psnr/copy_content", "psnr/copy_source"),
    "copy of driver": ("psnr/copy_motion", "psnr/copy_driver"),
    "mean picture": ("psnr/mean_picture",),
}


class Figure(NamedTuple):
    """A further figure of a page, with its runs and the paper's value; one without runs is only in the paper."""

    label: str
    metric: str = ""
    runs: tuple[str, ...] = ()
    paper: str = ""


ATTRIBUTES = ("action", "skin", "pants", "top", "hair")
FIGURES = {
    "bcd": (
        *(
            Figure(f"{name} kept in swaps of Sprites", f"cross_driven/{name}", ("sprites_demo",))
            for name in ATTRIBUTES
        ),
        Figure("bits per frame of motion", "bits_per_frame/hard", ("heads_mini", "heads_demo")),
        Figure("perplexity of a motion code, of 8", "perplexity", ("heads_gpt_demo",)),
        Figure("FID of motion transfer, LRS3", paper="86.0 (Table A2)"),
        Figure("CSIM of motion transfer, LRS3", paper="0.692 (Table A2)"),
    ),
    "vidtwin": (
        Figure(
            "PSNR of the reconstruction, dB",
            "psnr/reconstruction",
            ("vidtwin_mini_clip", "vidtwin_mini", "vidtwin_demo", "vidtwin_sprites_demo"),
            "28.14, on MCL-JCV (main text, Table 1)",
        ),
        Figure(
            "PSNR of the clip's mean frame, dB",
            "psnr/mean_frame",
            ("vidtwin_mini_clip", "vidtwin_mini", "vidtwin_demo", "vidtwin_sprites_demo"),
        ),
        Figure(
            "numbers kept, % of the clip's",
            "rate",
            ("vidtwin_mini_clip", "vidtwin_mini", "vidtwin_demo", "vidtwin_sprites_demo"),
            "0.20 (main text, Table 1)",
        ),
        Figure(
            "class kept in generated clips, chance 1/9",
            "class_accuracy/generated",
            ("vidtwin_dit_demo",),
        ),
        Figure("gFVD of generated clips, UCF-101", paper="193 (main text, Table 2)"),
    ),
    "xnemo": (
        Figure(
            "error of motion rebuilt from tokens", "mse/reconstruction", ("xnemo_tokenizer_demo",)
        ),
        Figure("the same for the mean motion", "mse/mean", ("xnemo_tokenizer_demo",)),
        Figure("perplexity of a motion token, of 128", "perplexity", ("xnemo_outpaint_demo",)),
        Figure("the same for unigrams", "perplexity/unigram", ("xnemo_outpaint_demo",)),
        Figure("ID-SIM, cross-reenactment", paper="0.787 (Table 1)"),
        Figure("EMO-SIM, cross-reenactment", paper="0.65 (Table 1)"),
        Figure("FVD, cross-reenactment", paper="152.8 (Table 1)"),
        Figure("LPIPS, self-reenactment", paper="0.168 (Table 1)"),
    ),
    "warpface": (
        Figure("CSIM, self-reenactment", paper="0.79 (Table 2)"),
        Figure("FID, self-reenactment", paper="9.6 (Table 2)"),
        Figure("CSIM, cross-reenactment", paper="0.65 (Table 2)"),
        Figure("AED, cross-reenactment", paper="10.28 (Table 2)"),
    ),
}


def describe(name: str, record: dict) -> list[str]:
    """Returns the Markdown lines of one run."""
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
        note = f"; {row['note']}" if row.get("note") else ""  # older records have none
        lines.append(
            f"| {row['metric']} | {_value(row)} | {_papers(row['metric'])} | {row['n']} | "
            f"{row['convention']}; weights: {row['weights']}; {row['resolution']}{note} |"
        )
    picture = HERE / "pictures" / f"{name}.png"
    if picture.exists():
        shown = CAPTIONS.get(
            name, "a grid with content in rows and motion in columns, or generated clips"
        )
        lines += ["", f"![{name}: {shown}](pictures/{name}.png)"]
    return [*lines, ""]


def compare(name: str, records: dict[str, dict]) -> list[str]:
    """Returns the Markdown lines of a sweep: a row per run, a column per metric for which all runs have a value."""
    results = {run: _values(record) for run, record in records.items()}
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
    """Returns the Markdown lines of the files that `--mode=eval --evals=...` wrote, with a table for each file."""
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
    """Returns the page that compares the four systems."""
    lines = [
        "# Benchmark: four ideas, the same clips",
        "",
        "Built by `python docs/results/build.py` from the run records in `records/benchmark/`. Every run uses "
        "`configs/benchmark.py`, with 6 to 8.5 million parameters, the same budget of arithmetic and one protocol. The "
        "first table gives the budget. It does not train any of these networks to the end, so the order says which of "
        "them learns fast rather than which is best.",
        "",
    ]
    for clips in CLIPS:
        found = {
            system: json.loads(path.read_text())
            for system in SYSTEMS
            if (path := RECORDS / "benchmark" / f"{system}_{clips}.json").exists()
        }
        lines += _side_by_side(clips, found) if found else []
    return "\n".join(lines)


def claims() -> str:
    """Returns the page of the orderings that the papers claim."""
    lines = [
        "# What the papers claim, and what was seen here",
        "",
        "Built by `python docs/results/build.py` from the run records in `records/claims_*/`, which "
        "`launch/sweep.py claims_bcd` and the other three sweeps make. They use the same number of steps for every run "
        "of a system, three seeds, and small networks on drawn heads. Differences are between runs of the same seed, "
        "with the 95 % interval by Student's t. A claim *holds* where the interval is above zero, *does not hold* "
        "where it is below, and is *not decided here* otherwise. A run takes minutes on two CPU cores, so a claim that "
        "does not hold here may well hold for the networks of the paper.",
        "",
    ]
    for system, name in SYSTEMS.items():
        sweep = importlib.import_module(f"configs.sweeps.claims_{system}")
        folder = RECORDS / f"claims_{system}"
        records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        lines += [f"## {name}", "", *_facts(records), *_grid(CLAIMS, _judged(sweep, records)), ""]
    return "\n".join(lines)


CLAIMS = ["claim", "source", "metric", "more", "less", "difference", "seeds", "here"]


def _facts(records: dict[str, dict]) -> list[str]:
    """Returns the lines with the steps, hardware and commits of a sweep's runs, and the scores of copying."""
    if not records:
        return ["Not run yet.", ""]
    steps = sorted({record["steps_done"] for record in records.values()})
    hardware = sorted({_hardware(record) for record in records.values()})
    commits = sorted({_commit(record) for record in records.values()})
    values = _values(next(iter(records.values())))
    copies = [
        m for m in ("psnr/copy_content", "psnr/copy_motion", "psnr/mean_frame") if m in values
    ]
    return [
        f"{' and '.join(f'{n:,}' for n in steps)} steps, {', '.join(hardware)}, commit {', '.join(commits)}. "
        + ", ".join(f"`{metric}` {values[metric]:.2f} dB" for metric in copies)
        + ".",
        "",
    ]


def _judged(sweep: ModuleType, records: dict[str, dict]) -> list[list[str]]:
    """Returns a row of the table for each claim."""
    rows = []
    for claim in sweep.CLAIMS:
        pairs = []
        for seed in sweep.SEEDS:
            names = [f"{name} {seed}".replace(" ", "_") for name in (claim.better, claim.worse)]
            if all(name in records for name in names):
                pairs.append([_values(records[name])[claim.metric] for name in names])
        facts = [claim.says, claim.source, f"`{claim.metric}`"]
        named = [f"{claim.better}", f"{claim.worse}"]
        if not pairs:
            rows.append([*facts, *named, "", "0", "not run"])
            continue
        more, less = np.transpose(pairs)
        low, high = interval(more - less)
        found = "holds" if low > 0 else "does not hold" if high < 0 else "not decided here"
        named = [f"{name} {side.mean():.2f}" for name, side in zip(named, (more, less))]
        spread = f" [{low:.2f}, {high:.2f}]" if len(pairs) > 1 else ""
        difference = f"{(more - less).mean():+.2f}{spread}"
        rows.append([*facts, *named, difference, str(len(pairs)), found])
    return rows


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of a few numbers by Student's t; it is infinite for a single number."""
    n = len(differences)
    if n < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return differences.mean() - half, differences.mean() + half


def _values(record: dict) -> dict[str, float | None]:
    """Returns the value of each metric of a record."""
    return {row["metric"]: row["value"] for row in record["results"]}


def _per_second(record: dict) -> dict[str, float | None]:
    """Returns `_values` and, where the clips have a frame rate, what the motion code costs per second."""
    values = _values(record)
    if fps := record["config"].get("data", {}).get("common", {}).get("fps"):
        for cost, metric in (
            ("numbers_per_second", "numbers_per_frame/motion"),
            ("bits_per_second", "bits_per_frame/hard"),
        ):
            if values.get(metric) is not None:
                values[cost] = fps * values[metric]
    return values


def _with_interval(values: dict[str, float | None], metric: str) -> str:
    """Returns the text of a value, with its interval if there is one."""
    ends = [values.get(f"{metric}/{end}") for end in ("low", "high")]
    interval = "" if None in ends else f" [{', '.join(map(_cell, ends))}]"
    return _cell(values.get(metric)) + interval


def _side_by_side(clips: str, records: dict[str, dict]) -> list[str]:
    """Returns the Markdown lines that compare the systems on one kind of clips."""
    values = {system: _per_second(record) for system, record in records.items()}
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

    for number, (question, columns) in enumerate(QUESTIONS.items()):
        asked = {
            label: metric
            for label, metric in columns.items()
            if any(row.get(metric) is not None for row in values.values())
        }
        if not asked:
            continue
        rows = [
            [SYSTEMS[system], *(_with_interval(row, metric) for metric in asked.values())]
            for system, row in values.items()
        ]
        if number == 0:
            given = next(iter(values.values()))
            rows += [
                [name, *(_cell(given.get(scores.get(label, ""))) for label in asked)]
                for name, scores in TRIVIAL.items()
            ]
        lines += [f"{question}:", "", *_grid(["system", *asked], rows), ""]
    names = {
        f"benchmark_{clips}": "what the motion code costs, transfers and gives away",
        f"benchmark_{clips}_together": "the same content and drivers, and what the four make of them",
    }
    names |= {
        f"benchmark_{s}_{clips}": f"{SYSTEMS[s]}: content in rows, motion in columns"
        for s in records
    }
    for name, text in names.items():
        if (HERE / "pictures" / f"{name}.png").exists():
            lines += [f"![{text}](pictures/{name}.png)", ""]
    return lines


def paper_page(page: str) -> str:
    """Returns a whole page of docs/papers, with the section between the marks built anew."""
    text = (PAPERS / f"{page}.md").read_text(encoding="utf-8")
    begin, end = "<!-- reached -->", "<!-- end of reached -->"
    block = "\n".join([begin, "", *reached(page), "", end])
    return re.sub(f"{begin}.*{end}", lambda _: block, text, flags=re.S)


def reached(page: str) -> list[str]:
    """Returns the Markdown lines of what a paper's runs reached; a run without a record is left out."""
    shipped = [
        path.stem
        for path in sorted(SHIPPED.glob("*.json"))
        if json.loads(path.read_text())["config"]["system"]["name"] == page
    ]
    swaps, beaten = [], []
    for name in dict.fromkeys([*SWAPS[page], *shipped]):
        values = [_first(name, metrics) for metrics in ANSWERS.values()]
        made, _, *trivial = values
        if made is None:
            continue
        run, *facts = _of_run(name)
        swaps.append([run, *map(_figure, values), *facts])
        if made < max(value for value in trivial if value is not None):
            beaten.append(run)
    lines = []
    if swaps:
        lines += [
            "The table shows swaps, in which heads are moved as other heads. The figures are PSNR in dB against the "
            "exact picture, which the renderer of Heads draws. With the motion of a wrong driver a network must do "
            "worse; the difference shows how much motion it transfers. Copies and the mean picture need no network.",
            "",
            *_grid(["run", *ANSWERS, "steps x batch", "commit"], swaps),
            "",
        ]
    if beaten:
        lines += [
            f"A copy or the mean picture is closer to the exact picture than the swaps of {', '.join(beaten)}.",
            "",
        ]
    rows = []
    for figure in FIGURES[page]:
        paper = figure.paper or _papers(figure.metric) or "none given"
        if not figure.runs:
            rows.append([figure.label, "not measured", paper, "", "", ""])
        for name in figure.runs:
            if (value := _first(name, (figure.metric,))) is not None:
                rows.append([figure.label, _figure(value), paper, *_of_run(name)])
    return [
        *lines,
        *_grid(["figure", "here", "the paper's", "run", "steps x batch", "commit"], rows),
        "",
        "The paper's figures are for its full recipe on its own data, so a demo should not be measured by them. The "
        "commit is that of the run; `git diff COMMIT -- configs` says whether its config has changed since.",
    ]


def _record(name: str) -> dict | None:
    """Returns the record of a run, or the card of a shipped network; None if there is neither."""
    for file in (RECORDS / f"{name}.json", SHIPPED / f"{name}.json"):
        if file.exists():
            return json.loads(file.read_text())
    return None


def _first(name: str, metrics: tuple[str, ...]) -> float | None:
    """Returns the value of the first of these metrics that a run's record has; None if it has none or is missing."""
    values = {row["metric"]: row["value"] for row in (_record(name) or {"results": ()})["results"]}
    return next((value for name in metrics if (value := values.get(name)) is not None), None)


def _of_run(name: str) -> tuple[str, str, str]:
    """Returns a link to the record of a run, its steps and batch, and its commit."""
    record = _record(name)
    shipped = " (shipped)" if (SHIPPED / f"{name}.json").exists() else ""
    sweep, slash, row = name.partition("/")
    shown = f"{row.replace('_', ' ')} of {sweep}" if slash else name
    return (
        f"[{shown}](../results/README.md#{sweep}){shipped}",
        f"{record['steps_done']:,} x {record['config']['batch_size']}",
        _commit(record),
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def _hardware(record: dict) -> str:
    processes = record.get("processes", 1)
    joined = f" in {processes} processes" if processes > 1 else ""
    return f"{record['devices']} x {record['device_kind']} ({record['platform']}){joined}"


def _commit(record: dict) -> str:
    """Returns the first twelve digits of the commit, with ``+changes`` if the code had uncommitted changes."""
    return record["commit"][:12] + record["commit"][40:]


def _value(row: dict) -> str:
    return "not computed" if row["value"] is None else f"{row['value']:.4f}"


def _papers(metric: str) -> str:
    value, place = PAPER.get(metric, (None, ""))
    return "" if value is None else f"{value:.4f} ({place})"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _grid(heading: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows)]


def _memory(peak: dict) -> str:
    which = "device" if "device_bytes" in peak else "process"
    return f"{peak[f'{which}_bytes'] / 2**30:.2f} GiB ({which})"


def build() -> str:
    """Returns the whole page docs/results/README.md."""
    lines = [
        "# Results",
        "",
        "Built by `python docs/results/build.py` from the run records in `records/`. The column `paper` is the paper's "
        "figure for its full recipe; a demo is not that recipe. The record of a shipped network is its card.",
        "",
    ]
    runs = [*(RECORDS).glob("*.json"), *SHIPPED.glob("*.json")]
    for path in sorted(runs, key=lambda path: path.stem):
        lines += describe(path.stem, json.loads(path.read_text()))
    for folder in sorted(path for path in (RECORDS).iterdir() if path.is_dir()):
        if folder.name == "benchmark":
            lines += ["## benchmark", "", "[Four ideas, the same clips](benchmark.md)", ""]
            continue
        if folder.name.startswith("claims_"):
            lines += [f"## {folder.name}", "", "[What the papers claim](claims.md)", ""]
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
    if (RECORDS / "benchmark").is_dir():
        (HERE / "benchmark.md").write_text(benchmark())
    (HERE / "claims.md").write_text(claims(), encoding="utf-8")
    for page in SYSTEMS:
        (PAPERS / f"{page}.md").write_text(paper_page(page), encoding="utf-8")
