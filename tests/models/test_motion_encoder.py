"""X-NeMo's motion encoder: the reference's outputs, sizes, and what training changes.

The fixtures' README says what a file holds. ``pytest -k "xnemo and parity" -s`` prints the differences.
"""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion.convert import __main__ as command
from vidmotion.convert import engine
from vidmotion.convert.maps.motion_encoder import RULES
from vidmotion.convert.read import read_manifest
from vidmotion.models.motion_encoder import MotionEncoder, token_code

TOLERANCE = 1e-4
TINY = dict(
    size=64, width=16, depth=1, attention_width=32, heads=2, landmarks=4, latent=24, tokens=4
)


def abstract(net):
    crop = jax.ShapeDtypeStruct((1, net.size, net.size, 3), jnp.float32)
    box = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), crop, box)


def rebuilt(row, seed):
    """Rebuilds (key, array) from a row ``key|dtype|d0,d1,...`` by the rule of the fixtures' `weights.py`."""
    key, dtype, dims = str(row).split("|")
    shape = tuple(int(d) for d in dims.split(",") if d)
    if dtype != "float32":
        return key, np.zeros(shape, dtype)
    rng = np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % 2**32)
    noise = rng.standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        return key, np.float32(0.1) * noise
    if key.endswith("running_var"):
        return key, np.float32(0.5) + np.abs(noise)
    if len(shape) >= 2:
        return key, noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith(("weight", "scale")):
        return key, 1 + np.float32(0.1) * noise
    return key, np.float32(0.1) * noise


# -- the released network -------------------------------------------------------------------------


def test_xnemo_motion_encoder_parity(fixtures_dir):
    files = sorted(fixtures_dir.glob("xnemo_motion_encoder*.npz"))
    if not files:
        pytest.skip(f"no xnemo_motion_encoder*.npz in {fixtures_dir}")
    net = MotionEncoder()
    tree = abstract(net)
    encode = jax.jit(lambda v, x: net.apply(v, x, method="encode"))
    fuse = jax.jit(lambda v, m, r: net.apply(v, m, r, method="fuse"))
    wrong = []
    for file in files:
        with np.load(file) as content:
            fixture = dict(content)
        seed = json.loads(str(fixture["meta"]))["seed"]
        state = dict(rebuilt(row, seed) for row in fixture["manifest"])
        variables = engine.convert(tree, state, RULES)
        x = fixture["io/x"].transpose(0, 2, 3, 4, 1)
        batch, frames = x.shape[:2]
        motion = encode(variables, x.reshape(-1, *x.shape[2:]))
        box = fixture["io/emb"].reshape(-1, 3)
        code = {"pe": token_code(net.token_width, net.tokens)[None]}
        got = {
            "io/facemot": motion.reshape(batch, frames, -1),
            "io/out": fuse(variables, motion, box).reshape(batch, frames, 32, 16),
        } | {f"given/{name}": value for name, value in code.items()}
        for name in (
            name for name in fixture if name.startswith(("io/facemot", "io/out", "given/"))
        ):
            gap = np.abs(np.asarray(got[name], np.float64) - fixture[name]).max()
            print(f"{file.name} {name}: {gap:.1e} of {np.abs(fixture[name]).max():.3g}")
            if not gap <= TOLERANCE:
                wrong.append(f"{file.name} {name}: {gap:.1e}")
    assert not wrong


def test_parameters_and_keys_are_those_released(fixtures_dir):
    tree = abstract(MotionEncoder())
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == 61_665_393
    shapes = read_manifest(fixtures_dir / "manifests" / "xnemo_motion_encoder.txt")
    assert len(shapes) == 407
    engine.check(tree, shapes, RULES)
    network = command.NETWORKS["xnemo_motion_encoder"]
    arguments = network.arguments(shapes, {})
    assert arguments == {"latent": 512}
    assert network.shapes(arguments) == tree
    assert network.constants(arguments)["pe"].shape == shapes["pe"]
    with pytest.raises(engine.ConversionError, match="not a motion encoder's file"):
        network.arguments({"conv1.weight": (64, 3, 7, 7)}, {})


def test_the_vector_may_have_another_length():
    tree = abstract(MotionEncoder(**TINY | dict(latent=40)))["params"]
    # The side of the last map is an eighth of 64 pixels.
    assert tree["motion"]["kernel"].shape == (8 * 8, 40)
    assert tree["fusion"]["kernel"].shape == (40 + 64, 4 * 16)


