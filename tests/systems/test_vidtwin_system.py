"""VidTwin's losses and players: against plain differentiation, in bfloat16, and the latents that each decoding uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from configs import vidtwin as config
from vidmotion import paths, system
from vidmotion.errors import ConfigError
from vidmotion.losses.kl import gaussian_kl
from vidmotion.metrics.stability import seam
from vidmotion.models.vidtwin import LATENTS, SIZES
from vidmotion.systems import vidtwin
from vidmotion.systems.vidtwin import LAST_KERNEL, Gan, VidTwinAutoencoder, crossfade

DEBUG = config.get_config("debug")


def make(**changes) -> VidTwinAutoencoder:
    return system.build({**DEBUG.system.to_dict(), **changes})


def batch(size=2, seed=0):
    rng = np.random.default_rng(seed)
    return {"video": rng.integers(0, 256, (size, 4, 16, 16, 3)).astype(np.uint8)}


@pytest.fixture(scope="module")
def built():
    """Returns (system with LPIPS, its variables); biases are random, so that a missing one shows."""
    made = make()
    params = quick_jit(made.init)(jax.random.key(0), batch())
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params)
    shapes = made._lpips_shapes()
    lpips = paths.unflatten(
        {
            # He's scale preserves the size of what passes a kernel; heads are not negative.
            path: np.float32(
                np.abs(rng.normal(size=leaf.shape))
                if path.startswith("head")
                else rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            )
            for path, leaf in paths.flatten(shapes).items()
        }
    )
    return made, system.Vars(params, made.init_mutable(), {"lpips": lpips})


def model_gradient(made, vars, step):
    def loss(params):
        full = vars._replace(params={**vars.params, "model": params})
        return made.loss("model", full, batch(), jax.random.key(7), jnp.int32(step), None)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))(vars.params["model"])


# -- the loss of the autoencoder -------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(built):
    """Computes the losses of section 7 as single expressions, differentiated through everything."""
    made, vars = built
    x = batch()["video"].reshape(-1, 16, 16, 3) / np.float32(127.5) - 1
    keys = jax.random.split(jax.random.key(7))

    def reconstruct(params):
        net = {"params": params["autoencoder"]}
        video = x.reshape(2, 4, 16, 16, 3)
        found = made.net.apply(net, video, False, method="encode", rngs={"dropout": keys[0]})
        drawn = [g.sample(k) for g, k in zip(found, jax.random.split(keys[1]))]
        y = made.net.apply(net, *drawn, method="decode").reshape(x.shape)
        return y, sum(jnp.mean(gaussian_kl(*g)) for g in found)

    def nll(params):
        y, _ = reconstruct(params)
        p = made.lpips.apply({"params": vars.consts["lpips"]}, x, y)[:, None, None, None]
        r = jnp.abs(x - y) + 0.05 * p
        return jnp.sum(r / jnp.exp(params["logvar"]) + params["logvar"]) / len(x)

    def gan(params):
        variables = {"params": vars.params["disc"], "batch_stats": vars.mutable["disc"]}
        y, _ = reconstruct(params)
        return -jnp.mean(made.disc.apply(variables, y, True, mutable="batch_stats")[0])

    def both(params):
        pulls = [jax.grad(f)(params) for f in (nll, gan)]
        last = [paths.flatten(g["autoencoder"])[LAST_KERNEL] for g in pulls]
        w = 0.05 * jnp.linalg.norm(last[0]) / (jnp.linalg.norm(last[1]) + 1e-4)
        kl = jax.grad(lambda p: reconstruct(p)[1])(params)
        grad = jax.tree.map(lambda a, b, c: a + w * b + 1e-3 * c, *pulls, kl)
        value = nll(params) + w * gan(params) + 1e-3 * reconstruct(params)[1]
        return value, grad, w, pulls[0]

    return quick_jit(both)(vars.params["model"])


def relative(a, b):
    """Returns the largest difference divided by the largest entry, over all leaves together."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    return max(float(jnp.abs(x - y).max()) for x, y in pairs) / max(
        float(jnp.abs(y).max()) for _, y in pairs
    )


@pytest.mark.slow
def test_value_weight_and_gradient_are_those_of_plain_differentiation(built, plain):
    (loss, out), grad = model_gradient(*built, step=5)
    value, expected, weight, _ = plain
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["gan_weight"], weight, rtol=1e-4)
    assert relative(grad, expected) < 1e-4


