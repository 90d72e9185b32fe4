"""The plan of a network whose costs are known by hand."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vidmotion import plan, system
from vidmotion.run import Run
from vidmotion.system import Describes, Out, System

WIDTH, LAYERS, ROWS = 128, 4, 512


@dataclasses.dataclass(frozen=True)
class Stack(System, Describes):
    """A system of `layers` square matrices in a row, with one token per example; `scan` loops over them."""

    layers: int = LAYERS
    scan: bool = False
    remat: bool = False

    def input_spec(self, batch):
        return {"x": jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32)}

    def init(self, key, batch):
        return {"model": {"w": jax.random.normal(key, (self.layers, WIDTH, WIDTH))}}

    def tokens(self, batch):
        return batch

    def loss(self, player, vars, batch, key, step, carry):
        w, x = vars.params["model"]["w"], batch["x"]

        def layer(x, w):
            return x @ w, None

        layer = jax.checkpoint(layer) if self.remat else layer
        if self.scan:
            x, _ = jax.lax.scan(layer, x, w)
        else:
            for i in range(self.layers):
                x, _ = layer(x, w[i])
        return jnp.mean(x**2), Out({}, vars.mutable)


def config(**changes):
    made = tiny.get_config()
    made.unlock()
    made.system = {"name": "stack", "layers": LAYERS, "scan": False, "remat": False}
    made.optimizer = {"model": {"rate": 1e-3}}
    made.batch_size, made.accumulate = ROWS, 1
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture(autouse=True)
def _stack(monkeypatch):
    tiny.register(monkeypatch)
    monkeypatch.setitem(system.SYSTEMS, "stack", "test_plan:Stack")


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 4}, {"system.scan": True}, {"system.scan": True, "system.remat": True}],
)
def test_model_flops_are_six_per_parameter_and_token(changes):
    run = Run(config(**changes), "")
    # Forward 2, backward 4; the first layer's input needs no gradient, which saves 2 for one layer.
    count = LAYERS * WIDTH**2
    expected = (6 * count - 2 * WIDTH**2) * ROWS
    assert run.flops_per_step() == pytest.approx(expected, rel=0.02)  # the rest: Adam and the loss


def numbers(text, label):
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", line[len(label) :])]


def test_counts_are_those_of_the_initialised_tree():
    run = Run(tiny.get_config(), "")
    text = plan.plan(run)
    params = run.fresh_state().params
    for player, modules in params.items():
        for name, tree in modules.items():
            total = sum(leaf.size for leaf in jax.tree.leaves(tree))
            assert numbers(text, f"{player}/{name}") == [total]
    assert numbers(text, "all") == [sum(leaf.size for leaf in jax.tree.leaves(params))]
    assert numbers(text, "of these frozen") == [params["model"]["frozen"]["bias"].size]
    assert "16 examples, 2 per shard, 2 microbatch(es)" in text


@pytest.mark.parametrize("fsdp", [1, 8])
def test_state_bytes_are_those_that_a_device_holds(fsdp):
    made = tiny.get_config()
    made.mesh.update({"data": 8 // fsdp, "fsdp": fsdp})
    run = Run(made, "")
    state = run.fresh_state()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert numbers(plan.plan(run), "state bytes per device") == [held]
    if fsdp == 8:
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert held == pytest.approx(whole / 8, rel=0.01)


def test_a_mesh_larger_than_this_machine_can_be_planned(monkeypatch):
    monkeypatch.setattr(jax, "device_put", None)  # nothing may be put on a device
    made = config(**{"mesh.data": 8, "mesh.fsdp": 64})
    text = plan.plan(Run(made, "", abstract=True))
    # Parameters, two moments and the average are each a stack of matrices of 4 bytes a number. Parameters are cut 64
    # ways, the others over data as well. In addition, the step and two counts of the optimizer have 4 bytes each.
    (held,) = numbers(text, "state bytes per device")
    stack = 4 * LAYERS * WIDTH**2
    assert held == stack // 64 + 3 * stack // (8 * 64) + 3 * 4
    assert "data 8, fsdp 64, tensor 1; 8 device(s) here" in text
    assert numbers(text, "tokens per batch") == [ROWS]
    assert np.isfinite(float(re.search(r"FLOPs per step +(\S+)", text)[1]))
