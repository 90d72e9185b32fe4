"""VidTwin: sizes against the paper and the manifest, closed forms, and which frames depend on which.

Equality with the reference network is tested in test_vidtwin_parity.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import VIDTWIN, quick_jit, random_like

from vidmotion import paths
from vidmotion.convert.engine import Ignore, check, convert, export
from vidmotion.convert.maps import vidtwin as maps
from vidmotion.convert.read import read, read_manifest, write_safetensors
from vidmotion.losses.kl import gaussian_kl
from vidmotion.models.patchgan import PatchDiscriminator
from vidmotion.models.qformer import QFormer, time_code
from vidmotion.models.spacetime import Block, spatial_code, temporal_code
from vidmotion.models.vidtwin import (
    LATENTS,
    SIZES,
    STARTS,
    DynamicsDecoder,
    DynamicsEncoder,
    Gaussian,
    StructureDecoder,
    VidTwin,
    interpolation,
)

TINY = {**VIDTWIN, "depth": 2}
CLIP = (2, 4, 24, 24, 3)
NET = VidTwin(**TINY)


def abstract(net, batch=1):
    """Returns ((video, latents), parameters) as shapes; nothing is computed."""
    x = jax.ShapeDtypeStruct((batch, net.frames, net.size, net.size, 3), jnp.float32)
    output, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    return output, variables["params"]


@functools.cache
def tiny_params(**changes):
    return random_like(abstract(VidTwin(**TINY | changes))[1])


def clip(shape=CLIP, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@functools.partial(quick_jit, static_argnames=("net", "method"))
def run(params, *given, net=NET, method):
    return net.apply({"params": params}, *given, method=method)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Sizes.


def unread(width):
    """Counts the parameters that the released code holds but never reads (spec, section 5)."""
    pixels = 3 * 16 * 16
    return (2 * width + width * pixels + pixels) + (pixels * width + width)


LOSS_NETWORKS = 14_716_160 + 2_765_633 + 1  # VGG, discriminator, log-variance (section 5)


@pytest.mark.parametrize(
    ("size", "latent", "millions", "with_losses"),
    [
        ("small", "released", 106.92, 124.40),
        ("base", "released", 312.70, 330.18),
        ("large", "released", 1239.7, 1257.1),
        ("small", "2", None, 126.81),
        ("base", "2", None, 335.58),
    ],
)
def test_parameter_counts(size, latent, millions, with_losses):
    net = VidTwin(**SIZES[size], **LATENTS[latent], scan=True)
    total = count(abstract(net)[1]) + unread(net.width)
    digits = 1 if size == "large" else 2
    if millions:
        assert round(total / 1e6, digits) == millions
    assert round((total + LOSS_NETWORKS) / 1e6, digits) == with_losses


def test_parameters_of_the_base_by_part():
    """Checks the counts in the last paragraph of section 5 of the spec."""
    _, params = abstract(VidTwin(**SIZES["base"], **LATENTS["released"], scan=True))
    structure, back = params["structure_encoder"], params["structure_decoder"]
    dynamics = params["dynamics_encoder"], params["dynamics_decoder"]
    assert count(params["encoder"]) + 592_128 == 152_411_136
    assert count(params["decoder"]) + 590_592 == 152_411_136
    assert count(structure["qformer"]) == 1_017_984
    assert count([back["widen"], back["mix"]]) == 50_192
    assert count(structure["conv_in"]) == 73_856
    assert count([structure["down_0"], back["up_0"]]) == 295_168 + 295_040
    assert count(structure["moments"]) == 36_880
    assert count([back["conv_in"], back["conv_out"]]) == 18_688 + 73_792
    assert count([dynamics[1]["dense_0"], dynamics[1]["dense_1"]]) == 597_504
    assert count(dynamics[0]["moments"]) == 110_608
    assert count(dynamics[0]["down_0"]) == 5_309_184
    assert count([dynamics[1]["stretch_0"], dynamics[1]["stretch_1"]]) == 322
    assert count(params) == 311_518_770


@pytest.mark.parametrize(
    ("latent", "structure", "dynamics", "numbers"),
    [
        ("1", (16, 7, 7, 4), (16, 14, 8), 4928),
        ("2", (16, 7, 7, 4), (16, 8, 16), 5184),
        ("3", (12, 7, 7, 4), (16, 14, 8), 4144),
        ("released", (16, 7, 7, 8), (16, 14, 8), 8064),
        ("0.11", (8, 7, 7, 4), (16, 8, 8), 2592),
        ("0.16", (16, 4, 4, 8), (16, 14, 8), 3840),
        ("0.48", (16, 7, 7, 12), (16, 8, 16), 11456),
    ],
)
def test_latent_settings(latent, structure, dynamics, numbers):
    """Checks Table 5 of the supplement and section 9 of the spec."""
    net = VidTwin(**SIZES["base"] | {"depth": 1}, **LATENTS[latent])
    assert (net.structure_shape, net.dynamics_shape) == (structure, dynamics)
    assert net.rate == numbers / 2_408_448
    (video, latents), _ = abstract(net, batch=3)
    assert video.shape == (3, 16, 224, 224, 3)
    assert {x.shape for x in latents.structure} == {(3, *structure)}
    assert {x.shape for x in latents.dynamics} == {(3, *dynamics)}


@pytest.mark.parametrize("size", SIZES)
def test_all_sizes_have_the_shapes_of_setting_1(size):
    net = VidTwin(**SIZES[size], **LATENTS["1"], scan=True)
    (video, latents), _ = abstract(net)
    assert video.shape == (1, 16, 224, 224, 3) and video.dtype == jnp.float32
    assert latents.structure.mean.shape == (1, 16, 7, 7, 4)
    assert latents.dynamics.mean.shape == (1, 16, 14, 8)


@pytest.mark.parametrize(("blocks", "side"), [(1, 3), (2, 2), (3, 1)])
def test_block_counts(blocks, side):
    net = VidTwin(**TINY | {"structure_blocks": blocks, "dynamics_blocks": blocks})
    (video, latents), params = abstract(net, batch=2)
    assert latents.structure.mean.shape == (2, 3, side, side, 2)
    assert latents.dynamics.mean.shape == (2, 4, 2 * side, 3)
    assert video.shape == CLIP
    released = export(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params), maps.RULES)
    assert {f"content_downsample_blocks.{2 * i}.weight" for i in range(blocks)} <= released.keys()
    assert {f"content_upsample_blocks.{3 * i}.weight" for i in range(blocks)} <= released.keys()
    assert {f"downsample_motion_module.{2 * i}.weight" for i in range(blocks)} <= released.keys()
    assert released["bottle_up.0.weight"].shape == (4 * 2**blocks, 2, 3, 3)


def test_a_structure_of_every_place():
    net = VidTwin(**TINY | {"structure_blocks": 0})
    (video, latents), params = abstract(net, batch=2)
    side = net.grid[1]
    assert latents.structure.mean.shape == (2, 3, side, side, 2) and video.shape == CLIP
    assert set(params["structure_decoder"]) == {"conv_in", "conv_out", "widen", "mix"}


# The checkpoint.


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_manifest_is_used_up(fixtures_dir, scan):
    shapes = read_manifest(fixtures_dir / "manifests" / "vidtwin_released.txt")
    net = VidTwin(**SIZES["base"], **LATENTS["released"], scan=scan)
    _, params = abstract(net)
    frame = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    disc = jax.eval_shape(lambda x: PatchDiscriminator().init(jax.random.key(0), x, True), frame)
    judge = {"logvar": jax.ShapeDtypeStruct((), jnp.float32), "disc": disc}
    check({**params, "loss": judge}, shapes, maps.RULES)
    # Besides what the losses do not keep, only the nine entries named by the spec are ignored.
    ignored = {rule.source for rule in maps.RULES if isinstance(rule, Ignore)}
    named = {source for source in ignored if not source.startswith("loss.")}
    assert named <= shapes.keys() and len(named) == 9
    positions = {key: shapes[key] for key in named if "pos_embed" in key}
    aside = sum(np.prod(shapes[key]) for key in named - positions.keys())
    assert aside == unread(768)
    losses = {key for key in shapes if key.startswith("loss.")}
    read_from = sum(np.prod(shapes[key]) for key in shapes.keys() - named - losses)
    assert read_from == count(params)
    assert all(rule.reason for rule in maps.RULES if isinstance(rule, Ignore))
    found = maps.sizes(shapes)
    assert VidTwin(**found, heads=12, scan=scan) == net


def test_export_returns_every_bit(tmp_path):
    _, shapes = abstract(NET)
    params = jax.device_get(tiny_params())
    write_safetensors(tmp_path / "x.safetensors", export(params, maps.RULES))
    again = convert(shapes, read(tmp_path / "x.safetensors"), maps.RULES)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_another_size_is_refused_with_every_key():
    _, wide = abstract(VidTwin(**TINY | {"width": 32, "depth": 1}))
    source = export(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), wide), maps.RULES)
    with pytest.raises(ValueError) as caught:
        convert(abstract(NET)[1], source, maps.RULES)
    problems = "\n".join(caught.value.problems)
    leaves = paths.flatten(abstract(NET)[1])
    second = {path for path in leaves if "block_1" in path}
    assert second and all(f"target {path}: no source" in problems for path in second)
    assert "target dynamics_decoder/dense_1/kernel: shape (16, 16)" in problems


# Positions.


def test_position_code_is_column_first():
    code = spatial_code(8, 3)
    column, row = 1, 2
    want = [
        f(place * rate) for place in (column, row) for f in (np.sin, np.cos) for rate in (1, 0.01)
    ]
    assert code.shape == (9, 8)
    np.testing.assert_allclose(code[3 * row + column], want, atol=1e-7)
    time = [f(5 * 10_000 ** (-i / 3)) for f in (np.sin, np.cos) for i in range(3)]
    np.testing.assert_allclose(temporal_code(6, 7)[5], time, atol=1e-7)


# Blocks.


@pytest.fixture(scope="module")
def block():
    """Returns a compiled block, its random parameters, an input (2, 3, 4, 8) and a code (3, 8)."""
    rng = np.random.default_rng(0)
    x, code = (rng.normal(size=s).astype(np.float32) for s in [(2, 3, 4, 8), (3, 8)])
    net = Block(heads=2)
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), x, code)["params"])
    apply = quick_jit(lambda p, x, code: net.apply({"params": p}, x, code)[0])
    return apply, params, x, code


def test_temporal_branch_reads_the_raw_stream_and_its_past(block):
    """Without queries all weights are equal, so the branch is a running mean of x + code times two matrices."""
    apply, params, x, code = block
    params = jax.tree.map(jnp.zeros_like, params) | {"temporal": dict(params["temporal"])}
    gate = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    params["modulation"] = params["modulation"].at[2].set(gate)
    qkv = params["temporal"]["qkv"]
    params["temporal"]["qkv"] = {k: v.at[..., :8].set(0) for k, v in qkv.items()}
    past = np.cumsum(x + code[None, :, None], axis=1) / np.arange(1, 4)[None, :, None, None]
    value = past @ qkv["kernel"][:, 16:] + qkv["bias"][None, None, None, 16:]
    out = params["temporal"]["out"]
    want = x + gate[None, None, None] * (value @ out["kernel"] + out["bias"][None, None, None])
    np.testing.assert_allclose(apply(params, x, code), want, atol=1e-5)


def test_both_attentions_share_the_first_gate(block):
    apply, params, x, code = block
    closed = params | {"modulation": params["modulation"].at[2].set(0).at[5].set(0)}
    np.testing.assert_array_equal(apply(closed, x, code), x)
    closed = params | {"modulation": params["modulation"].at[2].set(0)}
    y = x - x.mean(-1, keepdims=True)
    y /= np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
    _, _, _, shift, scale, gate = params["modulation"][:, None, None, None]
    y = (y * (1 + scale) + shift) @ params["mlp_in"]["kernel"]
    y = jax.nn.gelu(y + params["mlp_in"]["bias"][None, None, None], approximate=True)
    y = y @ params["mlp_out"]["kernel"] + params["mlp_out"]["bias"][None, None, None]
    np.testing.assert_allclose(apply(closed, x, code), x + gate * y, atol=1e-5)


# Which frames depend on which.


def test_only_the_attention_over_time_is_causal():
    x = clip()
    later = x.copy()
    later[:, 2:] = clip(seed=1)[:, 2:]
    params = tiny_params()
    z, z_later = (np.asarray(run(params, v, method="features")) for v in (x, later))
    np.testing.assert_array_equal(z[:, :2], z_later[:, :2])  # nothing leaks from later frames
    assert np.all(np.abs(z - z_later)[:, 2:].max((2, 3, 4)) > 1e-3)
    a, b = (run(params, v, method="encode") for v in (x, later))
    moved = np.abs(np.asarray(a.dynamics.mean - b.dynamics.mean)).max((0, 2, 3))
    assert moved[0] == 0 and np.all(moved[1:] > 1e-4)  # the head sees one frame ahead
    assert np.all(np.abs(a.structure.mean - b.structure.mean).max((0, 2, 3, 4)) > 1e-4)


def test_space_is_seen_whole():
    """A corner patch of the first frame affects every patch of that frame."""
    x = clip()
    other = x.copy()
    other[:, 0, :4, :4] += 0.5
    z, z_other = (run(tiny_params(), v, method="features") for v in (x, other))
    assert np.all(np.abs(z - z_other)[:, 0].max(-1) > 1e-6)


def test_frames_folded_into_the_batch_equal_frames_one_by_one():
    """While the temporal branch is zero, as it is at the start, a frame's tokens depend on that frame alone."""
    leaves = paths.flatten(tiny_params())
    off = {k: jnp.zeros_like(x) if "temporal/out" in k else x for k, x in leaves.items()}
    params, x = paths.unflatten(off), clip()
    z = run(params, x, method="features")
    single = VidTwin(**TINY | {"frames": 1, "queries": 1})
    alone = run(params, x.reshape(8, 1, 24, 24, 3), net=single, method="features")
    np.testing.assert_allclose(z.reshape(alone.shape), alone, atol=1e-5)


