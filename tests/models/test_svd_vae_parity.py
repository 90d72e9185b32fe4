"""The temporal autoencoder against every `svd_vae*.npz` of the fixtures folder, diffusers, and itself in chunks.

Run the fixtures alone by ``pytest -k "svd and parity"``; ``-s`` prints the differences.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion.convert.engine import convert, export
from vidmotion.convert.maps.temporal_vae import RULES
from vidmotion.models.temporal_vae import SIZES, TemporalAutoencoder, decode_in_chunks

TOLERANCE = 1e-4
SMALL = {"channels": (8,), "layers_per_block": 1, "norm_groups": 4}


def shapes_of(net):
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def coded(net, params, image, frames):
    """Returns the mean for an image, and the frames of one latent clip decoded together."""

    @quick_jit
    def both(params):
        variables = {"params": params}
        mean, _ = net.apply(variables, image, method="encode")
        return mean, net.apply(variables, frames[None], method="decode")[0]

    return both(params)


def test_svd_vae_parity(fixtures_dir):
    files = sorted(fixtures_dir.glob("svd_vae*.npz"))
    if not files:
        pytest.skip(f"no svd_vae*.npz in {fixtures_dir}")
    spec = importlib.util.spec_from_file_location("weights", fixtures_dir / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    for file in files:
        with np.load(file) as content:
            fixture = dict(content)
        meta = json.loads(str(fixture["meta"]))
        net = TemporalAutoencoder(channels=tuple(meta["block_out_channels"]))
        state = weights.state_dict(fixture["manifest"], seed=meta["seed"])
        params = convert(shapes_of(net), state, RULES)
        for key, value in export(params, RULES).items():
            np.testing.assert_array_equal(value, state[key], err_msg=key)
        image, z = (np.moveaxis(fixture[f"io/{name}"], 1, -1) for name in ("image", "z"))
        for name, got in zip(("mean", "dec"), coded(net, params, image, z)):
            got, want = channels_first(got), fixture[f"io/{name}"]
            distance = np.abs(got - want).max()
            print(
                f"{file.name} {name}: max abs difference {distance:.1e} of {np.abs(want).max():.3g}"
            )
            np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.oracle
def test_equals_diffusers():
    """Compares a case that the fixtures lack: two clips, another number of frames, oblong frames."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32,), layers_per_block=2, down_block_types=("DownEncoderBlock2D",)
    ).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" in name or "mix_factor" in name:
                value.add_(0.5 * torch.randn_like(value))
    net = TemporalAutoencoder(channels=(32,))
    state = {key: x.detach().numpy() for key, x in module.state_dict().items()}
    params = convert(shapes_of(net), state, RULES)
    z = random(2, 3, 4, 6, 4)
    got = quick_jit(lambda p: net.apply({"params": p}, z, method="decode"))(params)
    with torch.no_grad():
        folded = torch.from_numpy(channels_first(z.reshape(6, 4, 6, 4)))
        want = module.decode(folded, num_frames=3).sample
    np.testing.assert_allclose(channels_first(got.reshape(6, 4, 6, 3)), want, atol=1e-4)


def test_chunks_are_decoded_by_themselves():
    net = TemporalAutoencoder(**SMALL)
    params = random_like(shapes_of(net))
    z = random(1, 5, 2, 2, 4)
    decode = quick_jit(lambda p, z: net.apply({"params": p}, z, method="decode"))
    want = [decode(params, z[:, part]) for part in (slice(0, 2), slice(2, 4), slice(4, 5))]
    got = quick_jit(lambda p: decode_in_chunks(net, {"params": p}, z, frames=2))(params)
    np.testing.assert_allclose(got, np.concatenate(want, axis=1), atol=1e-5)
    # Frames in one call do affect each other.
    assert np.abs(decode(params, z[:, :3])[:, :2] - want[0]).max() > 1e-3


@pytest.mark.parametrize(("name", "parameters"), [("svd", 97_742_847), ("tiny", 414_895)])
def test_sizes(name, parameters):
    tree = shapes_of(TemporalAutoencoder(**SIZES[name]))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters
    if name == "svd":  # spec xnemo.md, section 0
        halves = {half: sum(x.size for x in jax.tree.leaves(tree[half])) for half in tree}
        assert halves == {"encoder": 34_163_592, "quant": 72, "decoder": 63_579_183}
