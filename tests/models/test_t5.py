"""T5 encoder: equality with transformers' T5EncoderModel, sizes, initial scales, masks, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.convert import engine
from vidmotion.convert.maps import t5 as rules
from vidmotion.models import t5

TINY = dict(width=24, layers=2, heads=3, head_dim=5, mlp_dim=40)


@pytest.fixture(scope="module")
def tiny():
    """Returns a tiny encoder, its parameters, and inputs (2, 11, 24)."""
    model = t5.T5Encoder(**TINY)
    x = jax.random.normal(jax.random.key(1), (2, 11, TINY["width"]))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_buckets_by_hand():
    # 32 buckets up to 128 tokens: 8 exact ones per side, then edges at 8 * 16**(k/8) = 8, 11.3, 16, 22.6, ...
    distance = np.array(
        [0, -1, -7, -8, -11, -12, -15, -16, -22, -23, -32, -64, -90, -91, -128, -999]
    )
    expected = np.array([0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 12, 14, 14, 15, 15, 15])
    np.testing.assert_array_equal(t5.relative_buckets(distance, 32, 128), expected)
    np.testing.assert_array_equal(t5.relative_buckets(-distance[1:], 32, 128), expected[1:] + 16)
    for buckets, max_distance in ((30, 128), (0, 128), (32, 8)):
        with pytest.raises(ValueError, match="multiples of 4"):
            t5.relative_buckets(distance, buckets, max_distance)


@pytest.mark.parametrize(
    ("size", "expected"), [("bcd_lrs3", 37_761_792), ("bcd_sprites", 21_243_456)]
)
def test_parameter_count(size, expected):
    s = t5.SIZES[size]
    d, inner, mlp = s["width"], s["heads"] * s["head_dim"], s["mlp_dim"]
    closed_form = s["layers"] * (4 * d * inner + 2 * d * mlp + 2 * d) + 32 * s["heads"] + d
    shapes = jax.eval_shape(
        t5.T5Encoder(**s).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, d), jnp.float32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == closed_form == expected


def test_initial_scales():
    model = t5.T5Encoder(width=256, layers=1, heads=8, head_dim=16, mlp_dim=512)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2, 256)))["params"]
    layer = params["layer_0"]
    stddev = {
        "query": (layer["attention"]["query"]["kernel"], (256 * 16) ** -0.5),
        "key": (layer["attention"]["key"]["kernel"], 256**-0.5),
        "value": (layer["attention"]["value"]["kernel"], 256**-0.5),
        "out": (layer["attention"]["out"]["kernel"], 128**-0.5),
        "wi": (layer["wi"]["kernel"], 256**-0.5),
        "wo": (layer["wo"]["kernel"], 512**-0.5),
    }
    for name, (kernel, expected) in stddev.items():  # 2**15 draws have a standard error of 0.4%
        np.testing.assert_allclose(np.std(kernel), expected, rtol=0.02, err_msg=name)
    table = params["relative_bias"]["table"]
    np.testing.assert_allclose(np.std(table), 256**-0.5, rtol=0.2)
    for norm in (layer["attention_norm"], layer["mlp_norm"], params["final_norm"]):
        np.testing.assert_array_equal(norm["scale"], 1.0)


def test_padding_is_never_read(tiny):
    model, variables, x = tiny
    apply = jax.jit(model.apply)
    mask = jnp.arange(11)[None, :] < jnp.array([11, 7])[:, None]
    y = apply(variables, x, mask)
    np.testing.assert_allclose(y[1, :7], apply(variables, x[1:, :7])[0], atol=1e-5)
    np.testing.assert_allclose(y[0], apply(variables, x)[0], atol=1e-5)


def test_every_parameter_has_a_gradient_and_remat_changes_nothing(tiny):
    model, variables, x = tiny

    def gradient(m):
        return jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(m.apply(v, x)))))(variables)

    plain, remat = gradient(model), gradient(t5.T5Encoder(**TINY, remat=True))
    # Only the buckets of distances up to 10 are used in the bias table.
    table = plain["params"]["relative_bias"].pop("table")
    used = t5.relative_buckets(np.arange(-10, 11), 32, 128)
    assert set(np.flatnonzero(np.any(table != 0, axis=1))) == set(used.tolist())
    for path, g in jax.tree_util.tree_leaves_with_path(plain):
        assert np.mean(np.asarray(g) != 0) > 0.5, path
    remat["params"]["relative_bias"].pop("table")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, remat)


def test_bfloat16_compute_keeps_float32_parameters(tiny):
    model, variables, x = tiny
    half = t5.T5Encoder(**TINY, dtype=jnp.bfloat16)
    params = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    y = jax.jit(half.apply)(variables, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), jax.jit(model.apply)(variables, x), atol=0.1)


def test_dropout_needs_a_key_and_acts(tiny):
    _, variables, x = tiny
    model = t5.T5Encoder(**TINY, dropout=0.5)
    apply = jax.jit(
        lambda key: model.apply(variables, x, deterministic=False, rngs={"dropout": key})
    )
    assert np.any(apply(jax.random.key(0)) != apply(jax.random.key(1)))


def test_errors(tiny):
    model, variables, x = tiny
    with pytest.raises(ValueError, match=r"x must be \(batch, tokens, 24\)"):
        model.apply(variables, x[..., :-1])
    with pytest.raises(ValueError, match="mask must be"):
        model.apply(variables, x, jnp.ones((2, 10), bool))


@pytest.mark.oracle
@pytest.mark.parametrize("tokens", [11, 300])  # 300 is past the last bucket's edge at 128
def test_equals_transformers(tokens):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=8,
        d_model=TINY["width"],
        d_kv=TINY["head_dim"],
        d_ff=TINY["mlp_dim"],
        num_layers=TINY["layers"],
        num_heads=TINY["heads"],
    )
    oracle = transformers.T5EncoderModel(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():  # move norm scales away from one, so that a missing one shows
        for value in oracle.parameters():
            value.add_(torch.from_numpy(rng.normal(size=value.shape)).float(), alpha=0.1)
    x = rng.normal(size=(2, tokens, TINY["width"])).astype(np.float32)
    mask = np.arange(tokens)[None, :] < np.array([tokens, tokens - 4])[:, None]
    with torch.no_grad():
        expected = oracle(
            inputs_embeds=torch.from_numpy(x), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state.numpy()
    state = {key: value.numpy() for key, value in oracle.state_dict().items()}
    model = t5.T5Encoder(**TINY)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = engine.convert(abstract, state, rules.TRANSFORMERS)
    got = jax.jit(model.apply)({"params": params}, x, mask)
    np.testing.assert_allclose(got, expected, atol=1e-5)
