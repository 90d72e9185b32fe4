"""Prints the sizes of VidTwin's latents, and the costs of a generator on their tokens (supplement B.1 and C.2).

    python -m vidmotion.evaluation.resources

The generator is the paper's "pseudo DiT", a stock transformer encoder. Its costs are XLA's own estimates for the
programs that it compiles for this machine; nothing is run. The paper gives 12,610,560 parameters for this network.
That is the count without attention, as a profiler that skips fused attention reports it. The column "FFN only" uses the
paper's count, so it can be compared with Figure 5.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vidmotion import startup
from vidmotion.errors import EXIT_DONE
from vidmotion.models.latent_dit import Patches
from vidmotion.models.transformer import TransformerEncoder
from vidmotion.models.vidtwin import LATENTS, SIZES, VidTwin
from vidmotion.progress import watched

WIDTH, LAYERS, HEADS, MLP_DIM = 512, 6, 8, 2048  # supplement C.2
PSEUDO_DIT = TransformerEncoder(LAYERS, HEADS, MLP_DIM)
# The number of tokens of each kind of latent, for a clip of 16 frames of 224 px cut into patches of 2 (sides that 2
# does not divide are padded). iVideoGPT's tokens are not patched: 16x16 for each of two context frames, 4x4 for each of
# the other 14.
TOKENS = {
    "VidTwin 16x7x7 + 16x14, patch 2": Patches((16, 7, 7, 4), (2, 2, 2)).tokens
    + Patches((1, 16, 14, 8), (1, 2, 2)).tokens,
    "4x28x28, patch 2": Patches((4, 28, 28, 4), (2, 2, 2)).tokens,
    "iVideoGPT 2x16x16 + 14x4x4": 2 * 16**2 + 14 * 4**2,
    "4x28x28, patch 2 in space only": Patches((4, 28, 28, 4), (1, 2, 2)).tokens,
}


class Setting(NamedTuple):
    """A latent setting of VidTwin, for clips of 16 frames of 224 px.

    Attributes:
      name: the key in `models.vidtwin.LATENTS`.
      structure: the shape of the structure latent, (n_q, h_S, w_S, d_S).
      dynamics: the shape of the dynamics latent, (f, w_D + h_D, d_D).
      numbers: the total number of values in both latents.
      rate: `numbers` over the number of values in the clip (supplement B.1).
    """

    name: str
    structure: tuple[int, ...]
    dynamics: tuple[int, ...]
    numbers: int
    rate: float


class Cost(NamedTuple):
    """The costs of a pseudo DiT at batch size 1 in float32.

    Attributes:
      tokens: the number of input tokens.
      parameters: the number of parameters of the network.
      forward_flops: the FLOPs of one forward pass.
      step_flops: the FLOPs of one training step: forward, backward, Adam.
      step_bytes: the peak memory of a training step: parameters, moments, gradients, activations.
      ffn_parameters: the number of parameters of the feed-forward layers and norms alone.
      ffn_flops: the FLOPs of one forward pass of the feed-forward layers and norms alone.
    """

    tokens: int
    parameters: int
    forward_flops: float
    step_flops: float
    step_bytes: int
    ffn_parameters: int
    ffn_flops: float


def settings() -> Iterator[Setting]:
    """Yields every latent setting of VidTwin."""
    for name, latent in LATENTS.items():
        net = VidTwin(**SIZES["base"], **latent)
        numbers = round(net.rate * 3 * net.frames * net.size**2)
        yield Setting(name, net.structure_shape, net.dynamics_shape, numbers, net.rate)


def cost(tokens: int) -> Cost:
    """Compiles the network and its training step for `tokens` tokens, and returns their costs."""
    optimizer = optax.adam(1e-4)
    row = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)
    params = jax.eval_shape(PSEUDO_DIT.init, jax.random.key(0), row)
    slots = jax.eval_shape(optimizer.init, params)

    def step(params, slots, x, target):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(PSEUDO_DIT.apply(p, x) - target)))(params)
        updates, slots = optimizer.update(grads, slots)
        return optax.apply_updates(params, updates), slots

    forward = jax.jit(PSEUDO_DIT.apply).lower(params, row)
    training = jax.jit(step, donate_argnums=(0, 1)).lower(params, slots, row, row)
    memory = training.compile().memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Each layer has two feed-forward matrices with biases, and two norms.
    ffn = LAYERS * (2 * WIDTH * MLP_DIM + MLP_DIM + WIDTH + 4 * WIDTH)
    return Cost(
        tokens,
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        forward.cost_analysis()["flops"],
        training.cost_analysis()["flops"],
        kept + memory.temp_size_in_bytes,
        ffn,
        2.0 * ffn * tokens,
    )


def report() -> str:
    """Returns both tables as text: the latent settings, and the costs of the generator."""
    lines = [f"{'latent':<10}{'structure':>14}{'dynamics':>12}{'numbers':>9}{'rate':>9}"]
    for s in settings():
        shapes = ("x".join(map(str, shape)) for shape in (s.structure, s.dynamics))
        structure, dynamics = shapes
        lines.append(f"{s.name:<10}{structure:>14}{dynamics:>12}{s.numbers:>9,}{s.rate:>9.4%}")
    costs = {
        name: cost(tokens) for name, tokens in watched(TOKENS.items(), "measuring", unit="sizes")
    }
    first = next(iter(costs.values()))
    lines += [
        "",
        f"pseudo DiT: {first.parameters:,} parameters, FFN only {first.ffn_parameters:,}; batch 1, float32, "
        f"{jax.devices()[0].device_kind}",
        f"{'latent':<33}{'tokens':>7}{'forward':>16}{'FFN only':>16}{'step':>16}{'step memory':>20}",
    ]
    for name, c in costs.items():
        cells = [
            f"{value / 1e9:.2f} ({value / one:.1f}x)"
            for value, one in (
                (c.forward_flops, first.forward_flops),
                (c.ffn_flops, first.ffn_flops),
                (c.step_flops, first.step_flops),
            )
        ]
        memory = f"{c.step_bytes / 2**20:.0f} MiB ({c.step_bytes / first.step_bytes:.1f}x)"
        lines.append(
            f"{name:<33}{c.tokens:>7}" + "".join(f"{x:>16}" for x in cells) + f"{memory:>20}"
        )
    lines.append(
        "costs in GFLOP, where a multiplication and its addition count as two; (x): relative to the first row"
    )
    return "\n".join(lines)


def main() -> int:
    """Runs the command line, and returns its exit code."""

    def work() -> int:
        startup.set_up_devices()
        print(report())
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, "stopped")


if __name__ == "__main__":
    sys.exit(main())
