"""X-NeMo's two UNets against the outputs of the reference networks: every `xnemo_unets*.npz` of the
fixtures folder.

The folder's README says what a file holds. Weights are rebuilt from keys, shapes and a seed. Run
alone by ``pytest -k "xnemo and parity"``; ``-s`` prints the differences.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.convert.engine import convert, export
from vidmotion.convert.maps.unet import RULES
from vidmotion.models.motion_attention import DenoisingUNet, frame_code
from vidmotion.models.unet import ReferenceUNet, block_names, project_banks

BANK_TOLERANCE, TOLERANCE = 1e-4, 2e-4
SKIP = ("motion", "temporal")


def sizes(config):
    """Converts a fixture's configuration, which uses the reference's names, to our sizes."""
    assert config["flip_sin_to_cos"] and config["norm_eps"] == 1e-5
    return {
        "channels": tuple(config["block_out_channels"]),
        "attention": tuple("CrossAttn" in name for name in config["down_block_types"]),
        "layers_per_block": config["layers_per_block"],
        "heads": config["attention_head_dim"],
        "context_width": config["cross_attention_dim"],
        "norm_groups": config["norm_num_groups"],
    }


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def theirs(block):
    """Converts our name of a transformer to the fixture's spelling."""
    stage, attn = block.split("/")
    stage = stage.replace("down_", "down_blocks.").replace("up_", "up_blocks.")
    stage = stage.replace("mid", "mid_block")
    return f"bank.{stage}.attentions.{attn.removeprefix('attn_')}.transformer_blocks.0"


class Fixture:
    """One file: both networks with their weights, the inputs in our layout, and the expected outputs."""

    def __init__(self, file, weights):
        with np.load(file) as content:
            held = dict(content)
        meta = json.loads(str(held["meta"]))
        self.io = {k.removeprefix("io/"): x for k, x in held.items() if k.startswith("io/")}
        self.given = {k[len("given/den.") :]: x for k, x in held.items() if k.startswith("given/")}
        rows = [str(row) for row in held["manifest"]]
        self.reference = ReferenceUNet(**sizes(meta["ref_config"]))
        self.denoiser = DenoisingUNet(**sizes(meta["den_config"]))
        self.latent = jnp.asarray(channels_last(self.io["ref_latent"]))
        self.x = jnp.asarray(np.moveaxis(self.io["noisy"], 1, -1))
        self.clip, self.motion = jnp.asarray(self.io["clip"]), jnp.asarray(self.io["motion"])
        self.time = jnp.asarray(self.io["timestep"].astype(np.int32))

        def state(part):
            mine = [row.removeprefix(f"{part}.") for row in rows if row.startswith(f"{part}.")]
            mine = [row for row in mine if row.split("|")[0] not in self.given]
            return weights.state_dict(mine, seed=meta[f"seed_{part}"])

        def params(net, state, *inputs):
            shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
            found = convert(shapes, state, RULES)
            for key, value in export(found, RULES).items():
                np.testing.assert_array_equal(value, state[key], err_msg=key)
            return found

        self.reference_params = params(self.reference, state("ref"), self.latent, self.clip)
        inputs = self.x, self.time, self.clip, self.motion[1:]
        self.params = params(self.denoiser, state("den"), *inputs)


@pytest.fixture(scope="module")
def fixtures(fixtures_dir):
    files = sorted(fixtures_dir.glob("xnemo_unets*.npz"))
    if not files:
        pytest.skip(f"no xnemo_unets*.npz in {fixtures_dir}")
    spec = importlib.util.spec_from_file_location("weights", fixtures_dir / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    return {file.name: Fixture(file, weights) for file in files}


def compare(got, want, label, tolerance):
    distance = np.abs(np.asarray(got, np.float64) - want).max()
    print(f"{label}: max abs difference {distance:.1e} of {np.abs(want).max():.3g}")
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=label)


def outputs(fixture):
    """Yields the banks, then the four outputs under the fixture's names."""
    clip, motion = fixture.clip, fixture.motion
    reference = quick_jit(fixture.reference.apply)
    banks = reference({"params": fixture.reference_params}, fixture.latent, clip)
    yield banks

    @quick_jit
    def rows(params):
        """Runs three samples in one call: the negative half of the guidance (reference masked, token zero), the
        positive half, and the positive half with its reference masked."""
        pairs = project_banks(fixture.denoiser, params, banks)
        reads = jnp.array([False, True, False])
        tokens = jnp.concatenate([jnp.zeros_like(clip), clip, clip])
        x, time = (jnp.repeat(y, 3, axis=0) for y in (fixture.x, fixture.time))
        given = x, time, tokens, motion[jnp.array([0, 1, 1])]
        return fixture.denoiser.apply({"params": params}, *given, banks=pairs, reads_b=reads)

    run = quick_jit(fixture.denoiser.apply, static_argnames="skip")
    bare = run({"params": fixture.params}, fixture.x, fixture.time, clip, skip=SKIP)
    got = rows(fixture.params)
    yield {
        "den_out": got[1:2],
        "den_out_cfg": got[:2],
        "den_out_noref": got[2:],
        "den_out_skip_mm_noref": bare,
    }


@pytest.mark.slow
def test_xnemo_unets_parity(fixtures):
    for file, fixture in fixtures.items():
        results = outputs(fixture)
        banks = next(results)
        assert list(banks) == sorted(banks, key=block_names(fixture.reference).index)
        assert {theirs(name) for name in banks} == {k for k in fixture.io if k.startswith("bank.")}
        for name, bank in banks.items():
            compare(bank, fixture.io[theirs(name)], f"{file} {name}", BANK_TOLERANCE)
        for name, got in next(results).items():
            want = fixture.io[name]
            compare(np.moveaxis(np.asarray(got), -1, 1), want, f"{file} {name}", TOLERANCE)


def test_xnemo_position_code_parity(fixtures):
    for fixture in fixtures.values():
        assert len(fixture.given) == 42
        for key, code in fixture.given.items():
            np.testing.assert_allclose(frame_code(*code.shape[1:]), code[0], atol=2e-6, err_msg=key)
