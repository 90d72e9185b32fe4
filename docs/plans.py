r"""Builds docs/hardware.md from the plans in docs/plans, so that no number on the page is typed by hand.

    python -m vidmotion.main --mode=plan --config=configs/lrs3.py --config.plan.chip=v5e \
        --config.plan.topology=4x4 --config.plan.fit=False --config.plan.record=docs/plans/lrs3-v5e-4x4.json
    python -m vidmotion.main --mode=plan --config=configs/lrs3.py --config.plan.chip=h100 \
        --config.plan.devices=8 --config.plan.fit=False --config.plan.record=docs/plans/lrs3-h100-8.json
    python -m vidmotion.main --mode=plan --config=configs/heads.py:demo --config.plan.devices=1 \
        --config.plan.fit=False --config.plan.measure=True --config.plan.record=docs/plans/heads_demo-1.json
    python -m vidmotion.bench --config=heads:demo --out=docs/plans/bench
    python docs/plans.py
"""

import json
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
GIB = 2**30
INTRODUCTION = """\
# Hardware

```bash
pip install 'vidmotion[aot-tpu,aot-gpu]'
python -m vidmotion.main --mode=plan --config=configs/sprites.py --config.plan.chip=v5e --config.plan.topology=2x2
python -m vidmotion.main --mode=plan --config=configs/sprites.py --config.plan.chip=h100 --config.plan.devices=8
```

These commands compile the update for that TPU slice or those GPUs with the chip's own compiler, on a machine that has
neither, and run nothing. `config.plan` has these fields: `chip`; `topology` (the sides of a TPU slice, in chips) or
`devices`; `compiler` (`cpu` uses the CPU's compiler instead); `memory_gib`; `efficiency` (the share of the peak that
compute is assumed to reach where the compiler gives no estimate); `fit` (search for the largest batch, which compiles
several times); `measure` (with one device: also run the update on the CPU and measure the memory of the process); and
`record` (a JSON file). **Every time on this page is a forecast; no step has been measured on an accelerator.**
"""
OWN = """\

## By the chips' own compilers

Memory, kernels and traffic are those of the program that the chip would run. On a TPU, the step is the sum of the
cycles that the compiler estimates, at the clock at which the chip reaches its published peak. A GPU's compiler
estimates nothing, so on a GPU the step is the largest of compute at the assumed share of the peak, memory traffic and
communication. `of peak` counts the model's FLOPs, without recomputation. `compile` is wall time on two shared cores.
A row that says *before* is of an earlier state of this project. On GPUs, layers whose kernels are split over devices
have kept the batch split since then, whereas XLA had split channels and brought whole batches to every device; and
`warpface` no longer computes activations again.

"""
PROFILES = """\

## Where the cycles go

These are the TPU compiler's estimates: the ten largest parts of the network and kinds of operation, in % of all cycles.
It estimates none for attention kernels, for which a quarter of the peak is assumed; the table of blocks below has the
cycles of their schedules, by which they reach 21 to 54 %. For `sprites`, `lrs3` and `vidtwin-base`, *before* is a state
before short attention was one kernel, norms were read once, optimizer and averages were split over data, and products
were no longer cut into pieces between which arrays are sent. For `warpface`, the motion encoder's attention became one
kernel, and norms of bfloat16 activations are read once. `warpface-64` has a batch of 64 instead of 72, so that each
chip gets eight pictures, and computes no activations again, as has the recipe since then. Since commit f26ac6a,
optimizer and averages are split by whole rows, so that no kernel is transposed; the row of VidTwin does not have this
yet.

"""
STAND_IN = """\

## By the compiler of the CPU

These forecasts were made before the chips' compilers were used, or where they are not installed. Memory and traffic are
those of the CPU's program for the same number of simulated devices. That program fuses operations differently, and
holds in float32 much of what is bfloat16 on an accelerator. What `remat` computes again is not held, as on an
accelerator; training on the CPU does hold it. The step is the largest of compute, memory and communication; on several
servers, these older plans count all traffic at the rate of the links between servers. `CPU s` is
the time that the plan itself took on two cores, including the search for the largest batch where there was one. `lrs3`
encodes each frame at each step, `latents=fresh`; with latents read from the cache, 41 of its 472 TFLOP remain.

"""
MEASURED = """\

## Predicted against measured

All figures are in GiB, on one CPU device. `predicted` is the peak of `--mode=plan`. `XLA` is what the compiler states
for the program that then ran, optimised as in training. `measured` is the size of the arrays held (state, never-trained
networks, batch) plus the growth of the process's resident memory over two updates.

"""
BENCH = """\

## Timed on a device

These updates ran, by `python -m vidmotion.bench`: the median of the steps, with the shortest and the longest. On
accelerators, the record also has the forecast above.

"""
BLOCKS = """\

## One block, change by change

This table has the cycles of one block's forward and backward pass on v5e 2x2, as the TPU compiler estimates them or,
for attention kernels, schedules them (`docs/block_cycles.py`). Each row adds one change to the row before. The largest
kinds of operation are in brackets, in millions.

"""
OWN_COLUMNS = (
    "config|chips|state|batch|peak, GiB|fits|fused attention|products|GB sent per device|cycles|"
    "forecast step|of peak|compile, s|compiler|commit"
)
BENCH_COLUMNS = (
    "config|device|batch|step, s|steps|examples/s|model TFLOP/s|compile, s|forecast, s|jax|commit"
)
BLOCKS_COLUMNS = "block|change|cycles|of the first|commit"
PROFILES_COLUMNS = "config|chips|state|cycles|of peak|largest parts, %|largest kinds, %|commit"
STAND_IN_COLUMNS = (
    "config|devices|batch|parameters|state, GiB|peak, GiB|TFLOP per step|GB sent per device|"
    "predicted step|of peak|largest batch|CPU s|commit"
)
MEASURED_COLUMNS = (
    "config|batch|predicted|XLA|arrays|growth|measured|predicted / measured|jax|commit"
)


