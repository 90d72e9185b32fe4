"""GPT-2 trunk: equality with transformers' GPT2Model, cached decoding, causality, sizes, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.convert import engine
from vidmotion.convert.transforms import embed, same, split
from vidmotion.models import gpt2

TINY = dict(width=24, layers=2, heads=3, max_positions=12)

QKV = tuple(f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value"))
RULES = (  # transformers' GPT2Model stores dense kernels as (in, out), like Flax
    ("positions/embedding", "wpe.weight", embed),
    *engine.norm("layer_{i}/attention_norm", "h.{i}.ln_1"),
    (tuple(f"{name}/kernel" for name in QKV), "h.{i}.attn.c_attn.weight", split(3, -1)),
    (tuple(f"{name}/bias" for name in QKV), "h.{i}.attn.c_attn.bias", split(3, -1)),
    *engine.layer("layer_{i}/attention/out", "h.{i}.attn.c_proj", same),
    *engine.norm("layer_{i}/mlp_norm", "h.{i}.ln_2"),
    *engine.layer("layer_{i}/wi", "h.{i}.mlp.c_fc", same),
    *engine.layer("layer_{i}/wo", "h.{i}.mlp.c_proj", same),
    *engine.norm("final_norm", "ln_f"),
    engine.Ignore("wte.weight", "the vocabulary: this trunk reads embeddings"),
)


@pytest.fixture(scope="module")
def tiny():
    """Returns a tiny trunk, its parameters, and inputs (2, 9, 24)."""
    model = gpt2.GPT2(**TINY)
    x = jax.random.normal(jax.random.key(1), (2, 9, TINY["width"]))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_parameter_count_of_the_paper():
    model = gpt2.GPT2(width=1024, layers=12, heads=8, max_positions=128)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 1024), jnp.float32)
    )
    closed_form = 12 * (12 * 1024**2 + 13 * 1024) + 128 * 1024 + 2 * 1024
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == closed_form == 151_287_808


def test_initial_scales():
    model = gpt2.GPT2(width=128, layers=2, heads=4, max_positions=128)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2, 128)))["params"]
    np.testing.assert_allclose(np.std(params["positions"]["embedding"]), 0.02, rtol=0.03)
    for i in range(2):
        layer = params[f"layer_{i}"]
        for dense in (*(layer["attention"][n] for n in ("query", "key", "value")), layer["wi"]):
            np.testing.assert_allclose(np.std(dense["kernel"]), 0.02, rtol=0.03)
        for dense in (layer["attention"]["out"], layer["wo"]):  # 0.02 / sqrt(2 * 2 layers)
            np.testing.assert_allclose(np.std(dense["kernel"]), 0.01, rtol=0.03)
            np.testing.assert_array_equal(dense["bias"], 0.0)


def test_causal(tiny):
    model, variables, x = tiny
    apply = jax.jit(lambda x: model.apply(variables, x)[0])
    y, changed = apply(x), apply(x.at[:, 5].multiply(-1.0))
    np.testing.assert_allclose(changed[:, :5], y[:, :5], atol=1e-6)
    assert np.all(np.abs(changed[:, 5:] - y[:, 5:]).max(-1) > 1e-4)


def test_cached_equals_full(tiny):
    model, variables, x = tiny
    full, none = jax.jit(model.apply)(variables, x)
    assert none is None
    prefill, cache = jax.jit(model.apply)(variables, x[:, :4], model.init_cache(2, 9))

    def step(cache, x_bd):
        y, cache = model.apply(variables, x_bd[:, None], cache)
        return cache, y[:, 0]

    cache, rest = jax.jit(lambda c, x: jax.lax.scan(step, c, x))(cache, x[:, 4:].swapaxes(0, 1))
    np.testing.assert_allclose(prefill, full[:, :4], atol=1e-5)
    np.testing.assert_allclose(rest.swapaxes(0, 1), full[:, 4:], atol=1e-5)
    assert cache.length == 9
    assert [keys.shape for keys in cache.keys_bthk] == 2 * [(2, 9, 3, 8)]


def test_positions_pick_rows_of_the_table(tiny):
    model, variables, x = tiny
    apply = jax.jit(model.apply)
    rows = jnp.array([[3, 4, 5], [0, 1, 2]])
    table = variables["params"]["positions"]["embedding"]
    without = {"params": {**variables["params"], "positions": {"embedding": 0 * table}}}
    expected, _ = apply(without, x[:, :3] + table[rows])
    np.testing.assert_allclose(apply(variables, x[:, :3], None, rows)[0], expected, atol=1e-5)


def test_running_past_the_table_is_not_silent(tiny):
    model, variables, x = tiny
    cache = model.init_cache(2)._replace(length=jnp.int32(11))
    y, cache = jax.jit(model.apply)(variables, x[:, :1], cache)
    assert np.all(np.isfinite(y))
    y, _ = jax.jit(model.apply)(variables, x[:, :1], cache)
    assert np.all(np.isnan(y))


def test_every_parameter_has_a_gradient(tiny):
    model, variables, x = tiny
    grad = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(model.apply(v, x)[0]))))(variables)["params"]
    for i in range(TINY["layers"]):
        # A softmax ignores what is added to all of its logits, so this gradient is zero up to rounding.
        assert np.abs(grad[f"layer_{i}"]["attention"]["key"].pop("bias")).max() < 1e-5
    positions = grad.pop("positions")["embedding"]
    assert np.all(positions[:9] != 0)
    assert np.all(positions[9:] == 0)
    for path, g in jax.tree_util.tree_leaves_with_path(grad):
        assert np.mean(np.asarray(g) != 0) > 0.9, path


def test_bfloat16_compute_keeps_float32_parameters(tiny):
    model, variables, x = tiny
    half = gpt2.GPT2(**TINY, dtype=jnp.bfloat16)
    params = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    y, cache = jax.jit(half.apply)(variables, x, half.init_cache(2))
    assert y.dtype == cache.keys_bthk[0].dtype == jnp.bfloat16
    full, _ = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), full, atol=0.1)


def test_dropout_needs_a_key_and_acts(tiny):
    model, variables, x = tiny

    @jax.jit
    def apply(key):
        return model.apply(variables, x, deterministic=False, rngs={"dropout": key})[0]

    assert np.any(apply(jax.random.key(0)) != apply(jax.random.key(1)))


def test_errors(tiny):
    model, variables, x = tiny
    with pytest.raises(ValueError, match="do not divide"):
        gpt2.GPT2(**{**TINY, "heads": 5}).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"x must be \(batch, positions, 24\)"):
        model.apply(variables, x[..., :-1])
    with pytest.raises(ValueError, match="there is room for 12"):
        model.apply(variables, jnp.tile(x, (1, 2, 1)))
    with pytest.raises(ValueError, match="there is room for 4"):
        model.apply(variables, x, model.init_cache(2, 4))
    with pytest.raises(ValueError, match="13 positions asked for"):
        model.init_cache(2, 13)


@pytest.mark.oracle
def test_equals_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=8,
        n_embd=TINY["width"],
        n_layer=TINY["layers"],
        n_head=TINY["heads"],
        n_positions=TINY["max_positions"],
    )
    oracle = transformers.GPT2Model(config).eval()
    rng = np.random.default_rng(0)
    # Move biases and norms away from their initial values, so that a missing one shows.
    with torch.no_grad():
        for value in oracle.parameters():
            value.add_(torch.from_numpy(rng.normal(size=value.shape)).float(), alpha=0.1)
    x = rng.normal(size=(2, 9, TINY["width"])).astype(np.float32)
    with torch.no_grad():
        expected = oracle(inputs_embeds=torch.from_numpy(x)).last_hidden_state.numpy()
    state = {key: value.numpy() for key, value in oracle.state_dict().items()}
    model = gpt2.GPT2(**TINY)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = engine.convert(abstract, state, RULES)
    got, _ = jax.jit(model.apply)({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)
