"""The UNet against diffusers; reading reference features; modules that a subclass inserts."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import paths, sharding
from vidmotion.convert.engine import convert
from vidmotion.convert.maps.unet import RULES, without_text
from vidmotion.models import unet
from vidmotion.models.attention import Attention, attend
from vidmotion.models.motion_attention import DenoisingUNet, MotionModule, TemporalModule
from vidmotion.models.unet import (
    SIZES,
    UNREAD,
    ReferenceUNet,
    UNet,
    block_names,
    project_banks,
    random_banks,
)

SMALL = {
    "channels": (8, 16),
    "attention": (True, False),
    "layers_per_block": 1,
    "heads": 2,
    "context_width": 12,
    "norm_groups": 4,
}
SIDE = 4  # of the latents of a small network


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(net, *inputs):
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def inputs(batch=2, frames=2):
    """Returns latents, times and context for a small network."""
    x = random(batch, frames, SIDE, SIDE, 4)
    return x, np.array([7.0, 801.0], np.float32)[:batch], random(batch, 3, 12, seed=1)


@pytest.fixture(scope="module")
def small():
    """Returns a small network, and random parameters without zeros that hide errors."""
    net = UNet(**SMALL)
    return net, random_like(shapes_of(net, *inputs()))


@pytest.fixture(scope="module")
def plain(small):
    """Returns the small network's output for `inputs`, without a reference."""
    net, params = small
    return quick_jit(net.apply)({"params": params}, *inputs())


@pytest.fixture(scope="module")
def run(small):
    """Returns the compiled small network: (banks, who reads them, latents) -> output."""
    net, params = small

    @quick_jit
    def apply(banks, reads, x):
        pairs = project_banks(net, params, banks)
        given = x, *inputs()[1:]
        return net.apply({"params": params}, *given, banks=pairs, reads_b=reads)

    return apply


@pytest.fixture(scope="module")
def banks():
    """Returns reference features for two of the blocks."""
    return {"down_0/attn_0": random(2, SIDE**2, 8, seed=3), "mid/attn_0": random(2, 4, 16)}


# The network itself.


def reference():
    """Returns diffusers' UNet with random weights, its norms moved away from the identity."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = diffusers.UNet2DConditionModel(
        block_out_channels=SMALL["channels"],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=SMALL["layers_per_block"],
        cross_attention_dim=SMALL["context_width"],
        attention_head_dim=SMALL["heads"],
        norm_num_groups=SMALL["norm_groups"],
    ).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" in name:
                value.add_(0.2 * torch.randn_like(value))
    return module


@pytest.mark.oracle
def test_equals_diffusers():
    torch = pytest.importorskip("torch")
    module = reference()
    state = {key: x.detach().numpy() for key, x in module.state_dict().items()}
    net = UNet(**SMALL)
    x, time, context = inputs(2, 1)
    params = convert(shapes_of(net, x, time, context), state, RULES)
    got = quick_jit(net.apply)({"params": params}, x, time, context)
    with torch.no_grad():
        nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x[:, 0], -1, 1)))
        want = module(nchw, torch.from_numpy(time), torch.from_numpy(context)).sample
    np.testing.assert_allclose(np.moveaxis(got[:, 0], -1, 1), want, atol=1e-4)


def test_sizes():
    """Counts the tiny sizes; the released sizes are counted in tests/convert/test_sd_maps.py."""
    x, context = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 48))
    trees = (
        shapes_of(ReferenceUNet(**SIZES["tiny"]), x, context),
        shapes_of(UNet(**SIZES["tiny"]), x[:, None], jnp.zeros(1), context),
    )
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in trees]
    assert sizes == [3_249_120, 3_250_340]  # spec xnemo.md, section 8, and the output layer


def test_without_text_there_are_fewer_parameters():
    """The difference is the paper's, 43,987,520 (spec warpface.md, 5.1)."""
    size = SIZES["sd15"] | {"context_width": 0}
    x = jnp.zeros((1, 1, 8, 8, 4))
    tree = shapes_of(UNet(**size), x, jnp.zeros(1))
    assert not any("norm2" in p and "attn" in p for p in paths.flatten(tree))
    assert sum(x.size for x in jax.tree.leaves(tree)) == 859_520_964 - 43_987_520


