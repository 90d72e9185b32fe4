"""Released X-NeMo weights on a portrait and a video: one network after the other, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import animate, media, paths, reenact, sharding, startup
from vidmotion import open_run as runs
from vidmotion.animate import Faces
from vidmotion.convert import folder
from vidmotion.data import heads
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.evaluation.transfer import face_views
from vidmotion.open_run import load_config, open_weights
from vidmotion.system import build

CONFIG = "xnemo:debug,stage=4,gan_head=off"
UNET = {
    "channels": [32],
    "attention": [True],
    "layers_per_block": 1,
    "heads": 2,
    "context_width": 4,
    "norm_groups": 8,
}
SIZE, FRAMES = 32, 5
BOX = "8,8,24,24"  # the box of every face here; a square of twice its side is the whole picture


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replaces the released sizes by those of the debug config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.RELEASED, "xnemo", CONFIG)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns a folder as the converter writes it."""
    section = load_config(CONFIG).system.to_dict()
    system = build({**section, "unet": UNET})
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in system.input_spec(1).items()}
    params = random_like(jax.eval_shape(system.init, jax.random.key(0), batch)["model"], scale=0.2)
    params["motion"] = {"params": params["motion"], "batch_stats": system.init_mutable()["motion"]}
    out = tmp_path_factory.mktemp("weights")
    for part, name, arguments in (
        ("reference", "xnemo_reference_unet", {**UNET, "head": False}),
        ("denoiser", "xnemo_denoising_unet", {**UNET, "head": True}),
        ("motion", "xnemo_motion_encoder", section["motion"]),
    ):
        folder.write(out / part, name, arguments, jax.tree.map(np.asarray, params[part]))
    folder.join(out, "xnemo", list(params))
    return out


