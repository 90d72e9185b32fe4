"""The warp against torch's grid_sample; WarpCA's initial state, tokens and gradients (spec warpface.md, section 14)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit
from scipy.ndimage import map_coordinates

from vidmotion.models.warpca import WarpCA, motion_tokens, sample_at, warp


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(2, 1, 4, 4, 16)).astype(np.float32),
        rng.normal(size=(2, 12)).astype(np.float32),
        rng.normal(size=(2, 1, 64)).astype(np.float32),
    )


def build(inputs, **fields):
    net = WarpCA(heads=2, **fields)
    variables = quick_jit(net.init)(jax.random.key(0), *inputs)
    return net, {"params": variables["params"]}


# -- warp -----------------------------------------------------------------------------------------


def test_zero_flow_is_the_identity(inputs):
    x = inputs[0][:, 0]
    np.testing.assert_array_equal(warp(x, jnp.zeros((2, 4, 4, 2))), x)


def test_one_pixel_to_the_right_repeats_the_border():
    ramp = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    flow = np.zeros((1, 3, 4, 2), np.float32)
    flow[..., 0] = 2 / 3
    out = np.asarray(warp(ramp, flow))[0, ..., 0]
    np.testing.assert_allclose(out, [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]], atol=1e-5)


def test_warp_and_its_gradients_equal_grid_sample():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    flow = rng.uniform(-1.5, 1.5, size=(2, 5, 7, 2)).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tf = torch.tensor(flow, requires_grad=True)
    ys, xs = torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 7)
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)[None] + tf
    out = torch.nn.functional.grid_sample(tx, grid, padding_mode="border", align_corners=True)
    (out * torch.tensor(weight.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_allclose(warp(x, flow), out.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
    gx, gf = jax.grad(lambda x, f: jnp.sum(warp(x, f) * weight), argnums=(0, 1))(x, flow)
    np.testing.assert_allclose(gx, tx.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(gf, tf.grad.numpy(), atol=1e-4)


# -- tokens ---------------------------------------------------------------------------------------


def test_crops_of_any_size_equal_scipy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    columns, rows = (rng.uniform(-2, 8, (2, 3, 4)).astype(np.float32) for _ in range(2))
    got = sample_at(x, columns, rows)
    assert got.shape == (2, 3, 4, 3)
    for b in range(2):
        for c in range(3):
            expected = map_coordinates(x[b, ..., c], (rows[b], columns[b]), order=1, mode="nearest")
            np.testing.assert_allclose(got[b, ..., c], expected, atol=1e-5)


def test_tokens_of_the_paper_and_of_the_wide_codebook():
    assert motion_tokens(np.zeros((1, 1024), np.float32), "chunk", 4, 16).shape == (1, 64, 16)
    assert motion_tokens(np.zeros((1, 256), np.float32), "chunk", 1, 16).shape == (1, 16, 16)
    assert motion_tokens(np.zeros((1, 1024), np.float32), "groups", 4, 16).shape == (1, 4, 256)
    first = np.asarray(motion_tokens(np.zeros((1, 32), np.float32), "chunk", 1, 16))[0]
    np.testing.assert_allclose(first[0], [0] * 8 + [1] * 8)  # position 0: sines, then cosines
    with pytest.raises(ValueError, match="40 numbers does not divide into tokens of 16"):
        motion_tokens(np.zeros((1, 40), np.float32), "chunk", 4, 16)
    with pytest.raises(ValueError, match="chunk, groups, single"):
        motion_tokens(np.zeros((1, 32), np.float32), "words", 4, 16)


# -- the module -----------------------------------------------------------------------------------


def test_it_starts_as_a_multiple_of_the_hidden_state(inputs):
    net, variables = build(inputs)
    out, state = quick_jit(lambda v, *x: net.apply(v, *x, mutable="motion"))(variables, *inputs)
    np.testing.assert_allclose(out, inputs[0] * (1 + 1 / (1 + np.exp(2.0))), rtol=1e-5)
    np.testing.assert_array_equal(state["motion"]["flow"][0], 0.0)
    np.testing.assert_array_equal(state["motion"]["gamma"][0], 0.0)


def test_the_flow_starts_about_as_long_as_asked():
    rng = np.random.default_rng(4)
    shapes = (8, 1, 8, 8, 64), (8, 12), (8, 1, 64)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    net, variables = build(inputs, flow_start=0.5, flow_range=0.3)
    _, state = net.apply(variables, *inputs, mutable="motion")
    assert 0.25 < np.arctanh(np.asarray(state["motion"]["flow"][0]) / 0.3).std() < 1.0


def test_blend_and_plain_cross_attention_start_at_the_identity(inputs):
    for fields in ({"fusion": "blend"}, {"mode": "ca"}):
        net, variables = build(inputs, **fields)
        np.testing.assert_allclose(net.apply(variables, *inputs), inputs[0], atol=1e-6)


def redrawn(variables, seed=3):
    """Returns the same tree with random leaves, so that no zero hides an error."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    )


