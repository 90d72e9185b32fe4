"""Times the small UNet, forward and backward, against diffusers' on torch, in one run on one machine.

    python docs/results/unet_speed.py                                     # needs the extra `oracle`
    python docs/results/unet_speed.py --sides 16 --batches 8 --one-core

Both networks have the same parameters and get the same input, and their losses and gradients are compared
before they are timed. Their steps alternate, so that other work on the machine slows both, and medians are
printed; a ratio below 1 means that this package is faster.
"""

import argparse
import os
import statistics
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from vidmotion import paths
from vidmotion.convert.engine import convert
from vidmotion.convert.maps.unet import RULES
from vidmotion.models.unet import UNet

SIZE = {
    "channels": (64, 128),
    "attention": (True, True),
    "layers_per_block": 1,
    "heads": 4,
    "context_width": 16,
    "norm_groups": 16,
}
TOKENS = 4  # length of the context
TOLERANCE = 1e-3  # largest relative difference of the losses and of the norms of the gradients


def theirs() -> torch.nn.Module:
    """Returns diffusers' network of the size `SIZE`, as diffusers initialises it."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=SIZE["channels"],
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=SIZE["layers_per_block"],
        cross_attention_dim=SIZE["context_width"],
        attention_head_dim=SIZE["heads"],  # an old misnomer: this is the number of heads
        norm_num_groups=SIZE["norm_groups"],
    )


def torch_step(module: torch.nn.Module, x, level, context, target):
    """Returns three functions without arguments that give the loss of torch's network, its loss with gradients, and the
    norm of the last gradients."""
    x, target = (torch.from_numpy(np.moveaxis(y[:, 0], -1, 1).copy()) for y in (x, target))
    level, context = torch.from_numpy(level), torch.from_numpy(context)

    def forward():
        with torch.no_grad():
            return float((module(x, level, context).sample - target).square().mean())

    def step():
        module.zero_grad()
        loss = (module(x, level, context).sample - target).square().mean()
        loss.backward()
        return loss.item()

    def norm():
        return float(sum(p.grad.square().sum() for p in module.parameters()) ** 0.5)

    return forward, step, norm


def jax_step(net: UNet, params, x, level, context, target, options):
    """Returns the same three functions as `torch_step` for this package's network, compiled with `options`."""

    def loss(params, x, level, context, target):
        return jnp.square(net.apply({"params": params}, x, level, context) - target).mean()

    def step_of(*given):
        value, tree = jax.value_and_grad(loss)(*given)
        return value, jax.tree.leaves(tree)

    given = params, x, level, context, target
    given = jax.tree.map(jnp.asarray, given)
    run = jax.jit(loss).lower(*given).compile(compiler_options=options)
    grad = jax.jit(step_of).lower(*given).compile(compiler_options=options)
    last: list[jax.Array] = []

    def forward():
        return float(run(*given))

    def step():
        value, last[:] = jax.block_until_ready(grad(*given))
        return float(value)

    def norm():
        return float(sum(np.square(g).sum() for g in last) ** 0.5)

    return forward, step, norm


def agree(ours: float, torchs: float, what: str) -> None:
    """Exits with a message if the two networks do not compute the same value."""
    if abs(ours - torchs) > TOLERANCE * abs(torchs):
        raise SystemExit(
            f"the networks disagree on the {what}: it is {ours} in this package and {torchs} in torch"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=60, help="start no repetition after this time"
    )
    parser.add_argument(
        "--one-core",
        action="store_true",
        help="run both on one core and measure its CPU time, which other work hardly changes",
    )
    parser.add_argument(
        "--options",
        nargs="*",
        default=["xla_cpu_experimental_ynn_fusion_type="],
        help="XLA's compiler options, as name=value",
    )
    args = parser.parse_args()
    if args.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    clock = time.process_time if args.one_core else time.perf_counter
    options = dict(option.split("=", 1) for option in args.options)
    module, net = theirs(), UNet(**SIZE)
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, options {options}")
    print(f"torch {torch.__version__} on {torch.get_num_threads()} threads")
    print("side batch | forward: ours, torch, ratio | forward and backward: ours, torch, ratio")
    for side in args.sides:
        for batch in args.batches:
            rng = np.random.default_rng(0)
            x, target = rng.normal(size=(2, batch, 1, side, side, 4)).astype(np.float32)
            level = rng.integers(0, 1000, batch).astype(np.float32)
            context = rng.normal(size=(batch, TOKENS, SIZE["context_width"])).astype(np.float32)
            inputs = x, level, context
            params = convert(
                jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"], state, RULES
            )
            inputs = *inputs, target
            pairs = jax_step(net, params, *inputs, options), torch_step(module, *inputs)
            for i, what in enumerate(("loss", "loss of the step", "norm of the gradient")):
                agree(*(pair[i]() for pair in pairs), what)
            spent = {}
            start = time.perf_counter()
            for _ in range(args.repetitions):
                for i in (0, 1):
                    for who in (0, 1):
                        begun = clock()
                        pairs[who][i]()
                        spent.setdefault((i, who), []).append(clock() - begun)
                if time.perf_counter() - start > args.seconds:
                    break
            line = f"{side:4} {batch:5}"
            for i in (0, 1):
                ours, other = (statistics.median(spent[i, who]) for who in (0, 1))
                line += f" | {1e3 * ours:8.0f} ms {1e3 * other:8.0f} ms {ours / other:5.2f}"
            print(line, flush=True)
    count = sum(value.size for value in paths.flatten(params).values())
    print(f"{count:,} parameters")


if __name__ == "__main__":
    main()
