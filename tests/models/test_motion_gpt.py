"""Motion generator: what each position sees, the loss, decoding, random draws, sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.models import motion_gpt

TINY = dict(
    books=3,
    entries=5,
    book_dim=8,
    content_shape=(4, 6),
    width=24,
    layers=2,
    heads=3,
    max_positions=12,
)
FRAMES = 7


def _vivid(variables):
    """Scales the weights up so much that predictions depend on the inputs seen."""
    return jax.tree.map(lambda p: 10 * p if p.ndim > 1 else p, variables)


def _build(**changes):
    """Returns a tiny model, its parameters, content (2, 4, 6) and motion (2, 7, 24)."""
    model = motion_gpt.MotionGPT(**{**TINY, **changes})
    content = jax.random.normal(jax.random.key(1), (2, *TINY["content_shape"]))
    motion = jax.random.normal(jax.random.key(2), (2, FRAMES, model.books * model.book_dim))
    return model, jax.jit(model.init)(jax.random.key(0), content, motion), content, motion


@pytest.fixture(scope="module")
def tiny():
    return _build()


@pytest.fixture(scope="module")
def embed():
    """Returns a function that looks up codes in random codebooks: (b, s, 3) -> (b, s, 24)."""
    table_njd = jax.random.normal(jax.random.key(3), (3, 5, 8))

    def lookup(ids_bsn):
        motion_bsnd = table_njd[jnp.arange(3)[None, None], ids_bsn]
        return motion_bsnd.reshape(*ids_bsn.shape[:2], -1)

    return lookup


def test_parameter_count_of_the_paper():
    sizes = motion_gpt.SIZES["bcd_lrs3"]
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    params = jax.eval_shape(
        motion_gpt.MotionGPT(**sizes).init,
        jax.random.key(0),
        shape((1, *sizes["content_shape"])),
        shape((1, 4, 1024)),
    )["params"]
    count = {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in params.items()}
    assert count == {
        "content": 64 * 512 * 1024 + 1024,
        "frame": 1024 * 1024 + 1024,
        "trunk": 151_287_808,  # closed form in test_gpt2.py; bcd.md says about 151M
        "head": 1024 * 64 * 32 + 64 * 32,
    }


def test_frame_embedding_starts_as_identity_where_it_can(tiny):
    np.testing.assert_array_equal(tiny[1]["params"]["frame"]["kernel"], np.eye(24))
    _, variables, _, _ = _build(book_dim=4)
    kernel = variables["params"]["frame"]["kernel"]
    assert kernel.shape == (12, 24)
    np.testing.assert_allclose(np.std(kernel), 12**-0.5, rtol=0.15)


@pytest.mark.parametrize("elements", [1, 4])
def test_causal(elements):
    model, variables, content, motion = _build(content_elements=elements)
    apply = jax.jit(functools.partial(model.apply, variables))
    logits = apply(content, motion)
    assert logits.shape == (2, FRAMES + 1, 3, 5)
    # Changing frame 4 (index 3) affects only the predictions of frames 5 and later.
    changed = np.abs(apply(content, motion.at[:, 3].multiply(-1.0)) - logits).max((0, 2, 3))
    assert np.all(changed[:4] < 1e-6)
    assert np.all(changed[4:] > 1e-4)
    changed = np.abs(apply(content.at[:, -1].add(1.0), motion) - logits).max((0, 2, 3))
    assert np.all(changed > 1e-5)


def test_loss_of_uniform_logits_is_ln_32():
    logits, ids = jnp.full((2, 3, 4, 32), 7.0), jnp.arange(24).reshape(2, 3, 4)
    np.testing.assert_allclose(motion_gpt.next_frame_loss(logits, ids), math.log(32), rtol=1e-6)


def test_loss_by_hand():
    # One codebook of two entries with odds of 3:1 for entry 1; two clips of two frames.
    logits = jnp.broadcast_to(jnp.array([0.0, math.log(3)]), (2, 2, 1, 2))
    ids = jnp.array([[1, 0], [1, 1]])[..., None]
    right, wrong = math.log(4 / 3), math.log(4)
    loss = motion_gpt.next_frame_loss
    np.testing.assert_allclose(loss(logits, ids), (3 * right + wrong) / 4, rtol=1e-6)
    mask = jnp.array([[True, True], [True, False]])
    np.testing.assert_allclose(loss(logits, ids, mask), (2 * right + wrong) / 3, rtol=1e-6)
    assert loss(logits, ids, ~mask & mask) == 0.0


def test_every_parameter_has_a_gradient(tiny):
    model, variables, content, motion = tiny
    ids = jax.random.randint(jax.random.key(4), (2, FRAMES, 3), 0, 5)

    @jax.jit
    @jax.grad
    def gradient(variables):
        logits = model.apply(variables, content, motion[:, :-1])
        return motion_gpt.next_frame_loss(logits, ids)

    grad = gradient(variables)["params"]
    for i in range(TINY["layers"]):
        # Zero, as test_gpt2.py explains.
        grad["trunk"][f"layer_{i}"]["attention"]["key"].pop("bias")
    for path, g in jax.tree_util.tree_leaves_with_path(grad):
        assert np.any(np.asarray(g) != 0), path


@pytest.mark.parametrize("elements", [1, 4])
def test_greedy_equals_decoding_without_a_cache(embed, elements):
    model, variables, content, _ = _build(content_elements=elements)
    variables = _vivid(variables)
    generate = jax.jit(lambda c: motion_gpt.generate(model, variables, c, embed, FRAMES))
    got = generate(content)
    assert got.shape == (2, FRAMES, 3)
    assert got.dtype == jnp.int32
    # By causality one pass checks the whole loop: each code must be the best one given the codes before it.
    logits = jax.jit(model.apply)(variables, content, embed(got[:, :-1]))
    np.testing.assert_array_equal(got, jnp.argmax(logits, -1))
    assert len(np.unique(got)) > 1
    np.testing.assert_array_equal(got, generate(content))


def test_cached_logits_equal_full(tiny):
    model, variables, content, motion = tiny
    full = jax.jit(model.apply)(variables, content, motion)

    @jax.jit
    def cached():
        logits, cache = model.apply(variables, content, FRAMES, method="prefill")
        parts = [logits]
        for part in (motion[:, :3], motion[:, 3:4], motion[:, 4:]):
            logits, cache = model.apply(variables, part, cache, method="decode")
            parts.append(logits)
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(cached(), full, atol=1e-5)


def test_random_generation(tiny, embed):
    model, variables, content, _ = tiny
    variables = _vivid(variables)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def generate(key, temperature, top_k):
        return motion_gpt.generate(
            model, variables, content, embed, 4, key=key, temperature=temperature, top_k=top_k
        )

    one, two = generate(jax.random.key(0), 3.0, None), generate(jax.random.key(1), 3.0, None)
    np.testing.assert_array_equal(one, generate(jax.random.key(0), 3.0, None))
    assert np.any(one != two)
    assert np.any(one[:, 0] != one[:, 1])
    greedy = generate(None, 0.0, None)
    np.testing.assert_array_equal(generate(jax.random.key(0), 3.0, 1), greedy)
    alone = jax.jit(lambda: motion_gpt.generate(model, variables, content, embed, 1))()
    np.testing.assert_array_equal(alone, greedy[:, :1])


def test_draw_statistics():
    p = np.array([0.1, 0.2, 0.3, 0.4])
    n = 20_000  # the standard error of a frequency is at most 0.0035
    logits = jnp.broadcast_to(jnp.log(p), (n, 4))

    def frequencies(temperature, top_k=None):
        ids = motion_gpt.draw(jax.random.key(0), logits, temperature, top_k)
        return np.bincount(ids, minlength=4) / n

    np.testing.assert_allclose(frequencies(1.0), p, atol=0.014)
    np.testing.assert_allclose(frequencies(0.5), p**2 / np.sum(p**2), atol=0.014)
    np.testing.assert_allclose(frequencies(1.0, 2), [0, 0, 3 / 7, 4 / 7], atol=0.014)
    np.testing.assert_array_equal(frequencies(1.0, 1), [0, 0, 0, 1])
    np.testing.assert_array_equal(frequencies(0.0), [0, 0, 0, 1])
    tied = motion_gpt.draw(jax.random.key(0), jnp.zeros((n, 4)), 1.0, 2)
    assert len(np.unique(tied)) == 2  # top_k keeps exactly k, also with ties


def test_draw_of_the_nucleus():
    n = 20000
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2])), (n, 4))

    def frequencies(temperature, top_k, top_p):
        ids = motion_gpt.draw(jax.random.key(0), logits, temperature, top_k, top_p)
        return np.bincount(ids, minlength=4) / n

    # 0.4 + 0.3 reaches 0.6; 0.4 alone does not.
    np.testing.assert_allclose(frequencies(1.0, None, 0.6), [0, 4 / 7, 3 / 7, 0], atol=0.014)
    np.testing.assert_allclose(frequencies(1.0, None, 0.75), [0, 4 / 9, 3 / 9, 2 / 9], atol=0.014)
    np.testing.assert_array_equal(frequencies(1.0, None, 1e-3), [0, 1, 0, 0])
    # Half the temperature squares the odds: 16, 9, 4 and 1 of 30, of which the first two reach 0.8.
    np.testing.assert_allclose(frequencies(0.5, None, 0.8), [0, 16 / 25, 9 / 25, 0], atol=0.014)
    # Among the three entries that top_k keeps, 4/9 and 3/9 reach 0.75.
    np.testing.assert_allclose(frequencies(1.0, 3, 0.75), [0, 4 / 7, 3 / 7, 0], atol=0.014)
    np.testing.assert_allclose(frequencies(1.0, None, 1.0), [0.1, 0.4, 0.3, 0.2], atol=0.014)


def test_bfloat16_compute_keeps_float32_parameters(tiny):
    model, variables, content, motion = tiny
    half = motion_gpt.MotionGPT(**TINY, dtype=jnp.bfloat16)
    params = jax.eval_shape(half.init, jax.random.key(0), content, motion)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    logits = jax.jit(half.apply)(variables, content, motion)
    assert logits.dtype == jnp.float32
    full = jax.jit(model.apply)(variables, content, motion)
    np.testing.assert_allclose(logits, full, atol=0.05)


def test_errors(tiny, embed):
    model, variables, content, motion = tiny
    with pytest.raises(ValueError, match="content_elements must be 1 or 4"):
        _build(content_elements=2)
    with pytest.raises(ValueError, match=r"content must be \(batch, \*\(4, 6\)\)"):
        model.apply(variables, content[:, :3], motion)
    with pytest.raises(ValueError, match=r"motion must be \(batch, frames, 24\)"):
        model.apply(variables, content, motion[..., :-1])
    with pytest.raises(ValueError, match="there is room for 12"):
        model.apply(variables, content, jnp.tile(motion, (1, 2, 1)))
    with pytest.raises(ValueError, match="at least 1"):
        motion_gpt.generate(model, variables, content, embed, 0)
    with pytest.raises(ValueError, match="13 positions asked for"):
        motion_gpt.generate(model, variables, content, embed, 13)
    logits = jnp.zeros((2, 4, 3, 5))
    with pytest.raises(ValueError, match="give the model the first T - 1"):
        motion_gpt.next_frame_loss(logits, jnp.zeros((2, 3, 3), int))
    with pytest.raises(ValueError, match="mask"):
        motion_gpt.next_frame_loss(logits, jnp.zeros((2, 4, 3), int), jnp.ones((2, 3)))
    for wrong in (dict(temperature=-1.0), dict(top_k=0), dict(top_k=6), dict(top_p=0.0)):
        with pytest.raises(ValueError, match="draw"):
            motion_gpt.draw(jax.random.key(0), logits, **wrong)
    with pytest.raises(ValueError, match="needs a key"):
        motion_gpt.draw(None, logits, 1.0)