@pytest.mark.slow
def test_before_its_start_the_adversary_has_no_part(built, plain):
    made, vars = built
    late = dataclasses.replace(made, gan=Gan(start=10, width=8, layers=2))
    (_, out), grad = model_gradient(late, vars, step=10)  # the discriminator's first batch
    assert out.metrics["gan"] == out.metrics["gan_weight"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, out.mutable["disc"], vars.mutable["disc"])
    np.testing.assert_allclose(grad["logvar"], plain[3]["logvar"], rtol=1e-4)
    last = [paths.flatten(g["autoencoder"])[LAST_KERNEL] for g in (grad, plain[3])]
    np.testing.assert_allclose(*last, atol=1e-4 * float(jnp.abs(last[1]).max()))
    (_, out), _ = model_gradient(late, vars, step=11)
    assert out.metrics["gan_weight"] > 0.0


def test_the_discriminator_learns_on_the_same_reconstructions_and_from_nothing_else(built):
    made, vars = built
    (_, out), _ = model_gradient(made, vars, step=5)
    x = batch()["video"].reshape(-1, 16, 16, 3) / np.float32(127.5) - 1

    def loss(params):
        args = batch(), jax.random.key(0), jnp.int32(5), out.carry
        return made.loss("disc", vars._replace(params=params), *args)

    (value, seen), grad = quick_jit(jax.value_and_grad(loss, has_aux=True))(vars.params)
    variables = {"params": vars.params["disc"], "batch_stats": vars.mutable["disc"]}
    real, fake = (
        made.disc.apply(variables, frames, True, mutable="batch_stats")[0]
        for frames in (x, out.carry["reconstruction"])
    )
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    np.testing.assert_allclose(value, hinge, rtol=1e-5)
    assert all(not np.any(g) for g in jax.tree.leaves(grad["model"]))
    assert any(np.any(g) for g in jax.tree.leaves(grad["disc"]))
    assert relative(seen.mutable["disc"], vars.mutable["disc"]) > 0.0


@pytest.mark.slow
def test_switching_the_adversary_on_is_finite_in_bfloat16(built):
    """With a decoder of five times the weights, reconstructions are far outside [-1, 1]."""
    made, vars = built
    low = dataclasses.replace(made, compute="bfloat16")
    wild = jax.tree.map(lambda x: 5.0 * x, vars.params["model"]["autoencoder"]["decoder"])
    model = {**vars.params["model"], "logvar": jnp.float32(-8.0)}
    model["autoencoder"] = {**model["autoencoder"], "decoder": wild}
    wild = vars._replace(params={**vars.params, "model": model})
    (loss, out), grad = model_gradient(low, wild, step=5)
    assert np.isfinite(loss) and out.metrics["gan_weight"] > 0.0 and out.metrics["l1"] > 3.0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((grad, out.metrics, out.mutable)))


def test_windows_fade_by_shares_that_add_up():
    """Three windows of four frames, with values 0, 30 and 60, share two: the earlier window weighs 2/3, then 1/3."""
    windows = np.broadcast_to(
        np.float32([0, 30, 60])[None, :, None, None, None, None], (1, 3, 4, 2, 2, 3)
    )
    joined = np.asarray(crossfade(windows, 2))
    assert joined.shape == (1, 8, 2, 2, 3)
    np.testing.assert_allclose(joined[0, :, 0, 0, 0], [0, 0, 10, 20, 40, 50, 60, 60], rtol=1e-5)
    np.testing.assert_array_equal(crossfade(windows, 0), windows.reshape(1, 12, 2, 2, 3))
    np.testing.assert_allclose(crossfade(windows[:, :1] + 7, 2), 7)  # a single window does not fade