def test_profiles_are_means_over_rows_and_over_columns():
    net = DynamicsEncoder(blocks=1, channels=3, start=STARTS["released"])
    apply = quick_jit(lambda p, z: net.apply({"params": p}, z))
    params = tiny_params()["dynamics_encoder"]
    # Equal rows; 10 of them become 5.
    z = np.broadcast_to(clip((1, 4, 1, 10, 16)), (1, 4, 10, 10, 16))
    along_width, along_height = np.split(np.asarray(apply(params, z)), 2, axis=2)
    assert np.abs(np.diff(along_width, axis=2)).min((0, 1, 3)).all()
    # The zero padding affects the two rows next to the top and the one next to the bottom.
    np.testing.assert_allclose(along_height[:, :, 2], along_height[:, :, 3], atol=1e-5)
    # One head serves both profiles: exchanging rows and columns exchanges the profiles.
    down = params["down_0"]
    turned = params | {"down_0": down | {"kernel": jnp.swapaxes(down["kernel"], 0, 1)}}
    first, second = np.split(np.asarray(apply(turned, np.swapaxes(z, 2, 3))), 2, axis=2)
    np.testing.assert_allclose(first, along_height, atol=1e-5)
    np.testing.assert_allclose(second, along_width, atol=1e-5)


# Decoding.