def test_one_token_read_from_attention_alone_moves_everything_alike(inputs):
    def flow_spread(**fields):
        net, variables = build(inputs, **fields)
        _, state = net.apply(redrawn(variables), *inputs, mutable="motion")
        return float(np.asarray(state["motion"]["flow"][0]).std(axis=(1, 2)).max())

    assert flow_spread(tokens="single", flow_input="attn") < 1e-6
    assert flow_spread(tokens="chunk", flow_input="attn") > 1e-3
    assert flow_spread(tokens="single") > 1e-3


def test_equation_10_with_random_weights(inputs):
    net, variables = build(inputs, tokens="groups")
    variables = redrawn(variables)
    out, state = net.apply(variables, *inputs, mutable="motion")
    flow, occlusion = state["motion"]["flow"][0], state["motion"]["occlusion"][0]
    x = inputs[0][:, 0]
    np.testing.assert_allclose(out[:, 0], x + occlusion * warp(x, flow), atol=1e-5)
    gamma, delta = state["motion"]["gamma"][0], state["motion"]["delta"][0]
    kernel = variables["params"]["time"]
    u = inputs[1] / (1 + np.exp(-inputs[1]))
    np.testing.assert_allclose(
        gamma, u @ kernel["gamma"]["kernel"] + kernel["gamma"]["bias"], atol=1e-5
    )
    np.testing.assert_allclose(
        delta, u @ kernel["delta"]["kernel"] + kernel["delta"]["bias"], atol=1e-5
    )


def test_gradient_reaches_the_code_after_one_update_but_never_from_the_dead_start(inputs):
    """The dead start is zero heads, zero flow, no token code and no query: only biases get gradients (spec 3.4)."""
    x, time, theta = inputs
    target = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)

    def code_gradient(updates, theta, **fields):
        net, variables = build(inputs, **fields)
        if fields.get("tokens") == "groups":
            variables["params"]["token_embedding"] *= 0.0

        def loss(variables, theta):
            return jnp.mean((net.apply(variables, x, time, theta) - target) ** 2)

        for _ in range(updates):
            step = jax.grad(loss)(variables, theta)
            variables = jax.tree.map(lambda p, g: p - 0.1 * g, variables, step)
        return float(jnp.abs(jax.grad(loss, argnums=1)(variables, theta)).max())

    assert code_gradient(0, theta) == 0.0
    assert code_gradient(0, theta, flow_start=0.5) > 0.0
    assert code_gradient(2, theta) > 0.0
    dead = dict(tokens="groups", flow_input="attn", time_modulation=False)
    assert code_gradient(2, np.zeros_like(theta), **dead) == 0.0


def test_unknown_values_are_named(inputs):
    with pytest.raises(ValueError, match="mode='flow'"):
        build(inputs, mode="flow")
    with pytest.raises(ValueError, match="add or blend"):
        build(inputs, fusion="replace")


def test_every_frame_has_its_own_code(inputs):
    net, variables = build(inputs)
    variables = redrawn(variables)
    x, time, theta = inputs
    together = net.apply(variables, x.reshape(1, 2, 4, 4, 16), time[:1], theta.reshape(1, 2, 64))
    apart = net.apply(variables, x, np.repeat(time[:1], 2, axis=0), theta)
    np.testing.assert_allclose(together[0], apart[:, 0], atol=1e-5)
