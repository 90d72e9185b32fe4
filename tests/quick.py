"""What the tests of networks share: fast compilation, and parameters that hide nothing."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

# Tests of tiny networks are nearly all compilation, and unoptimised code compiles faster.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def unoptimised():
    """Programs that are compiled within, by a training for example, compile as fast as those of `quick_jit`."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def random_like(tree, seed=1, scale=0.3):
    """Normal values of the shapes of `tree`: unlike fresh parameters, no gate or bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), tree
    )
