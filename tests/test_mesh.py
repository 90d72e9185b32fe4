"""Eight fake devices, with every mesh axis in use, compute what one device computes."""

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from vidmotion import paths
from vidmotion.run import Run

STEPS = 3


def tiny_config():
    config = tiny.get_config()
    config.sharding = ((".*/down/kernel", ("fsdp", "tensor")), (".*", "fsdp"))
    return config


def bcd_config():
    """Returns a BCD small enough to compile in seconds, with every part, but one layer of each."""
    config = tiny.get_config()
    config.system = ConfigDict(
        {
            "name": "bcd",
            "frames": 4,
            "size": 16,
            "codec": {"mean": 0.5, "std": 0.25},
            "encoder": {"layers": 1, "width": 32, "heads": 2, "mlp_dim": 64, "content_tokens": 4},
            "quantizer": {
                "books": 2,
                "dim": 8,
                "entries": 16,
                "tau_max": 1.0,
                "tau_min": 0.5,
                "tau_decay": 0.999,
            },
            "rate": {"target": 100.0},
            "denoiser": {
                "patch": 8,
                "width": 32,
                "layers": 1,
                "heads": 2,
                "temporal_blocks": (0,),
                "groups": 8,
            },
            "sampler": {"steps": 4},
        }
    )
    config.optimizer = ConfigDict({"model": {"rate": 1e-3, "clip": 1.0}})
    config.data.common.frames = 4
    config.accumulate = 1
    # Both dimensions of a matrix are cut, as when tensor parallelism is combined with FSDP.
    config.sharding = ((".*/(qkv|mlp_in|wi)/kernel", ("fsdp", "tensor")), (".*", "fsdp"))
    return config


CONFIGS = {"tiny": tiny_config, "bcd": bcd_config}


def on_the_mesh(config):
    """Trains over the mesh; returns the run, its last state and its losses."""
    run = Run(config, "")
    state, loader = run.fresh_state(), run.loader("train")
    update = run.lower_update().compile()
    losses = []
    for step in range(STEPS):
        state, metrics = update(state, run.consts, run.put(loader.batch(step)))
        losses.append(float(metrics["loss/model"]))
    return run, state, losses


def on_one_device(run):
    """Trains the same with `Stepper` alone, on device 0, without mesh or sharding; returns the last state and the
    losses."""
    loader, losses = run.loader("train"), []
    batches = [{"video": loader.batch(step)["video"]} for step in range(STEPS)]
    params = jax.jit(run.stepper.init_params)({"video": batches[0]["video"][:1] * 0})
    state = jax.jit(run.stepper.init_state)(params)
    update = jax.jit(run.stepper.update)
    for batch in batches:
        state, metrics = update(state, {}, batch)
        losses.append(float(metrics["loss/model"]))
    return state, losses


@pytest.mark.parametrize("name", [pytest.param("bcd", marks=pytest.mark.slow), "tiny"])
def test_eight_devices_compute_what_one_does(name, monkeypatch):
    tiny.register(monkeypatch)
    config = CONFIGS[name]()
    config.mesh = ConfigDict({"data": 2, "fsdp": 2, "tensor": 2})
    # Adam divides by |g|: with the usual epsilon it would turn rounding noise in gradients near zero into whole steps.
    # This larger epsilon keeps the update smooth, so that noise stays small.
    config.optimizer.model.eps = 1e-4
    run, state, losses = on_the_mesh(config)

    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state.params)}
    cut = {axis for spec in specs for axis in spec if axis}
    assert cut == {"fsdp", "tensor"}
    shares = [
        leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(state.params)
    ]
    assert min(shares) == 1 / 4
    for params, slots in ((state.params, state.opt), (state.params, state.ema)):
        where = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
        big = [leaf for leaf in jax.tree.leaves(slots) if leaf.size >= 1024]
        assert big and all(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in big)
        assert all(leaf.shape in where for leaf in big)

    expected, expected_losses = on_one_device(run)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert max(losses) != min(losses)
    for path, leaf in paths.flatten(expected.params).items():
        np.testing.assert_allclose(
            paths.flatten(state.params)[path], leaf, rtol=0, atol=1e-5, err_msg=path
        )
