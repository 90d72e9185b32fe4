r"""Builds docs/hardware.md from the plans in docs/plans: no number there is typed.

    python -m vidmotion.main --mode=plan --config=configs/lrs3.py:latents=fresh --config.plan.devices=8 \
        --config.plan.record=docs/plans/lrs3-8.json
    python -m vidmotion.main --mode=plan --config=configs/heads.py:demo --config.plan.devices=1 \
        --config.plan.fit=False --config.plan.measure=True --config.plan.record=docs/plans/heads_demo-1.json
    python docs/plans.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
GIB = 2**30
INTRODUCTION = """\
# Hardware

```bash
python -m vidmotion.main --mode=plan --config=configs/heads.py:debug \\
    --config.batch_size=8 --config.plan.devices=8 --config.plan.fit=False
```

compiles the update for that many simulated devices under the config's mesh, on the CPU, up to where every array has
its memory: no machine code is made and nothing runs. `config.plan` has `devices`, `chip`, `memory_gib`, `efficiency`
(the share of the peak that compute is taken to reach), `fit` (look for the largest batch), `measure` (with one device:
also run the update on the CPU and weigh the process) and `record` (a JSON file). Memory and traffic are those of the
CPU compiler, which are not those of an accelerator: it fuses otherwise and holds in float32 much that is bfloat16
there. What `remat` computes again is not held, as on an accelerator; training on the CPU does hold it. The step time
is the largest of compute, memory and communication: a forecast, not a measurement. `CPU s` is what the plan itself
took of two cores, with the search for the largest batch where there is one. `lrs3` encodes
each frame at each step, `latents=fresh`; read from the cache they leave 41 of its 472 TFLOP.
"""
MEASURED = """\

## Predicted against measured

On one CPU device: `predicted` is the peak of `--mode=plan`; `XLA` is what the compiler states of the program that then
ran, optimised as in training; `measured` is the bytes of the arrays held (state, never-trained networks, batch) plus
the growth of the process's resident memory over two updates. GiB.

| config | batch | predicted | XLA | arrays | growth | measured | predicted / measured | jax | commit |
|---|---|---|---|---|---|---|---|---|---|
"""


def row(name: str, plan: dict) -> str:
    """One plan as a table row."""
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
        plan.get("largest_batch", "not asked"),
        f"{plan['plan_cpu_seconds']:.0f}",
        plan["commit"][:12] + plan["commit"][40:],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def measured_row(name: str, plan: dict) -> str:
    """One plan that was also measured as a table row."""
    weighed = plan["measured"]
    both = weighed["arrays"] + weighed["growth"]
    sizes = (plan["peak_bytes"], weighed["program"], weighed["arrays"], weighed["growth"], both)
    cells = [
        name,
        plan["batch_size"],
        *(f"{size / GIB:.3f}" for size in sizes),
        f"{plan['peak_bytes'] / both:.2f}",
        plan["libraries"]["jax"],
        plan["commit"][:12] + plan["commit"][40:],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def build(folder: Path = HERE / "plans") -> str:
    """The page."""
    plans = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    if not plans:
        return INTRODUCTION + "\nNo plan of a full recipe has been recorded yet.\n"
    head = (
        "| config | devices | batch | parameters | state, GiB | peak, GiB | TFLOP per step | GB sent per device "
        "| predicted step | of peak | largest batch | CPU s | commit |"
    )
    order = sorted(plans, key=lambda name: (name.rpartition("-")[0], plans[name]["plan_devices"]))
    both = [name for name in order if "measured" in plans[name]]
    rows = [row(name.rpartition("-")[0], plans[name]) for name in order if name not in both]
    text = "\n".join([INTRODUCTION, head, "|---" * 13 + "|", *rows, ""])
    if both:
        text += MEASURED
        text += "".join(measured_row(n.rpartition("-")[0], plans[n]) + "\n" for n in both)
    return text


if __name__ == "__main__":
    (HERE / "hardware.md").write_text(build(), encoding="utf-8")