def own_row(name: str, plan: dict, state: str) -> str:
    """Returns the table row of a plan that the chip's own compiler made."""
    known = "kernels" in plan
    moved = sum(plan["moved_bytes"].values()) if known else 0
    cells = [
        *_place(name, plan),
        state,
        plan["batch_size"],
        f"{plan['peak_bytes'] / GIB:.2f}",
        "yes" if plan["fits"] else "no",
        plan["kernels"]["fused attention"] if known else "-",
        plan["kernels"]["product"] if known else "-",
        f"{moved / 1e9:.3g}" if known else "-",
        f"{plan['cycles'] / 1e6:,.1f} M" if "cycles" in plan else "-",
        f"{plan['step_seconds']:.3g} s ({plan['bound']})" if known else "-",
        f"{plan['efficiency']:.0%}" if known else "-",
        f"{plan['compile_seconds']:.0f}",
        plan["compiler"],
        _commit(plan),
    ]
    return _line(cells)


def profile_row(name: str, plan: dict, state: str) -> str:
    """Returns the table row that says where the cycles of a plan go."""
    shares = (
        ", ".join(
            f"{part} {100 * count / plan['cycles']:.1f}".replace("*", "\\*")
            for part, count in sorted(plan[by].items(), key=lambda item: -item[1])[:10]
        )
        for by in ("cycles_by_module", "cycles_by_kind")
    )
    cycles = f"{plan['cycles'] / 1e6:,.1f} M"
    share = f"{plan['efficiency']:.0%}"
    return _line([*_place(name, plan), state, cycles, share, *shares, _commit(plan)])