def test_text_layers_are_left_behind(small):
    net = UNet(**SMALL | {"context_width": 0})
    kept = set(paths.flatten(without_text(small[1])))
    assert kept == set(paths.flatten(shapes_of(net, *inputs()[:2])))
    lost = set(paths.flatten(small[1])) - kept
    assert {path.split("/")[2] for path in lost} == {"cross", "norm2"}
    assert {path.split("/")[1][:4] for path in lost} == {"attn"}


MOVING = SMALL | {"channels": (32,), "attention": (True,), "norm_groups": 8}


def moving_inputs():
    return random(1, 2, 2, 2, 4), np.zeros(1, np.float32), random(1, 1, 12), random(1, 2, 5, 16)


def test_starts_as_zero():
    """Finds, in the program of the initialisation, the kernels that are constant and not drawn: the last layers."""
    net = DenoisingUNet(**MOVING)
    tree = shapes_of(net, *moving_inputs())
    jaxpr = jax.make_jaxpr(lambda key: net.init(key, *moving_inputs())["params"])(jax.random.key(0))
    made = {id(v): equation for equation in jaxpr.jaxpr.eqns for v in equation.outvars}
    leaves = zip(paths.flatten(tree), jaxpr.jaxpr.outvars, strict=True)
    assert list(paths.flatten(tree)) == [
        "/".join(k.key for k in p) for p, _ in jax.tree.leaves_with_path(tree)
    ]
    constant = {
        path
        for path, variable in leaves
        if made[id(variable)].primitive.name == "broadcast_in_dim" and path.endswith("kernel")
    }
    want = {path for path in paths.flatten(tree) if path.endswith("proj_out/kernel")}
    assert constant == {"conv_out/kernel"} | want
    # Four places (down, middle, twice up), each with a transformer and two modules.
    assert len(want) == 4 * 3


def test_computes_in_bfloat16_with_float32_parameters():
    net = DenoisingUNet(**MOVING, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), *moving_inputs())
    assert out.dtype == jnp.float32 and out.shape == (1, 2, 2, 2, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    net = ReferenceUNet(**SMALL, dtype=jnp.bfloat16)
    x, _, context = inputs()
    banks = jax.eval_shape(net.init_with_output, jax.random.key(0), x[:, 0], context)[0]
    assert {bank.dtype for bank in banks.values()} == {jnp.dtype("bfloat16")}


def test_recomputes_in_the_backward_pass():
    def kept(remat):
        """Returns the number of values that the forward pass keeps, without the parameters."""
        net = DenoisingUNet(**MOVING, remat=remat)
        params = shapes_of(net, *moving_inputs())

        def forward(params):
            return jax.vjp(lambda p: net.apply({"params": p}, *moving_inputs()), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(forward, params))
        return sum(leaf.size for leaf in leaves) - sum(x.size for x in jax.tree.leaves(params))

    assert kept(True) < 0.5 * kept(False)


def test_says_what_does_not_fit(small):
    net, _ = small
    x, time, context = inputs()
    for change, message in [
        ({"x_bfhwc": x[:, 0]}, "expected latents"),
        ({"x_bfhwc": x[:, :, :3]}, "multiples of 2"),
        ({"context_bsc": None}, r"needs a context \(b, s, 12\)"),
        (
            {"banks": {"down_1/attn_0": None}},
            "down_1/attn_0.*named down_0/attn_0, mid/attn_0, up_1",
        ),
        ({"skip": ("motion",)}, "skip may name nothing"),
    ]:
        given = {"x_bfhwc": x, "time_b": time, "context_bsc": context} | change
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(net.init, **given), jax.random.key(0))


# Attention.


