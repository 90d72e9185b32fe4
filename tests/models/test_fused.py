"""Attention in the forms for accelerators against XLA's own, on the CPU; kernels where a compiler is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vidmotion import chunked_map
from vidmotion.models import forms, fused
from vidmotion.models.attention import attend, attend_frames
from vidmotion.models.dit import rotary

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


def arrays(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def outcome(function, *arguments):
    """Returns the value and the gradients of its product with a fixed array, in float32."""

    def total(*arguments):
        y = function(*arguments)
        weight = jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
        return (y.astype(jnp.float32).reshape(-1) * weight).sum(), y

    (_, y), gradients = jax.value_and_grad(total, tuple(range(len(arguments))), True)(*arguments)
    return [np.asarray(x, np.float32) for x in (y, *gradients)]


def near(here, there, dtype):
    for mine, theirs in zip(here, there):
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE[dtype] * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("tokens", "heads", "width", "causal"),
    [
        (32, 2, 64, True),  # the logits of both heads lie side by side
        (12, 8, 32, False),  # rows that fill no tile
        (200, 2, 64, False),
        (20, 3, 128, True),
    ],
)
def test_short_rows_interpreted(tokens, heads, width, causal):
    shape = (3, tokens, heads, width)
    qkv = arrays(0, shape, shape, shape, dtype=jnp.bfloat16)

    def plain(*qkv):
        return jax.nn.dot_product_attention(*qkv, is_causal=causal)

    def kernel(*qkv):
        with forms.of("tpu"):
            assert fused.attention(*qkv, causal=causal) is not None
            return attend(*qkv, causal=causal)

    # float32 results that narrower floats must approximate.
    exact = [x.astype(jnp.float32) for x in qkv]
    with pltpu.force_tpu_interpret_mode():
        found = outcome(kernel, *qkv)
    near(found, outcome(plain, *exact), jnp.bfloat16)


def test_short_rows_may_see_other_rows():
    q, k, v = arrays(8, (2, 24, 2, 64), *[(2, 40, 2, 64)] * 2, dtype=jnp.bfloat16)

    def kernel(*qkv):
        with forms.of("tpu"):
            return attend(*qkv)

    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    with pltpu.force_tpu_interpret_mode():
        found = outcome(kernel, q, k, v)
    near(found, outcome(jax.nn.dot_product_attention, *exact), jnp.bfloat16)


@pytest.mark.parametrize(("tokens", "width"), [(32, 64), (136, 32)])
def test_a_bias_interpreted(tokens, width):
    # Both rows in one step of the kernel's grid, or one in each; their gradients of the bias add up.
    heads = 128 // width
    shape = (2, tokens, heads, width)
    qkv = arrays(9, shape, shape, shape, dtype=jnp.bfloat16)
    (bias,) = arrays(10, (heads, tokens, tokens))

    def kernel(q, k, v, bias):
        with forms.of("tpu"):
            assert fused.attention(q, k, v, bias_hls=bias) is not None
            return attend(q, k, v, bias_hls=bias)

    def plain(q, k, v, bias):
        logits = jnp.einsum("nlhd,nshd->nhls", q, k) + bias[None]
        return jnp.einsum("nhls,nshd->nlhd", jax.nn.softmax(logits), v)

    qkv[0] = qkv[0] / width**0.5  # the logits are not scaled
    exact = [x.astype(jnp.float32) for x in (*qkv, bias)]
    with pltpu.force_tpu_interpret_mode():
        found = outcome(kernel, *qkv, bias)
    near(found, outcome(plain, *exact), jnp.bfloat16)
    near(
        outcome(lambda *given: attend(*given[:3], bias_hls=given[3]), *exact),
        outcome(plain, *exact),
        jnp.float32,
    )


@pytest.mark.parametrize(
    ("frames", "places", "causal"), [(1, 16, False), (4, 5, False), (12, 20, True)]
)
def test_frames(frames, places, causal):
    shape = (2, frames, places, 2, 64)
    qkv = arrays(1, shape, shape, shape, dtype=jnp.bfloat16)

    def plain(*qkv):
        rows = (x.swapaxes(1, 2).reshape(-1, frames, 2, 64) for x in qkv)
        y = jax.nn.dot_product_attention(*rows, is_causal=causal)
        return y.reshape(2, places, frames, 2, 64).swapaxes(1, 2)

    def here(platform):
        def function(*qkv):
            with forms.of(platform):
                assert (fused.frames(*qkv, causal) is None) == (platform != "tpu")
                return attend_frames(*qkv, causal)

        return function

    exact = [x.astype(jnp.float32) for x in qkv]
    with pltpu.force_tpu_interpret_mode():
        found = outcome(here("tpu"), *qkv)
    near(found, outcome(plain, *exact), jnp.bfloat16)
    near(outcome(here("any"), *exact), outcome(plain, *exact), jnp.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_of_the_tpu_interpreted(masked, monkeypatch):
    monkeypatch.setattr(fused, "FLASH_LOGITS", 0)
    # The keys do not fill a block, and the width does not fill the lanes.
    q, k, v = arrays(2, (2, 256, 2, 40), (2, 200, 2, 40), (2, 200, 2, 40), dtype=jnp.bfloat16)
    mask = jnp.asarray(np.random.default_rng(3).random((2, 200)) < 0.7) if masked else None

    def kernel(*qkv):
        with forms.of("tpu"):
            return attend(*qkv, mask)

    def plain(*qkv):
        where = None if mask is None else mask[:, None, None]
        return jax.nn.dot_product_attention(*qkv, mask=where)

    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    with pltpu.force_tpu_interpret_mode():
        found = outcome(kernel, q, k, v)
    near(found, outcome(plain, *exact), jnp.bfloat16)


@pytest.mark.parametrize("platform", ["gpu", "tpu", "any"])
def test_what_no_kernel_takes_is_left_to_xla(platform):
    q, k, v = arrays(4, *[(2, 128, 2, 40)] * 3)  # float32, and heads that cannot share a tile
    with forms.of(platform):
        assert fused.attention(q, k, v) is None


def test_operations_are_counted_in_xlas_form():
    q, k, v = arrays(5, *[(2, 128, 2, 64)] * 3, dtype=jnp.bfloat16)
    with forms.of("tpu"):
        assert jax.eval_shape(fused.attention, q, k, v) is not None
        with chunked_map.all_at_once():
            assert fused.attention(q, k, v) is None


def test_positions_turn_alike_in_both_forms():
    (x,) = arrays(6, (2, 5, 3, 4, 8))
    with forms.of("tpu"):
        turned = rotary(x)
    np.testing.assert_allclose(turned, rotary(x), atol=1e-6)
    # By hand: in frame 2 the first pair turns by two radians.
    first, second = x[0, 2, 0, 0, 0], x[0, 2, 0, 0, 4]
    expected = first * np.cos(2) - second * np.sin(2)
    np.testing.assert_allclose(turned[0, 2, 0, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_split_is_a_dense_layer_in_parts(platform):
    (x,) = arrays(7, (3, 6))
    layer = forms.Split(4)
    variables = layer.init(jax.random.key(0), x)
    bias = jnp.arange(12.0)
    variables = {"params": {**variables["params"], "bias": bias}}
    with forms.of(platform):
        parts = layer.apply(variables, x)
    whole = np.asarray(x) @ np.asarray(variables["params"]["kernel"]) + np.arange(12.0)[None]
    np.testing.assert_allclose(np.concatenate(parts, -1), whole, atol=1e-5)


KERNEL = """
import jax, jax.numpy as jnp, sys
from jax.sharding import NamedSharding, PartitionSpec
from configs import _shared
from vidmotion import sharding, targets
from vidmotion.models import forms
from vidmotion.models.attention import attend
from vidmotion.program import Program
*words, kind, size = sys.argv[1:]
length = int(kind) if kind.isdigit() else 0
rows, tokens, heads, width = map(int, size.split(","))
want = _shared.trunk().plan
want.update(dict(word.split("=") for word in words))
want.devices = 4
targets.prepare(want)
target = targets.find(want)
mesh = sharding.make_mesh({"data": 1, "fsdp": 4}, target.devices)
shape = (rows, tokens, heads, width)
where = PartitionSpec(None, None, None, "fsdp") if kind == "channels" else sharding.BATCH
shape = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, where))
def loss(*qkv):
    with forms.of(target.platform):
        lengths = jnp.where(jnp.arange(rows) < 2, length, tokens) if length else None
        return attend(*qkv, lengths_n=lengths).astype(jnp.float32).sum()