def block_rows(folder: Path) -> list[str]:
    """Returns a table row for each block and record in `folder`, whose files are numbered."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = []
    for name in sorted({name for record in records for name in record["cycles"]}):
        states = [record for record in records if name in record["cycles"]]
        first = states[0]["cycles"][name]["all"]
        for record in states:
            cycles = record["cycles"][name]
            share = f"{cycles['all'] / first:.2f}"
            rows.append(_line([name, record["label"], _millions(cycles), share, _commit(record)]))
    return rows


def _millions(cycles: dict) -> str:
    kinds = sorted(((count, kind) for kind, count in cycles.items() if kind != "all"), reverse=True)
    listed = ", ".join(f"{kind} {count / 1e6:.2f}" for count, kind in kinds[:5])
    return f"{cycles['all'] / 1e6:.2f} M ({listed})"


def _place(name: str, plan: dict) -> tuple[str, str]:
    """Returns (config, chips) of a plan, whose file has the given name."""
    slice = plan["topology"] or str(plan["plan_devices"])
    return name.removesuffix(f"-{plan['chip']}-{slice}"), f"{plan['chip']} {slice}"


def _commit(plan: dict) -> str:
    return plan["commit"][:12] + plan["commit"][40:]


def _line(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def row(name: str, plan: dict) -> str:
    """Returns the table row of a plan."""
    moved = sum(plan["moved_bytes"].values())
    cells = [
        name,
        plan["plan_devices"],
        plan["batch_size"],
        f"{plan['parameters'] / 1e6:.1f} M",
        f"{plan['state_bytes'] / GIB:.2f}",
        f"{plan['peak_bytes'] / GIB:.2f}",
        "unknown" if plan["flops"] is None else f"{plan['flops'] / 1e12:.3g}",
        f"{moved / 1e9:.3g}",
        f"{plan['chip']}: {plan['step_seconds']:.3g} s ({plan['bound']})",
        f"{plan['efficiency']:.0%}",
        plan.get("largest_batch", "not searched"),
        f"{plan['plan_cpu_seconds']:.0f}",
        _commit(plan),
    ]
    return _line(cells)


def measured_row(name: str, plan: dict) -> str:
    """Returns the table row of a plan that was also measured."""
    weighed = plan["measured"]
    both = weighed["arrays"] + weighed["growth"]
    sizes = (plan["peak_bytes"], weighed["program"], weighed["arrays"], weighed["growth"], both)
    cells = [
        name,
        plan["batch_size"],
        *(f"{size / GIB:.3f}" for size in sizes),
        f"{plan['peak_bytes'] / both:.2f}",
        plan["libraries"]["jax"],
        _commit(plan),
    ]
    return _line(cells)


def bench_row(name: str, record: dict) -> str:
    """Returns the table row of a record of `vidmotion.bench`."""
    step = record["step_seconds"]
    expected = record["forecast"]
    cells = [
        name,
        f"{record['devices']} x {record['device_kind']}",
        record["batch_size"],
        f"{step['median']:.3g} ({step['min']:.3g} to {step['max']:.3g})",
        record["steps"],
        f"{record['examples_per_second']:.3g}",
        f"{record['model_tflops']:.3g}",
        f"{record['compile_seconds']:.0f}",
        f"{expected['step_seconds']:.3g}" if expected else "-",
        record["libraries"]["jax"],
        _commit(record),
    ]
    return _line(cells)


def build(folder: Path = HERE / "plans") -> str:
    """Returns the text of the page."""
    plans = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    order = sorted(plans, key=lambda name: (name.rpartition("-")[0], plans[name]["plan_devices"]))
    own = [name for name in order if plans[name].get("own_compiler")]
    weighed = [name for name in order if "measured" in plans[name]]
    stand_in = [name for name in order if name not in (*own, *weighed)]
    earlier = {
        path.stem: json.loads(path.read_text()) for path in (folder / "before").glob("*.json")
    }
    both = [
        (name, states[name], state)
        for name in sorted({*own, *earlier})
        for state, states in (("before", earlier), ("now", plans))
        if name in states
    ]
    text = INTRODUCTION
    if both:
        text += OWN + _rows(OWN_COLUMNS, (own_row(*one) for one in both))
        timed = [one for one in both if "cycles" in one[1]]
        text += PROFILES + _rows(PROFILES_COLUMNS, (profile_row(*one) for one in timed))
    if blocks := block_rows(folder / "blocks"):
        text += BLOCKS + _rows(BLOCKS_COLUMNS, blocks)
    if stand_in:
        text += STAND_IN + _rows(
            STAND_IN_COLUMNS, (row(n.rpartition("-")[0], plans[n]) for n in stand_in)
        )
    if weighed:
        text += MEASURED + _rows(
            MEASURED_COLUMNS, (measured_row(n.rpartition("-")[0], plans[n]) for n in weighed)
        )
    if records := sorted((folder / "bench").glob("*.json")):
        rows = (bench_row(path.stem, json.loads(path.read_text())) for path in records)
        text += BENCH + _rows(BENCH_COLUMNS, rows)
    return text


def _rows(columns: str, lines: Iterable[str]) -> str:
    """Returns a Markdown table; the names of its `columns` are separated by bars."""
    names = columns.split("|")
    return "\n".join([_line(names), "|---" * len(names) + "|", *lines, ""])


if __name__ == "__main__":
    (HERE / "hardware.md").write_text(build(), encoding="utf-8")
