"""The token generator: what each position sees, padding, corruption, outpainting, guidance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.models.gpt2 import GPT2
from vidmotion.models.token_gpt import SIZES, TokenGPT, corrupt, generate, token_loss

TINY = dict(entries=7, width=24, layers=2, heads=3, max_positions=10)


def build(**more):
    """Builds a model with weights so large that predictions depend on the inputs seen."""
    model = TokenGPT(**TINY | more)
    ids = jnp.zeros((2, 3), jnp.int32)
    condition = jnp.zeros(2, jnp.int32) if model.conditions else None
    variables = quick_jit(model.init)(jax.random.key(0), ids, condition)
    return model, jax.tree.map(lambda p: 10 * p if p.ndim > 1 else p, variables)


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def conditioned():
    return build(conditions=3)


def logits_of(model, variables, ids, condition=None):
    """Computes the logits of all positions without a cache."""
    ids = jnp.asarray(ids, jnp.int32)
    return np.asarray(quick_jit(model.apply)(variables, ids, condition))


def test_parameter_count_of_gpt2_small():
    model = TokenGPT(**SIZES["xnemo"], conditions=22)  # 7 emotions at 3 levels each, and neutral
    ids, condition = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 8), (1,)))
    tree = jax.eval_shape(model.init, jax.random.key(0), ids, condition)["params"]
    blocks = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["trunk"])) == blocks + 130 * 768
    assert tree["table"].shape == (4096 + 3 + 22 + 1, 768)


def test_logits_by_hand_from_the_trunk(conditioned):
    model, variables = conditioned
    table = np.asarray(variables["params"]["table"])
    assert table.shape == (7 + 3 + 4, 24)
    # End, begin and pad are 7, 8 and 9; conditions begin at 10, and 13 stands for no condition.
    x = table[np.array([[8, 12, 4, 0], [8, 13, 6, 6]])]
    trunk = GPT2(width=24, layers=2, heads=3, max_positions=10)
    h, _ = quick_jit(trunk.apply)({"params": variables["params"]["trunk"]}, x)
    want = np.asarray(h)[:, 1:] @ table[:8].T
    got = logits_of(model, variables, [[4, 0], [6, 6]], jnp.array([2, 3]))
    assert got.shape == (2, 3, 8)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_loss_leaves_out_padding():
    # Odds of 3:1 for code 1 over code 0; the end is impossible.
    logits = jnp.broadcast_to(jnp.array([0.0, math.log(3), -1e9]), (1, 3, 3))
    loss = token_loss(logits, jnp.array([[1, 0, 4]]), pad=4)
    assert loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert token_loss(logits, jnp.full((1, 3), 4), pad=4) == 0.0


def test_corruption_changes_codes_only():
    ids = jnp.concatenate([jnp.zeros((1, 20000), jnp.int32), jnp.array([[50, 52]])], axis=1)
    out = np.asarray(corrupt(jax.random.key(0), ids, 50, 0.6))
    np.testing.assert_array_equal(out[0, -2:], [50, 52])
    # A share of 0.4 is drawn anew, and one draw in 50 gives the same code.
    assert np.mean(out[0, :-2] != 0) == pytest.approx(0.4 * 49 / 50, abs=0.012)
    assert out.max() == 52 and set(out[0, :-2]) == set(range(50))
    np.testing.assert_array_equal(corrupt(jax.random.key(0), ids, 50, 1.0), ids)


def test_greedy_outpainting_equals_recomputing(plain):
    model, variables = plain
    start = jnp.array([[3, 1, 4], [0, 6, 2]])
    got = quick_jit(lambda s: generate(model, variables, s, 5, temperature=0.0))(start)
    # No position sees what follows it, so one pass over the result gives the logits of every step.
    best = logits_of(model, variables, np.concatenate([start, got], axis=1)[:, :-1])[:, 3:, :7]
    np.testing.assert_array_equal(got, best.argmax(axis=-1))


def test_long_sequences_continue_in_windows(plain):
    model, variables = plain
    start = jnp.array([[3, 1, 4], [0, 6, 2]])
    how = dict(temperature=0.0, context=2)
    got = np.asarray(quick_jit(lambda s: generate(model, variables, s, 12, **how))(start))
    assert got.shape == (2, 12)
    # 9 tokens fit after the begin token, and the last one made is never read: the windows make 7 and 5 tokens.
    ids = np.concatenate([start, got], axis=1)
    for first, size in ((3, 7), (10, 5)):
        seen = ids[:, (0 if first == 3 else first - 2) : first + size - 1]
        best = logits_of(model, variables, seen)[:, -size:, :7].argmax(axis=-1)
        np.testing.assert_array_equal(ids[:, first : first + size], best)


def test_nothing_to_start_from_and_the_end(plain):
    model, variables = plain
    start = jnp.zeros((64, 0), jnp.int32)
    run = quick_jit(
        lambda key, end: generate(model, variables, start, 8, key=key, may_end=end),
        static_argnums=1,
    )
    codes = np.asarray(run(jax.random.key(0), False))
    assert codes.shape == (64, 8) and codes.max() < 7
    ended = np.asarray(run(jax.random.key(0), True))
    stops = ended == model.end
    assert stops.any() and np.all(stops.sum(axis=1) <= 1)
    after = np.cumsum(stops, axis=1) - stops > 0
    np.testing.assert_array_equal(ended[after], model.pad)
    assert np.all(ended[~after & ~stops] < 7)
    assert np.any(codes != np.asarray(run(jax.random.key(1), False)))


def test_guidance_scales_the_difference_of_the_logits(conditioned):
    model, variables = conditioned
    start, condition = jnp.array([[3, 1], [0, 6]]), jnp.array([0, 2])
    made = []
    for guidance in (1.0, 2.5):
        how = dict(temperature=0.0, condition_b=condition, guidance=guidance)
        got = quick_jit(lambda s, how=how: generate(model, variables, s, 4, **how))(start)
        seen = np.concatenate([start, got], axis=1)[:, :-1]
        with_it = logits_of(model, variables, seen, condition)[:, 2:, :7]
        without = logits_of(model, variables, seen, jnp.array([3, 3]))[:, 2:, :7]
        best = (without + guidance * (with_it - without)).argmax(axis=-1)
        np.testing.assert_array_equal(got, best)
        made.append(np.asarray(got))
    assert np.any(made[0] != made[1])


def test_errors(plain, conditioned):
    start = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="3 conditions, so condition_b must be given"):
        generate(*conditioned, start, 2, temperature=0.0)
    with pytest.raises(ValueError, match="must not be given"):
        generate(*plain, start, 2, temperature=0.0, condition_b=jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="guidance needs a condition"):
        generate(*plain, start, 2, temperature=0.0, guidance=2.0)
    with pytest.raises(ValueError, match=r"context in \[0, 9\]"):
        generate(*plain, start, 2, temperature=0.0, context=10)
