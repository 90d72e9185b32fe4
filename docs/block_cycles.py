"""Estimates the cycles that one block of a transformer takes on a TPU, forward and backward, by the TPU's own compiler.

    python docs/block_cycles.py --record=docs/plans/blocks/4.json --label="..."          # needs the extra `aot-tpu`
    PYTHONPATH=OTHER_CHECKOUT python docs/block_cycles.py --record=docs/plans/blocks/3.json --label="..."

A block compiles in a minute, a whole recipe in many, and the block decides where the recipe's cycles go.

The compiler estimates no cycles for attention kernels. Each of them is compiled alone, and the length of the program
that the compiler schedules for one step of the kernel's grid, times the number of steps, is its cycles.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import _shared
from vidmotion import run_record, sharding, targets
from vidmotion.models import dit, forms, spacetime
from vidmotion.program import Program

# Batch on four chips, frames, tokens per frame, width and heads, from configs/sprites.py and VidTwin's base size.
BLOCKS = {
    "sprites, spatial": (256, 4, 64, 384, 6),
    "sprites, temporal": (256, 4, 64, 384, 6),
    "vidtwin base": (8, 16, 196, 768, 12),
}
# Functions of `short_attention` that each block calls, and whether they are causal.
KERNELS = {
    "sprites, spatial": (("rows", False),),
    "sprites, temporal": (("frames", False),),
    "vidtwin base": (("rows", False), ("frames", True)),
}
KERNEL = """
import sys, jax, jax.numpy as jnp
from configs import _shared
from vidmotion import targets
from vidmotion.models import short_attention
name, causal, *sizes = sys.argv[1:]
*shape, width = map(int, sizes)
want = _shared.trunk().plan
want.update({"chip": "v5e", "topology": "1x1"})
targets.prepare(want)
(device,) = targets.find(want).devices
where = jax.sharding.SingleDeviceSharding(device)
x = jax.ShapeDtypeStruct(tuple(shape), jnp.bfloat16, sharding=where)
def both(g, *qkv):
    function = getattr(short_attention, name)
    y, back = jax.vjp(lambda *qkv: function(*qkv, width=width, scale=width**-0.5, causal=causal == "True"), *qkv)
    return y, back(g)
traced = jax.jit(both).trace(x, x, x, x)
print(traced.jaxpr)
traced.lower(lowering_platforms=("tpu",)).compile()
"""


def scheduled(name: str) -> dict[str, int]:
    """Returns the cycles of the attention kernels that a block calls, by the compiler's schedule."""
    batch, frames, tokens, width, heads = BLOCKS[name]
    found = {}
    for kernel, causal in KERNELS[name]:
        shape = [batch // 4 * frames, tokens] if kernel == "rows" else [batch // 4, frames, tokens]
        words = [kernel, str(causal), *map(str, (*shape, width, width // heads))]
        with tempfile.TemporaryDirectory() as folder:
            dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
            command = [sys.executable, "-c", KERNEL, *words]
            env = os.environ | {"LIBTPU_INIT_ARGS": dump}
            done = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
            grids = re.findall(r"grid=\(([\d, ]*)\)", done.stdout)
            for direction, grid in zip(("forward", "backward"), grids, strict=True):
                (analysis,) = Path(folder).glob(f"*{direction}_*schedule-analysis_final_bundles*")
                length = int(re.search(r"non empty .*?: +(\d+)", analysis.read_text())[1])
                steps = math.prod(int(side) for side in grid.split(",") if side.strip())
                found[f"{kernel} {direction}"] = length * steps
    return found


def cycles(name: str, target: targets.Target) -> dict[str, int]:
    """Returns the cycles of a block's gradients, in total (``all``) and by kind of operation or kernel."""
    batch, frames, tokens, width, heads = BLOCKS[name]
    mesh = sharding.make_mesh({"data": -1}, target.devices)

    def array(*shape, dtype=jnp.bfloat16, where=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where or sharding.batch(mesh))

    if name.startswith("sprites"):
        temporal = name.endswith("temporal")
        block = dit.Block(width, heads, 4 * width, 32, temporal, "adagn", True, dtype=jnp.bfloat16)
        condition = array(batch, frames, 1, width)
        given = (array(batch, frames, tokens, width), *(condition,) * 3)
    else:
        block = spacetime.Block(heads, 4, jnp.bfloat16)
        code = array(frames, width, dtype=jnp.float32, where=sharding.replicated(mesh))
        given = (array(batch, frames, tokens, width, dtype=jnp.float32), code)
    blank = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in given]
    variables = jax.tree.map(
        lambda leaf: array(*leaf.shape, dtype=leaf.dtype, where=sharding.replicated(mesh)),
        jax.eval_shape(lambda: block.init(jax.random.key(0), *blank)),
    )

    def loss(*arguments):
        y = block.apply(*arguments)
        y = y[0] if isinstance(y, tuple) else y
        return jnp.square(y.astype(jnp.float32)).sum()

    def gradients(*arguments):
        with forms.of("tpu"):
            return jax.grad(loss, (0, 1))(*arguments)

    # As in training, the gradients of parameters are scattered over the devices, each of which updates its share.
    scattered = jax.tree.map(lambda leaf: sharding.also_over_data(leaf, leaf.sharding), variables)
    step = jax.jit(sharding.OnMesh(gradients, mesh), out_shardings=(scattered, given[0].sharding))
    lowered = step.trace(variables, *given).lower(lowering_platforms=target.lowering)
    compiled = lowered.compile(compiler_options=sharding.compiler_options(mesh))
    program = Program(compiled.as_text())
    found = Counter()
    for _, kind, count in program.cycles():
        found[kind] += count
    found = Counter(dict(found.most_common(8))) | Counter({"all": found.total()})
    if program.kernels()["fused attention"]:
        kernels = scheduled(name)
        found.update(kernels)
        found["all"] += sum(kernels.values())
    return dict(found)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--record", required=True, help="JSON file to write")
    parser.add_argument("--label", required=True, help="what the measured state changes")
    parser.add_argument("--block", choices=BLOCKS, help="measure this block alone")
    arguments = parser.parse_args()
    record = Path(arguments.record)
    want = _shared.trunk().plan
    want.update({"chip": "v5e", "topology": "2x2"})
    targets.prepare(want)
    target = targets.find(want)
    content = {
        **run_record.environment(),
        "label": arguments.label,
        "compiler": target.compiler,
        "slice": f"{want.chip} {want.topology}",
        "shapes": BLOCKS,
        "cycles": {},
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    for name in [arguments.block] if arguments.block else BLOCKS:
        content["cycles"][name] = cycles(name, target)
        record.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