def test_upsampling_is_cut_in_the_middle():
    """Two blocks reduce 6 patches to 2 and restore 8, of which one is cut on each side."""
    net = StructureDecoder(
        frames=2,
        side=6,
        features=3,
        query_width=1,
        width=1,
        blocks=2,
        start=STARTS["released"],
    )
    latent = np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 1, 2, 2, 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), latent)["params"]
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    for name in ("conv_in", "up_0", "up_1", "conv_out"):  # passes the first channel on in place
        params[name]["kernel"] = params[name]["kernel"].at[1, 1, 0, 0].set(1)
    params["widen"]["kernel"] = jnp.asarray([[1.0, 2.0, -1.0]])
    params["mix"]["kernel"] = jnp.asarray([[1.0, 10.0]])
    got = quick_jit(net.apply)({"params": params}, latent)
    rows = np.array([0, 0, 0, 1, 1, 1])  # (1 ... 6) // 4
    plane = latent[0, 0, :, :, 0][rows][:, rows]
    np.testing.assert_array_equal(got[0, 0, :, :, 0], plane)
    np.testing.assert_array_equal(got[0, 1, :, :, 1], 20 * plane)
    assert not got[..., 2].any()  # negative values end at the ReLU


def test_decoding_splits_before_the_last_layer():
    params = tiny_params()
    structure, dynamics = clip((2, *NET.structure_shape)), clip((2, *NET.dynamics_shape), seed=1)
    video = run(params, structure, dynamics, method="decode")
    features = run(params, structure, dynamics, method="decode_features")
    assert features.shape == (2, *NET.grid, 16) and video.shape == CLIP
    np.testing.assert_allclose(run(params, features, method="to_pixels"), video, atol=1e-5)
    out = params["decoder"]["out"]
    # Frame 3, row 2, column 5.
    token = np.asarray(features)[1, 3, 2, 5] @ out["kernel"] + out["bias"]
    want = np.asarray(token).reshape(4, 4, 3)
    np.testing.assert_allclose(video[1, 3, 8:12, 20:24], want, atol=1e-5)


