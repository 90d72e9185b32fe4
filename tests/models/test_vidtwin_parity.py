"""VidTwin against the outputs of the reference network: every `vidtwin_*.npz` of the fixtures folder.

The folder's README says what a file holds. Weights are rebuilt from keys, shapes and a seed. Run
alone by ``pytest -k "vidtwin and parity"``; ``-s`` prints the differences.
"""

import functools
import json
import zlib

import jax
import numpy as np
import pytest
from einops import rearrange
from quick import quick_jit

from vidmotion.convert.engine import convert, export
from vidmotion.convert.maps.vidtwin import RULES
from vidmotion.losses.kl import gaussian_kl
from vidmotion.models.spacetime import spatial_code, temporal_code
from vidmotion.models.vidtwin import VidTwin

TOLERANCE = 1e-4


def network(config):
    """Builds the network from a fixture's configuration, which uses the reference's names."""
    frames, height, width = config["input_size"]
    assert height == width
    return VidTwin(
        width=config["hidden"],
        depth=config["depth"],
        heads=config["heads"],
        queries=config["nq"],
        structure_channels=config["expect_ch"],
        structure_blocks=config["cont_num_blocks"],
        dynamics_channels=config["d_dim"],
        dynamics_blocks=config["motion_num_blocks"],
        frames=frames,
        size=height,
        patch=tuple(config["patch_size"]),
        query_width=config["q_hidden"],
        query_layers=config["q_layers"],
        query_heads=config["q_heads"],
        query_mlp=config["mlp_inter"],
        structure_width=config["init_ch"],
    )


def rebuilt(row, seed):
    """Rebuilds (key, array) from a row ``key|dtype|d0,d1,...`` by the rule of the fixtures' `weights.py`."""
    key, dtype, dims = str(row).split("|")
    shape = tuple(int(d) for d in dims.split(",") if d)
    assert dtype == "float32", row  # this network has no counters and no running statistics
    rng = np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % 2**32)
    noise = rng.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return key, noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith(("weight", "scale")):
        return key, 1 + np.float32(0.1) * noise
    return key, np.float32(0.1) * noise


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def from_reference(name, x, net):
    """Converts a tensor of a fixture to our layout."""
    frames, side, _ = net.grid
    match name:
        case "zDx" | "zDy" | "inter.bottle_down" | "inter.conv_out":
            return channels_last(x)
        case "inter.enc.embed":
            return rearrange(x, "b (t h w) c -> b t h w c", t=frames, h=side)
        case "inter.cont_emb":
            return rearrange(x, "(b h w) t c -> b t h w c", h=side, w=side)
        case "kl" | "zS" | "inter.enc.block0" | "inter.qformer":
            return x
    return channels_last(x)  # videos, and z


def wanted(module, method):
    names = {"encoder", "patch_embed", "block_0", "qformer", "moments", "conv_out"}
    return method == "__call__" and module.name in names | {"structure_decoder"}


def outputs(net, params, x):
    """Returns our network's outputs under the fixture's names.

    An output is a list of candidates where the fixtures' README leaves its meaning open: the encoder's
    intermediates may be those of the clip whose dynamics `cross` takes, as they are in vidtwin_tiny, and
    that clip may be reversed before or after it is encoded. Any one of the candidates may fit.
    """

    @functools.partial(quick_jit, static_argnames="method")
    def run(params, *given, method):
        result, state = net.apply(
            {"params": params},
            *given,
            method=method,
            capture_intermediates=wanted,
            mutable=["intermediates"],
        )
        return result, state["intermediates"]

    latents, seen = run(params, x, method="encode")
    turned = x[::-1] if len(x) > 1 else x[:, ::-1]
    other, seen_turned = run(params, turned, method="encode")
    structure, dynamics = (gaussian.mean for gaussian in latents)
    half = dynamics.shape[2] // 2
    video, decoder = run(params, structure, dynamics, method="decode")
    crossed = [other.dynamics.mean]
    if len(x) == 1:
        crossed.append(dynamics[:, ::-1])
    inner = decoder["structure_decoder"]

    def both(*path):
        return [leaf["__call__"][0] for leaf in (dig(seen, path), dig(seen_turned, path))]

    return {
        "z": dig(seen, ["encoder"])["__call__"][0],
        "kl": sum(gaussian_kl(*gaussian).mean() for gaussian in latents),
        "zS": structure,
        "zDx": dynamics[:, :, :half],
        "zDy": dynamics[:, :, half:],
        "recon": video,
        "rec_structure": run(params, structure, None, method="decode")[0],
        "rec_dynamics": run(params, None, dynamics, method="decode")[0],
        "cross": [run(params, structure, d, method="decode")[0] for d in crossed],
        "inter.enc.embed": both("encoder", "patch_embed"),
        "inter.enc.block0": [y for y, _ in both("encoder", "trunk", "block_0")],
        "inter.qformer": both("structure_encoder", "qformer"),
        "inter.bottle_down": both("structure_encoder", "moments"),
        "inter.conv_out": inner["conv_out"]["__call__"][0],
        "inter.cont_emb": inner["__call__"][0],
    }


def dig(tree, path):
    return functools.reduce(lambda node, key: node[key], path, tree)


def codes(net):
    """Returns our fixed position codes; a fixture holds the reference's."""
    spatial, temporal = spatial_code(net.width, net.grid[1]), temporal_code(net.width, net.grid[0])
    return {
        f"{half}.{name}": code[None]
        for half in ("encoder", "decoder")
        for name, code in (("pos_embed", spatial), ("pos_embed_temporal", temporal))
    }


def compared(got, want, label):
    """Returns (line of the report, whether the tensor fits)."""
    candidates = got if isinstance(got, list) else [got]
    shapes = [np.shape(x) for x in candidates]
    if np.shape(want) not in shapes:
        return f"{label}: shape {shapes[0]}, reference {np.shape(want)}", False
    distances = [np.abs(np.asarray(x, np.float64) - want) for x in candidates]
    distance = min(distances, key=np.max)
    line = f"{label}: max abs difference {distance.max():.1e} of {np.abs(want).max():.3g}"
    return line, bool(np.all(distance <= TOLERANCE * (1 + np.abs(want))))


def of_file(file):
    """Yields (line of the report, whether it fits) for every tensor of one fixture."""
    with np.load(file) as content:
        fixture = dict(content)
    meta = json.loads(str(fixture.pop("meta")))
    net = network(meta["config"])
    state = dict(rebuilt(row, meta["seed"]) for row in fixture.pop("manifest"))
    x = channels_last(fixture.pop("io/x"))
    params = convert(jax.eval_shape(net.init, jax.random.key(0), x)["params"], state, RULES)
    for key, value in export(params, RULES).items():
        np.testing.assert_array_equal(value, state[key], err_msg=f"{file.name}: {key}")
    got = outputs(net, params, x) | codes(net)
    for entry, want in fixture.items():
        group, _, name = entry.partition("/")
        want = from_reference(name, want, net) if group == "io" else want
        yield compared(got[name], want, f"{file.name} {name}")


def test_vidtwin_parity(fixtures_dir):
    files = sorted(fixtures_dir.glob("vidtwin_*.npz"))
    if not files:
        pytest.skip(f"no vidtwin_*.npz in {fixtures_dir}")
    lines = [line for file in files for line in of_file(file)]
    print("", *(line for line, _ in lines), sep="\n")
    wrong = [line for line, fits in lines if not fits]
    assert not wrong, "\n".join(wrong)
