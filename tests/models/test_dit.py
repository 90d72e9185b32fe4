"""Video DiT: its parts against torch, diffusers and explicit numpy; inserting temporal blocks; equivalent forms."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like
from scipy.special import expit

from vidmotion.models import dit

TINY = dict(
    height=8, channels=3, patch=4, width=16, layers=4, heads=2, groups=4, temporal_blocks=(0, 2)
)
TOKENS, CONTENT, MOTION, FRAMES = 4, 5, 6, 3


def without_temporal_change(params, fresh):
    """Returns `params` with the temporal blocks replaced by those of `fresh`."""
    flat, start = (flax.traverse_util.flatten_dict(tree) for tree in (params, fresh))
    kept = {
        path: start[path] if any(part.startswith("temporal") for part in path) else leaf
        for path, leaf in flat.items()
    }
    return flax.traverse_util.unflatten_dict(kept)


def inputs(frames=FRAMES, content_tokens=TOKENS, content_width=CONTENT, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (
        (2, frames, TINY["height"], TINY["height"], TINY["channels"]),
        (2, frames),
        (2, content_tokens, content_width),
        (2, frames, MOTION),
    )
    x, time, c, m = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, 250 * time, c, m


def build(**fields):
    model = dit.VideoDiT(**{**TINY, **fields})
    return model, quick_jit(lambda v, *args: model.apply({"params": v}, *args))


def init(model, *args):
    return quick_jit(model.init)(jax.random.key(0), *args)["params"]


@pytest.fixture(scope="module")
def tiny():
    """Returns (apply, fresh parameters, random parameters) of the plain tiny network."""
    model, apply = build()
    fresh = init(model, *inputs())
    return apply, fresh, random_like(fresh)


# -- parts ----------------------------------------------------------------------------------------


def test_patches_are_rows_of_the_picture():
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 12, 5)).astype(np.float32)
    tokens = dit.patchify(x, 4)
    assert tokens.shape == (2, 3, 2 * 3, 4 * 4 * 5)
    for row in range(2):
        for column in range(3):
            patch = x[1, 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_array_equal(tokens[1, 2, 3 * row + column], patch.ravel())
    np.testing.assert_array_equal(dit.unpatchify(tokens, 4, 8), x)


def test_position_codes_in_closed_form():
    one = dit.sincos_1d(8, np.array([0, 3]))
    np.testing.assert_array_equal(one[0], [0, 0, 0, 0, 1, 1, 1, 1])
    angles = [3, 3 / 10, 3 / 100, 3 / 1000]  # 10000^(i/4) is 1, 10, 100, 1000
    np.testing.assert_allclose(one[1], [*map(math.sin, angles), *map(math.cos, angles)], rtol=1e-6)
    two = dit.sincos_2d(8, 2, 3)
    assert two.shape == (6, 8)
    row, column = 1, 2  # token 1 * 3 + 2
    expected = [f(p / r) for p in (row, column) for f in (math.sin, math.cos) for r in (1, 100)]
    np.testing.assert_allclose(two[5], expected, rtol=1e-6)


@pytest.mark.oracle
def test_position_code_against_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_2d_sincos_pos_embed(24, 4, base_size=4).numpy()
    # DiT's code uses the first half of the channels for the column; ours uses it for the row.
    column, row = theirs[:, :12], theirs[:, 12:]
    np.testing.assert_allclose(
        dit.sincos_2d(24, 4, 4), np.concatenate([row, column], axis=1), atol=1e-6
    )


def test_rotary_scores_depend_on_the_distance_in_time_only():
    rng = np.random.default_rng(0)
    q, k = (np.tile(rng.normal(size=(1, 1, 1, 2, 8)), (1, 7, 1, 1, 1)) for _ in range(2))
    q, k = (np.asarray(dit.rotary(jnp.asarray(x, jnp.float32)))[0, :, 0] for x in (q, k))
    scores = np.einsum("the,she->hts", q, k)
    for shift in (-2, 0, 3):
        diagonal = np.diagonal(scores, shift, axis1=1, axis2=2)
        np.testing.assert_allclose(
            diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5
        )
    assert np.abs(scores[:, 0, 3] - scores[:, 0, 0]).min() > 1e-2
    norms = np.linalg.norm(q, axis=-1)
    np.testing.assert_allclose(norms, np.broadcast_to(norms[:1], norms.shape), rtol=1e-5)


def test_time_embedding_is_the_sinusoid_of_dit():
    module = dit.TimeEmbedding(4)
    time = np.array([[0.0, 1.5, -300.0]], np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), time)["params"]
    params = jax.tree.map(np.asarray, random_like(shapes))
    angle = time[..., None] * np.exp(-math.log(10000) * np.arange(128) / 128)
    x = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    h = x @ params["in"]["kernel"] + params["in"]["bias"]
    expected = (h * expit(h)) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, time), expected, atol=1e-3)


@pytest.mark.oracle
def test_group_norm_is_torchs_on_each_frame_alone():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    x = np.random.default_rng(0).normal(1, 3, size=(2, 3, 5, 12)).astype(np.float32)
    scale, shift = np.random.default_rng(1).normal(size=(2, 2, 3, 1, 12)).astype(np.float32)
    got = dit.group_norm(jnp.asarray(x), 4, scale, shift)
    for b in range(2):
        for t in range(3):
            frame = torch.from_numpy(x[b, t].T[None].copy())  # (1, channels, tokens)
            expected = torch.nn.functional.group_norm(frame, 4, eps=1e-6)[0].numpy().T
            np.testing.assert_allclose(got[b, t], scale[b, t] * expected + shift[b, t], atol=1e-5)


def test_adagn_by_hand():
    # One channel with h = 2, t_s = 1.5, t_b = -1, m_s = 1 + 2, m_b = 3: 3 * (1.5 * 2 - 1) + 3 = 9.
    module = dit.AdaGN(width=1, sites=1, gates=False)
    temb, m, cond = (jnp.full((1, 1, 1, 1), value) for value in (0.7, 1.0, 5.0))
    params = {
        "time": {"kernel": jnp.zeros((1, 2)), "bias": jnp.array([0.5, -1.0])},
        "motion": {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.zeros(2)},
    }
    ((scale, shift),), gates = module.apply({"params": params}, temb, m, cond)
    assert gates == []
    np.testing.assert_allclose(scale * 2 + shift, 9.0)
    # The time's share is linear in SiLU of the embedding; SiLU(0.7) = 0.7 / (1 + e^-0.7).
    params["time"]["kernel"] = jnp.array([[1.0, 0.0]])
    ((scale, shift),), _ = module.apply({"params": params}, temb, m, cond)
    expected = 3 * ((1.5 + 0.7 / (1 + math.exp(-0.7))) * 2 - 1) + 3
    np.testing.assert_allclose(scale * 2 + shift, expected, rtol=1e-6)


# -- one block ------------------------------------------------------------------------------------


def block_inputs(frames=3, tokens=5, width=16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (
        (2, frames, tokens, width),
        (2, frames, 1, width),
        (2, frames, 1, MOTION),
        (2, frames, 1, width),
    )
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def numpy_block(p, x, temb, m, cond, heads, groups, temporal, inject, rope):
    """Computes the block of the docstring in numpy, frame by frame and head by head."""

    def dense(name, value, tree=p):
        return value @ np.float64(tree[name]["kernel"]) + np.float64(tree[name]["bias"])

    def norm(h):
        out = np.empty_like(h)
        size = h.shape[-1] // groups
        for g in range(groups):
            part = h[..., g * size : (g + 1) * size]
            mean = part.mean(axis=(2, 3), keepdims=True)
            var = part.var(axis=(2, 3), keepdims=True)
            out[..., g * size : (g + 1) * size] = (part - mean) / np.sqrt(var + 1e-6)
        return out

    def chunks(name, value, count):
        return np.split(dense(name, value, p["conditioning"]), count, axis=-1)

    def turn(h_te):  # pairs (i, i + half) are complex numbers
        half = h_te.shape[1] // 2
        z = h_te[:, :half] + 1j * h_te[:, half:]
        z = z * np.exp(1j * np.arange(len(h_te))[:, None] / 10000 ** (np.arange(half) / half))
        return np.concatenate([z.real, z.imag], axis=1)

    def attend(q, k, v):
        if temporal and rope:
            q, k = turn(q), turn(k)
        logits = q @ k.T / math.sqrt(q.shape[1])
        w = np.exp(logits - logits.max(axis=1, keepdims=True))
        return w / w.sum(axis=1, keepdims=True) @ v

    def attention(h):
        q, k, v = np.split(dense("qkv", h), 3, axis=-1)
        out, e = np.empty_like(q), q.shape[-1] // heads
        for b in range(len(h)):
            for head in range(heads):
                cut = slice(head * e, (head + 1) * e)
                for i in range(h.shape[2] if temporal else h.shape[1]):
                    at = (b, slice(None), i, cut) if temporal else (b, i, slice(None), cut)
                    out[at] = attend(q[at], k[at], v[at])
        return dense("out", out)

    x, temb, m, cond = (np.float64(value) for value in (x, temb, m, cond))
    if inject == "adagn":
        t_s1, t_b1, t_s2, t_b2 = chunks("time", temb * expit(temb), 4)
        m_s1, m_b1, m_s2, m_b2 = chunks("motion", m, 4)
    else:
        t_s1, t_b1, t_s2, t_b2 = chunks("both", cond, 4)
        m_s1 = m_b1 = m_s2 = m_b2 = 0.0
    gate_1, gate_2 = chunks("gate", cond, 2)
    h = (1 + m_s1) * ((1 + t_s1) * norm(x) + t_b1) + m_b1
    x = x + gate_1 * attention(h)
    h = (1 + m_s2) * ((1 + t_s2) * norm(x) + t_b2) + m_b2
    h = dense("mlp_in", h)
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return x + gate_2 * dense("mlp_out", h)


@pytest.mark.parametrize(
    ("temporal", "inject", "rope"),
    [
        (False, "adagn", True),
        (False, "add_temb", False),
        (True, "adagn", True),
        (True, "adagn", False),
    ],
)
def test_block_is_the_identity_then_equals_numpy(temporal, inject, rope):
    fields = dict(heads=2, groups=4, temporal=temporal, inject=inject, rope=rope)
    block = dit.Block(width=16, mlp_dim=24, **fields)
    args = block_inputs()
    params = quick_jit(block.init)(jax.random.key(0), *args)["params"]
    apply = quick_jit(lambda p, *a: block.apply({"params": p}, *a))
    np.testing.assert_array_equal(apply(params, *args), args[0])
    params = jax.tree.map(np.asarray, random_like(params))
    expected = numpy_block(params, *args, **fields)
    assert np.abs(expected - args[0]).mean() > 0.1
    np.testing.assert_allclose(apply(params, *args), expected, atol=2e-4, rtol=2e-4)


# -- the network around its blocks ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("concat", "content", "position"),
    [
        ("channel", (TOKENS, CONTENT), "rope"),
        ("channel", (1, CONTENT), "sincos"),
        ("reshape", (TOKENS, 8 * 8 * 3 // TOKENS), "rope"),
        ("patch", (TOKENS, CONTENT), "rope"),
        ("patch", (1, CONTENT), "rope"),
    ],
)
def test_network_around_identity_blocks_equals_numpy(concat, content, position):
    # Blocks of zeros pass x on; what remains is embedding, position, final norm, modulation and output.
    model, apply = build(
        content_concat=concat, temporal_position=position, layers=1, temporal_blocks=(0,)
    )
    args = inputs(content_tokens=content[0], content_width=content[1])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
    p = jax.tree.map(np.asarray, random_like(shapes))
    p["unit_0"] = jax.tree.map(np.zeros_like, p["unit_0"])
    x, time, c, m = args
    image = np.empty((2, 8, 8, 3))
    # The content token's share of the embedding of a patch joined with its content token.
    beside = np.zeros((2, TOKENS, 16))
    if concat == "reshape":
        image = c.reshape(2, 8, 8, 3)
    elif concat == "patch":
        image = np.empty((2, 8, 8, 0))
        beside += c @ p["content"]["kernel"] + p["content"]["bias"]
    else:
        patches = c @ p["content"]["kernel"] + p["content"]["bias"]
        for n in range(TOKENS):  # token n is at row n // 2, column n % 2
            r, q = 4 * (n // 2), 4 * (n % 2)
            own = patches[:, n if content[0] > 1 else 0]
            image[:, r : r + 4, q : q + 4] = own.reshape(2, 4, 4, 3)
    temb = dit.TimeEmbedding(16).apply({"params": p["time"]}, time)
    temb, expected = np.float64(temb), np.empty_like(x)
    scale = (temb * expit(temb)) @ p["final_conditioning"]["time"]["kernel"]
    t_s, t_b = np.split(scale + p["final_conditioning"]["time"]["bias"], 2, axis=-1)
    shift = m @ p["final_conditioning"]["motion"]["kernel"]
    m_s, m_b = np.split(shift + p["final_conditioning"]["motion"]["bias"], 2, axis=-1)
    for b in range(2):
        for t in range(FRAMES):
            both = np.concatenate([x[b, t], image[b]], axis=-1)
            cuts = [(4 * (n // 2), 4 * (n % 2)) for n in range(TOKENS)]
            h = np.stack([both[r : r + 4, q : q + 4].ravel() for r, q in cuts])
            h = h @ p["patch_embed"]["kernel"] + p["patch_embed"]["bias"] + beside[b]
            h = h + dit.sincos_2d(16, 2, 2)
            if position == "sincos":
                h = h + dit.sincos_1d(16, np.arange(FRAMES))[t]
            grouped = h.reshape(TOKENS, 4, 4)
            mean = grouped.mean(axis=(0, 2), keepdims=True)
            grouped = (grouped - mean) / np.sqrt(grouped.var(axis=(0, 2), keepdims=True) + 1e-6)
            h = (1 + t_s[b, t]) * grouped.reshape(TOKENS, 16) + t_b[b, t]
            h = (1 + m_s[b, t]) * h + m_b[b, t]
            h = h @ p["final"]["kernel"] + p["final"]["bias"]
            for n, (r, q) in enumerate(cuts):
                expected[b, t, r : r + 4, q : q + 4] = h[n].reshape(4, 4, 3)
    got = apply(p, *args)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=1e-3)


def test_content_as_tokens_is_a_set_that_is_read():
    model, apply = build(content_concat="token", layers=1, temporal_blocks=())
    args = inputs(content_tokens=7)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
    x, time, c, m = args
    y = apply(params, *args)
    assert y.shape == x.shape
    # Content tokens have no position, so their order has no effect; their values do.
    np.testing.assert_allclose(apply(params, x, time, c[:, ::-1], m), y, atol=1e-4)
    assert np.abs(apply(params, x, time, c + 1, m) - y).max() > 1e-2


def test_open_gates_let_a_fresh_network_use_what_it_is_told_and_temporal_blocks_stay_shut():
    args = inputs()
    through = {}
    for start in (0.0, 1.0):
        model, _ = build(gate_start=start)
        params = init(model, *args)
        blocks = {
            name: block["conditioning"]["gate"]["bias"] for name, block in params["unit_0"].items()
        }
        through[start] = {name: np.unique(bias).tolist() for name, bias in blocks.items()}
    assert set(through[0.0]) == {"spatial_0", "spatial_1", "temporal_0"}
    assert all(values == [0.0] for values in through[0.0].values())
    assert through[1.0] == {"spatial_0": [1.0], "spatial_1": [1.0], "temporal_0": [0.0]}


# -- temporal blocks ------------------------------------------------------------------------------


def test_insertion_of_fresh_temporal_blocks_changes_nothing(tiny):
    apply, fresh, noisy = tiny
    spatial, apply_spatial = build(temporal=False)
    same = init(spatial, *inputs())
    jax.tree.map(np.testing.assert_array_equal, same, fresh)  # both stages have the same tree
    stage_1 = without_temporal_change(noisy, fresh)
    y = apply_spatial(stage_1, *inputs())
    assert np.std(y) > 0.1
    np.testing.assert_array_equal(apply(stage_1, *inputs()), y)
    # Temporal blocks are skipped, whatever they hold.
    np.testing.assert_array_equal(apply_spatial(noisy, *inputs()), y)
    assert np.abs(apply(noisy, *inputs()) - y).max() > 1e-2


def test_spatial_results_do_not_depend_on_the_other_frames(tiny):
    _, _, noisy = tiny
    _, apply = build(temporal=False)
    x, time, c, m = inputs()
    whole = apply(noisy, x, time, c, m)
    for frames in (1, 2):
        part = apply(noisy, x[:, :frames], time[:, :frames], c, m[:, :frames])
        np.testing.assert_allclose(part, whole[:, :frames], atol=1e-4)


def test_temporal_blocks_join_the_frames_and_keep_clips_apart(tiny):
    apply, _, noisy = tiny
    x, time, c, m = inputs()
    y = apply(noisy, x, time, c, m)
    moved = x.copy()
    moved[1, 2] += 1
    difference = np.abs(apply(noisy, moved, time, c, m) - y).max(axis=(2, 3, 4))
    np.testing.assert_array_equal(difference[0], 0)
    assert np.all(difference[1] > 1e-4)


def test_motion_of_a_frame_reaches_it_alone_without_temporal_blocks(tiny):
    _, _, noisy = tiny
    _, apply = build(temporal=False)
    x, time, c, m = inputs()
    moved = m.copy()
    moved[0, 1] += 1
    difference = np.abs(apply(noisy, x, time, c, moved) - apply(noisy, x, time, c, m))
    changed = difference.max(axis=(2, 3, 4)) > 1e-4
    np.testing.assert_array_equal(changed, [[False, True, False], [False] * 3])


def block_names(**fields):
    model, _ = build(**fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    return [sorted(part) for name, part in sorted(shapes.items()) if name.startswith("unit_")]


def test_placement():
    assert block_names() == [["spatial_0", "spatial_1", "temporal_0"]] * 2
    assert block_names(placement="alternate") == [["spatial_1", "temporal_0"]] * 2
    # A pattern that does not repeat forms one unit.
    irregular = block_names(temporal_blocks=(0, 3))
    assert irregular == [
        [*(f"spatial_{i}" for i in range(4)), "temporal_0", "temporal_3"],
    ]
    assert block_names(temporal_blocks=()) == [["spatial_0"]] * 4


# -- other ways to run the same numbers -----------------------------------------------------------


@pytest.fixture(scope="module")
def gradients(tiny):
    """Returns the random parameters, and the plain loop's output and gradient for them."""
    _, _, noisy = tiny
    return noisy, value_and_gradient(build()[0], noisy)


