"""The plan for many devices: traffic counted by hand, a line to the largest batch, bad input."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_plan import LAYERS, ROWS, WIDTH, Stack, _stack, config  # noqa: F401  (a fixture used by all)

from vidmotion import hardware, plan, sharding, system
from vidmotion.errors import ConfigError
from vidmotion.plan import Compiled
from vidmotion.run import Run
from vidmotion.system import Out

# Four devices: an all-reduce of 32 floats, a loop of three rounds around an all-gather of 64 bytes, a
# reduce-scatter that leaves 8 bfloat16, an all-to-all of 40 bytes, a permute of 5.
PROGRAM = """\
HloModule jit_update, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %all-gather.1 = f32[16]{0} all-gather(%x), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t = (s32[], f32[16]) tuple(%i, %all-gather.1)
}

%condition (p: (s32[], f32[16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[32]) -> f32[32] {
  %all-reduce = (f32[16]{0}, f32[4,4]{1,0}) all-reduce(%p, %q), replica_groups={{0,1,2,3}}, to_apply=%sum
  %while.1 = (s32[], f32[16]) while(%init), condition=%condition, body=%body@ROUNDS@
  %rs = bf16[8]{0} reduce-scatter(%r), replica_groups=[2,2]<=[4], dimensions={0}, to_apply=%sum
  %a2a = s8[40]{0} all-to-all(%v), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
  %cp = u8[5]{0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[32] copy(%p)
}
"""


def test_traffic_of_a_program_reckoned_by_hand():
    told = PROGRAM.replace("@ROUNDS@", ', backend_config={"known_trip_count":{"n":"3"}}')
    expected = {
        "all-reduce": 2 * 128 * 3 // 4,
        "all-gather": 3 * 64 * 3 // 4,
        "reduce-scatter": 16 * 1,  # groups of two: half of 32 bytes leaves
        "all-to-all": 20,  # along one of two axes of two
        "collective-permute": 5,
    }
    assert plan.moved_bytes(told) == (expected, 0)
    assert plan.moved_bytes(PROGRAM.replace("@ROUNDS@", "")) == (expected | {"all-gather": 48}, 1)


@pytest.mark.parametrize(
    ("peak", "limit", "best"),
    [
        (lambda n: 100 + 7 * n, 1000, 128),  # 100 + 7 * 128 = 996, a multiple of 8
        (lambda n: 100 + 7 * n + (n > 64) * 300, 1000, 80),  # a step that no line foretells
        (lambda n: 100 + 7 * n, 100, 0),
    ],
)
def test_largest_batch_fits_and_the_next_does_not(peak, limit, best):
    first = Compiled(32, peak(32), 0, 0, 0, {}, 0)
    size, held = plan.largest_batch(peak, first, 8, limit)
    assert size == best
    assert held == peak(best or 8)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_compiled_for_eight_devices(fsdp):
    made = config(
        **{"mesh.data": 8 // fsdp, "mesh.fsdp": fsdp, "plan.devices": 8, "plan.fit": False}
    )
    run = Run(made, "")
    figures = plan.compiled(run, run.flops_per_step())
    weights = 4 * LAYERS * WIDTH**2
    batch = 4 * WIDTH * ROWS // 8
    state = figures["state_bytes"]
    assert state == 4 * weights // fsdp + 3 * 4
    # What comes in: the state and this device's rows; a leaf may be padded to the alignment of arrays.
    assert figures["arguments_bytes"] == pytest.approx(state + batch, rel=0.01)
    assert figures["peak_bytes"] >= state + batch
    moved = figures["moved_bytes"]
    if fsdp == 1:
        # One all-reduce of the gradient; beside it the loss.
        assert moved["all-reduce"] == pytest.approx(2 * weights * 7 / 8, rel=0.01)
        assert moved["all-gather"] == 0
    else:
        assert sum(moved.values()) > 0
    chip = hardware.chip("h100")
    compute = figures["flops"] / 8 / (chip.flops * 0.4)
    assert figures["seconds"]["compute"] == pytest.approx(compute)
    assert figures["step_seconds"] == max(figures["seconds"].values())


@pytest.mark.parametrize("fsdp", [1, 8])
def test_an_unfinished_program_takes_what_the_finished_one_does(fsdp):
    run = Run(config(**{"mesh.data": 8 // fsdp, "mesh.fsdp": fsdp, "plan.devices": 8}), "")
    here = plan.compile_update(run)
    program = run.lower_update().compile(
        compiler_options=plan.COMPILER | sharding.compiler_options(run.mesh)
    )
    there = program.memory_analysis()
    assert here.moved == plan.moved_bytes(program.as_text())[0]
    assert here.arguments == there.argument_size_in_bytes
    assert here.aliased == there.alias_size_in_bytes
    # One number more comes out, where the compiler is told to end.
    assert 0 <= here.outputs - there.output_size_in_bytes <= 64
    assert here.temporaries == pytest.approx(there.temp_size_in_bytes, abs=256)


class Deep(Stack):
    """Layers with two arrays within, which are held or computed again."""

    def loss(self, player, vars, batch, key, step, carry):
        def layer(x, w):
            return x + jnp.tanh(jnp.tanh(x @ w) @ w) @ w

        layer = jax.checkpoint(layer) if self.remat else layer
        x = batch["x"]
        for w in vars.params["model"]["w"]:
            x = layer(x, w)
        return jnp.mean(x**2), Out({}, vars.mutable)


def test_what_is_computed_again_takes_no_memory(monkeypatch):
    monkeypatch.setitem(system.SYSTEMS, "deep", "test_plan_devices:Deep")
    one = {"system.name": "deep", "mesh.data": 8, "plan.devices": 8, "batch_size": 64 * ROWS}
    kept, again = (
        plan.compile_update(Run(config(**one, **{"system.remat": remat}), ""))
        for remat in (False, True)
    )
    held = 4 * WIDTH * 8 * ROWS  # one array of a layer, on one device
    assert kept.temporaries - again.temporaries > 2 * (LAYERS - 2) * held


def test_a_compiler_that_says_nothing_of_memory_is_named(monkeypatch):
    monkeypatch.setattr(plan, "_compile", lambda *_: None)
    with pytest.raises(ConfigError, match="writes no buffer assignment"):
        plan.compile_update(Run(config(**{"plan.devices": 8}), ""))


def test_assigned_bytes():
    text = """BufferAssignment:
allocation 0: size 400, parameter 2, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
 value: <1 p @0> (size=400,offset=0): f32[100]{0}
allocation 1: size 80, parameter 0, shape |f32[20]| at ShapeIndex {}:
allocation 2: size 16, output shape is |(f32[100], f32[])|, maybe-live-out:
allocation 3: size 4, thread-local:
allocation 4: size 8, constant:
allocation 5: size 1024, preallocated-temp:
 value: <9 t @0> (size=1024,offset=0): f32[256]{0}
"""
    assert plan.assigned_bytes(text) == (480, 416, 400, 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan.chip": "abacus"}, "'abacus' is not known; choose from"),
        ({"plan.devices": 64}, "mesh has 8 device"),
        ({"plan.efficiency": 1.5}, "share of the peak"),
        ({"plan.memory_gib": -1.0}, "GiB, or 0"),
        ({"plan.measure": True}, "weighs this process"),
    ],
)
def test_bad_input_is_one_sentence(changes, message, monkeypatch):
    monkeypatch.setattr(Run, "lower_update", None)  # refused before anything long
    with pytest.raises(ConfigError, match=message) as caught:
        plan.plan(Run(config(**{"plan.devices": 8, **changes}), ""))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_prediction_is_near_what_the_process_takes(monkeypatch):
    alone = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", alone)
    rows = 2**16
    made = config(batch_size=rows, **{"plan.devices": 1, "plan.fit": False, "plan.measure": True})
    run = Run(made, "")
    figures = plan.compiled(run, run.flops_per_step())
    weighed = figures["measured"]
    # Parameters, two moments and the average; step and two counts; the batch.
    assert weighed["arrays"] == 4 * 4 * LAYERS * WIDTH**2 + 3 * 4 + 4 * WIDTH * rows
    # The outputs of all layers but the last are kept for the backward pass.
    assert weighed["growth"] > 0.8 * (LAYERS - 1) * 4 * WIDTH * rows
    both = weighed["arrays"] + weighed["growth"]
    assert figures["peak_bytes"] == pytest.approx(both, rel=0.25)