def test_clip_of_broken_patches_is_filled_up_and_cut_back():
    net = VidTwin(**TINY | {"size": 22})
    x = clip((2, 4, 22, 22, 3))
    filled = np.pad(x, ((0, 0), (0, 0), (0, 2), (0, 2), (0, 0)))
    z = run(tiny_params(), x, net=net, method="features")
    np.testing.assert_array_equal(z, run(tiny_params(), filled, method="features"))
    assert jax.eval_shape(lambda p: net.apply({"params": p}, x)[0], tiny_params()).shape == x.shape


# Latents.


def test_sampling_is_an_option():
    gaussian = Gaussian(jnp.full((200, 50), 3.0), jnp.full((200, 50), 2 * np.log(0.5)))
    drawn = gaussian.sample(jax.random.key(0))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [3.0, 0.5], atol=0.02)
    params, x, key = tiny_params(), clip(), jax.random.key(0, impl="rbg")
    latents = run(params, x, method="encode")
    drawn = [g.sample(k) for g, k in zip(latents, jax.random.split(key))]
    video, same = run(params, x, key, method="__call__")
    np.testing.assert_allclose(video, run(params, *drawn, method="decode"), atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), same, latents)


def test_log_variance_is_held():
    params = jax.tree.map(lambda x: x, tiny_params())
    for half, wide in (("structure", 2), ("dynamics", 3)):
        bias = np.zeros(2 * wide, np.float32)
        bias[wide:] = 1e4 if half == "structure" else -1e4
        params[f"{half}_encoder"]["moments"]["bias"] = jnp.asarray(bias)
    latents = run(params, clip(), method="encode")
    assert np.all(latents.structure.logvar == 20) and np.all(latents.dynamics.logvar == -30)
    assert np.all(np.isfinite([gaussian_kl(*g) for g in latents]))


