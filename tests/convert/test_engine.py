"""Converts weights through a table and back; checks that every kind of mismatch is named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert import transforms as t
from vidmotion.convert.engine import (
    ConversionError,
    Ignore,
    check,
    convert,
    export,
    layer,
    norm,
    prefixed,
)


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def abstract(**shapes):
    """Builds a tree of float32 shapes from keywords; ``__`` in a keyword stands for ``/``."""
    leaf = jax.ShapeDtypeStruct
    return paths.unflatten(
        {k.replace("__", "/"): leaf(shape, jnp.float32) for k, shape in shapes.items()}
    )


# Transforms: (transform, source shape, index of one element in the source, target shape, its index in the target).


@pytest.mark.parametrize(
    ("transform", "shape", "source_at", "target_shape", "target_at"),
    [
        (t.same, (2, 3), (1, 2), (2, 3), (1, 2)),
        (t.embed, (5, 3), (4, 2), (5, 3), (4, 2)),
        (t.linear, (2, 3), (1, 2), (3, 2), (2, 1)),
        (t.linear, (4,), (3,), (4,), (3,)),
        (t.conv1d, (2, 3, 5), (1, 2, 4), (5, 3, 2), (4, 2, 1)),
        (t.conv2d, (2, 3, 5, 7), (1, 2, 4, 6), (5, 7, 3, 2), (4, 6, 2, 1)),
        (t.conv3d, (2, 3, 5, 7, 4), (1, 2, 4, 6, 3), (5, 7, 4, 3, 2), (4, 6, 3, 2, 1)),
        (t.conv_transpose, (3, 2, 5, 7), (2, 1, 0, 2), (5, 7, 3, 2), (4, 4, 2, 1)),
        (t.pointwise(2), (2, 3, 1, 1), (1, 2, 0, 0), (3, 2), (2, 1)),
        (t.heads(2), (6, 5), (4, 3), (5, 2, 3), (3, 1, 1)),
        (t.heads(2), (6,), (4,), (2, 3), (1, 1)),
        (t.heads_out(2), (5, 6), (3, 4), (2, 3, 5), (1, 1, 3)),
    ],
    ids=lambda v: v.name if isinstance(v, t.Transform) else "",
)
def test_transform_places_and_inverts(transform, shape, source_at, target_shape, target_at):
    x = numbers(*shape)
    (y,) = transform.forward([x])
    assert y.shape == target_shape
    assert y[target_at] == x[source_at]
    (back,) = transform.inverse([y])
    np.testing.assert_array_equal(back, x)


def test_structural_transforms():
    x = numbers(6, 2)
    q, k, v = t.split(3, 0, t.linear).forward([x])
    np.testing.assert_array_equal(k, x[2:4].T)
    (stacked,) = t.stack("i", t.linear).forward([x, x + 1])
    assert stacked.shape == (2, 2, 6) and stacked[1, 0, 5] == x[5, 0] + 1
    both = t.stack("i", t.split(3, 0, t.linear))
    q, k, v = both.forward([x, x + 1])
    np.testing.assert_array_equal(v[1], x[4:].T + 1)
    for back, want in zip(both.inverse([q, k, v]), [x, x + 1]):
        np.testing.assert_array_equal(back, want)


def test_transforms_do_not_nest_anyhow():
    with pytest.raises(ValueError, match="split cannot hold"):
        t.split(2, 0, t.stack("i"))
    with pytest.raises(ValueError, match="stack cannot hold"):
        t.stack("i", t.stack("j"))


@pytest.mark.oracle
def test_layers_compute_what_torch_computes():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 4)).astype(np.float32)
    pairs = [
        (
            torch.nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
            nn.ConvTranspose(6, (4, 4), (2, 2), padding=((2, 2), (2, 2))),
            t.conv_transpose,
        ),
        (
            torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.Conv(6, (3, 3), (2, 2), padding=((1, 1), (1, 1)), feature_group_count=2),
            t.conv2d,
        ),
    ]
    for module, net, transform in pairs:
        shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        state = {key: value.detach().numpy() for key, value in module.state_dict().items()}
        rules = (("kernel", "weight", transform), ("bias", "bias", transform))
        got = jax.jit(net.apply)({"params": convert(shapes, state, rules)}, x)
        want = module(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


RULES = (
    *layer("block_{i}/res_{j}/conv", "blocks.{i}.res.{j}.conv", t.conv2d),
    *norm("norm", "norm"),
    *layer(("attn/q", "attn/k", "attn/v"), "attn.qkv", t.split(3, 0, t.linear)),
    ("layers/mlp", "layers.{n}.mlp.weight", t.stack("n", t.linear)),
    ("out", ("to_out.0", "proj"), t.linear),
    Ignore("*.num_batches", "a counter"),
)
TREE = abstract(
    block_0__res_1__conv__kernel=(3, 3, 2, 4),
    block_0__res_1__conv__bias=(4,),
    norm__scale=(4,),
    norm__bias=(4,),
    attn__q__kernel=(5, 2),
    attn__k__kernel=(5, 2),
    attn__v__kernel=(5, 2),
    attn__q__bias=(2,),
    attn__k__bias=(2,),
    attn__v__bias=(2,),
    layers__mlp=(2, 3, 5),
    out=(3, 4),
)
SHAPES = {
    "blocks.0.res.1.conv.weight": (4, 2, 3, 3),
    "blocks.0.res.1.conv.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "attn.qkv.weight": (6, 5),
    "attn.qkv.bias": (6,),
    "layers.0.mlp.weight": (5, 3),
    "layers.1.mlp.weight": (5, 3),
    "to_out.0": (4, 3),
}


def source():
    return {key: numbers(*shape) + i for i, (key, shape) in enumerate(SHAPES.items())}


def test_convert_fills_and_export_returns():
    state = source()
    params = convert(TREE, state | {"norm.num_batches": np.asarray(7)}, RULES)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, TREE)
    kernel = params["block_0"]["res_1"]["conv"]["kernel"]
    assert kernel[2, 1, 0, 3] == state["blocks.0.res.1.conv.weight"][3, 0, 2, 1]
    value = params["attn"]["v"]
    np.testing.assert_array_equal(value["kernel"], state["attn.qkv.weight"][4:].T)
    np.testing.assert_array_equal(value["bias"], state["attn.qkv.bias"][4:])
    np.testing.assert_array_equal(params["layers"]["mlp"][1], state["layers.1.mlp.weight"].T)
    back = export(jax.tree.map(jnp.asarray, params), RULES)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_second_spelling_is_read_and_first_written():
    state = source()
    state["proj"] = state.pop("to_out.0")
    params = convert(TREE, state, RULES)
    np.testing.assert_array_equal(params["out"], state["proj"].T)
    assert "to_out.0" in export(params, RULES)


def test_literal_text_is_escaped():
    rules = (("a.b/{i}", "x.{i}.w", t.same),)
    assert convert({"a.b": {"12": np.ones(2)}}, {"x.12.w": np.ones(2)}, rules)
    with pytest.raises(ConversionError) as caught:
        convert({"a_b": {"1": np.ones(2)}, "a.b": {"c": np.ones(2)}}, {}, rules)
    assert caught.value.problems == (
        "target a_b/1: matches no rule",
        "target a.b/c: matches no rule",
    )


def test_repeated_field_must_repeat():
    rules = (("a_{i}/b_{i}", "w.{i}", t.same),)
    assert convert({"a_2": {"b_2": np.ones(1)}}, {"w.2": np.ones(1)}, rules)
    with pytest.raises(ConversionError, match="target a_2/b_3: matches no rule"):
        convert({"a_2": {"b_3": np.ones(1)}}, {}, rules)


def test_every_offender_is_named_at_once():
    leaf = jax.ShapeDtypeStruct
    tree = {name: leaf((2,), jnp.float32) for name in ["absent", "lonely", "twice", "half", "odd"]}
    tree |= {name: leaf((2,), jnp.float32) for name in ("one", "two", "left")}
    tree |= {"wrong": leaf((2, 3), jnp.float32), "rank": leaf((2, 2), jnp.float32)}
    rules = (
        ("absent", ("gone", "lost"), t.same),
        ("twice", "t1", t.same),
        ("twic{i}", "t3.{i}", t.same),
        ("twice", "t2", t.same),
        ("half", "half", t.same),
        ("one", "tied", t.same),
        ("two", "tied", t.same),
        (("left", "right"), "pair", t.split(2)),
        ("wrong", "wrong", t.linear),
        ("rank", "rank", t.conv2d),
        ("odd", "odd.{i}", t.stack("i")),
        Ignore("ignored", "not wanted"),
    )
    state = {key: np.ones(2, np.float32) for key in ("t1", "t2", "tied", "spare", "ignored")}
    state |= {"half": np.ones(2, np.float16), "pair": np.ones(4, np.float32)}
    state |= {"wrong": np.ones((2, 3), np.float32), "rank": np.ones((2, 2), np.float32)}
    state |= {"odd.0": np.ones((), np.float32), "odd.2": np.ones((), np.float32)}
    with pytest.raises(ConversionError) as caught:
        convert(tree, state, rules)
    assert set(caught.value.problems) == {
        "target lonely: matches no rule",
        "target twice: matches several rules: t1; t2",
        "target absent: no source gone, nor lost",
        "target left, right: the tree lacks right",
        "target odd: no source odd.1",
        "target wrong: shape (2, 3), but wrong (linear) gives (3, 2)",
        "target half: dtype float32, but half (same) is float16; "
        "read half precision with float32=True",
        "source rank: conv2d: needs 4 axes, got shape (2, 2)",
        "source tied: used more than once, for one and for two",
        "source t2: no rule uses it and none ignores it",
        "source spare: no rule uses it and none ignores it",
        "source pair: no rule uses it and none ignores it",
        "source odd.2: no rule uses it and none ignores it",
    }
    for problem in caught.value.problems:
        assert problem in str(caught.value)


def test_export_names_its_offenders():
    rules = (
        ("a", "x", t.same),
        ("b", "x", t.same),
        ("c", "c", t.heads(2)),
        (("d", "e"), "de", t.split(2)),
    )
    params = {"a": np.ones(1), "b": np.ones(1), "c": np.ones((3, 1)), "d": np.ones(1), "f": 0.0}
    with pytest.raises(ConversionError) as caught:
        export(params, rules)
    assert set(caught.value.problems) == {
        "source x: written a second time by b",
        "target c: heads(2): needs 2 heads on the last axis but one, got shape (3, 1)",
        "target d, e: the tree lacks e",
        "target f: matches no rule",
    }


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (("a_{i}", "b", t.same), "fields"),
        (("a", "b.{i}", t.same), "fields"),
        (("a_{i}", "b.{i}", t.stack("i")), "fields"),
        (("a", "b", t.stack("i")), "fields"),
        (("a", ("b", "c.{i}"), t.same), "fields"),
        ((("a", "b"), "c", t.split(3)), "makes 3 target"),
    ],
)
def test_irreversible_rules_are_refused(rule, fault):
    with pytest.raises(ConversionError, match=fault):
        convert({"z": np.ones(1)}, {}, [rule])


def test_check_compares_shapes_alone():
    check(TREE, SHAPES | {"norm.num_batches": ()}, RULES)
    with pytest.raises(ConversionError, match=r"target out: shape \(3, 4\)"):
        check(TREE, SHAPES | {"to_out.0": (3, 4)}, RULES)


def test_prefixed_table_serves_the_larger_network():
    rules = prefixed(RULES, target="net/", source="model.net.")
    state = {f"model.net.{key}": value for key, value in source().items()}
    state["model.net.norm.num_batches"] = np.asarray(7)
    params = convert({"net": TREE}, state, rules)
    want = convert(TREE, source(), RULES)
    jax.tree.map(np.testing.assert_array_equal, params["net"], want)
