"""Sharding rules on small meshes; what cannot be cut evenly is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vidmotion import sharding
from vidmotion.errors import ConfigError
from vidmotion.paths import RuleError

MESH = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
FLAT = sharding.make_mesh({"fsdp": 8})


@pytest.mark.parametrize(
    ("shape", "value", "mesh", "expected"),
    [
        ((64, 64), None, MESH, P()),
        ((8, 8), "fsdp", MESH, P()),  # below MIN_SIZE
        ((32, 64), "fsdp", MESH, P(None, "fsdp")),  # the largest dimension
        ((64, 64), "fsdp", MESH, P(None, "fsdp")),  # of two equal dimensions the last
        ((4096, 3), "fsdp", MESH, P("fsdp", None)),
        ((1023, 33), "fsdp", MESH, P()),  # no dimension can be divided
        ((1023, 32), "fsdp", MESH, P(None, "fsdp")),  # the largest dimension that can be divided
        ((4, 1023), "fsdp", FLAT, P()),  # 4 < 8
        ((64, 64), "data", FLAT, P()),  # an axis of size 1 cuts nothing
        ((64, 32), ("fsdp", "tensor"), MESH, P("fsdp", "tensor")),
        ((12, 64, 32), ("fsdp", "tensor"), MESH, P(None, "fsdp", "tensor")),  # stacked by scan
        ((2048,), ("fsdp", "tensor"), MESH, P("tensor")),  # axes are aligned to the right
        ((33, 32), ("fsdp", "tensor"), MESH, P(None, "tensor")),
        ((64, 33), ("fsdp", "tensor"), MESH, P("fsdp", None)),
        ((64, 64), (None, "tensor"), MESH, P(None, "tensor")),
        ((), ("fsdp",), MESH, P()),
    ],
)
def test_spec(shape, value, mesh, expected):
    assert sharding.spec(shape, value, mesh) == expected


@pytest.mark.parametrize("value", ["fdsp", ("fsdp", "model"), ("fsdp", "fsdp"), (("fsdp",),)])
def test_a_rule_with_a_wrong_axis_is_refused(value):
    with pytest.raises(ConfigError, match=r"config\.sharding.*data, fsdp, tensor"):
        sharding.spec((64, 64), value, MESH)


def test_params_are_placed_by_the_first_rule_that_matches():
    tree = {"model": {"wide": jnp.zeros((64, 32)), "narrow": jnp.zeros(3)}}
    where = sharding.of_params(tree, (("model/wide", ("tensor", None)), (".*", "fsdp")), MESH)
    placed = jax.device_put(tree, where)
    wide = placed["model"]["wide"]
    assert wide.sharding.spec == P("tensor", None)
    assert {shard.data.shape for shard in wide.addressable_shards} == {(32, 32)}
    assert placed["model"]["narrow"].sharding.is_fully_replicated
    # 64 * 32 / 2 + 3 numbers of 4 bytes on each device
    assert sharding.bytes_per_device(tree, where) == 4 * (64 * 32 // 2 + 3)
    with pytest.raises(RuleError, match="model/narrow"):
        sharding.of_params(tree, ((".*wide", None),), MESH)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ({}, None),
        ({"data": -1}, (8, 1, 1)),
        ({"data": -1, "tensor": 4}, (2, 1, 4)),
        ({"fsdp": 8}, (1, 8, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": -1, "fsdp": 4}, (2, 4, 1)),
        ({"data": -1, "fsdp": 64}, (1, 8, 1)),  # fewer devices than that: all of them
        ({"data": -1, "fsdp": 8, "tensor": 2}, (1, 4, 2)),
    ],
)
def test_mesh_sizes(shape, sizes):
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = sharding.make_mesh(shape, devices)
    assert tuple(mesh.shape.values()) == (sizes or (1, 1, 1))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model": 2}, r"unknown axes \['model'\].*data, fsdp, tensor"),
        ({"data": -1, "fsdp": -1}, "at most one axis may be -1"),
        ({"data": 3}, "needs 3 devices, but there are 8"),
        ({"data": -1, "tensor": 3}, "needs a multiple of 3 devices, but there are 8"),
        ({"data": 0}, "positive or -1"),
        ({"data": -2}, "positive or -1"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(shape)


def test_an_abstract_mesh_may_be_larger_than_the_machine():
    mesh = sharding.make_mesh({"data": 4, "fsdp": 64}, abstract=True)
    tree = {
        "w": jax.ShapeDtypeStruct((1024, 512), jnp.float32),
        "b": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    where = sharding.of_params(tree, sharding.DEFAULT_RULES, mesh)
    assert sharding.bytes_per_device(tree, where) == 4 * (1024 * 512 // 64 + 512)


@pytest.mark.parametrize(
    ("size", "accumulate", "processes", "near"),
    [
        (20, 2, 1, "use 16 or 24"),
        (4, 2, 1, "use 8"),
        (0, 1, 1, "use 4"),
        (30, 1, 2, "use 28 or 32"),
    ],
)
def test_a_batch_that_cannot_be_cut_names_those_that_can(size, accumulate, processes, near):
    with pytest.raises(ConfigError, match=rf"batch_size={size} .*4 mesh shards.*{near}"):
        sharding.check_batch_size(size, MESH, accumulate, processes)
    sharding.check_batch_size(24, MESH, accumulate, processes)


def test_processes_that_would_need_the_same_rows_are_refused():
    tensor = sharding.make_mesh({"tensor": 8})
    with pytest.raises(ConfigError, match="2 processes cannot share 1 batch shards"):
        sharding.check_batch_size(8, tensor, 1, 2)


def test_a_batch_lies_in_row_order_over_data_and_fsdp():
    rows = {"x": np.arange(8 * 3).reshape(8, 3)}
    x = sharding.put_batch(rows, MESH)["x"]
    np.testing.assert_array_equal(x, rows["x"])
    held = {device: index[0] for device, index in x.sharding.devices_indices_map(x.shape).items()}
    for position, device in np.ndenumerate(MESH.devices):
        start = 2 * (2 * position[0] + position[1])  # neighbours along tensor hold the same rows
        assert held[device] == slice(start, start + 2)


def test_this_compiler_takes_the_options_of_this_project():
    mesh = sharding.make_mesh({"data": -1})
    x = jnp.arange(12.0).reshape(3, 4)
    product = jax.jit(lambda x: x @ x.T + 1, compiler_options=sharding.compiler_options(mesh))(x)
    np.testing.assert_allclose(product, np.asarray(x) @ np.asarray(x).T + 1)


@pytest.mark.parametrize(
    ("mesh", "rule", "expected"),
    [
        ({"data": 8}, None, ("data", None)),  # whole rows
        ({"data": 4, "fsdp": 2}, "fsdp", ("data", "fsdp")),
        ({"data": 4, "fsdp": 2}, ("fsdp", None), (("fsdp", "data"), None)),
        ({"data": 1, "fsdp": 8}, "fsdp", (None, "fsdp")),
    ],
)
def test_slots_are_split_over_data_as_well(mesh, rule, expected):
    mesh = sharding.make_mesh(mesh)
    leaf = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    where = jax.sharding.NamedSharding(mesh, sharding.spec(leaf.shape, rule, mesh))
    found = sharding.also_over_data(leaf, where)
    assert found.spec == jax.sharding.PartitionSpec(*expected)
    assert found.shard_shape(leaf.shape)[0] * found.shard_shape(leaf.shape)[1] == 32 * 64 // 8


def test_rows_are_cut_where_there_are_too_few():
    mesh = sharding.make_mesh({"data": 8})
    leaf = jax.ShapeDtypeStruct((12, 1024), jnp.float32)
    found = sharding.also_over_data(leaf, sharding.replicated(mesh))
    assert found.spec == jax.sharding.PartitionSpec(None, "data")


def test_small_or_odd_slots_stay_as_they_are():
    mesh = sharding.make_mesh({"data": 8})
    for shape in ((8,), (33, 35)):
        where = sharding.replicated(mesh)
        assert sharding.also_over_data(jax.ShapeDtypeStruct(shape, jnp.float32), where) is where
