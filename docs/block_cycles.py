"""Estimates the cycles that one block of a transformer takes on a TPU, forward and backward, by the TPU's own compiler.

    python docs/block_cycles.py --record=docs/plans/blocks/after.json          # needs the extra `aot-tpu`
    PYTHONPATH=OTHER_CHECKOUT python docs/block_cycles.py --record=docs/plans/blocks/before.json

A block compiles in seconds, a whole recipe in minutes, and the block decides where the recipe's cycles go.
"""

import argparse
import json
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


def cycles(name: str, target: targets.Target) -> dict[str, int]:
    """Returns the estimated cycles of a block's gradients, in total (``all``) and by kind of operation."""
    batch, frames, tokens, width, heads = BLOCKS[name]
    mesh = sharding.make_mesh({"data": -1}, target.devices)

    def array(*shape, dtype=jnp.bfloat16, where=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where or sharding.batch(mesh))

    if name.startswith("sprites"):
        temporal = name.endswith("temporal")
        block = dit.Block(width, heads, 4 * width, 32, temporal, "adagn", True, dtype=jnp.bfloat16)
        # Networks with `conditioning` want an axis for the condition's single token, those of older checkouts do not.
        axes = (1,) if hasattr(dit, "conditioning") else ()
        condition = array(batch, frames, *axes, width)
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

    traced = jax.jit(sharding.OnMesh(gradients, mesh)).trace(variables, *given)
    lowered = traced.lower(lowering_platforms=target.lowering)
    found = Counter()
    for _, kind, count in Program(lowered.compile().as_text()).cycles():
        found[kind] += count
    return {"all": found.total(), **dict(found.most_common(8))}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--record", required=True, help="JSON file to write")
    record = Path(parser.parse_args().record)
    want = _shared.trunk().plan
    want.update({"chip": "v5e", "topology": "2x2"})
    targets.prepare(want)
    target = targets.find(want)
    content = {
        **run_record.environment(),
        "compiler": target.compiler,
        "slice": f"{want.chip} {want.topology}",
        "shapes": BLOCKS,
        "cycles": {},
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    for name in BLOCKS:
        content["cycles"][name] = cycles(name, target)
        record.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
