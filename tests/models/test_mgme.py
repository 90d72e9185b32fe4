"""Motion codes: orthonormal groups, the algebra of Eq. 3 and 4, the encoder (spec warpface.md, section 14)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.losses import motion
from vidmotion.models.mgme import MGME, MotionCodes, orthogonal, transfer

TINY = dict(side=8, depth=1, width=32, groups=2, basis=3, size=8, hidden=16)


def codebook(groups, size, count, seed=0):
    return np.random.default_rng(seed).normal(size=(groups, size, count)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder():
    net = MGME(**TINY)
    z = jax.random.normal(jax.random.key(1), (3, 8, 8, 4))
    variables = quick_jit(net.init)(jax.random.key(0), z)
    return net, variables, z


# -- orthonormal vectors (Eq. 7) ------------------------------------------------------------------


def test_columns_are_orthonormal_with_a_fixed_sign():
    c = codebook(3, 16, 5)
    q = np.asarray(orthogonal(c))
    for k in range(3):
        np.testing.assert_allclose(q[k].T @ q[k], np.eye(5), atol=1e-5)
        # Upper triangular: each vector is in the span of its own and the earlier ones.
        r = q[k].T @ c[k]
        np.testing.assert_allclose(r, np.triu(r), atol=1e-5)
        assert (np.diag(r) > 0).all()


def test_the_norm_of_a_group_is_the_norm_of_its_coefficients():
    q = orthogonal(codebook(4, 32, 8))
    alpha = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    g = np.einsum("kei,ki->ke", q, alpha)
    np.testing.assert_allclose(np.linalg.norm(g, axis=1), np.linalg.norm(alpha, axis=1), rtol=1e-5)


def test_scaling_a_vector_changes_nothing_so_its_gradient_is_across_it():
    c = codebook(2, 8, 3)
    target = np.random.default_rng(1).normal(size=(2, 8, 3)).astype(np.float32)
    gradient = jax.grad(lambda c: jnp.sum(orthogonal(c) * target))(c)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(np.sum(c * gradient, axis=1), 0.0, atol=1e-4)


def test_more_vectors_than_dimensions_make_a_tight_frame_or_are_cut():
    c = codebook(1, 4, 9)
    frame = np.asarray(orthogonal(c))[0]
    assert frame.shape == (4, 9)
    np.testing.assert_allclose(frame @ frame.T, np.eye(4), atol=1e-5)
    cut = np.asarray(orthogonal(c, "truncate"))[0]
    np.testing.assert_allclose(cut.T @ cut, np.eye(4), atol=1e-5)
    with pytest.raises(ValueError, match="tight_frame or truncate"):
        orthogonal(c, "wrap")


def test_a_codebook_of_deficient_rank_has_no_gradient():
    gradient = jax.grad(lambda c: jnp.sum(orthogonal(c)))(jnp.zeros((1, 4, 2)))
    assert np.isnan(gradient).any()  # the reason why the docstring forbids it


def test_bfloat16_is_orthogonalised_in_float32():
    q = np.asarray(orthogonal(jnp.asarray(codebook(1, 64, 32), jnp.bfloat16)))[0]
    assert q.dtype == np.float32
    np.testing.assert_allclose(q.T @ q, np.eye(32), atol=1e-5)


# -- algebra (Eq. 3, 4) ---------------------------------------------------------------------------


def codes(seed, symmetric=False):
    rng = np.random.default_rng(seed)
    back = rng.normal(size=(2, 6)).astype(np.float32)
    there = -back if symmetric else rng.normal(size=(2, 6)).astype(np.float32)
    return MotionCodes(there, rng.normal(size=(2, 2, 3)), back)


def test_motion_to_oneself_is_zero_and_the_way_back_is_its_negative():
    s, d = codes(0), codes(1)
    np.testing.assert_array_equal(transfer(s, s), 0.0)
    np.testing.assert_array_equal(transfer(s, d), -transfer(d, s))


def test_both_transfers_agree_under_symmetry():
    s, d = codes(0, symmetric=True), codes(1)
    np.testing.assert_allclose(transfer(s, d, "sum"), transfer(s, d), atol=1e-6)
    assert float(motion.symmetry_loss(s.to_canonical_bm, s.from_canonical_bm).max()) == 0.0
    with pytest.raises(ValueError, match="difference or sum"):
        transfer(s, d, "product")


# -- encoder --------------------------------------------------------------------------------------


def test_size_is_the_published_one():
    net = MGME()
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)))["params"]
    blocks = [
        leaf
        for name in shapes
        if name.startswith("blocks")
        for leaf in jax.tree.leaves(shapes[name])
    ]
    d = 256  # per block: 12 d^2 in the kernels, 9 d in their biases, 4 d in two norms
    assert sum(np.prod(leaf.shape) for leaf in blocks) == 6 * (12 * d * d + 13 * d) == 4_738_560
    assert shapes["position"].shape == (258, 256)
    assert shapes["codebook"].shape == (4, 256, 128)


def test_codes_have_the_documented_shapes_and_norms(encoder):
    net, variables, z = encoder
    out = quick_jit(net.apply)(variables, z)
    assert out.to_canonical_bm.shape == (3, 16)
    assert out.alpha_bki.shape == (3, 2, 3)
    assert out.from_canonical_bm.shape == (3, 16)
    np.testing.assert_allclose(
        np.linalg.norm(out.from_canonical_bm, axis=1),
        np.linalg.norm(out.alpha_bki.reshape(3, -1), axis=1),
        rtol=1e-5,
    )


def test_reverse_and_forward_heads_are_separate(encoder):
    net, variables, z = encoder
    gradient = quick_jit(jax.grad(lambda v: jnp.sum(net.apply(v, z).from_canonical_bm ** 2)))(
        variables
    )["params"]
    size = {
        n: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(g))
        for n, g in gradient.items()
    }
    assert size["reverse_head"] == 0.0
    assert size["forward_head"] > 0.0 and size["codebook"] > 0.0 and size["blocks_0"] > 0.0


def test_sizes_that_do_not_fit_are_named(encoder):
    net, variables, z = encoder
    with pytest.raises(ValueError, match="must be 8x8, got 4x4"):
        net.apply(variables, z[:, :4, :4])
    with pytest.raises(ValueError, match="groups=3"):
        MGME(**{**TINY, "groups": 3}).init(jax.random.key(0), z)
    with pytest.raises(ValueError, match="patches of 3 do not divide"):
        MGME(**{**TINY, "patch": 3}).init(jax.random.key(0), z)


def test_a_fresh_encoder_sees_where_things_are():
    # Shuffled patches must change the code of an untrained encoder as much as another picture does; otherwise the
    # position of a face could not be read from it.
    net = MGME(side=16, patch=1, depth=3, width=64, groups=4, basis=8, size=16, hidden=64)
    z = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))
    order = np.random.default_rng(0).permutation(256)
    mixed = z.reshape(2, 256, 4)[:, order].reshape(z.shape)
    variables = quick_jit(net.init)(jax.random.key(0), z)

    def code(x):
        return np.asarray(quick_jit(net.apply)(variables, x).from_canonical_bm)

    here, there = code(z), code(mixed)
    other = np.sqrt(np.mean(np.square(here[0] - here[1])))
    assert np.sqrt(np.mean(np.square(here - there))) > 0.25 * other
