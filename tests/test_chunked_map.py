"""Work in pieces: the result is the same, each device works on its own rows, and all operations are counted."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import chunked_map, sharding
from vidmotion.models.attention import Attention, FeedForward, attend
from vidmotion.models.blocks import Upsample


def test_a_program_on_a_mesh_knows_over_how_many_devices_rows_are_cut():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    seen = []

    def look(x):
        seen.append([chunked_map.row_shards(rows) for rows in (8, 4, 6, 1)])
        return x

    jax.jit(look)(1.0)
    program = jax.jit(sharding.OnMesh(look, mesh))
    program(1.0)
    jax.jit(sharding.OnMesh(look, mesh))(1.0)  # the same program, which is not traced again
    jax.jit(jax.grad(sharding.OnMesh(look, mesh.abstract_mesh)))(1.0)
    assert seen == [[1, 1, 1, 1], [4, 4, 1, 1], [4, 4, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("rows", [8, 24])
def test_each_device_goes_through_its_own_rows(rows, size):
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
    where = sharding.batch(mesh)
    x = jax.device_put(jnp.arange(rows * 3.0).reshape(rows, 3), where)

    def halved(pair):
        a, b = pair
        return {"half": a / 2, "sum": jnp.sum(b)}

    def whole(x):
        return chunked_map.each(halved, (x, x), size, chunked_map.row_shards(rows))

    program = jax.jit(sharding.OnMesh(whole, mesh))
    text = program.lower(x).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", text)
    got = program(x)
    np.testing.assert_array_equal(got["half"], x / 2)
    np.testing.assert_array_equal(got["sum"], np.sum(x, 1))
    assert got["half"].sharding.shard_shape((rows, 3)) == (rows // 8, 3)
    # Without `row_shards`, the loop over the rows brings every row to every device.
    naive = jax.jit(sharding.OnMesh(lambda x: chunked_map.each(halved, (x, x), size), mesh))
    assert "all-gather" in naive.lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Upsample(), (16, 4, 4, 16)), (Attention(2), (16, 4, 16)), (FeedForward(), (16, 4, 16))],
    ids=["Upsample", "Attention", "FeedForward"],
)
def test_layers_with_kernels_cut_over_devices_keep_their_rows(layer, shape):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8})
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.batch(mesh))
    kernels = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(shape)))["params"]
    where = sharding.of_params(kernels, sharding.DEFAULT_RULES, mesh)
    kernels = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        kernels,
        where,
    )

    def both(kernels, x):
        y, back = jax.vjp(lambda x: layer.apply({"params": kernels}, x), x)
        return y, back(y)

    program = jax.jit(sharding.OnMesh(both, mesh)).lower(kernels, x).compile()
    # Left to itself, XLA cuts the channels of Upsample's result, and the gradient not at all.
    assert all(cut.spec[:1] == ("fsdp",) for cut in jax.tree.leaves(program.output_shardings))


def test_inside_a_piece_there_are_no_rows_to_cut():
    mesh, seen = sharding.make_mesh({"data": 8}), []

    def look(x):
        seen.append(chunked_map.row_shards(8))
        return x

    jax.jit(sharding.OnMesh(lambda x: chunked_map.each(look, x, 1, 8), mesh))(jnp.ones(8))
    assert seen == [1]


def test_operations_are_counted_as_if_all_at_once():
    shape = jax.ShapeDtypeStruct((8, 64, 2, 16), jnp.float32)

    def flops(limit):
        def whole(*a):
            with chunked_map.all_at_once():
                return attend(*a, limit=limit)

        return jax.jit(whole).lower(shape, shape, shape).cost_analysis()["flops"]

    assert flops(64) == flops(10**9) > 2 * 2 * 8 * 2 * 64 * 64 * 16
