"""The grammar of path rules, on trees small enough to check by eye."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidmotion import paths
from vidmotion.errors import ConfigError
from vidmotion.paths import RuleError

TREE = {"encoder": {"dense": {"kernel": 1, "bias": 2}}, "decoder": {"kernel": 3}}

leaves = st.integers()
keys = st.text("abc_0", min_size=1, max_size=3)
trees = st.recursive(
    leaves, lambda t: st.dictionaries(keys, t, min_size=1, max_size=3), max_leaves=8
)
dicts = st.dictionaries(keys, trees, max_size=3)


def test_flatten_joins_keys_in_the_trees_order():
    assert list(paths.flatten(TREE).items()) == [
        ("encoder/dense/kernel", 1),
        ("encoder/dense/bias", 2),
        ("decoder/kernel", 3),
    ]


def test_lists_and_none_are_leaves():
    assert paths.flatten({"a": [1, 2], "b": {"c": None}}) == {"a": [1, 2], "b/c": None}


@given(dicts)
def test_unflatten_inverts_flatten(tree):
    assert paths.unflatten(paths.flatten(tree)) == tree


def test_the_first_full_match_wins():
    rules = (
        (".*/bias", "b"),
        ("encoder/.*", "e"),
        ("kernel", "never: not a full match"),
        (".*", "r"),
    )
    assert paths.assign(rules, TREE) == {
        "encoder": {"dense": {"kernel": "e", "bias": "b"}},
        "decoder": {"kernel": "r"},
    }


def test_values_may_be_anything_false_or_none_included():
    assert paths.flatten(paths.assign(((".*bias", None), (".*", False)), TREE)) == {
        "encoder/dense/kernel": False,
        "encoder/dense/bias": None,
        "decoder/kernel": False,
    }


def test_leaves_without_a_rule_are_all_listed():
    with pytest.raises(RuleError) as caught:
        paths.assign((("encoder/.*/kernel", 1),), TREE, "optimizer.rate")
    message = str(caught.value)
    assert "optimizer.rate" in message and "encoder/dense/bias, decoder/kernel" in message
    assert "encoder/dense/kernel" not in message
    assert isinstance(caught.value, ConfigError)


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(RuleError, match=r"leaf_11 and 8 more"):
        paths.assign((), {f"leaf_{i}": 0 for i in range(20)})


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((("(", 1),), r"'\(' is not a regular expression"),
        ((".*", 1), r"a rule must be a pair.*'\.\*'"),
        (((".*", 1, 2),), "a rule must be a pair"),
        ((3,), "a rule must be a pair.*3"),
        (3, "sequence of pairs.*3"),
        (((None, 1),), "not a regular expression"),
    ],
)
def test_malformed_rules_are_named(rules, named):
    with pytest.raises(RuleError, match=f"here: .*{named}"):
        paths.assign(rules, TREE, "here")


@given(dicts, st.data())
def test_select_and_merge_take_a_tree_apart_and_join_it(tree, data):
    flat = paths.flatten(tree)
    mask = paths.unflatten({path: data.draw(st.booleans()) for path in flat})
    inverse = paths.unflatten({path: not flag for path, flag in paths.flatten(mask).items()})
    taken, left = paths.select(tree, mask), paths.select(tree, inverse)
    assert not paths.flatten(taken).keys() & paths.flatten(left).keys()
    assert paths.merge(left, taken) == tree


def test_merge_prefers_the_later_tree():
    merged = paths.merge(TREE, {"decoder": {"kernel": 4, "bias": 5}})
    assert merged["decoder"] == {"kernel": 4, "bias": 5} and TREE["decoder"] == {"kernel": 3}
    assert merged["encoder"] == TREE["encoder"]
