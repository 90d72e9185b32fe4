"""Grouped quantiser: nearest entries, straight-through gradients, entropy, temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from quick import quick_jit

from vidmotion.losses import bitrate
from vidmotion.models.disentangle import DisentanglingEncoder
from vidmotion.models.quantizer import GroupedQuantizer, default_alpha, temperature

LRS3 = dict(books=64, dim=16, entries=32)  # Tables A4 and A5
SPRITES = dict(books=1, dim=384, entries=64)
TINY = dict(books=3, dim=4, entries=8)


def vectors(fields, frames=5, batch=2, seed=0):
    shape = (batch, frames, fields["books"] * fields["dim"])
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(fields, **more):
    """Returns (module, variables, compiled apply)."""
    module = GroupedQuantizer(**fields, **more)
    variables = quick_jit(module.init)(jax.random.key(0), vectors(fields))
    return module, variables, quick_jit(module.apply)


def distances(module, variables, m):
    """Returns the squared distances (B, T, N, J) of the RMS-normalised vectors, in float64."""
    m = np.float64(m)
    if module.normalise:
        m = m / np.sqrt(np.mean(m**2, axis=-1, keepdims=True) + 1e-6)
    groups = m.reshape(*m.shape[:2], module.books, 1, module.dim)
    books = np.float64(variables["params"]["codebooks"])
    return np.sum((groups - books) ** 2, axis=-1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def bits(soft_btnj):
    return bitrate.entropy_bits(jnp.mean(soft_btnj, axis=(0, 1)))


# -- assignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [TINY, LRS3, SPRITES], ids=["tiny", "lrs3", "sprites"])
def test_evaluation_takes_the_nearest_entry(fields):
    module, variables, apply = build(fields, post_linear=False)
    m = vectors(fields, frames=20)
    code = apply(variables, m)
    nearest = distances(module, variables, m).argmin(axis=-1)
    assert code.ids_btn.dtype == jnp.int32
    np.testing.assert_array_equal(code.ids_btn, nearest)
    assert len(np.unique(nearest)) > 4
    books = np.asarray(variables["params"]["codebooks"])
    picked = books[np.arange(fields["books"]), nearest].reshape(m.shape)
    np.testing.assert_allclose(code.m_hat_btm, picked, atol=1e-6)


@pytest.mark.parametrize("distance", ["sq_l2", "l2"])
def test_soft_assignment_is_the_softmax_of_the_distances(distance):
    module, variables, apply = build(TINY, alpha=1.7, distance=distance)
    m = vectors(TINY)
    d = distances(module, variables, m)
    expected = softmax(-1.7 * (d if distance == "sq_l2" else np.sqrt(d)))
    np.testing.assert_allclose(apply(variables, m).soft_btnj, expected, atol=1e-5)
    # The rate is measured without noise or temperature.
    noisy = apply(variables, m, 0.3, jax.random.key(1))
    np.testing.assert_allclose(noisy.soft_btnj, expected, atol=1e-5)


def test_default_alpha_and_learned_alpha():
    assert default_alpha(16) == 5.0  # TF-Codec's value
    assert default_alpha(384) == pytest.approx(5 / 24)
    _, variables, apply = build(TINY)
    module, learned, apply_learned = build(TINY, learn_alpha=True)
    m = vectors(TINY)
    np.testing.assert_allclose(
        apply_learned(learned, m).soft_btnj, apply(variables, m).soft_btnj, atol=1e-6
    )
    total = jax.grad(lambda v: jnp.sum(bits(module.apply(v, m).soft_btnj)))
    gradient = quick_jit(total)(learned)
    # For vectors that use many entries, sharper assignments cost fewer soft bits.
    assert abs(gradient["params"]["log_alpha"]) > 1e-3


def test_scale_of_the_motion_cannot_change_its_code():
    _, variables, apply = build(SPRITES)
    m = vectors(SPRITES)
    small, large = apply(variables, 0.1 * m), apply(variables, 10 * m)
    np.testing.assert_array_equal(small.ids_btn, large.ids_btn)
    np.testing.assert_allclose(small.soft_btnj, large.soft_btnj, atol=1e-3)
    _, variables, apply = build(SPRITES, normalise=False)
    spread = [float(jnp.std(apply(variables, scale * m).soft_btnj)) for scale in (0.1, 10)]
    assert spread[1] > 2 * spread[0]


def test_embedding_ids_gives_what_the_call_gave():
    for post_linear in (False, True):
        module, variables, apply = build(TINY, post_linear=post_linear)
        code = apply(variables, vectors(TINY))
        embedded = quick_jit(lambda v, ids, module=module: module.apply(v, ids, method="embed"))(
            variables, code.ids_btn
        )
        np.testing.assert_array_equal(embedded, code.m_hat_btm)


def test_post_linear_is_a_bias_free_map():
    _, variables, apply = build(TINY)
    assert list(variables["params"]["out"]) == ["kernel"]
    code = apply(variables, vectors(TINY))
    plain = GroupedQuantizer(**TINY, post_linear=False)
    books = {"params": {"codebooks": variables["params"]["codebooks"]}}
    mixed = np.asarray(plain.apply(books, vectors(TINY)).m_hat_btm)
    kernel = np.asarray(variables["params"]["out"]["kernel"])
    np.testing.assert_allclose(code.m_hat_btm, mixed @ kernel, atol=1e-5)


def test_unknown_distance_is_refused():
    with pytest.raises(ValueError, match=r"distance='l1': choose sq_l2 or l2"):
        GroupedQuantizer(**TINY, distance="l1").init(jax.random.key(0), vectors(TINY))


# -- training -------------------------------------------------------------------------------------


def test_gumbel_argmax_follows_the_softmax():
    # All frames hold the same vector, so each entry is drawn with frequency softmax(-alpha d).
    fields, draws, tau = dict(books=2, dim=2, entries=5), 20000, 0.7
    module, variables, apply = build(fields, alpha=1.0, post_linear=False, normalise=False)
    m = np.broadcast_to(np.float32([0.3, -0.2, 0.1, 0.4]), (1, draws, 4))
    code = apply(variables, m, tau, jax.random.key(3))
    p = softmax(-distances(module, variables, m[:, :1]))[0, 0]
    books = np.asarray(variables["params"]["codebooks"])
    drawn = np.asarray(code.m_hat_btm).reshape(draws, 2, 1, 2)
    hit = np.all(np.abs(drawn - books) < 1e-5, axis=-1)
    np.testing.assert_array_equal(hit.sum(axis=-1), 1)  # hard: exactly one entry, up to rounding
    deviation = np.sqrt(p * (1 - p) / draws)
    assert np.all(np.abs(hit.mean(axis=0) - p) < 4.5 * deviation)
    assert np.all((p > 0.02) & (p < 0.9))  # so that a uniform or greedy draw would fail
    assert np.abs(p - 0.2).max() > 20 * deviation.max()


@pytest.mark.parametrize("hard", [True, False])
def test_training_forward_and_its_straight_through_gradient(hard):
    tau, key = 0.8, jax.random.key(5)
    module, variables, _ = build(TINY, alpha=1.5, hard=hard, post_linear=False, normalise=False)
    m = 0.5 * vectors(TINY)
    cotangent = np.random.default_rng(9).normal(size=m.shape)
    books = np.float64(variables["params"]["codebooks"])
    noise = np.float64(jax.random.gumbel(key, (*m.shape[:2], 3, 8)))

    def mix(m, books, weights=None):
        groups = np.float64(m).reshape(*m.shape[:2], 3, 1, 4)
        logits = -1.5 * np.sum((groups - books) ** 2, axis=-1) + noise
        if weights == "picked":
            w = np.eye(8)[logits.argmax(axis=-1)]
        else:
            w = softmax(logits / tau)
        return w

    def out(w, books):
        return np.einsum("btnj,njd->btnd", w, books).reshape(m.shape)

    def forward(v, x):
        code = module.apply(v, x, tau, key)
        return jnp.sum(code.m_hat_btm * cotangent), code.m_hat_btm

    (_, m_hat), (by_params, by_m) = quick_jit(
        jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)
    )(variables, m)
    picked, soft = mix(m, books, "picked"), mix(m, books)
    assert np.abs(picked - soft).max() > 0.3
    np.testing.assert_allclose(m_hat, out(picked if hard else soft, books), atol=1e-5)

    # Both modes backpropagate through the soft mixture; the hard mode uses the one-hot choice only where the weights
    # are multiplied by the codebook.
    def central(f, x, eps=1e-5):
        slope = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = eps
            slope[index] = (f(x + step) - f(x - step)) / (2 * eps)
        return slope

    expected = central(lambda x: np.sum(cotangent * out(mix(x, books), books)), np.float64(m))
    np.testing.assert_allclose(by_m, expected, atol=1e-4)
    fixed = picked if hard else soft
    expected = central(lambda e: np.sum(cotangent * (out(mix(m, e), books) + out(fixed, e))), books)
    np.testing.assert_allclose(by_params["params"]["codebooks"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "softness"), [(LRS3, 0.113), (SPRITES, 0.47)], ids=["lrs3", "sprites"]
)
def test_codebooks_start_unsaturated_in_both_papers_sizes(fields, softness):
    # Trace of the softmax Jacobian, 1 - sum p^2, computed independently from the same description.
    _, variables, apply = build(fields)
    soft = np.asarray(apply(variables, vectors(fields, 25, 4)).soft_btnj)
    assert np.mean(1 - np.sum(soft**2, axis=-1)) == pytest.approx(softness, rel=0.2)


@pytest.mark.parametrize("fields", [LRS3, SPRITES], ids=["lrs3", "sprites"])
def test_encoder_learns_through_the_code_at_step_0(fields):
    encoder = DisentanglingEncoder(
        content_tokens=2,
        content_width=4,
        motion_width=fields["books"] * fields["dim"],
        layers=1,
        width=16,
        heads=2,
        mlp_dim=16,
    )
    z = np.random.default_rng(0).normal(size=(2, 4, 4, 4, 3)).astype(np.float32)
    params = quick_jit(encoder.init)(jax.random.key(0), z)["params"]  # parameters as at step 0
    quantizer, variables, _ = build(fields)

    def code(p):
        _, m = encoder.apply({"params": p}, z)
        return quantizer.apply(variables, m, 1.5, jax.random.key(1))

    @quick_jit
    def both(p):
        target = jnp.cos(jnp.arange(fields["books"] * fields["dim"]))[None, None]
        by_decoder = jax.grad(lambda p: jnp.mean((code(p).m_hat_btm - target) ** 2))(p)
        by_rate = jax.grad(lambda p: jnp.mean(bits(code(p).soft_btnj)))(p)
        return by_decoder, by_rate

    for gradient in both(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            name = jax.tree_util.keystr(path)
            if "'content'" in name:  # the branch that bypasses the code
                assert not np.any(leaf)
            else:
                assert np.abs(leaf).max() > 1e-7, name
        assert np.abs(gradient["stem"]["out"]["kernel"]).max() > 1e-5


# -- entropy --------------------------------------------------------------------------------------


def test_entropy_of_a_uniform_assignment_is_log2_j():
    _, variables, apply = build(dict(books=3, dim=8, entries=8), normalise=False)
    # At the origin all entries of an orthonormal codebook are equally distant.
    variables["params"]["codebooks"] = jnp.broadcast_to(jnp.eye(8)[None], (3, 8, 8))
    origin = np.zeros((2, 4, 24), np.float32)
    np.testing.assert_allclose(bits(apply(variables, origin).soft_btnj), 3.0, atol=1e-6)
    # Four entries that are used equally often, each with certainty, give two bits.
    certain = np.tile(100 * np.eye(8, dtype=np.float32)[:4], (2, 1, 3))
    np.testing.assert_allclose(bits(apply(variables, certain).soft_btnj), 2.0, atol=1e-6)


def test_entropy_is_that_of_the_global_batch():
    _, variables, _ = build(TINY)
    m = 0.3 * vectors(TINY, frames=4, batch=8) + 2 * vectors(TINY, frames=1, batch=8, seed=1)
    module = GroupedQuantizer(**TINY)

    @quick_jit
    def entropy(m):
        return bits(module.apply(variables, m).soft_btnj)

    whole = entropy(m)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    cut = jax.device_put(m, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(entropy(cut), whole, atol=1e-5)
    alone = np.mean([entropy(m[i : i + 1]) for i in range(8)], axis=0)
    assert np.all(alone < np.asarray(whole) - 0.1)  # a mean of local entropies would be smaller


@pytest.mark.parametrize("mode", bitrate.MODES[:3])
def test_gradient_of_the_rate_is_zero_exactly_at_the_target(mode):
    fields = dict(books=1, dim=4, entries=8)
    module, variables, _ = build(fields)
    m = vectors(fields)

    @quick_jit
    def slope(target):
        def rate(m):
            entropy = bits(module.apply(variables, m).soft_btnj)
            return bitrate.rate_loss(entropy, target, mode), entropy

        return jax.grad(rate, has_aux=True)(m)

    _, spent = slope(0.0)
    at, above, below = (np.asarray(slope(spent[0] + gap)[0]) for gap in (0, 1, -1))
    assert np.abs(above).max() > 1e-5
    np.testing.assert_allclose(at, 0, atol=1e-5 * np.abs(above).max())
    np.testing.assert_allclose(above, -below, rtol=1e-3, atol=1e-7)  # the penalty has two sides


# -- temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "floor", "step"),
    [(1.5, 0.1, 967160), (2.0, 0.5, 495105)],  # Tables A4 and A5; ln(start / floor) / -ln(decay)
)
def test_temperature_schedule(start, floor, step):
    def tau(n):
        return float(quick_jit(lambda n: temperature(n, start, floor, 0.9999972))(jnp.int32(n)))

    assert tau(0) == start
    for n in (1000, 250000, step - 1000):
        assert tau(n) == pytest.approx(start * 0.9999972**n, rel=2e-6)
    assert tau(step - 100) > floor * (1 + 2e-4)
    assert tau(step) == pytest.approx(floor, rel=1e-6)
    assert tau(2 * step) == np.float32(floor)
