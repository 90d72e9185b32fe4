"""The inputs of the branches of X-NeMo's guidance (Figure 6)."""

import jax
import jax.numpy as jnp
import pytest

from vidmotion.errors import ConfigError
from vidmotion.open_run import load_config
from vidmotion.system import Vars, build
from vidmotion.systems import xnemo


@pytest.mark.parametrize(
    ("null", "sees", "moves"), [("both", 0, 9), ("appearance", 0, 5), ("motion", 1, 9)]
)
def test_the_null_branch_lacks_what_is_said(null, sees, moves, monkeypatch):
    """Checks the CLIP token, whether there are banks, and the motion tokens, for both predictions."""
    section = load_config("xnemo:debug,stage=4").system
    section.sampler.update({"null": null, "scale": 3.0, "start": "noise"})
    system = build(section)
    calls = []

    def predict(self, vars, x, time, context, tokens, pairs=None, reads_b=None):
        told = (float(context.max()), pairs is not None, float(tokens.min()), float(tokens.max()))
        calls.append(told)
        return jnp.zeros_like(x)

    monkeypatch.setattr(xnemo.XNeMo, "_predict", predict)
    monkeypatch.setattr(xnemo.XNeMo, "_fuse", lambda self, vars, vector, f_rts: vector[:, :, None])
    monkeypatch.setattr(xnemo, "project_banks", lambda net, params, banks: banks)
    monkeypatch.setattr(xnemo.samplers, "ddim", lambda whole, x, *_: whole(x, 3))
    monkeypatch.setattr(
        xnemo, "windowed", lambda predict, tokens, *_: lambda x, time: predict(x, time, tokens)
    )
    side, channels = system.codec.latent_shape(system.size)
    portrait = xnemo.Portrait(jnp.zeros((1, side, side, channels)), {"a": 1}, jnp.ones((1, 1, 4)))
    vectors, own = jnp.full((1, 2, 8), 5.0), jnp.full((1, 1, 8), 9.0)
    vars = Vars({"model": {"denoiser": {}}}, {}, {})
    system.move(vars, portrait, vectors, jnp.ones((1, 2, 3)), own, jax.random.key(0))
    assert calls == [(1, True, 5, 5), (sees, bool(sees), moves, moves)]


def test_other_names_are_refused():
    section = load_config("xnemo:debug").system
    section.sampler.null = "clip"
    with pytest.raises(ConfigError, match=r"sampler\.null='clip': choose both, appearance, motion"):
        build(section)