def value_and_gradient(model, params):
    def score(p):
        y = model.apply({"params": p}, *inputs())
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradient = quick_jit(jax.value_and_grad(score, has_aux=True))(params)
    return y, gradient


@pytest.mark.parametrize("scan", [False, True])
def test_remat_and_scan_give_the_numbers_of_the_plain_loop(gradients, scan):
    noisy, (y, gradient) = gradients

    def stacked(tree):  # unit_0, unit_1 -> units, with a leading axis
        rest = {name: value for name, value in tree.items() if not name.startswith("unit_")}
        units = jax.tree.map(lambda a, b: jnp.stack([a, b]), tree["unit_0"], tree["unit_1"])
        return {**rest, "units": units}

    model, _ = build(remat=True, scan=scan)
    other, expected = (stacked(noisy), stacked(gradient)) if scan else (noisy, gradient)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, other)
    y_other, gradient_other = value_and_gradient(model, other)
    np.testing.assert_allclose(y_other, y, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()),
        gradient_other,
        expected,
    )


def test_bfloat16_keeps_float32_parameters_and_output(tiny):
    apply, _, noisy = tiny
    model, half = build(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    y, y_half = apply(noisy, *inputs()), half(noisy, *inputs())
    assert y_half.dtype == jnp.float32
    assert 0 < np.abs(y_half - y).mean() < 0.1 * np.std(y)


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patch", "height", "channels", "motion"),
    [("B", 4, 32, 4, 1024), ("S", 8, 64, 3, 384)],  # Tables A4 and A5
)
@pytest.mark.parametrize("placement", ["insert", "alternate"])
def test_parameter_count(size, patch, height, channels, motion, placement):
    sizes = dit.SIZES[size]
    d = {"B": 768, "S": 384}[size]
    assert sizes == dict(width=d, layers=12, heads=d // 64)
    model = dit.VideoDiT(
        height=height, channels=channels, patch=patch, placement=placement, **sizes
    )
    content = 512
    args = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            (1, 2, height, height, channels),
            (1, 2),
            (1, 64, content),
            (1, 2, motion),
        )
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    # Attention and MLP; adaLN of the original DiT.
    dit_block = 12 * d * d + 9 * d + (6 * d * d + 6 * d)
    block = dit_block + 4 * d * motion + 4 * d  # plus the linear maps of the motion in Eq. 5
    values = patch * patch * channels
    embeddings = (
        (2 * values + 1) * d  # patches of the noisy latent beside the content image
        + (content + 1) * values
        + (256 + 1) * d + (d + 1) * d  # time
        + (motion + 1) * d  # motion into the gates
    )  # fmt: skip
    final = (d + 1) * 2 * d + (motion + 1) * 2 * d + (d + 1) * values
    blocks = 18 if placement == "insert" else 12
    expected = blocks * block + embeddings + final
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize(
    ("fields", "content", "message"),
    [
        (dict(patch=3), (4, 5), r"patch=3 does not divide the 8 px frame"),
        (dict(groups=3), (4, 5), r"width=16 must be divisible by groups=3"),
        (dict(heads=16), (4, 5), r"2 \* heads=32"),
        (dict(width=18, heads=1, groups=2), (4, 5), r"and by 4"),
        (dict(), (3, 5), r"content_tokens = 1 or 4 \(one per patch\), got 3"),
        (dict(content_concat="reshape"), (4, 47), r"= 192, got 4 \* 47"),
        (dict(content_concat="add"), (4, 5), r"content_concat='add': choose channel or patch"),
        (dict(placement="after"), (4, 5), r"placement='after'"),
        (dict(temporal_position="none"), (4, 5), r"temporal_position='none'"),
        (dict(motion_inject="cross"), (4, 5), r"motion_inject='cross'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, content, message):
    model, _ = build(**fields)
    args = inputs(content_tokens=content[0], content_width=content[1])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *args)