@pytest.fixture(scope="module")
def run(weights):
    """Yields a run on one device, whose programs are compiled fast, and only once."""
    run = open_weights(str(weights), {"system.sampler.steps": "2"})
    run.mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    known = {}

    def jit(function, **options):
        name = function.__name__
        return known.setdefault(name, quick_jit(function, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(animate.jax, "jit", jit)
        yield run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a folder with a.png and b.mp4, which show two different heads."""
    out = tmp_path_factory.mktemp("files")
    source = heads.HeadsSource(SIZE, FRAMES, 2, split="eval")
    media.write_png(out / "a.png", source.video(0)[0])
    media.write_mp4(out / "b.mp4", source.video(1), fps=10)
    return out


def test_network_after_network_is_the_system_itself(run, weights, files, monkeypatch):
    """The frames are those of `System.sample`, and each large network is read only when it is needed."""
    vars = run.trained_vars()
    picture, video = media.read_picture(files / "a.png"), media.read_video(files / "b.mp4").frames
    boxes = np.tile(np.array(BOX.split(","), np.float64), (FRAMES, 1))
    batch = {"content": picture[None], "motion": video}
    views = face_views(SIZE, picture[None], boxes[:1], video, boxes)
    batch = jax.tree.map(lambda x: x[None], batch | views)
    whole = quick_jit(run.system.sample)(vars, batch, jax.random.key(3))["video"][0]

    load, asked = folder.load, []

    def spy(where, only=None):
        asked.append(only)
        return load(where, only)

    monkeypatch.setattr(folder, "load", spy)
    arguments = picture, "a.png", str(files / "b.mp4"), Faces(BOX, BOX), 3
    portraits, frames = zip(*animate.animated(run, *arguments), strict=True)
    assert asked == [("motion",), ("reference",), ("denoiser", "motion")]
    np.testing.assert_array_equal(portraits[0], picture)
    np.testing.assert_allclose(np.stack(frames), 255 * np.asarray(whole), atol=1.5)
    assert np.std(frames) > 5


def test_from_the_command_line(run, weights, files, tmp_path, monkeypatch):
    for name in ("set_up_log", "set_up_devices"):
        monkeypatch.setattr(startup, name, lambda: None)
    monkeypatch.setattr(reenact, "open_weights", lambda path, changes: run)
    flags = {
        "weights": weights,
        "content": files / "a.png",
        "motion": files / "b.mp4",
        "out": tmp_path / "c.mp4",
        "box": BOX,
        "motion_box": "whole",
        "follow": "first",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    assert reenact.main([*words, "--side_by_side"]) == EXIT_DONE
    made = media.read_video(tmp_path / "c.mp4")
    assert made.frames.shape == (FRAMES, SIZE, 3 * SIZE, 3) and made.fps == 10
    # A picture without a face is refused, and no file is written.
    media.write_png(tmp_path / "grey.png", np.full((SIZE, SIZE, 3), 128, np.uint8))
    (tmp_path / "c.mp4").unlink()
    words = [f"--{n}={v}" for n, v in {**flags, "content": tmp_path / "grey.png"}.items()]
    pytest.importorskip("skimage")
    assert reenact.main([word for word in words if "--box" not in word]) == EXIT_REFUSED
    assert not (tmp_path / "c.mp4").exists()


# -- strength, relative motion, pasting back ----------------------------------------------------------


def test_strength_and_relative_motion_of_codes_by_hand():
    own = np.float32([1, 0])
    driver = np.float32([[3, 0], [1, 1], [5, 4]])
    assert animate.redirected(driver, own, None, 1.0) is driver  # as in the paper
    np.testing.assert_array_equal(animate.redirected(driver, own, None, 0.0), [own] * 3)
    np.testing.assert_array_equal(animate.redirected(driver, own, None, 2.0)[2], [9, 8])
    np.testing.assert_array_equal(
        animate.redirected(driver, own, 0, 0.5), [[1, 0], [0, 0.5], [2, 2]]
    )
    assert animate.rest_frame(driver, own, "best") == 1  # distances 2, 1 and sqrt 32
    assert animate.rest_frame(driver, own, "2") == 2 and animate.rest_frame(driver, own, "") is None
    with pytest.raises(ConfigError, match="--relative=3: the driver has frames 0 to 2"):
        animate.rest_frame(driver, own, "3")
    with pytest.raises(ConfigError, match="--relative=-1"):
        animate.Drive(relative="-1")
    with pytest.raises(ConfigError, match="--strength=-2"):
        animate.Drive(strength=-2.0)


@pytest.mark.parametrize("size", [16, 64])
def test_a_square_is_pasted_where_it_was_cut_out(size):
    """Pastes white into black: full in the middle, half in the middle of the fading edge, nothing outside; at the
    picture's border nothing fades."""
    picture = np.zeros((60, 80, 3), np.uint8)
    whole = animate.pasted(
        picture, np.full((size, size, 3), 255, np.uint8), np.array([16.0, -8, 48, 24])
    )
    assert whole.shape == picture.shape and not picture.any()
    inside = whole[..., 0].astype(int)
    assert (
        inside[0:20, 20:44] == 255
    ).all()  # the fade is 32 / 8 = 4 px wide; the upper edge lies outside
    assert not inside[24:].any() and not inside[:, :16].any() and not inside[:, 48:].any()
    for edge in (inside[5, 16:20], inside[5, 47:43:-1], inside[23:19:-1, 30]):
        assert (
            edge[0] < edge[1] < edge[2] < edge[3] and edge[1] + edge[2] == 255
        )  # symmetric about its middle


def test_what_was_cut_out_goes_back_unchanged():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    region = np.array([20.0, 10, 52, 42])
    frame = animate.faces.crop(picture, region, 32)
    np.testing.assert_array_equal(animate.pasted(picture, frame, region), picture)


def test_the_animated_square_goes_back_into_the_whole_picture(run, files):
    small = media.read_picture(files / "a.png")
    picture = np.pad(small, ((10, 20), (30, 8), (0, 0)), constant_values=200)
    x0, y0, x1, y1 = (int(n) for n in BOX.split(","))
    box = f"{x0 + 30},{y0 + 10},{x1 + 30},{y1 + 10}"
    arguments = picture, "a.png", str(files / "b.mp4")
    plain = list(animate.animated(run, *arguments, Faces(box, BOX), 3))
    made = list(animate.animated(run, *arguments, Faces(box, BOX, paste=True), 3))
    assert len(made) == FRAMES
    for (shown, frame), (_, square) in zip(made, plain):
        np.testing.assert_array_equal(shown, picture)
        np.testing.assert_array_equal(
            frame, animate.pasted(picture, square, np.array([30, 10, 62, 42]))
        )


# -- weights that are missing or are others ---------------------------------------------------------


@pytest.fixture
def copied(weights, tmp_path):
    return shutil.copytree(weights, tmp_path / "copy")


def rewritten(where, part, change):
    """Changes the parameters of a part, given by path, and writes them back."""
    name, arguments, params = folder.load(where / part)
    flat = paths.flatten(params)
    change(flat)
    folder.write(where / part, name, arguments, paths.unflatten(flat))


def test_what_does_not_fit_is_named_by_key(copied):
    def change(flat):
        del flat["conv_in/kernel"]
        flat["time_0/bias"] = flat["time_0/bias"][1:]

    rewritten(copied, "reference", change)
    with pytest.raises(ConfigError) as caught:
        open_weights(str(copied))
    for text in (
        f"--weights={copied}",
        "model/reference/conv_in/kernel: missing",
        "model/reference/time_0/bias: (127,), expected (128,)",
    ):
        assert text in str(caught.value)
    assert "denoiser" not in str(caught.value).split("sizes:")[1]


def test_a_file_that_is_gone_or_cut_is_named(copied):
    file = copied / "denoiser" / folder.PARAMS
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(ConfigError, match=r"denoiser/params\.safetensors: not a safetensors file"):
        open_weights(str(copied))
    file.unlink()
    with pytest.raises(ConfigError, match=r"denoiser/params\.safetensors: no such file"):
        open_weights(str(copied))


def test_what_training_begins_with_animates_nothing(copied):
    """A folder of ``convert xnemo --base`` has no motion encoder; the message says where to find one."""
    about = json.loads((copied / folder.NETWORK).read_text())
    about["parts"].remove("motion")
    (copied / folder.NETWORK).write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"lacks motion: .* github\.com/bytedance/X-NeMo"):
        open_weights(str(copied))


def test_networks_beside_the_four_files_are_asked_for():
    """CLIP and the autoencoder have files of their own: messages say which, from where, and for which field."""
    section = load_config("xnemo:stage=4,gan_head=off").system
    specs = build(section).consts_spec()
    with pytest.raises(ConfigError, match=r"codec\.weights is empty.*stable-video-diffusion"):
        specs["vae"].load()
    with pytest.raises(ConfigError, match=r"clip\.weights is empty.*convert clip_vision.*lambdal"):
        specs["clip"].load()
    section.clip.weights = "/gone/clip"
    with pytest.raises(ConfigError, match=r"/gone/clip.*no such file.*convert clip_vision"):
        build(section).consts_spec()["clip"].load()