# Training.


@pytest.mark.slow
def test_gradients_reach_every_parameter_through_scan_and_remat():
    x = clip((1, 4, 24, 24, 3))
    size = TINY | {"query_layers": 1}
    net = VidTwin(**size, scan=True, remat=True)

    @quick_jit
    @jax.grad
    def gradient(params):
        video, latents = net.apply({"params": params}, x)
        kl = sum(gaussian_kl(*gaussian).mean() for gaussian in latents)
        return jnp.mean(jnp.square(video - x)) + 1e-3 * kl

    source = export(jax.device_get(tiny_params(query_layers=1)), maps.RULES)
    found = gradient(convert(abstract(net)[1], source, maps.RULES))
    for path, leaf in paths.flatten(found).items():
        layers = leaf if "/blocks/" in path else leaf[None]
        assert jnp.all(jnp.isfinite(leaf)), path
        if not path.endswith("key/bias"):  # it shifts all logits alike, which a softmax ignores
            assert all(np.abs(layer).max() > 1e-9 for layer in layers), path


def test_scan_changes_the_tree_alone():
    scanned = VidTwin(**TINY, scan=True)
    params = tiny_params()
    source = export(jax.device_get(params), maps.RULES)
    stacked = convert(abstract(scanned)[1], source, maps.RULES)
    z, z_scanned = (
        run(p, clip(), net=net, method="features") for p, net in ((params, NET), (stacked, scanned))
    )
    np.testing.assert_allclose(z_scanned, z, atol=1e-5)
    back = export(stacked, maps.RULES)
    assert back.keys() == source.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_bfloat16_is_finite_and_near():
    half = VidTwin(**TINY, dtype=jnp.bfloat16)
    _, params = abstract(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = clip()
    video, latents = run(tiny_params(), x, None, net=half, method="__call__")
    means = [gaussian.mean for gaussian in run(tiny_params(), x, method="encode")]
    want = run(tiny_params(), *means, method="decode")
    assert {leaf.dtype for leaf in jax.tree.leaves((video, latents))} == {jnp.dtype("float32")}
    assert np.abs(video - want).max() < 0.1 * np.abs(want).max()
    huge, latents = run(tiny_params(), 1e4 * x, None, net=half, method="__call__")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((huge, latents)))


