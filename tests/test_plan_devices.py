"""The plan for many devices: memory and traffic by hand, the search for the largest batch, bad input."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_plan import LAYERS, ROWS, WIDTH, Stack, _stack, config  # noqa: F401  (a fixture used by all)

from vidmotion import hardware, plan, sharding, system, targets
from vidmotion.errors import ConfigError
from vidmotion.plan import Compiled
from vidmotion.run import Run
from vidmotion.system import Out


@pytest.fixture(autouse=True)
def _no_other_compiler(monkeypatch):
    """Makes the chips' own compilers count as absent."""
    monkeypatch.setattr(targets, "_PACKAGES", dict.fromkeys(("tpu", "gpu"), ("no_such_package",)))


def compile_update(run):
    return plan.compile_update(run, targets.find(run.config.plan))


@pytest.mark.parametrize(
    ("peak", "limit", "best"),
    [
        (lambda n: 100 + 7 * n, 1000, 128),  # 100 + 7 * 128 = 996, a multiple of 8
        (lambda n: 100 + 7 * n + (n > 64) * 300, 1000, 80),  # a jump that no straight line predicts
        (lambda n: 100 + 7 * n, 100, 0),
    ],
)
def test_largest_batch_fits_and_the_next_does_not(peak, limit, best):
    first = Compiled(32, peak(32), 0, 0, 0)
    size, held = plan.largest_batch(peak, first, 8, limit)
    assert size == best
    assert held == peak(best or 8)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_compiled_for_eight_devices(fsdp):
    made = config(
        **{"mesh.data": 8 // fsdp, "mesh.fsdp": fsdp, "plan.devices": 8, "plan.fit": False}
    )
    run = Run(made, "")
    figures = plan.compiled(run, targets.find(run.config.plan), run.flops_per_step())
    weights = 4 * LAYERS * WIDTH**2
    batch = 4 * WIDTH * ROWS // 8
    state = figures["state_bytes"]
    # Slots and averages are split over all devices, parameters over fsdp alone; there are three counters.
    assert state == weights // fsdp + 3 * weights // 8 + 3 * 4
    # The arguments are the state and this device's rows; a leaf may be padded to the alignment of arrays.
    assert figures["arguments_bytes"] == pytest.approx(state + batch, rel=0.01)
    assert figures["peak_bytes"] >= state + batch
    moved = figures["moved_bytes"]
    if fsdp == 1:
        # One all-reduce of the gradient and the loss, which other compilers turn into a reduce-scatter; and the updated
        # parameters are gathered.
        assert moved["all-reduce"] == pytest.approx(2 * weights * 7 / 8, rel=0.01)
        assert moved["all-gather"] == pytest.approx(weights * 7 / 8, rel=0.01)
    else:
        assert sum(moved.values()) > 0
    chip = hardware.chip("h100")
    compute = figures["flops"] / 8 / (chip.flops * 0.4)
    assert figures["seconds"]["compute"] == pytest.approx(compute)
    assert figures["step_seconds"] == max(figures["seconds"].values())


def test_machine_code_without_optimisations_takes_the_same_memory():
    run = Run(config(**{"plan.devices": 8}), "")
    here = plan.compile_update(run, targets.find(run.config.plan))
    # Combined all-reduces hold their gradients together; that is left out of both programs.
    passes = targets._CPU_OPTIONS["xla_disable_hlo_passes"]
    options = sharding.compiler_options(run.mesh) | {"xla_disable_hlo_passes": passes}
    there = run.lower_update().compile(compiler_options=options)
    memory = there.memory_analysis()
    assert here.arguments == memory.argument_size_in_bytes
    assert here.outputs == memory.output_size_in_bytes
    assert here.temporaries == pytest.approx(memory.temp_size_in_bytes, rel=0.1)


class Deep(Stack):
    """A stack whose layers have two inner arrays, which are kept, or computed again with `remat`."""

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
        compile_update(Run(config(**one, **{"system.remat": remat}), "")) for remat in (False, True)
    )
    held = 4 * WIDTH * 8 * ROWS  # one array of a layer, on one device
    assert kept.temporaries - again.temporaries > 2 * (LAYERS - 2) * held


# Messages of libtpu about a program for v5e, shortened.
REFUSALS = [
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (33.00G) exceeds "
    "available HBM (15.75G).",
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 33.00G of 15.75G "
    "hbm. Exceeded hbm capacity by 17.25G.",
]


@pytest.mark.parametrize("words", REFUSALS)
def test_a_program_that_the_compiler_refuses_does_not_fit(monkeypatch, words):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(plan, "_compile", refuse)
    run = Run(config(**{"plan.devices": 8, "plan.fit": False}), "")
    target = targets.find(run.config.plan)
    figures = plan.compiled(run, target, 1.0)
    assert not figures["fits"]
    assert figures["peak_bytes"] == 33 * 2**30
    text = plan.plan(run, target)
    assert re.search(r"fits in 74.5 GiB +no", text)
    assert "33.00G" in text


def test_a_program_that_does_not_fit_names_its_largest_arrays():
    run = Run(config(**{"plan.devices": 8, "plan.fit": False, "plan.memory_gib": 1e-4}), "")
    text = plan.plan(run, targets.find(run.config.plan))
    assert re.search(r"fits in 0.0 GiB +no", text)
    assert f"f32[{LAYERS},{WIDTH},{WIDTH}]" in text  # the stack of matrices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan.chip": "abacus"}, "'abacus' is not known; choose from"),
        ({"plan.devices": 64}, "mesh has 8 device"),
        ({"plan.efficiency": 1.5}, "share of the peak"),
        ({"plan.memory_gib": -1.0}, "GiB, or 0"),
        ({"plan.measure": True}, "measures this process"),
    ],
)
def test_bad_input_is_one_sentence(changes, message, monkeypatch):
    monkeypatch.setattr(Run, "lower_update", None)  # refused before anything slow
    with pytest.raises(ConfigError, match=message) as caught:
        made = config(**{"plan.devices": 8, **changes})
        plan.plan(Run(made, ""), targets.find(made.plan))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_prediction_is_near_what_the_process_takes(monkeypatch):
    alone = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", alone)
    rows = 2**16
    made = config(batch_size=rows, **{"plan.devices": 1, "plan.fit": False, "plan.measure": True})
    run = Run(made, "")
    figures = plan.compiled(run, targets.find(run.config.plan), run.flops_per_step())
    weighed = figures["measured"]
    # Parameters, two moments and the average; the step and two counts; the batch.
    assert weighed["arrays"] == 4 * 4 * LAYERS * WIDTH**2 + 3 * 4 + 4 * WIDTH * rows
    # The outputs of all layers but the last are kept for the backward pass.
    assert weighed["growth"] > 0.8 * (LAYERS - 1) * 4 * WIDTH * rows
    both = weighed["arrays"] + weighed["growth"]
    assert figures["peak_bytes"] == pytest.approx(both, rel=0.25)
