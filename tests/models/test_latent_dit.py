"""The denoiser of VidTwin's latents: tokens, dependencies between them, and sizes (spec vidtwin.md, section 12)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion.models.latent_dit import LatentDiT, Patches
from vidmotion.models.vidtwin import LATENTS, VidTwin
from vidmotion.models.vidtwin import SIZES as VIDTWIN_SIZES
from vidmotion.open_run import load_config

PAPER = Patches((16, 7, 7, 4), (2, 2, 2)), Patches((1, 16, 14, 8), (1, 2, 2))
TINY = Patches((3, 3, 3, 2), (2, 2, 2)), Patches((1, 4, 6, 3), (1, 2, 2))
SIZES = dict(classes=5, class_width=12, width=16, layers=2, heads=4)


# -- tokens ---------------------------------------------------------------------------------------


def test_tokens_of_the_paper():
    assert [part.tokens for part in PAPER] == [8 * 4 * 4, 8 * 7]
    assert [part.width for part in PAPER] == [32, 32]
    released = Patches((16, 7, 7, 8), (2, 2, 2))
    assert (released.tokens, released.width) == (128, 64)
    # Without padding there are 392 + 224 tokens of 8 numbers each.
    fine = Patches((16, 7, 7, 4), (2, 1, 1)), Patches((1, 16, 14, 8), (1, 1, 1))
    assert [(part.tokens, part.width) for part in fine] == [(392, 8), (224, 8)]


@pytest.mark.parametrize("latent", sorted(LATENTS))
def test_the_config_knows_the_shapes_of_each_setting(latent):
    system = load_config(f"vidtwin_dit:latent={latent}").system
    net = VidTwin(**VIDTWIN_SIZES["base"], **LATENTS[latent])
    assert tuple(system.structure) == net.structure_shape
    assert tuple(system.dynamics) == net.dynamics_shape


@pytest.mark.parametrize(
    "patches", [*PAPER, *TINY, Patches((5, 4, 7, 1), (3, 4, 2)), Patches((2, 3, 1, 6), (1, 1, 1))]
)
def test_join_is_the_exact_inverse_of_split(patches):
    x = np.random.default_rng(0).normal(size=(2, *patches.shape)).astype(np.float32)
    tokens = patches.split(x)
    assert tokens.shape == (2, patches.tokens, patches.width)
    np.testing.assert_array_equal(patches.join(tokens), x)
    # The latent may also be given as a flat row of the same numbers.
    np.testing.assert_array_equal(patches.split(x.reshape(2, -1)), tokens)
    mask = patches.mask()
    assert mask.sum() == patches.numbers == x[0].size
    assert not np.any(np.asarray(tokens)[:, ~mask]) and np.all(np.asarray(tokens)[:, mask])
    # The values in the padding are dropped.
    np.testing.assert_array_equal(patches.join(jnp.where(mask, tokens, 7.0)), x)


def test_a_token_is_its_block():
    patches = PAPER[0]
    x = np.random.default_rng(0).normal(size=(1, 16, 7, 7, 4)).astype(np.float32)
    tokens = np.asarray(patches.split(x))[0]
    # Query pair 3, row pair 1, column pair 2 in a grid of 8 x 4 x 4.
    np.testing.assert_array_equal(tokens[3 * 16 + 1 * 4 + 2], x[0, 6:8, 2:4, 4:6].ravel())
    # The last row pair holds one real row; the other one is padding.
    last = tokens[0 * 16 + 3 * 4 + 0].reshape(2, 2, 2, 4)
    np.testing.assert_array_equal(last[:, 0], x[0, 0:2, 6, 0:2])
    assert not last[:, 1].any()
    # 7 of 8 rows and 7 of 8 columns are real.
    assert patches.mask().mean() == pytest.approx(49 / 64)


# -- the network ----------------------------------------------------------------------------------


def inputs(patches=TINY, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    tokens = [
        rng.normal(size=(batch, part.tokens, part.width)).astype(np.float32) for part in patches
    ]
    return tokens, jnp.linspace(10.0, 900.0, batch), jnp.arange(batch)


@pytest.fixture(scope="module")
def net():
    module = LatentDiT(TINY, **SIZES)
    fresh = quick_jit(module.init)(jax.random.key(0), *inputs())["params"]
    vivid = random_like(jax.eval_shape(lambda: fresh), scale=0.3)
    return module, fresh, vivid, quick_jit(lambda p, *x: module.apply({"params": p}, *x))


def test_fresh_it_gives_zero_and_its_blocks_do_nothing(net):
    _, fresh, _, run = net
    out = run(fresh, *inputs())
    assert [x.shape for x in out] == [x.shape for x in inputs()[0]]
    assert all(x.dtype == jnp.float32 and not np.any(x) for x in out)
    opened = paths.flatten(fresh)
    rng = np.random.default_rng(1)
    for path in opened:
        if path.startswith("final_") and path.endswith("kernel"):
            opened[path] = rng.normal(size=opened[path].shape).astype(np.float32)
    with_blocks = run(paths.unflatten(opened), *inputs())
    # Other blocks, same answer: each block is the identity while its gates are closed.
    for path in opened:
        if path.startswith("block_") and not any(part in path for part in ("conditioning", "out")):
            opened[path] = opened[path] + 1.0
    for a, b in zip(with_blocks, run(paths.unflatten(opened), *inputs())):
        assert np.any(a)
        np.testing.assert_array_equal(a, b)


def test_both_latents_read_each_other_the_time_and_the_class(net):
    _, _, vivid, run = net
    tokens, time, label = inputs()
    base = run(vivid, tokens, time, label)
    changed = {
        "structure": run(vivid, [tokens[0] + 1.0, tokens[1]], time, label),
        "dynamics": run(vivid, [tokens[0], tokens[1] + 1.0], time, label),
        "time": run(vivid, tokens, time + 50.0, label),
        "class": run(vivid, tokens, time, label + 1),
        "no class": run(vivid, tokens, time, jnp.full(3, 5)),
    }
    for name, out in changed.items():
        for a, b in zip(base, out):
            assert np.abs(np.asarray(a) - b).max() > 1e-3, name
    # Examples do not affect each other.
    alone = run(vivid, [x[1:2] for x in tokens], time[1:2], label[1:2])
    for a, b in zip(base, alone):
        np.testing.assert_allclose(a[1:2], b, atol=1e-5)


def test_every_parameter_learns_but_queries_and_keys_of_one_class_token(net):
    module, _, vivid, _ = net

    @quick_jit
    @jax.grad
    def gradient(params):
        out = module.apply({"params": params}, *inputs())
        return sum(jnp.sum(x**2) for x in out)

    flat = paths.flatten(gradient(vivid))
    largest = max(float(np.abs(leaf).max()) for leaf in flat.values())
    still = {path for path, leaf in flat.items() if np.abs(leaf).max() < 1e-6 * largest}
    one_key = {
        f"block_{i}/class/{name}/{part}"
        for i in (0, 1)
        for name in ("query", "key")
        for part in ("kernel", "bias")
    }
    # A bias of the keys adds the same to all scores, which a softmax ignores.
    assert still - one_key <= {"block_0/attention/qkv/bias", "block_1/attention/qkv/bias"}
    assert one_key <= still


def test_scan_and_remat_change_nothing_but_the_tree(net):
    _, _, vivid, run = net
    want = run(vivid, *inputs())
    flat = paths.flatten(vivid)
    stacked = {p: v for p, v in flat.items() if not p.startswith("block_")}
    for path in (p for p in flat if p.startswith("block_0/")):
        both = [flat[path.replace("block_0", f"block_{i}")] for i in (0, 1)]
        stacked[path.replace("block_0", "blocks")] = jnp.stack(both)
    scanned = LatentDiT(TINY, **SIZES, scan=True, remat=True)
    out = quick_jit(lambda p: scanned.apply({"params": p}, *inputs()))(paths.unflatten(stacked))
    for a, b in zip(want, out):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("width_of_structure", [4, 8])
def test_parameters_at_the_papers_size(width_of_structure):
    patches = Patches((16, 7, 7, width_of_structure), (2, 2, 2)), PAPER[1]
    net = LatentDiT(patches, classes=101, class_width=256, width=1152, layers=18, heads=16)
    tokens, time, label = inputs(patches, 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens, time, label)["params"]

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    d, c = 1152, 256
    dense = lambda a, b: a * b + b  # noqa: E731
    block = (
        dense(d, 4 * d) + dense(d, 2 * d)  # shifts and scales of two sites; their gates
        + dense(d, 3 * d) + dense(d, d)  # self-attention
        + 2 * dense(d, d) + 2 * dense(c, d)  # cross-attention
        + dense(d, 4 * d) + dense(4 * d, d)  # MLP
    )  # fmt: skip
    assert count(shapes["block_0"]) == block
    assert 18 * block == pytest.approx(489e6, rel=1e-3)
    w = 8 * width_of_structure
    rest = (
        dense(256, d) + dense(d, d)  # time
        + 102 * c + 184 * d + 2 * d  # classes and no class, positions, kinds
        + dense(w, d) + dense(32, d) + dense(d, w) + dense(d, 32)
        + dense(d, 2 * d)  # the last shift and scale
    )  # fmt: skip
    assert count(shapes) == 18 * block + rest
    if width_of_structure == 4:
        assert count(shapes) == 493_439_296
