"""``--mode=plan``: what a config will cost, printed without allocating or compiling anything large."""

from collections import Counter

import jax

from vidmotion import paths, sharding
from vidmotion.run import Run


def plan(run: Run) -> str:
    """Parameters per module, FLOPs per step, state bytes per device and tokens per batch, as text."""
    return "\n".join(
        [
            *_parameters(run),
            "",
            *_cost(run),
            *_facts(run),
        ]
    )


def _parameters(run: Run) -> list[str]:
    """Counts per player and top-level module, frozen leaves told apart."""
    counts: Counter[str] = Counter()
    frozen = 0
    for player, tree in run.abstract_params.items():
        learns = paths.flatten(run.stepper.optimizers[player].trainable_mask(tree))
        for path, leaf in paths.flatten(tree).items():
            counts[f"{player}/{path.split('/')[0]}"] += leaf.size
            frozen += 0 if learns[path] else leaf.size
    total = sum(counts.values())
    width = max(len(name) for name in counts)
    lines = [f"{name:<{width}}  {count:>15,}" for name, count in counts.items()]
    never = [
        f"{f'{name} (never trained)':<{width}}  {sum(x.size for x in jax.tree.leaves(tree)):>15,}"
        for name, tree in run.abstract_consts.items()
    ]
    return [
        f"{'module':<{width}}  {'parameters':>15}",
        *lines,
        f"{'all':<{width}}  {total:>15,}",
        f"{'of these frozen':<{width}}  {frozen:>15,}",
        *never,
    ]


def _facts(run: Run) -> list[str]:
    """What the system adds."""
    facts = run.system.facts(run.abstract_params)
    width = max(map(len, facts), default=0)
    return ["", *(f"{label:<{width}}  {text}" for label, text in facts.items())] if facts else []


def _cost(run: Run) -> list[str]:
    flops = run.flops_per_step()
    state = sharding.bytes_per_device(run.abstract_state, run.state_shardings)
    rows = sharding.batch_shards(run.mesh)
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    return [
        f"model FLOPs per step        {'unknown' if flops is None else f'{flops:.4g}'}"
        "  (forward, backward and optimizer; no recomputation)",
        f"state bytes per device      {state:,}"
        "  (parameters, optimizer, averages; gradients and activations come on top)",
        f"mesh                        {mesh}; here {jax.device_count()} device(s)",
        f"batch                       {run.config.batch_size} examples, "
        f"{run.config.batch_size // rows} per shard, {run.config.accumulate} microbatch(es)",
        f"tokens per batch            {run.system.tokens(run.config.batch_size):,}",
    ]