def test_where_windows_share_frames_a_border_is_a_fade(built, monkeypatch):
    """A decoder makes each window 0.3 brighter than the last: one step of 0.3, or three of 0.1 in shared frames."""
    made, vars = built
    frames = made.net.frames

    def flat(self, vars, structure, dynamics):
        levels = 0.1 + 0.3 * jnp.arange(len(dynamics)) % 0.9
        return jnp.broadcast_to(levels[:, None, None, None, None], (len(levels), frames, 16, 16, 3))

    monkeypatch.setattr(VidTwinAutoencoder, "_decode", flat)

    def seams(overlap):
        system = dataclasses.replace(made, overlap=overlap)
        clip = jnp.zeros((1, 2 * frames - overlap, 16, 16, 3), jnp.uint8)
        made_of = quick_jit(system.sample)(
            vars, {"content": clip, "motion": clip}, jax.random.key(0)
        )
        video = np.asarray(made_of["video"])
        steps = np.diff(video[0, :, 0, 0, 0])
        return steps.max(), *(float(x[0]) for x in seam(0 * video, video, frames, overlap))

    np.testing.assert_allclose(seams(0), [0.3, 0.3, 0], atol=1e-6)
    np.testing.assert_allclose(seams(2), [0.1, 0.1, 0], atol=1e-6)
    with pytest.raises(ConfigError, match="overlap=9 must be from 0 to half"):
        dataclasses.replace(made, overlap=9)


def test_players_start_as_the_config_says():
    made = make(gan={"start": 3, "width": 8, "layers": 2})
    model, disc = made.players
    assert (model.name, model.start) == ("model", 0)
    assert (disc.name, disc.start, disc.shares_forward) == ("disc", 3, True)
    assert disc.whole_schedule  # the released schedulers step once per batch, from batch 0 on


# -- where structure comes from --------------------------------------------------------------------


def reconstruction(made, vars, video):
    """Returns the training pass's reconstruction of clips, and the keys of its draws (structure, dynamics)."""
    out = quick_jit(
        lambda v: made.loss("model", v, {"video": video}, jax.random.key(7), jnp.int32(0), None)[1]
    )(vars)
    return out.carry["reconstruction"], jax.random.split(jax.random.split(jax.random.key(7))[1])


def by_hand(made, vars, keys, shown, moving):
    """Decodes the structure of the clips `shown` with the dynamics of the clips `moving`."""
    net = {"params": vars.params["model"]["autoencoder"]}
    structure, dynamics = (
        quick_jit(lambda x: made.net.apply(net, x, method="encode"))(x / np.float32(127.5) - 1)
        for x in (shown, moving)
    )
    drawn = structure.structure.sample(keys[0]), dynamics.dynamics.sample(keys[1])
    return made.net.apply(net, *drawn, method="decode").reshape(-1, 16, 16, 3)


@pytest.fixture(scope="module")
def plain_network():
    """Returns (system without dropout and adversary, random variables)."""
    made = make(gan={"weight": 0.0}, network={**DEBUG.system.network.to_dict(), "dropout": 0.0})
    params = random_like(jax.eval_shape(made.init, jax.random.key(0), None), scale=0.2)
    return made, system.Vars(params, {}, {})


def test_structure_is_that_of_the_other_window(plain_network):
    made, vars = plain_network
    other = dataclasses.replace(made, structure_from="other")
    assert other.input_spec(2)["video"].shape == (2, 8, 16, 16, 3)
    video = np.concatenate([batch(seed=k)["video"] for k in (0, 1)], axis=1)
    windows = video.reshape(4, 4, 16, 16, 3)  # clip 0: windows 0 and 1, clip 1: windows 2 and 3
    got, keys = reconstruction(other, vars, video)
    # The noise of a structure belongs to the window that the structure was read from.
    net = {"params": vars.params["model"]["autoencoder"]}
    found = made.net.apply(net, windows / np.float32(127.5) - 1, method="encode")
    structure = found.structure.sample(keys[0])[np.array([1, 0, 3, 2])]
    want = made.net.apply(net, structure, found.dynamics.sample(keys[1]), method="decode")
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-4)
    own = by_hand(made, vars, keys, windows, windows)
    assert np.abs(got - own).max() > 1e-2


def test_structure_is_that_of_either_window(plain_network):
    """Both clips of a video are rebuilt as with ``clip``, or both as with ``other``; both ways occur."""
    made, vars = plain_network
    videos = np.concatenate([batch(seed=k)["video"] for k in (0, 1)], axis=1)
    videos = np.concatenate([videos, videos[::-1], videos[:, ::-1]])  # six videos
    other, either = (dataclasses.replace(made, structure_from=n) for n in ("other", "either"))
    assert either.input_spec(6)["video"].shape == (6, 8, 16, 16, 3)
    swapped, mixed = (reconstruction(system, vars, videos)[0] for system in (other, either))
    own = reconstruction(made, vars, videos.reshape(12, 4, 16, 16, 3))[0]
    swapped, mixed, own = (x.reshape(6, 8, 16, 16, 3) for x in (swapped, mixed, own))
    ways = []
    for k in range(6):
        far = [np.abs(mixed[k] - x[k]).max() for x in (own, swapped)]
        assert min(far) < 1e-4 < 1e-2 < max(far)
        ways.append(int(np.argmin(far)))
    assert set(ways) == {0, 1}