# -- a small one ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    net = MotionEncoder(**TINY)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(3, 64, 64, 3)).astype(np.float32)
    box = rng.normal(size=(3, 3)).astype(np.float32)
    tree = abstract(net)
    stats = paths.flatten(tree["batch_stats"])
    stats = {name: np.full(s.shape, name.endswith("var"), s.dtype) for name, s in stats.items()}
    params = random_like(tree["params"], scale=0.1)
    return net, {"params": params, "batch_stats": paths.unflatten(stats)}, x, box


def test_tokens_are_affine_in_the_vector(tiny):
    net, variables, _, box = tiny
    fuse = quick_jit(lambda m, r: net.apply(variables, m, r, method="fuse"))
    first, second = np.random.default_rng(1).normal(size=(2, 3, 24)).astype(np.float32)
    between = fuse(0.3 * first + 0.7 * second, box)
    np.testing.assert_allclose(between, 0.3 * fuse(first, box) + 0.7 * fuse(second, box), atol=1e-5)
    assert between.shape == (3, 4, 16)
    assert np.abs(between - fuse(0.3 * first + 0.7 * second, 0 * box)).max() > 1e-3


def test_training_uses_the_batch_and_updates_statistics(tiny):
    net, variables, x, box = tiny

    @quick_jit
    def step(variables, x, key):
        def loss(params):
            tokens, state = net.apply(
                {**variables, "params": params},
                x,
                box,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return jnp.sum(jnp.square(tokens)), (tokens, state["batch_stats"])

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, (tokens, stats)), gradient = step(variables, x, jax.random.key(1))
    # The stem by hand: the running mean takes over a tenth of its convolution's mean over the batch.
    stem = variables["params"]["stem"]
    y = jax.lax.conv_general_dilated(
        x, stem["kernel"], (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = np.asarray(y) + stem["bias"][None, None, None]
    np.testing.assert_allclose(
        stats["stem_norm"]["mean"], 0.1 * np.mean(y, axis=(0, 1, 2)), atol=1e-5
    )
    np.testing.assert_allclose(
        stats["stem_norm"]["var"], 0.9 + 0.1 * np.var(y, axis=(0, 1, 2), ddof=1), atol=1e-5
    )
    for name, leaf in paths.flatten(gradient).items():
        assert np.all(np.isfinite(leaf)), name
        assert np.any(leaf), name
    (_, (other, _)), _ = step(variables, x, jax.random.key(2))
    assert np.abs(tokens - other).max() > 1e-4  # another draw of dropout


# -- the temporal motion encoder of Table 3 ---------------------------------------------------------


def temporal(frames, **fields):
    """Returns a network over clips, and random parameters for all of it."""
    net = MotionEncoder(**TINY | {"frames": frames} | fields)
    return net, random_like(abstract(net)["params"], scale=0.3)


def joined(net, params, vectors):
    return net.apply({"params": params}, vectors, method="join")


def test_size_of_the_temporal_motion_encoder():
    """Counts the parameters at width 512 by hand: two dense layers, norms, two attentions, and the GEGLU layer."""
    dense, attention = 512 * 512 + 512, 2 * 512 + 4 * 512 * 512 + 512
    feed_forward = 2 * 512 + 512 * 4096 + 4096 + 2048 * 512 + 512
    want = 2 * 512 + 2 * dense + 2 * attention + feed_forward
    assert want == 5_777_920
    both = [abstract(MotionEncoder(frames=frames))["params"] for frames in (1, 16)]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in both]
    assert sizes[1] - sizes[0] == want
    assert set(both[1]) - set(both[0]) == {"across"}


def test_at_the_start_frames_are_not_joined(tiny):
    """The vectors are unchanged bit for bit: the last layer adds zero, and the rest starts as without joining."""
    net = MotionEncoder(**TINY | {"frames": 3})
    crops, boxes = tiny[2:]
    fresh = quick_jit(net.init)(jax.random.key(0), crops, boxes)
    assert not np.any(fresh["params"]["across"]["proj_out"]["kernel"])
    assert np.any(fresh["params"]["across"]["proj_in"]["kernel"])
    plain = MotionEncoder(**TINY)
    own = {name: leaf for name, leaf in fresh["params"].items() if name != "across"}
    vectors = np.random.default_rng(0).normal(size=(2, 7, 24)).astype("f4")
    np.testing.assert_array_equal(joined(net, fresh["params"], vectors), vectors)
    np.testing.assert_array_equal(joined(plain, own, vectors), vectors)
    before = quick_jit(plain.init)(jax.random.key(0), crops, boxes)["params"]
    jax.tree.map(np.testing.assert_array_equal, own, before)


def test_a_clip_is_joined_window_by_window():
    """A frame depends on all frames of its window, also later ones, and on no others; the last window is padded."""
    net, params = temporal(4)
    vectors = np.random.default_rng(1).normal(size=(2, 10, 24)).astype("f4")
    whole = joined(net, params, vectors)
    for frame, window in ((1, range(4)), (4, range(4, 8)), (9, range(8, 10))):
        moved = vectors.copy()
        moved[1, frame] += np.random.default_rng(2).normal(size=24)
        changed = np.abs(joined(net, params, moved) - whole).max(axis=2) > 1e-4
        want = np.zeros((2, 10), bool)
        want[1, window] = True
        np.testing.assert_array_equal(changed, want)
    windows = [vectors[:, :4], vectors[:, 4:8], vectors[:, [8, 9, 9, 9]]]
    apart = np.concatenate([joined(net, params, window) for window in windows], axis=1)
    np.testing.assert_allclose(whole, apart[:, :10], atol=1e-5)
    # A picture gives the result of a clip that repeats it.
    still = np.repeat(vectors[:, :1], 4, axis=1)
    np.testing.assert_allclose(
        joined(net, params, vectors[:, :1]), joined(net, params, still)[:, :1], atol=1e-5
    )
    backwards = joined(net, params, vectors[:, 3::-1])[:, ::-1]
    assert np.abs(backwards - whole[:, :4]).max() > 1e-3  # the order of the frames matters


def test_after_one_step_all_of_what_joins_learns():
    net = MotionEncoder(**TINY | {"frames": 4})
    params = random_like(abstract(net)["params"]["across"])
    params["proj_out"] = jax.tree.map(jnp.zeros_like, params["proj_out"])
    vectors, toward = np.random.default_rng(3).normal(size=(2, 2, 4, 24)).astype("f4")
    pull = quick_jit(jax.grad(lambda p: jnp.sum(toward * joined(net, {"across": p}, vectors))))
    first = paths.flatten(pull(params))
    assert {p for p, leaf in first.items() if np.any(leaf)} == {
        "proj_out/kernel",
        "proj_out/bias",
    }
    step = jax.tree.map(lambda x, g: x - 0.1 * g, params, pull(params))
    still = [path for path, leaf in paths.flatten(pull(step)).items() if not np.any(leaf)]
    assert not still, still


def test_evaluation_takes_each_crop_by_itself(tiny):
    net, variables, x, box = tiny
    apply = quick_jit(net.apply)
    whole = apply(variables, x, box)
    np.testing.assert_allclose(apply(variables, x[::-1], box[::-1]), whole[::-1], atol=1e-5)
    assert whole.shape == (3, 4, 16)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(size=72), "size 72 must be a multiple of 16"),
        (dict(size=32, depth=4), "at least 64 for an hourglass of depth 4"),
        (dict(heads=3), "3 heads do not divide width 32"),
        (dict(groups=24), "groups 24 must divide 32"),
        (dict(frames=33), "frames 33 must be from 1 to 32"),
        (dict(frames=2, latent=25), "2 heads must divide latent 25"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        abstract(MotionEncoder(**TINY | fields))


def test_crops_of_another_size_are_refused(tiny):
    net, variables, x, box = tiny
    with pytest.raises(ValueError, match=r"crops must be \(n, 64, 64, 3\)"):
        net.apply(variables, x[:, :32], box)


def test_a_closed_encoder_has_one_vector_for_all_crops_until_its_last_layer_learns():
    crops = jax.random.normal(jax.random.key(0), (3, 64, 64, 3))
    spread = {}
    for closed in (False, True):
        net = MotionEncoder(**TINY, closed=closed)
        variables = quick_jit(net.init)(jax.random.key(1), crops, jnp.zeros((3, 3)))
        vectors_nm = quick_jit(net.apply, static_argnames="method")(
            variables, crops, method="encode"
        )
        spread[closed] = float(jnp.std(vectors_nm, axis=0).max())
    assert spread[True] == 0.0 < spread[False]
