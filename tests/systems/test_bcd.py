"""BCD as a system: which inputs affect which outputs, training of every alternative, sampling, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion import system as systems
from vidmotion.errors import ConfigError
from vidmotion.metrics import codebook
from vidmotion.models.quantizer import temperature
from vidmotion.open_run import load_config
from vidmotion.system import Vars
from vidmotion.systems import codecs

CLIPS, FRAMES, SIZE, HALF = 4, 6, 8, 3
CODEC = {"mean": 0.5, "std": 0.29}
TINY = {
    "name": "bcd",
    "frames": FRAMES,
    "size": SIZE,
    "codec": CODEC,
    "encoder": {"layers": 1, "width": 16, "heads": 2, "mlp_dim": 16, "content_tokens": 4},
    "quantizer": {
        "books": 2,
        "dim": 4,
        "entries": 8,
        "tau_max": 2.0,
        "tau_min": 0.5,
        "tau_decay": 0.999,
    },
    "rate": {"target": 100.0},  # 4 bits of 6
    "denoiser": {
        "patch": 4,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "groups": 4,
        "temporal_blocks": (0,),
    },
    "sampler": {"steps": 2},
    "guidance": {"drop": 0.5},
}
STEP = jnp.int32(300)


def build(**fields):
    """Builds the tiny system; a mapping changes fields of a section."""
    section = {key: dict(part) if isinstance(part, dict) else part for key, part in TINY.items()}
    for name, value in fields.items():
        section[name] = {**section.get(name, {}), **value} if isinstance(value, dict) else value
    return systems.build(section)


def clips(count=CLIPS, frames=FRAMES, seed=0):
    shape = (count, frames, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def latents(video):
    return ((video / 256 - CODEC["mean"]) / CODEC["std"] * 0.5).astype(np.float32)


def random_params(system):
    return random_like(
        jax.eval_shape(system.init, jax.random.key(0), {"video": clips(1)}), scale=0.25
    )


def jit_loss(system):
    @quick_jit
    def loss(params, video, key):
        return system.loss("model", Vars(params, {}, {}), {"video": video}, key, STEP, ())

    return loss


def jit_sample(system, **options):
    @quick_jit
    def sample(params, content, motion, key):
        batch = {"content": content, "motion": motion}
        return system.sample(Vars(params, {}, {}), batch, key, **options)

    return sample


@pytest.fixture(scope="module")
def tiny():
    """Returns (system, fresh parameters, random parameters, compiled loss)."""
    system = build()
    fresh = quick_jit(system.init)(jax.random.key(0), {"video": clips(1)})
    return system, fresh, random_params(system), jit_loss(system)


# -- training -------------------------------------------------------------------------------------

# Covers every alternative of the register of gaps, several at a time.
ALTERNATIVES = {
    "defaults": {},
    "one_content_frame_both_ways": dict(
        cross={"symmetric": True, "content_frames": 1},
        guidance={"independent": True},
        encoder={"content_tokens": 1, "content_width": 5},
        rate={"mode": "per_codebook_sum"},
    ),
    "same_half_noise_prediction": dict(
        cross={"enabled": False},
        diffusion={"kind": "ddpm_eps"},
        denoiser={"motion_inject": "add_temb", "temporal_position": "sincos"},
        quantizer={"distance": "l2", "post_linear": False},
        rate={"mode": "l1"},
    ),
    "content_as_tokens": dict(
        denoiser={"content_concat": "token", "layers": 2, "placement": "alternate"},
        encoder={"content_tokens": 3, "frame_stem": "conv"},
        quantizer={"learn_alpha": True, "hard": False, "normalise": False},
        rate={"mode": "total_normalised"},
    ),
    "content_of_patches_and_x_prediction": dict(
        encoder={"queries": "patches"},
        denoiser={"content_concat": "patch", "gate_start": 1.0},
        diffusion={"output": "x0"},
        cross={"symmetric": True},
    ),
    "content_as_a_frame_in_bfloat16": dict(
        denoiser={"content_concat": "reshape", "layers": 2, "temporal_blocks": (0, 1)},
        encoder={"content_tokens": 4, "content_width": SIZE * SIZE * 3 // 4},
        compute="bfloat16",
        remat=True,
        scan=True,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if fields else ())
        for name, fields in ALTERNATIVES.items()
    ],
)
def test_every_alternative_trains_every_parameter(name):
    system = build(**ALTERNATIVES[name])
    params = random_params(system)

    @quick_jit
    def gradient(params, key):
        def loss(params):
            value, out = system.loss(
                "model", Vars(params, {}, {}), {"video": clips()}, key, STEP, ()
            )
            return value, out.metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    # Two draws, because a single one may have dropped all conditions, or none.
    draws = [gradient(params, jax.random.key(seed)) for seed in (0, 3)]
    for (value, metrics), _ in draws:
        assert np.isfinite(value)
        weighted = metrics["denoising"] + system.rate.weight * metrics["rate"]
        np.testing.assert_allclose(value, weighted, rtol=1e-5)
    assert set(params["model"]) == {"encoder", "quantizer", "denoiser", "null"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        slopes = []
        for _, tree in draws:
            for key in path:
                tree = tree[key.key]
            slopes.append(np.asarray(tree))
        assert np.all(np.isfinite(slopes)), path
        assert np.abs(slopes).max() > 1e-8, path
        assert leaf.dtype == np.float32


@pytest.mark.parametrize("kind", ["edm", "ddpm_eps"])
def test_loss_of_a_fresh_network_is_one(tiny, kind):
    # At first F = 0. EDM's error is then a target of unit variance, for data of deviation sigma_data; the noise
    # predictor's error is the noise itself. The clips are uniform bytes, whose deviation is 0.2887 in 0..1.
    _, fresh, _, loss = tiny
    if kind == "ddpm_eps":
        loss = jit_loss(build(diffusion={"kind": kind}))
    assert np.std(latents(clips())) == pytest.approx(0.5, abs=0.01)
    values = [
        loss(fresh, clips(seed=seed), jax.random.key(seed))[1].metrics["denoising"]
        for seed in range(8)
    ]
    # 8 draws of 2,304 values, correlated only weakly, by the four noise levels of a batch.
    assert np.mean(values) == pytest.approx(1, abs=0.05)


def test_metrics_describe_the_code_of_the_second_half(tiny):
    system, _, noisy, loss = tiny
    _, out = loss(noisy, clips(), jax.random.key(0))
    metrics = {name: float(x) for name, x in out.metrics.items()}
    code = jit_sample(system)(noisy, clips()[:, :HALF], clips()[:, HALF:], jax.random.key(1))
    counts = codebook.usage_counts(np.asarray(code["ids"]), 8)
    assert counts.sum() == CLIPS * HALF * 2
    assert metrics["bits_hard"] == pytest.approx(codebook.bits_per_frame(counts), abs=1e-5)
    assert metrics["kbps_hard"] == pytest.approx(metrics["bits_hard"] * 25 / 1000)
    assert metrics["dead_entries"] == np.sum(counts == 0)
    soft = codebook.entropy_bits(np.asarray(code["soft_usage"]).mean(axis=0))
    assert metrics["bits_soft"] == pytest.approx(soft.sum(), abs=1e-4)
    assert metrics["book_bits_min"] == pytest.approx(soft.min(), abs=1e-4)
    assert metrics["book_bits_max"] == pytest.approx(soft.max(), abs=1e-4)
    assert metrics["rate"] == pytest.approx(np.mean((soft - 4 / 2) ** 2), abs=1e-4)
    assert metrics["tau"] == pytest.approx(2 * 0.999**300, rel=1e-5)


def test_each_condition_is_dropped_at_the_configured_rate():
    count, params = 8000, {"null": {"content": jnp.full((2, 1), -1.0), "motion": jnp.full(1, -2.0)}}

    def dropped(**fields):
        system = build(guidance=fields)
        c, m = jnp.zeros((count, 2, 1)), jnp.zeros((count, HALF, 1))
        c, m = quick_jit(system._drop_conditions)(params, c, m, jax.random.key(0))
        whole = np.asarray(c[:, 0, 0] == -1), np.asarray(m[:, 0, 0] == -2)
        np.testing.assert_array_equal(c[:, :, 0] == -1, np.tile(whole[0][:, None], (1, 2)))
        np.testing.assert_array_equal(m[:, :, 0] == -2, np.tile(whole[1][:, None], (1, HALF)))
        return whole

    sigma = np.sqrt(0.1 * 0.9 / count)
    content, motion = dropped(drop=0.1)
    assert abs(content.mean() - 0.1) < 5 * sigma
    np.testing.assert_array_equal(content, motion)
    content, motion = dropped(drop=0.1, independent=True)
    assert abs(content.mean() - 0.1) < 5 * sigma
    assert abs(motion.mean() - 0.1) < 5 * sigma
    assert np.mean(content & motion) == pytest.approx(0.01, abs=5 * np.sqrt(0.01 / count))
    content, motion = dropped(drop=0.0)
    assert not content.any()
    assert not motion.any()


def test_temporal_blocks_join_a_first_stage_without_a_jump(tiny):
    _, fresh, noisy, loss = tiny
    first_stage = build(denoiser={"temporal_from": int(STEP) + 1})
    assert first_stage.players[0].switches == (STEP + 1,)
    loss_1 = jit_loss(first_stage)
    unit = {
        **noisy["model"]["denoiser"]["unit_0"],
        "temporal_0": fresh["model"]["denoiser"]["unit_0"]["temporal_0"],
    }
    denoiser = {**noisy["model"]["denoiser"], "unit_0": unit}
    stage_1 = {"model": {**noisy["model"], "denoiser": denoiser}}
    arguments = clips(), jax.random.key(0)
    np.testing.assert_allclose(
        loss(stage_1, *arguments)[0], loss_1(stage_1, *arguments)[0], rtol=1e-6
    )
    assert abs(loss(noisy, *arguments)[0] - loss_1(noisy, *arguments)[0]) > 1e-4


def test_a_program_of_the_first_stage_holds_no_temporal_block():
    system = build(denoiser={"temporal_from": 100})
    params = random_params(system)
    batch = {"video": jax.ShapeDtypeStruct((2, FRAMES, SIZE, SIZE, 3), jnp.uint8)}

    def text(first, end):
        def loss(params, video, step):
            with systems.within(first, end):
                return system.loss(
                    "model", Vars(params, {}, {}), video, jax.random.key(0), step, ()
                )

        return jax.jit(loss).lower(params, batch, jnp.int32(first)).as_text()

    # Only temporal blocks compute a cosine, for their rotary position.
    assert "cosine" in text(100, None)
    assert text(0, 100).count("dot_general") < text(100, None).count("dot_general")


def test_the_two_stages_of_lrs3_are_one_run():
    config = load_config("lrs3")
    system, model = systems.build(config.system), config.optimizer.model
    first = 30 * 12_300
    assert config.steps == first * 3 // 2
    assert system.players[0].switches == (first,)
    # Steps are counted over both stages: at the second one's start the temperature is 1.5 * 0.9999972^369,000.
    q = system.quantizer
    tau = temperature(jnp.int32(first), q.tau_max, q.tau_min, q.tau_decay)
    assert float(tau) == pytest.approx(0.534, abs=0.001)
    names = jax.eval_shape(system.init, jax.random.key(0), None)
    starts = paths.flatten(paths.assign(model.start, names, "start"))
    assert {path for path, start in starts.items() if start} == {
        path for path in starts if "/temporal_" in path
    }
    assert set(starts.values()) == {0, first}


def test_content_of_patches_is_not_squeezed_through_a_token_of_the_frame():
    # One frame of 192 numbers gives 4 tokens of 30 numbers. Through the 16 numbers of the frame's token the derivative
    # has a rank of 16 at most; every query that begins with its own patch adds 16.
    ranks = {}
    for queries in ("learned", "patches"):
        system = build(encoder={"queries": queries, "content_width": 30})
        params = random_params(system)["model"]
        content = jax.jacobian(lambda z, s=system, p=params: s._encode(p, z)[0].ravel())
        jacobian = quick_jit(content)(latents(clips(1, 1)))
        values = np.linalg.svd(np.asarray(jacobian).reshape(120, 192), compute_uv=False)
        ranks[queries] = int(np.sum(values > 1e-4 * values[0]))
    assert ranks["learned"] <= 16
    assert ranks["patches"] > 48


def test_x_prediction_is_the_networks_output_and_its_error_counts_alike_at_all_levels(tiny):
    _, _, noisy, _ = tiny
    system = build(diffusion={"output": "x0"})
    z = latents(clips(2, HALF))
    c, m = np.ones((2, 4, 16), np.float32), np.ones((2, HALF, 8), np.float32)
    sigma = np.array([[0.01] * HALF, [30.0] * HALF], np.float32)
    y = z + sigma[..., None, None, None]
    network = system.denoiser.apply(
        {"params": noisy["model"]["denoiser"]},
        y / np.sqrt(sigma**2 + 0.25)[..., None, None, None],
        250 * np.log(sigma),
        c,
        m,
    )
    # The result does not contain the noisy picture itself, not even at the lowest noise level.
    got = system._denoise(noisy["model"], y, jnp.asarray(sigma), c, m)
    np.testing.assert_allclose(got, 0.5 * network, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(system.diffusion.process().weight(sigma), 4.0)


# -- who sees what --------------------------------------------------------------------------------


def cross_drive(system, params, video):
    """Returns (target, content, motion) of one training batch as numpy arrays, and the encoder."""
    encode = quick_jit(lambda z: system._encode(params["model"], z))
    out = quick_jit(lambda z: system._cross_drive(params["model"], z))(latents(video))
    return [np.asarray(x) for x in out], encode


def test_content_is_of_the_first_half_and_motion_of_the_second(tiny):
    system, _, noisy, _ = tiny
    video = clips()
    z = latents(video)
    (target, c, m), encode = cross_drive(system, noisy, video)
    np.testing.assert_array_equal(target, z[:, HALF:])
    np.testing.assert_allclose(c, encode(z[:, :HALF])[0], atol=1e-5)
    np.testing.assert_allclose(m, encode(z[:, HALF:])[1], atol=1e-5)
    for half, (same, other) in ((slice(HALF), (2, 1)), (slice(HALF, None), (1, 2))):
        changed = video.copy()
        changed[:, half] = clips(seed=5)[:, half]
        outputs, _ = cross_drive(system, noisy, changed)
        np.testing.assert_array_equal(outputs[same], (target, c, m)[same])
        assert np.abs(outputs[other] - (target, c, m)[other]).max() > 1e-2


def test_symmetric_and_short_content_and_no_cross_driving(tiny):
    _, _, noisy, _ = tiny
    video = clips()
    z = latents(video)
    first, second = z[:, :HALF], z[:, HALF:]
    both = build(cross={"symmetric": True, "content_frames": 1})
    (target, c, m), encode = cross_drive(both, noisy, video)
    # The two directions of a clip are adjacent rows.
    np.testing.assert_array_equal(target[0::2], second)
    np.testing.assert_array_equal(target[1::2], first)
    for rows, content, motion in (
        (slice(0, None, 2), first, second),
        (slice(1, None, 2), second, first),
    ):
        np.testing.assert_allclose(c[rows], encode(content[:, :1])[0], atol=1e-5)
        np.testing.assert_allclose(m[rows], encode(motion)[1], atol=1e-5)
    (target, c, m), _ = cross_drive(build(cross={"enabled": False}), noisy, video)
    np.testing.assert_array_equal(target, second)
    np.testing.assert_allclose(c, encode(second)[0], atol=1e-5)
    np.testing.assert_allclose(m, encode(second)[1], atol=1e-5)


def test_encoder_takes_any_number_of_frames_and_keeps_clips_apart(tiny):
    system, _, noisy, _ = tiny
    encode = quick_jit(lambda z: system._encode(noisy["model"], z))
    for frames in (1, 2, 4):
        z = latents(clips(frames=frames))
        c, m = encode(z)
        assert c.shape == (CLIPS, 4, 16)
        assert m.shape == (CLIPS, frames, 8)
        order = [2, 0, 3, 1]
        for moved, still in zip(encode(z[order]), (c, m)):
            np.testing.assert_allclose(moved, np.asarray(still)[order], atol=1e-5)


# -- sampling -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tiny):
    """Returns (compiled guided sampler, content, motion of 5 frames, the sampler's outputs for them)."""
    system, _, noisy, _ = tiny
    sample = jit_sample(system)
    content, motion = clips(2, HALF), clips(2, 5, seed=1)
    return sample, content, motion, sample(noisy, content, motion, jax.random.key(0))


def test_shapes_and_ranges(sampled):
    _, _, motion, out = sampled
    assert out["video"].shape == motion.shape
    assert 0 <= out["video"].min() < out["video"].max() <= 1
    assert out["ids"].shape == (2, 5, 2)
    assert out["ids"].dtype == jnp.int32
    assert out["soft_usage"].shape == (2, 2, 8)
    np.testing.assert_allclose(np.sum(out["soft_usage"], axis=-1), 1, rtol=1e-5)


def test_content_is_read_from_as_many_frames_as_the_sampler_says(tiny):
    """Table A2: the remaining frames of the content clip have no effect, and the motion is still read whole."""
    system, _, params, _ = tiny
    content, motion, key = clips(), clips(seed=5), jax.random.key(3)
    cut = dataclasses.replace(system, sampler=dataclasses.replace(system.sampler, content_frames=1))
    assert cut.content_frames == 1 and system.content_frames == system.half
    made = jit_sample(cut)(params, content, motion, key)
    first = jit_sample(system)(params, content[:, :1], motion, key)
    whole = jit_sample(system)(params, content, motion, key)
    np.testing.assert_array_equal(made["ids"], whole["ids"])
    np.testing.assert_allclose(made["video"], first["video"], atol=1e-6)
    assert np.abs(np.asarray(made["video"]) - np.asarray(whole["video"])).max() > 1e-3
    with pytest.raises(ConfigError, match=r"sampler\.content_frames=99: a half has only"):
        dataclasses.replace(system, sampler=dataclasses.replace(system.sampler, content_frames=99))


def test_more_than_eight_kbps_take_more_books():
    """The codebooks' largest entropy in bits per second is the target or up to twice as much (Figure A2)."""
    for kbps in (8, 12, 16):
        system = load_config(f"lrs3:bitrate={kbps}").system
        capacity = system.quantizer.books * np.log2(system.quantizer.entries) * 25
        assert system.rate.target == 1000 * kbps <= capacity <= 2 * system.rate.target


def test_long_drives_are_the_same_windows_one_by_one(tiny, sampled):
    # 5 frames make a window of 3 and one of 2 that is padded with the last frame; both start from the same noise.
    _, _, noisy, _ = tiny
    sample, content, motion, whole = sampled
    last = np.concatenate([motion[:, 3:], motion[:, -1:]], axis=1)
    for part, cut in ((motion[:, :3], slice(0, 3)), (last, slice(3, 5))):
        alone = sample(noisy, content, part, jax.random.key(0))
        kept = slice(cut.stop - cut.start)
        np.testing.assert_array_equal(alone["ids"][:, kept], whole["ids"][:, cut])
        np.testing.assert_allclose(alone["video"][:, kept], whole["video"][:, cut], atol=1e-3)
    repeated = sample(noisy, content, np.tile(motion[:, :3], (1, 2, 1, 1, 1)), jax.random.key(0))
    np.testing.assert_allclose(repeated["video"][:, :3], repeated["video"][:, 3:], atol=1e-4)
    other = sample(noisy, content, motion[:, :3], jax.random.key(1))
    assert np.abs(other["video"] - whole["video"][:, :3]).max() > 1e-2


def test_without_guidance_the_nulls_say_nothing_and_alone_they_say_all(tiny, sampled):
    system, _, noisy, _ = tiny
    _, content, motion, _ = sampled
    content_2, motion_2 = clips(2, HALF, seed=7), clips(2, 5, seed=8)
    key = jax.random.key(0)
    null = jax.tree.map(lambda x: x + 1, noisy["model"]["null"])
    moved = {"model": {**noisy["model"], "null": null}}

    conditional = jit_sample(system, guidance=1.0)
    y = conditional(noisy, content, motion, key)["video"]
    np.testing.assert_array_equal(conditional(moved, content, motion, key)["video"], y)
    for other in ((content_2, motion), (content, motion_2)):
        assert np.abs(conditional(noisy, *other, key)["video"] - y).max() > 1e-2

    unconditional = jit_sample(system, guidance=0.0)
    y = unconditional(noisy, content, motion, key)["video"]
    for other in ((content_2, motion), (content, motion_2)):
        np.testing.assert_array_equal(unconditional(noisy, *other, key)["video"], y)
    assert np.abs(unconditional(moved, content, motion, key)["video"] - y).max() > 1e-3


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_a_perfect_denoiser_gives_the_clip_back(monkeypatch, tiny, method):
    _, _, noisy, _ = tiny
    system = build(sampler={"method": method, "steps": 3, "window": 4})
    motion = clips(2, 4, seed=1)
    monkeypatch.setattr(
        type(system), "_denoise", lambda self, params, y, sigma, c, m, *_: latents(motion)
    )
    out = jit_sample(system, guidance=1.0)(noisy, clips(2, 1), motion, jax.random.key(0))
    np.testing.assert_allclose(out["video"], motion / 255, atol=1e-4)


# -- codec and errors -----------------------------------------------------------------------------


def test_pixels_survive_the_codec():
    codec = codecs.PixelCodec(mean=0.091, std=0.2235)
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, axis=-1)
    x = codec.encode({}, every)
    assert x.dtype == jnp.float32
    assert codec.latent_shape(16) == (16, 3)
    # The published data are v / 256, so black is -mean / std * 0.5.
    assert float(x[0, 0, 0, 0, 0]) == pytest.approx(-0.091 / 0.2235 * 0.5, rel=1e-6)
    assert float(x[0, 0, 8, 0, 0]) == pytest.approx((0.5 - 0.091) / 0.2235 * 0.5, rel=1e-6)
    back = np.asarray(codec.decode({}, x))
    assert back.max() == 1.0
    np.testing.assert_array_equal(np.rint(back * 255).astype(np.uint8), every)
    np.testing.assert_allclose(back * 255, every, atol=1e-3)
    far = jnp.array([-9.0, 9.0, 0.0]).reshape(1, 1, 1, 1, 3)
    np.testing.assert_array_equal(codec.decode({}, far)[0, 0, 0, 0, :2], [0, 1])