def test_attention_in_pieces_is_attention():
    torch = pytest.importorskip("torch")
    q, k, v = (random(3, n, 2, 4, seed=i) for i, n in enumerate((6, 10, 10)))
    mask = random(3, 10, seed=4) > 0
    mask[:, 0] = True
    want = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k, v)),
        attn_mask=torch.from_numpy(mask)[:, None, None],
    ).transpose(1, 2)
    # All at once; two rows; one row; part of a row; one query.
    for limit in (1000, 250, 120, 50, 1):
        got = quick_jit(functools.partial(attend, limit=limit))(q, k, v, mask)
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=str(limit))
    whole, parts = (
        quick_jit(jax.grad(lambda q, n=n: jnp.sum(attend(q, k, v, limit=n) ** 2)))(q)
        for n in (1000, 50)
    )
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_on_a_mesh_each_device_attends_to_its_own_rows():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    where = sharding.batch(mesh)
    q, k, v = (random(16, n, 2, 4, seed=i) for i, n in enumerate((6, 10, 10)))
    mask = random(16, 10, seed=4) > 0
    mask[:, 0] = True

    def loss(q, k, v, mask, limit):
        return jnp.sum(attend(q, k, v, mask, limit) ** 2, (1, 2, 3))

    def gradient(limit):
        total = functools.partial(loss, limit=limit)
        return jax.grad(lambda *a: jnp.sum(total(*a)), argnums=(0, 1, 2))

    want = jax.jit(gradient(10**6))(q, k, v, mask)
    for limit in (250, 120, 50):  # two rows of a device; one row; part of a row
        on_mesh = jax.jit(sharding.OnMesh(gradient(limit), mesh), out_shardings=where)
        given = [jax.device_put(x, where) for x in (q, k, v, mask)]
        program = on_mesh.lower(*given).compile().as_text()
        assert "while" in program
        assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", program)
        got = on_mesh(*given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_memory_of_attention_does_not_square():
    """With 4096 queries and 8192 keys of eight heads, the logits would need 1 GiB per frame."""

    def temporary(frames):
        q, k = (jax.ShapeDtypeStruct((frames, n, 8, 40), jnp.float32) for n in (4096, 8192))
        compiled = jax.jit(attend).lower(q, k, k).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(4) < 2**30


@pytest.mark.parametrize("rows", [1, 2])
def test_bank_keys_are_attended_like_own_ones(rows):
    """Compares with the textbook formula, for one head and one row at a time."""
    net = Attention(heads=2)
    x, bank, reads = random(4, 3, 6), random(rows, 5, 6, seed=1), np.arange(rows) > 0
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), x)["params"])
    kernel = {n: np.asarray(params[n]["kernel"]) for n in ("q", "k", "v", "out")}
    pair = tuple(jnp.asarray((bank @ kernel[n]).reshape(rows, 5, 2, 3)) for n in "kv")
    for kept in (None, jnp.asarray(reads)):
        got = net.apply({"params": params}, x, None, pair, kept)
        for row in range(4):
            mine = row * rows // 4
            given = bank[mine] if kept is None or kept[mine] else bank[mine][:0]
            source = np.concatenate([x[row], given])
            heads = []
            for part in (slice(0, 3), slice(3, 6)):
                q, k, v = x[row] @ kernel["q"], source @ kernel["k"], source @ kernel["v"]
                weight = np.exp(q[:, part] @ k[:, part].T / np.sqrt(3))
                heads.append(weight / weight.sum(1, keepdims=True) @ v[:, part])
            want = np.concatenate(heads, 1) @ kernel["out"] + params["out"]["bias"][None]
            np.testing.assert_allclose(got[row], want, atol=1e-5)


# Reference features.


def test_a_reference_that_is_left_out_is_none(run, plain, banks):
    """Each sample reads or leaves out the reference by itself, and frames do not affect each other."""
    x, *_ = inputs()

    both = np.array([True, True])
    read = run(banks, both, x)
    assert (np.abs(read - plain).max((1, 2, 3, 4)) > 1e-2).all()
    got = run(banks, np.array([True, False]), x)
    np.testing.assert_allclose(got[0], read[0], atol=1e-5)
    np.testing.assert_allclose(got[1], plain[1], atol=1e-5)
    other = run(banks, both, np.stack([x[:, 0] + 1, x[:, 1]], 1))
    assert np.abs(other[:, 0] - read[:, 0]).max() > 1e-2
    np.testing.assert_allclose(other[:, 1], read[:, 1], atol=1e-5)