def test_colours_go_with_structure(plain_network):
    """In a video that shows the same frames twice, a window seen in the other's colours equals the other window."""
    made, vars = plain_network
    half = np.concatenate([batch(seed=k)["video"] for k in (0, 1)])  # four clips
    video = {"video": np.concatenate([half, half], axis=1)}
    either = dataclasses.replace(made, structure_from="either", recolour=1.0)
    seen, aim, crossed = either._views(vars, video, jax.random.key(3))
    pairs = seen.reshape(4, 2, *seen.shape[1:])
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max(axis=(1, 2, 3, 4)).min() > 0.1
    crossed = np.asarray(crossed).reshape(4, 2)
    assert set(crossed[:, 0]) == {True, False} and (crossed[:, 0] == crossed[:, 1]).all()
    for pair, goal, other in zip(pairs, aim.reshape(pairs.shape), crossed[:, 0]):
        np.testing.assert_array_equal(goal, pair[::-1] if other else pair)
    off = dataclasses.replace(either, recolour=1e-9)._views(vars, video, jax.random.key(3))
    np.testing.assert_allclose(off[0], half.repeat(2, axis=0) / 127.5 - 1, atol=1e-6)


def test_a_turn_of_the_hue_leaves_grey_and_distances():
    matrix, offset = (np.asarray(x) for x in vidtwin._colours(jax.random.key(0), 400, 0.75))
    gain = matrix.sum(axis=-1)  # the factor applied to white
    turn = matrix / gain[..., None]
    np.testing.assert_allclose(
        turn @ turn.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-5)
    assert np.exp(-0.5) <= gain.min() < 0.65 and 1.3 < gain.max() <= np.exp(0.3) + 1e-5
    still = (matrix == np.eye(3)).all(axis=(1, 2))
    assert 0.18 < still.mean() < 0.32  # three deviations of a binomial
    assert not offset[still].any() and np.abs(offset).max() <= 0.2


def test_structure_of_shuffled_frames(plain_network):
    made, vars = plain_network
    video = batch()["video"]
    got, keys = reconstruction(dataclasses.replace(made, structure_from="shuffled"), vars, video)
    order_key = jax.random.fold_in(jax.random.split(jax.random.key(7))[0], 1)
    orders = [jax.random.permutation(k, 4) for k in jax.random.split(order_key, 2)]
    mixed = np.stack([clip[np.asarray(order)] for clip, order in zip(video, orders)])
    assert not np.array_equal(mixed, video)
    wrong = np.abs(got - by_hand(made, vars, keys, mixed, video)).max()
    # The Q-Former reads a set, so reordered frames differ only by what each of them saw of the frames before it.
    assert np.abs(got - reconstruction(made, vars, video)[0]).max() > 10 * wrong
    assert wrong < 1e-5


# -- latents of a codec ----------------------------------------------------------------------------