def test_pixels_of_matching_moments_have_sigma_data():
    video = clips(8)
    mean, std = (video / 256).mean(), (video / 256).std()
    x = codecs.PixelCodec(mean=float(mean), std=float(std)).encode({}, video)
    assert float(jnp.mean(x)) == pytest.approx(0, abs=1e-4)
    assert float(jnp.std(x)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(depth=3), r"config\.system: BCD.*'depth'.*Known fields: frames, size"),
        (dict(encoder={"depth": 3}), r"system\.encoder: .*'depth'.*Known fields: layers, width"),
        (dict(quantizer={"size": 3}), r"system\.quantizer: .*'size'.*tau_max"),
        (dict(rate={"bits": 3}), r"system\.rate: .*'bits'.*target"),
        (dict(denoiser={"depth": 3}), r"system\.denoiser: .*'depth'.*patch"),
        (dict(codec={"median": 3}), r"system\.codec: .*'median'.*mean, std"),
        (dict(guidance={"w": 3}), r"system\.guidance: .*'w'.*scale"),
        (dict(diffusion={"sigma": 3}), r"system\.diffusion: .*'sigma'.*sigma_data"),
        (dict(cross={"on": 3}), r"system\.cross: .*'on'.*symmetric"),
        (dict(sampler={"eta": 3}), r"system\.sampler: .*'eta'.*steps"),
        (dict(frames=5), r"frames=5: two halves need an even number"),
        (dict(cross={"content_frames": 4}), r"cross\.content_frames=4: a half has only 3"),
        (dict(cross={"content_frames": -1}), r"cross\.content_frames=-1"),
        (dict(encoder={"heads": 3}), r"encoder\.width=16 must be divisible by heads=3"),
        (dict(encoder={"queries": "all"}), r"encoder\.queries='all': choose learned, patches"),
        (
            dict(encoder={"queries": "patches", "content_tokens": 1, "frame_stem": "conv"}),
            r"encoder\.queries='patches' needs encoder\.content_tokens = 4",
        ),
        (dict(diffusion={"output": "v"}), r"diffusion\.output='v': choose edm, x0"),
        (dict(encoder={"frame_stem": "vit"}), r"encoder\.frame_stem='vit': choose linear, conv"),
        (dict(encoder={"content_tokens": 5}), r"denoiser\.content_concat.*1 or 4 .*got 5"),
        (dict(quantizer={"distance": "cos"}), r"quantizer\.distance='cos': choose sq_l2, l2"),
        (dict(rate={"mode": "mean"}), r"rate\.mode='mean': choose per_codebook_mean"),
        (dict(sampler={"method": "dpm"}), r"sampler\.method='dpm': choose heun"),
        (dict(denoiser={"patch": 3}), r"config\.system\.denoiser\.patch=3"),
        (dict(denoiser={"placement": "x"}), r"config\.system\.denoiser\.placement='x'"),
        (dict(diffusion={"kind": "flow"}), r"diffusion\.kind='flow': choose edm or ddpm_eps"),
        (dict(compute="float16"), r"'float16': choose float32 or bfloat16"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