def test_only_the_trunks_compute_in_half_precision():
    """Patch embedding, Q-Former, convolutions, moments and last layer stay in float32 (spec, section 1.5)."""
    half = VidTwin(**TINY, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(CLIP, jnp.float32)
    _, state = jax.eval_shape(
        lambda p, x: half.apply(
            {"params": p}, x, capture_intermediates=True, mutable=["intermediates"]
        ),
        abstract(half)[1],
        x,
    )
    seen = paths.flatten(state["intermediates"])
    kinds = {path: jax.tree.leaves(value)[0].dtype for path, value in seen.items()}
    trunk = {path: kind for path, kind in kinds.items() if "/trunk/block_" in path}
    assert jnp.bfloat16 in trunk.values()
    low = [path for path, kind in kinds.items() if path not in trunk and kind != jnp.float32]
    assert not low, low
    for part in ("patch_embed", "qformer/layer_0/cross/key", "moments", "conv_out", "mix", "out"):
        assert any(f"/{part}/" in path for path in kinds.keys() - trunk.keys()), part


def test_every_second_layer_reads():
    qformer = abstract(VidTwin(**TINY | {"query_layers": 4}))[1]["structure_encoder"]["qformer"]
    assert ["cross" in qformer[f"layer_{i}"] for i in range(4)] == [True, False, True, False]


def test_dropout_is_the_q_formers():
    net = QFormer(queries=3, width=8, layers=1, heads=2, mlp_dim=12, dropout=0.5)
    memory = clip((2, 5, 6))
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), memory)["params"])

    @quick_jit
    def drawn(key):
        return net.apply({"params": params}, memory, False, rngs={"dropout": key})

    a, b = (drawn(jax.random.key(i, impl="rbg")) for i in (0, 1))
    still = quick_jit(net.apply)({"params": params}, memory)
    assert np.abs(a - b).max() > 0.1 and np.abs(a - still).max() > 0.1