def test_a_codec_changes_what_is_read_and_nothing_of_the_clip():
    """Patches of 4 pixels become 2x2 places of 12 numbers; the sample is decoded back to the clip's pixels."""
    codec = {"mean": 0.5, "std": 0.25, "patch": 2}
    made = make(codec=codec, gan={"weight": 0.0})
    assert (made.net.size, made.net.channels, made.net.patch) == (8, 12, (1, 2, 2))
    assert made.net.grid == make().net.grid and made.size == 16
    assert made.share_kept == make().share_kept == make().net.rate
    params = random_like(jax.eval_shape(made.init, jax.random.key(0), None), scale=0.2)
    assert set(params) == {"model"} and made.init_mutable() == {} and len(made.players) == 1
    vars, video = system.Vars(params, {}, {}), batch()["video"]
    z = (video.astype(np.float32) / 256 - 0.5) * 2
    z = z.reshape(2, 4, 8, 2, 8, 2, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 4, 8, 8, 12)
    plain, _ = quick_jit(lambda p, z: made.net.apply({"params": p}, z))(
        params["model"]["autoencoder"], z
    )
    got = quick_jit(
        lambda v, x: made.sample(v, {"content": x, "motion": x}, jax.random.key(0))["video"]
    )(vars, video)
    pixels = np.asarray(plain).reshape(2, 4, 8, 8, 2, 2, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    want = np.clip((pixels.reshape(2, 4, 16, 16, 3) / 2 + 0.5) * 256 / 255, 0, 1)
    np.testing.assert_allclose(got, want, atol=1e-4)
    loss, out = quick_jit(
        lambda v: made.loss("model", v, {"video": video}, jax.random.key(1), jnp.int32(0), None)
    )(vars)
    # Without an adversary the loss consists of the likelihood and the divergence.
    np.testing.assert_allclose(loss, out.metrics["nll"] + 1e-3 * out.metrics["kl"], rtol=1e-5)
    assert "psnr" not in out.metrics and "gan" not in out.metrics


# -- decoding --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoding(built):
    """Returns (system, variables) whose reconstructions depend visibly on both latents."""
    made, vars = built
    net = random_like(vars.params["model"]["autoencoder"], scale=0.2)
    return made, vars._replace(params={"model": {"autoencoder": net}})


@pytest.fixture(scope="module")
def sample(decoding):
    made, vars = decoding

    def run(content, motion, **options):
        inputs = {"content": content, "motion": motion}
        return quick_jit(lambda v, b: made.sample(v, b, jax.random.key(0), **options)["video"])(
            vars, inputs
        )

    return run


def test_a_clip_with_itself_is_its_reconstruction(decoding, sample):
    made, vars = decoding
    video = batch()["video"]
    plain = made.net.apply(
        {"params": vars.params["model"]["autoencoder"]}, video / np.float32(127.5) - 1
    )[0]
    np.testing.assert_allclose(sample(video, video), np.clip(plain / 2 + 0.5, 0, 1), atol=1e-5)
    read = made.read(vars, {"video": video})
    np.testing.assert_allclose(made.render(vars, read), sample(video, video), atol=1e-5)


def test_single_latents_and_crossing_take_what_they_say(sample):
    a, b = batch(seed=1)["video"], batch(seed=2)["video"]
    cross = sample(a, b)
    assert np.abs(cross - sample(b, b)).max() > 1e-3 < np.abs(cross - sample(a, a)).max()
    np.testing.assert_allclose(
        sample(a, b, part="structure"), sample(a, a, part="structure"), atol=1e-6
    )
    np.testing.assert_allclose(
        sample(a, b, part="dynamics"), sample(b, b, part="dynamics"), atol=1e-6
    )
    with pytest.raises(ConfigError, match="both, structure, dynamics"):
        sample(a, b, part="colour")


def test_a_long_video_is_cut_into_windows(sample):
    long = np.concatenate([batch(seed=k)["video"] for k in range(3)], axis=1)[:, :10]
    whole = sample(long, long)
    assert whole.shape[1] == 10
    np.testing.assert_allclose(whole[:, :4], sample(long[:, :4], long[:, :4]), atol=1e-5)
    # Padded with the last frame.
    tail = np.concatenate([long[:, 8:], long[:, 9:], long[:, 9:]], axis=1)
    np.testing.assert_allclose(whole[:, 8:], sample(tail, tail)[:, :2], atol=1e-5)
    still = long[:, :1]  # a picture: its single window serves all windows
    np.testing.assert_allclose(
        sample(still, long)[:, 4:8], sample(np.repeat(still, 4, 1), long[:, 4:8]), atol=1e-5
    )


def test_codes_of_a_long_video_are_those_of_its_windows(decoding):
    made, vars = decoding
    long = np.concatenate([batch(seed=k)["video"] for k in range(2)], axis=1)[:, :7]
    read = quick_jit(made.read)
    first, rest = read(vars, {"video": long[:, :4]}), np.concatenate([long, long[:, 6:]], 1)[:, 4:]
    codes = quick_jit(made.read_codes)(vars, {"content": long, "motion": long})
    np.testing.assert_allclose(codes["content"], first["structure"].reshape(2, -1), atol=1e-5)
    dynamics = [first["dynamics"], read(vars, {"video": rest})["dynamics"]]
    whole = np.concatenate(dynamics, axis=1).reshape(2, 8, -1)
    np.testing.assert_allclose(codes["motion"], whole[:, :7], atol=1e-5)


def test_a_draw_differs_from_the_mean(sample):
    video = batch()["video"]
    assert np.abs(sample(video, video, draw=True) - sample(video, video)).max() > 1e-3


# -- configs and refusals --------------------------------------------------------------------------


def test_the_config_has_the_sizes_of_the_network():
    assert config.SIZES == SIZES
    assert {k: dict(zip(config.FIELDS, v)) for k, v in config.LATENTS.items()} == LATENTS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "alone", "whole"),
    [  # millions of parameters (spec, section 5), without and with the loss networks
        ("size=small,latent=released", 106.92, 124.40),
        ("size=base,latent=released", 312.70, 330.18),
        ("size=large,latent=released", 1239.7, 1257.1),
        ("size=small,latent=2", None, 126.81),
        ("size=base,latent=2", None, 335.58),
    ],
)
def test_parameters_as_the_paper_counts_them(argument, alone, whole):
    made = system.build(config.get_config(argument).system)
    counts = made.paper_counts(jax.eval_shape(made.init, jax.random.key(0), None))
    assert alone is None or counts["autoencoder"] / 1e6 == pytest.approx(alone, rel=5e-5)
    assert counts["with loss networks"] / 1e6 == pytest.approx(whole, rel=5e-5)


