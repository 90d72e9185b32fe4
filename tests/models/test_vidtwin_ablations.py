"""VidTwin's ablations: sizes by hand, what depends on what, and gradients for every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import VIDTWIN, quick_jit, random_like

from configs import vidtwin as config
from vidmotion import paths
from vidmotion.models.vidtwin import LATENTS, SIZES, VidTwin
from vidmotion.models.vidtwin_ablations import ABLATIONS

LETTERS = tuple("abcd")


def abstract(net, batch=1):
    """Returns ((video, latents), parameters) as shapes; nothing is computed."""
    x = jax.ShapeDtypeStruct((batch, net.frames, net.size, net.size, 3), jnp.float32)
    output, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    return output, variables["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def base(letter):
    """Builds an ablation at the recipe's size, with one block."""
    sizes = {**SIZES["base"], "depth": 1} | LATENTS["1"] | config.ABLATIONS[letter or "none"]
    return ABLATIONS[letter](**sizes)


@pytest.fixture(scope="module", params=LETTERS)
def tiny(request):
    """Returns (letter, network, random parameters without zeros that hide errors, clip)."""
    net = ABLATIONS[request.param](**VIDTWIN)
    clip = np.random.default_rng(0).uniform(-1, 1, (2, 4, 24, 24, 3)).astype("f4")
    return request.param, net, random_like(abstract(net)[1]), clip


@pytest.mark.parametrize(
    ("letter", "structure", "dynamics", "numbers"),
    [
        ("", (16, 7, 7, 4), (16, 14, 8), 4928),
        ("a", (16, 7, 7, 6), None, 4704),
        ("b", (16, 7, 7, 4), (16, 2, 64), 5184),
        ("c", (16, 7, 7, 4), (16, 14, 8), 4928),
        ("d", (49, 1, 1, 64), (16, 14, 8), 4928),
    ],
)
def test_a_clip_keeps_about_as_many_numbers(letter, structure, dynamics, numbers):
    net = base(letter)
    assert (net.structure_shape, net.dynamics_shape) == (structure, dynamics)
    assert net.rate == numbers / 2_408_448
    (video, latents), _ = abstract(net, batch=3)
    assert video.shape == (3, 16, 224, 224, 3)
    assert latents.structure.mean.shape == (3, *structure)
    assert (latents.dynamics and latents.dynamics.mean.shape[1:]) == dynamics


def test_parameters_by_hand():
    """Parts that an ablation replaces have the sizes counted by hand; the rest is the full model's, leaf by leaf."""
    full = abstract(base(""))[1]
    assert count(full["structure_encoder"]["qformer"]) == 1_017_984  # spec, section 5
    want = {
        "a": {},
        "b": {
            "dynamics_encoder/qformer": 1_017_984 - 14 * 64,
            "dynamics_decoder/widen": 64 * 768 + 768,
            "dynamics_decoder/mix": 2 * 196 + 196,
        },
        "c": {
            "structure_encoder/convolutions/conv_0": 3 * 768 * 64 + 64,
            "structure_encoder/convolutions/conv_1": 3 * 64 * 64 + 64,
            "structure_encoder/convolutions/mix": 16 * 16 + 16,
            "structure_encoder/convolutions/mlp_in": 64 * 768 + 768,
            "structure_encoder/convolutions/mlp_out": 768 * 64 + 64,
        },
        "d": {
            "structure_encoder/narrow": 768 * 32 + 32,
            "structure_encoder/frame": 32 * 196 * 768 + 768,
            "structure_encoder/qformer": 1_017_984 + 33 * 64,
            "structure_decoder/widen": 64 * 768 + 768,
            "structure_decoder/places": 768 * 32 * 196 + 32 * 196,
            "structure_decoder/mix": 49 * 16 + 16,
            "structure_decoder/channels": 32 * 768 + 768,
        },
    }
    flat = paths.flatten(full)
    for letter, parts in want.items():
        own = paths.flatten(abstract(base(letter))[1])
        for part, size in parts.items():
            got = sum(leaf.size for path, leaf in own.items() if path.startswith(f"{part}/"))
            assert got == size, part
        rest = {p: leaf.shape for p, leaf in own.items() if not p.startswith(tuple(parts) or "-")}
        differ = {p for p, shape in rest.items() if p not in flat or flat[p].shape != shape}
        # Without Gaussians a layer returns only the latent: half of the moments.
        if letter in "bd":
            latent = {f"{name}_encoder/latent" for name in ("structure", "dynamics")} - {
                {"b": "dynamics", "d": "structure"}[letter] + "_encoder/latent"
            }
            assert differ == {f"{part}/{leaf}" for part in latent for leaf in ("kernel", "bias")}
        elif letter == "a":  # six channels instead of four
            assert differ == {
                "structure_encoder/moments/kernel",
                "structure_encoder/moments/bias",
                "structure_decoder/conv_in/kernel",
            }
            assert not any(path.startswith("dynamics_") for path in own)
        else:
            assert not differ