def test_masking_keeps_what_it_says():
    """Numbers the tokens, which shows which of them are kept."""
    sizes = {"a": 64, "b": 64, "c": 4}
    banks = {n: jnp.tile(jnp.arange(s)[None, :, None], (5, 1, 3)) for n, s in sizes.items()}
    kept = random_banks(jax.random.key(0), banks, ratio=0.3)
    assert {n: x.shape for n, x in kept.items()} == {
        "a": (5, 44, 3),
        "b": (5, 44, 3),
        "c": (5, 2, 3),
    }
    rows = []
    for name, bank in kept.items():
        np.testing.assert_array_equal(bank, bank[..., :1].repeat(3, -1))  # tokens are kept whole
        chosen = np.sort(np.asarray(bank[..., 0]), axis=1)
        assert all(len(set(row)) == len(row) and row[-1] < sizes[name] for row in chosen)
        rows += [tuple(row) for row in chosen] if name != "c" else []
    assert len(set(rows)) == 10  # drawn for each sample and each block
    many = {"a": jnp.tile(jnp.arange(64)[None, :, None], (2000, 1, 1))}
    many = random_banks(jax.random.key(1), many, ratio=0.3)["a"]
    share = np.bincount(np.asarray(many).ravel(), minlength=64) / 2000
    np.testing.assert_allclose(share, 44 / 64, atol=0.06)  # 5.8 standard deviations
    all_ = random_banks(jax.random.key(0), banks, ratio=0.0)
    jax.tree.map(np.testing.assert_array_equal, all_, banks)
    assert random_banks(jax.random.key(0), banks, ratio=0.95)["c"].shape == (5, 0, 3)


def test_a_reference_of_fewer_tokens_is_another_one_in_any_order(run, banks):
    x, *_ = inputs()
    both = np.array([True, True])
    kept = random_banks(jax.random.key(3), banks, ratio=0.3)
    for name, bank in banks.items():
        assert kept[name].shape[1] == int(0.7 * bank.shape[1])
    fewer = run(kept, both, x)
    turned = {name: bank[:, ::-1] for name, bank in kept.items()}
    np.testing.assert_allclose(run(turned, both, x), fewer, atol=1e-5)
    assert np.abs(fewer - run(banks, both, x)).max() > 1e-3