def test_start():
    """At the start only the temporal branch is zero (spec, section 1.6)."""

    @quick_jit
    def start():  # avoids computing the rest of the tree
        params = NET.init(jax.random.key(0, impl="rbg"), jnp.asarray(clip()))["params"]
        return params["encoder"]["patch_embed"], params["decoder"]

    embed, decoder = start()
    for path, leaf in paths.flatten(decoder).items():
        if "temporal/out" in path:
            assert not leaf.any(), path
        elif path.endswith(("modulation", "kernel")):
            assert np.abs(leaf).max() > 0, path
    tables = [x.ravel() for path, x in paths.flatten(decoder).items() if "modulation" in path]
    np.testing.assert_allclose(np.concatenate(tables).std(), 16**-0.5, rtol=0.2)
    for leaf in decoder["out"].values():  # U(+-1/sqrt(width))
        assert 0.8 < np.abs(leaf).max() * np.sqrt(16) <= 1
    assert 0.8 < np.abs(embed["kernel"]).max() / np.sqrt(6 / (48 + 16)) <= 1  # Xavier, flattened
    assert 0.7 < np.abs(embed["bias"]).max() * np.sqrt(48) <= 1


def test_structure_starts_alive_if_scaled():
    """With "scaled", the means of structure vary over clips; with "released", they hardly do next to a posterior
    deviation of 1 (learning.md, 5)."""
    size = {"width": 64, "queries": 4, "query_width": 32, "query_layers": 4, "query_heads": 4}
    size |= {"query_mlp": 64, "structure_width": 16, "structure_channels": 4}
    x = clip((8, 4, 24, 24, 3)) * 0.2 + clip((8, 1, 1, 1, 3), seed=1)

    def latents(start):
        net = VidTwin(**TINY | size, start=start)
        apply = quick_jit(lambda key: net.init_with_output(key, x)[0][1])
        return apply(jax.random.key(0, impl="rbg"))

    released, scaled = latents("released"), latents("scaled")

    def spread(gaussian):
        return float(jnp.mean(jnp.std(gaussian.mean, axis=0)))

    assert spread(released.structure) < 1e-3 < 1e-2 < spread(scaled.structure)
    assert spread(scaled.dynamics) > 1e-2
    for gaussian in scaled:
        np.testing.assert_array_equal(gaussian.logvar, -4.0)
    assert np.abs(released.structure.logvar).max() < 0.5


def test_no_frame_and_no_place_starts_silent_if_scaled():
    """Both latent decoders return about half of their random ReLU channels positive, at each frame and each place."""
    key = jax.random.key(0, impl="rbg")
    start = STARTS["scaled"]
    structure = StructureDecoder(8, 4, 64, 32, width=32, blocks=1, start=start)
    made = quick_jit(structure.init_with_output)(key, clip((2, 4, 2, 2, 8)))[0]
    assert made.shape == (2, 8, 4, 4, 64)
    shares = [(made > 0).mean(axis=(0, -1))]
    made = quick_jit(DynamicsDecoder(4, 64, start).init_with_output)(key, clip((2, 8, 4, 8)))[0]
    assert made.shape == (2, 8, 4, 4, 64)
    shares.append((made > 0).mean(axis=(0, -1)))
    for share in shares:
        assert share.min() > 0.3


def test_interpolation_is_torch_s():
    torch = pytest.importorskip("torch")
    for n, m in (2, 4), (3, 8), (4, 8), (5, 5), (6, 3):
        want = torch.nn.functional.interpolate(torch.eye(n)[None], m, mode="linear")[0]
        np.testing.assert_allclose(interpolation(None, (n, m)), want, atol=1e-6)


