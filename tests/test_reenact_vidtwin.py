"""Released VidTwin weights on a user's own videos: windows in pairs, one latent alone, and what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from quick import VIDTWIN, quick_jit, random_like

from vidmotion import media, paths, reenact, sharding
from vidmotion.convert import folder
from vidmotion.errors import ConfigError
from vidmotion.models.vidtwin import VidTwin
from vidmotion.open_run import load_config, open_run, open_weights
from vidmotion.run import Run

ARGUMENTS = {**VIDTWIN, "patch": (1, 8, 8), "query_mlp": 16, "structure_width": 8}
FRAMES, SIZE = ARGUMENTS["frames"], ARGUMENTS["size"]
NET = VidTwin(**ARGUMENTS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns (a folder as the converter writes it, its parameters)."""
    video = jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), np.float32)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), video)["params"]
    params = jax.tree.map(np.asarray, random_like(shapes, scale=0.2))
    path = tmp_path_factory.mktemp("weights") / "vidtwin"
    folder.write(path, "vidtwin", ARGUMENTS, params)
    return str(path), params


@pytest.fixture(scope="module")
def run(weights):
    """Returns a run of the weights on one device, whose programs compile fast."""
    run = open_weights(weights[0], {"system.overlap": "0"})
    run.mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    compiled = functools.cache(
        lambda part: quick_jit(functools.partial(run.system.sample, part=part))
    )
    run.jit_sample = lambda part="both": compiled(part)
    return run


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Returns a folder with videos of 10 frames, 24x24, and of 7 frames, 31x40, and a picture."""
    path, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for name, shape in (("long", (10, 24, 24, 3)), ("short", (7, 31, 40, 3))):
        coarse = rng.integers(0, 256, (shape[0], 4, 4, 3), np.uint8)
        video = coarse.repeat(10, axis=1).repeat(10, axis=2)[:, : shape[1], : shape[2]]
        media.write_mp4(path / f"{name}.mp4", video, fps=12)
    media.write_png(path / "still.png", rng.integers(0, 256, (24, 24, 3), np.uint8))
    return path


@pytest.fixture
def made(run, films, tmp_path, monkeypatch):
    """Returns a function that reenacts and returns the frames as they were before H.264 blurs them."""
    write = media.write_mp4

    def call(content, motion, **options):
        kept = []

        def spy(path, frames, *arguments, **given):
            write(path, (kept.append(frame) or frame for frame in frames), *arguments, **given)

        monkeypatch.setattr(media, "write_mp4", spy)
        out = str(tmp_path / "out.mp4")
        options = {"together": 1, **options}
        count = reenact.reenact(run, str(films / content), str(films / motion), out, **options)
        assert count == len(kept) == len(media.read_video(out).frames)
        return np.stack(kept)

    return call


@quick_jit
def cross(params, structure_of, dynamics_of):
    """Returns what the network itself makes of clips in [-1, 1]: with latents crossed, and from structure alone."""
    net = {"params": params}
    structure = NET.apply(net, structure_of, method="encode").structure.mean
    dynamics = NET.apply(net, dynamics_of, method="encode").dynamics.mean
    return tuple(NET.apply(net, structure, d, method="decode") for d in (dynamics, None))


def windows(frames):
    """Cuts (T, ...) into (windows, 4, ...) in [-1, 1]; the last window is filled with copies of the last frame."""
    index = np.minimum(np.arange(-(-len(frames) // FRAMES) * FRAMES), len(frames) - 1)
    return (frames[index] / 127.5 - 1).astype(np.float32).reshape(-1, FRAMES, SIZE, SIZE, 3)


def pixels(clips, count):
    video = np.asarray(clips).reshape(-1, SIZE, SIZE, 3)[:count]
    return np.clip(video * 0.5 + 0.5, 0, 1) * 255


def read(films, name):
    return np.stack([reenact.fit(frame, SIZE) for frame in media.iter_video(films / name)])


def test_windows_go_in_pairs_as_long_as_both_last(weights, made, films):
    _, params = weights
    long, short = read(films, "long.mp4"), read(films, "short.mp4")
    a, b = windows(short), windows(long)[:2]
    crossed, alone = cross(params, a, b)
    frames = made("short.mp4", "long.mp4")
    np.testing.assert_allclose(frames, pixels(crossed, 7), atol=1.0)
    assert frames.std() > 5
    np.testing.assert_allclose(
        made("short.mp4", "long.mp4", part="structure"), pixels(alone, 7), atol=1.0
    )
    wide = made("short.mp4", "long.mp4", side_by_side=True)
    np.testing.assert_array_equal(wide[:, :, :SIZE], short)
    np.testing.assert_array_equal(wide[:, :, SIZE : 2 * SIZE], long[:7])
    np.testing.assert_array_equal(wide[:, :, 2 * SIZE :], frames)


def test_a_picture_serves_every_window(weights, made, films):
    _, params = weights
    long, still = windows(read(films, "long.mp4")), media.read_picture(films / "still.png")
    held = windows(np.repeat(still[None], FRAMES, axis=0)).repeat(3, axis=0)
    expected = np.concatenate([cross(params, a[None], b[None])[0] for a, b in zip(held, long)])
    frames = made("still.png", "long.mp4")
    np.testing.assert_allclose(frames, pixels(expected, 10), atol=1.0)


def test_windows_that_share_frames_fade_and_chunks_leave_no_trace(weights, run, films, monkeypatch):
    """The frames are those of `System.sample` on the whole clip, however the clip is cut for reading."""
    system = dataclasses.replace(run.system, overlap=2)
    film = read(films, "long.mp4")
    batch = {"content": film[None], "motion": film[None]}
    vars = run.trained_vars()
    sample = quick_jit(system.sample)
    whole = 255 * np.asarray(sample(vars, batch, jax.random.key(0))["video"][0])
    assert len(whole) == 10
    plain = 255 * np.asarray(
        quick_jit(run.system.sample)(vars, batch, jax.random.key(0))["video"][0]
    )
    np.testing.assert_allclose(whole[:2], plain[:2], atol=1e-2)  # frames of the first window alone
    assert np.abs(whole[2:4] - plain[2:4]).max() > 0.5
    monkeypatch.setattr(run, "system", system)
    monkeypatch.setattr(run, "jit_sample", lambda: sample)
    for together in (1, 2, 3):
        rows = reenact._by_windows(
            run, str(films / "long.mp4"), str(films / "long.mp4"), together, 0, {}
        )
        shown, moved, frames = (np.stack(x) for x in zip(*rows, strict=True))
        # With three windows at a time the second chunk is padded, and the last real window fades into the padding.
        exact = 8 if together == 3 else 10
        np.testing.assert_allclose(frames[:exact], whole[:exact], atol=1.0)
        np.testing.assert_array_equal(shown, film)
        np.testing.assert_array_equal(moved, film)


def test_what_cannot_be_used_is_one_sentence(weights, films, tmp_path):
    path, params = weights
    with pytest.raises(ConfigError, match=r"--weights=.*gone.*no such file"):
        open_weights(str(tmp_path / "gone"))
    folder.write(tmp_path / "other", "lpips_vgg", {"trunk": "vgg"}, params)
    with pytest.raises(
        ConfigError, match="holds lpips_vgg, for which there is no system; choose vidtwin"
    ):
        open_weights(str(tmp_path / "other"))
    flat = paths.flatten(params)
    flat["decoder/out/kernel"] = flat["decoder/out/kernel"][:, :-1]
    del flat["encoder/patch_embed/bias"]
    folder.write(tmp_path / "cut", "vidtwin", ARGUMENTS, paths.unflatten(flat))
    with pytest.raises(ConfigError) as caught:
        open_weights(str(tmp_path / "cut"), {"system.overlap": "0"})
    assert "encoder/patch_embed/bias: missing" in str(caught.value)
    assert "decoder/out/kernel: (16, 191), expected (16, 192)" in str(caught.value)
    file = tmp_path / "cut" / folder.PARAMS
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="--weights="):
        open_weights(str(tmp_path / "cut"), {"system.overlap": "0"})
    bcd = Run(load_config("heads:debug"), str(tmp_path / "bcd"))
    arguments = (str(films / "still.png"), str(films / "long.mp4"), str(tmp_path / "out.mp4"))
    with pytest.raises(ConfigError, match=r"--part=structure.* holds a bcd, not a VidTwin"):
        reenact.reenact(bcd, *arguments, part="structure")
    with pytest.raises(ConfigError, match="holds no run"):
        open_run(path)


def test_either_a_run_or_weights(capsys):
    for words in ([], ["--workdir=a", "--weights=b"]):
        with pytest.raises(SystemExit) as caught:
            reenact.main([*words, "--content=a.png", "--motion=b.mp4", "--out=c.mp4"])
        assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