def test_what_does_not_fit_is_named():
    network = DEBUG.system.network.to_dict()
    with pytest.raises(ConfigError, match="heads=3"):
        make(network={**network, "heads": 3})
    with pytest.raises(ConfigError, match="depht"):
        make(network={**network, "depht": 3})
    with pytest.raises(ConfigError, match="needs frames of 24 places or more"):
        make(gan={"layers": 3})
    with pytest.raises(ConfigError, match=r"perceptual.weights='nowhere'.*no such file"):
        make(perceptual={"weights": "nowhere"}).consts_spec()["lpips"].load()
    with pytest.raises(ConfigError, match=r"network.*queries=5 must be from 1 to 4"):
        make(network={**network, "queries": 5})
    with pytest.raises(
        ConfigError, match="structure_from='window': choose clip, shuffled, other, either"
    ):
        make(structure_from="window")
    with pytest.raises(
        ConfigError, match=r"recolour=0\.5 needs config\.system\.structure_from to be one of other"
    ):
        make(recolour=0.5)
    with pytest.raises(ConfigError, match="recolour=2 must be a share, from 0 to 1"):
        make(recolour=2, structure_from="other")
    codec = {"mean": 0.5, "std": 0.25, "patch": 8}
    with pytest.raises(ConfigError, match=r"network.patch=\(1, 4, 4\).* the 8 pixels of a place"):
        make(codec=codec, gan={"weight": 0.0})
    with pytest.raises(ConfigError, match="LPIPS judges pixels"):
        make(codec={**codec, "patch": 2}, perceptual={"weights": "there"})


# -- released weights ------------------------------------------------------------------------------


def test_training_goes_on_with_the_log_variance_and_the_discriminator_of_the_checkpoint():
    made = make(gan={"width": 4, "layers": 2})
    params = made.init(jax.random.key(0), None)
    disc = {"params": params["disc"], "batch_stats": {"norm_1": {"mean": np.full(8, 3.0)}}}
    network = params["model"]["autoencoder"]
    given = {**network, "loss": {"logvar": np.float32(-1.5), "disc": disc}}
    whole = made.released(given)
    assert whole["model"]["logvar"] == -1.5 and whole["model"]["autoencoder"] == network
    assert whole["disc"] is params["disc"]
    assert made.released_mutable(given) == {"disc": disc["batch_stats"]}
    stats = jax.tree.map(lambda x: x + 1, made.init_mutable())
    taken = system.inherited(made.init_mutable(), stats)
    jax.tree.map(np.testing.assert_array_equal, taken, stats)
    kept = system.inherited(made.init_mutable(), {})
    jax.tree.map(np.testing.assert_array_equal, kept, made.init_mutable())
    alone = made.released(network)  # a checkpoint without the loss networks
    assert alone["model"]["logvar"] == 0.0 and "disc" not in alone
    fields = made.released_fields({"width": 16, "discriminator_width": 64})
    assert fields == {"network": {"width": 16}}