def test_the_order_of_tokens_is_nothing_to_the_q_former():
    """The released `shuffle_content` reorders the encoder's tokens, which does not change the result."""
    net = QFormer(queries=3, width=8, layers=2, heads=2, mlp_dim=12)
    memory = clip((2, 5, 6))
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), memory)["params"])
    apply = quick_jit(net.apply)
    read = apply({"params": params}, memory)
    again = apply({"params": params}, memory[:, [3, 1, 4, 0, 2]])
    np.testing.assert_allclose(read, again, atol=1e-5)


def test_codes_of_times_are_the_cosine_basis_of_scipy():
    scipy = pytest.importorskip("scipy.fft")
    basis = scipy.idct(np.eye(8), norm="ortho", axis=0) * np.sqrt(8)  # rows are times
    np.testing.assert_allclose(
        time_code(8, 24), np.concatenate([basis, -basis, basis], 1), atol=1e-5
    )
    np.testing.assert_allclose(time_code(8, 24) @ time_code(8, 24).T, 24 * np.eye(8), atol=1e-4)


@pytest.mark.parametrize(
    ("queries", "times"), [(8, [[t] for t in range(8)]), (4, [[0, 1], [2, 3], [4, 5], [6, 7]])]
)
def test_queries_that_begin_at_times_of_their_own_look_at_their_frames(queries, times):
    """What changes in a frame changes the queries of its time most; without, all queries alike."""
    memory = clip((16, 8, 48)) * 0.6

    def answers(timed):
        net = QFormer(queries, 32, 1, 2, 16, 0.0, jax.nn.initializers.lecun_normal(), timed)

        @quick_jit
        def change(key, t):
            moved = jnp.asarray(memory).at[:, t].add(clip((16, 48), seed=2))
            variables = net.init(key, memory)
            return net.apply(variables, moved) - net.apply(variables, memory)

        key = jax.random.key(0, impl="rbg")
        return np.stack([jnp.linalg.norm(change(key, t), axis=-1).mean(0) for t in range(8)])

    timed = answers(True)  # of frame and query
    for query, own in enumerate(times):
        others = np.delete(timed[:, query], own)
        assert timed[own, query].min() > 3 * others.max()
    alike = answers(False)
    assert alike.min() > alike.max() / 10


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width=16 must be divisible by heads=3"),
        ({"width": 18, "heads": 2}, "and by 4"),
        ({"query_heads": 3}, "query_width=8 must be divisible"),
        ({"structure_blocks": 4}, "structure_blocks=4 must be from 0 to 3"),
        ({"dynamics_blocks": 0}, "dynamics_blocks=0"),
        ({"patch": (1, 4, 8)}, "must be square"),
        ({"queries": 5}, "queries=5 must be from 1 to 4"),  # of 4 frames (n_q <= f)
        ({"queries": 3, "patch": (2, 4, 4)}, "queries=3 must be from 1 to 2"),
        ({"queries": 0}, "queries=0 must be"),
        ({"start": "warm"}, "start='warm' must be one of released, scaled"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        abstract(VidTwin(**TINY | changes))


@pytest.mark.parametrize(
    "shape", [(4, 24, 24, 3), (1, 5, 24, 24, 3), (1, 4, 28, 24, 3), (1, 4, 24, 24, 4)]
)
def test_clips_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"must be \(batch, 4, 24, 24, 3\).*got"):
        jax.eval_shape(lambda: run(tiny_params(), jnp.zeros(shape), method="features"))


def test_latents_that_do_not_fit():
    good = jnp.zeros((1, *NET.structure_shape))
    for given, message in [
        ((None, None), "nothing to decode"),
        ((good[:, :2], None), r"structure must be \(batch, 3, 3, 3, 2\)"),
        ((good, good), r"dynamics must be \(batch, 4, 6, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(tiny_params(), *given, method="decode")