def test_latents_are_gaussians_where_the_released_code_has_no_class(tiny):
    letter, net, params, clip = tiny
    run = quick_jit(lambda p, key: net.apply({"params": p}, clip, key))
    video, latents = run(params, jax.random.key(0))
    other, _ = run(params, jax.random.key(1))
    drawn = [g.logvar is not None for g in latents if g is not None]
    assert drawn == {"a": [True], "b": [False] * 2, "c": [True] * 2, "d": [False] * 2}[letter]
    assert bool(np.abs(video - other).max() > 1e-3) == all(drawn)
    assert video.shape == clip.shape


def test_all_of_it_learns(tiny):
    _, net, params, clip = tiny
    toward = np.random.default_rng(1).normal(size=clip.shape).astype("f4")

    def loss(p):
        video, latents = net.apply({"params": p}, clip, jax.random.key(0))
        spread = [jnp.sum(g.logvar) for g in latents if g is not None and g.logvar is not None]
        return jnp.sum(toward * video) + sum(spread)

    grads = paths.flatten(quick_jit(jax.grad(loss))(params))
    # A key's bias adds the same to all logits of a query, which a softmax ignores.
    still = {path for path, leaf in grads.items() if np.abs(leaf).max() < 1e-6}
    assert all(path.endswith(("key/bias", "qkv/bias")) for path in still), still


def test_one_latent_is_the_structure_alone():
    net = ABLATIONS["a"](**VIDTWIN)
    params = random_like(abstract(net)[1])
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 4, 24, 24, 3)).astype("f4")
    full = VidTwin(**VIDTWIN)
    own = random_like(abstract(full)[1]) | params
    latents = quick_jit(lambda p: net.apply({"params": p}, clip, method="encode"))(params)
    assert latents.dynamics is None
    got = net.apply({"params": params}, latents.structure.mean, method="decode")
    want = full.apply({"params": own}, latents.structure.mean, None, method="decode")
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="this network has no dynamics"):
        net.apply({"params": params}, None, jnp.zeros((1, 4, 6, 3)), method="decode")


def features(seed=0):
    """Returns random features z of a clip, (1, t, h, w, c)."""
    return np.random.default_rng(seed).normal(size=(1, 4, 6, 6, 16)).astype("f4")


def branch(letter, name):
    """Returns the compiled encoder of a branch, with random parameters, as a function of features."""
    net = ABLATIONS[letter](**VIDTWIN)
    params = random_like(abstract(net)[1])
    apply = lambda net, z: getattr(net, f"{name}_encoder")(z, True)  # noqa: E731
    return quick_jit(lambda z: net.apply({"params": params}, z, method=apply))


def test_b_reads_the_places_of_each_frame_as_a_set():
    read, z = branch("b", "dynamics"), features()
    whole = read(z)
    assert whole.shape == (1, 4, 2, 8)
    moved = z.copy()
    moved[:, 2] += features(1)[:, 2]
    changed = np.abs(read(moved) - whole).max((0, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, True, False]
    order = np.random.default_rng(3).permutation(36)
    mixed = z.reshape(1, 4, 36, 16)[:, :, order].reshape(z.shape)
    np.testing.assert_allclose(read(mixed), whole, atol=1e-4)


def test_c_reads_each_place_alone_and_knows_the_order_of_frames():
    net = ABLATIONS["c"](**VIDTWIN)
    params = random_like(abstract(net)[1])
    module = net.reader()()
    variables = {"params": params["structure_encoder"]["convolutions"]}
    read = quick_jit(lambda rows: module.apply(variables, rows, True))
    rows = features().transpose(0, 2, 3, 1, 4).reshape(36, 4, 16)
    whole = read(rows)
    assert whole.shape == (36, 3, 8)
    moved = rows.copy()
    moved[5, 1] += 1
    changed = np.abs(read(moved) - whole).max((1, 2)) > 1e-5
    assert changed.tolist() == [i == 5 for i in range(36)]
    assert np.abs(read(rows[:, ::-1]) - whole).max() > 1e-3


def test_d_reads_frames_as_a_set_and_tells_places_apart():
    read, z = branch("d", "structure"), features()
    whole = read(z)
    assert whole.shape == (1, 3, 1, 1, 8)
    np.testing.assert_allclose(read(z[:, ::-1]), whole, atol=1e-4)
    assert np.abs(read(z[:, :, ::-1]) - whole).max() > 1e-3


def test_more_queries_than_frames_only_where_they_do_not_choose_frames():
    ABLATIONS["d"](**VIDTWIN | {"queries": 49}).check()
    for letter in "abc":
        with pytest.raises(ValueError, match="queries=49 must be from 1 to 4"):
            ABLATIONS[letter](**VIDTWIN | {"queries": 49}).check()
    with pytest.raises(ValueError, match="queries=0"):
        ABLATIONS["d"](**VIDTWIN | {"queries": 0}).check()
