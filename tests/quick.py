"""Helpers for the tests of networks: fast compilation, and parameters among which no zero hides a mistake."""

import contextlib
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion.convert.engine import convert, export

# Tests of tiny networks spend nearly all their time on compilation, and unoptimised code compiles faster.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# The smallest VidTwin that has every part, for clips of 4 frames and 24 px.
VIDTWIN = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "queries": 3,
    "structure_channels": 2,
    "structure_blocks": 1,
    "dynamics_channels": 3,
    "dynamics_blocks": 1,
    "frames": 4,
    "size": 24,
    "patch": (1, 4, 4),
    "query_width": 8,
    "query_layers": 2,
    "query_heads": 2,
    "query_mlp": 12,
    "structure_width": 4,
}


@contextlib.contextmanager
def unoptimised():
    """Makes all programs in the block, such as those of a training, compile as fast as those of `quick_jit`."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def random_like(tree, seed=1, scale=0.3):
    """Returns normal values in the shapes of `tree`; unlike in fresh parameters, no gate or bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), tree
    )


def filled(name, shape, gain=1.0):
    """Returns the values of one entry of a published file, by the fill rule of the spec metrics.md, section 14."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "running_mean":
        r = 0.1 * r
    elif last == "running_var":
        r = 1 + 0.1 * np.abs(r)
    elif len(shape) >= 2:
        r = gain * r * np.sqrt(2 / np.prod(shape[1:]))
    else:
        r = 0.01 * r if "bias" in last else 1 + 0.1 * r
    return r.astype(np.float32)


def filled_state(net, inputs, rules, gain=1.0):
    """Returns a stand-in for a published file of `net`, and our variables converted from it.

    Args:
      net: the network.
      inputs: the shape of the array that the network reads.
      rules: the rules that name the file's keys.
      gain: the factor on the values of weights with two or more dimensions.
    """
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(inputs, np.float32))
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    source = {key: filled(key, x.shape, gain) for key, x in export(empty, rules).items()}
    return source, convert(shapes, source, rules)