def test_one_token_of_context_needs_no_queries():
    """One token and the same token twice give the same result; one token needs only half of the products."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    context = jnp.asarray(rng.normal(size=(2, 1, 6)), jnp.float32)
    net = Attention(2)
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), x, context)["params"])
    assert set(params) == {"q", "k", "v", "out"}

    def run(params, context):
        return net.apply({"params": params}, x, context)

    got = run(params, context)
    np.testing.assert_allclose(got, run(params, jnp.repeat(context, 2, 1)), atol=1e-6)
    by_hand = context[:, 0] @ params["v"]["kernel"] @ params["out"]["kernel"]
    np.testing.assert_allclose(got[:, 3], by_hand + params["out"]["bias"][None], atol=1e-5)
    products = str(jax.make_jaxpr(run)(params, context)).count("dot_general")
    assert products == 2
    slopes = jax.grad(lambda p: jnp.sum(run(p, context) ** 2))(params)
    assert not np.any(slopes["q"]["kernel"]) and np.any(slopes["v"]["kernel"])


def test_names_of_the_blocks():
    names = block_names(UNet(**SIZES["sd15"]))
    assert len(names) == 16 and len(set(names)) == 16
    assert names[:2] == ["down_0/attn_0", "down_0/attn_1"] and names[6:8] == [
        "mid/attn_0",
        "up_1/attn_0",
    ]
    assert names[-1] == "up_3/attn_2"


def test_the_way_down_alone_sees_the_same():
    whole, part = ReferenceUNet(**SMALL), ReferenceUNet(**SMALL, up=False)
    x, _, context = inputs()
    params = random_like(shapes_of(whole, x[:, 0], context))
    want = quick_jit(whole.apply)({"params": params}, x[:, 0], context)
    less = {name: leaf for name, leaf in params.items() if not name.startswith("up_")}
    assert set(shapes_of(part, x[:, 0], context)) == set(less)
    got = quick_jit(part.apply)({"params": less}, x[:, 0], context)
    assert list(got) == block_names(part) == block_names(whole)[:2]
    for name, bank in got.items():
        np.testing.assert_allclose(bank, want[name], atol=1e-5)


def test_what_is_never_read_has_no_gradient():
    """Exactly the parameters that match `UNREAD` have no effect on the banks of the released network."""
    net = ReferenceUNet(**SIZES["sd15"])
    given = jnp.zeros((1, 16, 16, 4)), jnp.zeros((1, 2, 768))
    params = shapes_of(net, *given)
    jaxpr = jax.make_jaxpr(lambda p: net.apply({"params": p}, *given))(params).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    leaves = jax.tree.leaves_with_path(params)
    assert len(leaves) == len(jaxpr.invars)
    unread = {
        "/".join(key.key for key in path)
        for (path, _), variable in zip(leaves, jaxpr.invars)
        if id(variable) not in needed
    }
    assert unread == {path for path in paths.flatten(params) if re.fullmatch(UNREAD, path)}
    assert len(unread) == 20


# Modules that a subclass inserts.


class Shift(nn.Module):
    """Adds its condition and a learned bias to the stream."""

    @nn.compact
    def __call__(self, x_bfhwc, time_bc, condition):
        assert time_bc.shape == (len(x_bfhwc), 4 * 8)
        bias = self.param("bias", nn.initializers.zeros, (x_bfhwc.shape[-1],))
        return x_bfhwc + bias[None, None, None, None] + condition[:, None, None, None, None]


class Shifted(UNet):
    """A UNet with a `Shift` in the transformer of its middle."""

    def within(self, block):
        return Shift if block == "mid/attn_0" else None


def test_a_module_within_a_transformer(small, plain):
    net = Shifted(**SMALL, remat=True)
    name = "mid/attn_0/within/bias"
    shapes = paths.flatten(shapes_of(net, *inputs(), jnp.zeros(2)))
    assert set(shapes) - set(paths.flatten(small[1])) == {name}
    params = paths.unflatten(paths.flatten(small[1]) | {name: jnp.zeros(16)})
    got = quick_jit(net.apply)({"params": params}, *inputs(), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(got[0], plain[0], atol=1e-5)
    assert np.abs(got[1] - plain[1]).max() > 1e-3


def test_motion_modules_read_their_own_frame():
    net = MotionModule(heads=2)
    x, motion = random(2, 3, 2, 2, 32), random(2, 3, 5, 16)
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), x, motion)["params"])
    apply = quick_jit(net.apply)
    other = motion.copy()
    other[1, 2] += 1
    changed = np.abs(apply({"params": params}, x, other) - apply({"params": params}, x, motion))
    assert (changed.max((2, 3, 4)) > 1e-3).tolist() == [[False] * 3, [False, False, True]]
    with pytest.raises(ValueError, match="one set per frame, got"):
        net.init(jax.random.key(0), x, motion[:, :2])


def test_temporal_modules_keep_places_apart():
    net = TemporalModule(heads=2)
    x = random(1, 3, 2, 2, 32)
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), x)["params"], scale=0.1)
    apply = quick_jit(net.apply)
    plain = apply({"params": params}, x)
    # Group norm averages over the places of one frame, so scaling a frame does not change what the module adds.
    scaled = x.copy()
    scaled[:, 1] *= 2
    got = apply({"params": params}, scaled)
    np.testing.assert_allclose(got - scaled, plain - x, atol=1e-3)
    backwards = apply({"params": params}, x[:, ::-1])[:, ::-1]
    assert np.abs(backwards - plain).max() > 1e-4  # the order of the frames matters
    with pytest.raises(ValueError, match=r"33 frames at once.*know 32 positions"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 33, 2, 2, 32)))


def test_time_code_is_diffusers():
    torch = pytest.importorskip("torch")
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    time = np.array([0, 1, 500, 999])
    want = embeddings.get_timestep_embedding(torch.from_numpy(time), 320, True, 0)
    np.testing.assert_allclose(unet.time_code(jnp.asarray(time), 320), want, atol=1e-4)


def test_only_a_network_with_places_tells_where_a_flat_latent_is():
    # A constant input without borders in reach: before training, a 3x3 kernel of the middle sees the same everywhere.
    x = np.ones((1, 1, 16, 16, 4), np.float32)
    middles = []
    for places in (False, True):
        net = UNet(**{**SMALL, "context_width": 0, "places": places})
        variables = {"params": random_like(shapes_of(net, x, np.zeros(1, np.float32)))}
        entrance = quick_jit(
            lambda v, x, net=net: net.apply(
                v, x, np.zeros(1, np.float32), capture_intermediates=True
            )
        )(variables, x)[1]["intermediates"]["down_0"]["res_0"]["__call__"][0]
        middles.append(np.asarray(entrance)[0, 6:10, 6:10])
    assert np.std(middles[0], axis=(0, 1)).max() < 1e-4
    assert np.std(middles[1], axis=(0, 1)).min() > 1e-3