step = jax.jit(sharding.OnMesh(jax.grad(loss, (0, 1, 2)), mesh)).trace(shape, shape, shape)
done = step.lower(lowering_platforms=target.lowering).compile(compiler_options=target.options)
program = Program(done.as_text())
assert bool(sum(program.moved_bytes().values())) == (kind == "channels")
logits = rows // 4 * heads * tokens**2 * 4
assert not any(a["bytes"] >= logits for a in program.largest_arrays(1)), "logits"
print("kernels", program.kernels()["fused attention"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "words", "kernels"),
    [
        # One forward kernel and two for the backward pass; for short rows, one that needs nothing of the forward pass.
        ("libtpu", ("chip=v5e", "topology=2x2", "rows", "8,1024,2,40"), 3),
        ("libtpu", ("chip=v5e", "topology=2x2", "rows", "64,200,2,64"), 1),
        ("jax_cuda12_plugin", ("chip=h100", "rows", "8,1024,2,40"), 2),
        # Two rows see only their first 512 keys.
        ("jax_cuda12_plugin", ("chip=h100", "512", "8,1024,2,40"), 2),
        # As a layer whose kernel is split over its outputs may leave them.
        ("jax_cuda12_plugin", ("chip=h100", "channels", "8,1024,2,40"), 2),
    ],
)
def test_the_compiled_program_holds_the_kernel(package, words, kernels):
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, "-c", KERNEL, *words]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600)
    assert f"kernels {kernels}" in done.stdout, done.stderr[-2000:]
