"""A user's own picture and video: what is drawn, at which rate, how much is held, and what is refused."""

import hashlib
import json
import weakref
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image
from quick import quick_jit, random_like

from vidmotion import animate, media, reenact, sharding, startup
from vidmotion.errors import ConfigError
from vidmotion.open_run import open_run

SIZE, HALF = 16, 2  # those of heads:debug
TOGETHER = 2
CHUNK = HALF * TOGETHER


@pytest.fixture(scope="module")
def run(heads_run):
    """Returns the run on one device, with parameters among which no zero hides a mistake, and programs compiled
    once."""
    run = open_run(str(heads_run))
    run.mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    vars = run.trained_vars()
    params = jax.tree.map(np.asarray, vars.params)
    vars = vars._replace(params=random_like(params, scale=0.25))
    sample = quick_jit(run.system.sample)
    run.trained_vars = lambda: vars
    run.jit_sample = lambda: sample
    return run


def clip(frames, height=SIZE, width=SIZE, seed=0):
    """Returns a clip of a bright disc that wanders over colours."""
    rng = np.random.default_rng(seed)
    _, y, x = np.mgrid[:frames, :height, :width].astype(float)
    path = rng.uniform(0.2, 0.8, (2, frames, 1, 1))
    disc = np.exp(
        -((y - height * path[0]) ** 2 + (x - width * path[1]) ** 2) / (height * width / 30)
    )
    colours = [255 * disc, 200 * x / width, 200 * y / height]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def film(path, frames, fps=25, height=SIZE, width=SIZE, sound=False, seed=0):
    """Writes an mp4, with a second of sound per second of pictures if wanted."""
    media.write_mp4(path, clip(frames, height, width, seed), fps=fps, crf=5)
    if not sound:
        return path
    silent = path.rename(path.with_name("silent.mp4"))
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        count = int(48000 * frames / fps)
        wave = (9000 * np.sin(np.arange(count) / 20)).astype(np.float32) / 32768
        for start in range(0, count, 1024):
            piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            piece.sample_rate, piece.pts = 48000, start
            target.mux(audio.encode(piece))
        target.mux(audio.encode(None))
    silent.unlink()
    return path


def picture(path, height=SIZE, width=SIZE):
    media.write_png(path, clip(1, height, width, seed=9)[0])
    return path


def written(monkeypatch):
    """Records the frames that `reenact` gives to the writer, before H.264 blurs them."""
    kept, write = [], media.write_mp4

    def spy(path, frames, *arguments, **options):
        write(path, (kept.append(frame) or frame for frame in frames), *arguments, **options)

    monkeypatch.setattr(media, "write_mp4", spy)
    return kept


# -- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("moving", [False, True], ids=["picture", "video"])
def test_a_drive_in_pieces_is_the_transfer_of_the_whole(run, tmp_path, monkeypatch, moving):
    """Nine frames made in chunks of four are those that the system makes of all nine at once."""
    content = tmp_path / ("a.mp4" if moving else "a.png")
    film(content, 7, seed=5) if moving else picture(content)
    drive = film(tmp_path / "b.mp4", 9)
    kept = written(monkeypatch)
    out = tmp_path / "c.mp4"
    assert reenact.reenact(run, str(content), str(drive), str(out), together=TOGETHER) == 9
    still = media.read_video(content).frames[[0, -1]] if moving else clip(1, seed=9)
    batch = {"content": still[None], "motion": media.read_video(drive).frames[None]}
    whole = run.jit_sample()(run.trained_vars(), batch, jax.random.key(0))["video"][0]
    assert len(kept) == 9
    np.testing.assert_allclose(np.stack(kept), np.asarray(whole) * 255, atol=1.0)
    assert np.std(np.stack(kept)) > 5
    assert media.read_video(out).frames.shape == (9, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("frames", "fps", "height", "width"),
    [
        (1, 25, 16, 16),
        (3, 30, 16, 16),  # shorter than a chunk
        (CHUNK, 12.5, 16, 16),
        (CHUNK + 1, Fraction(30000, 1001), 33, 47),  # odd sides
        (2, 50, 64, 36),  # portrait
        (2, 24, 8, 8),  # smaller than the model
    ],
)
def test_length_rate_and_size(run, tmp_path, frames, fps, height, width):
    content = picture(tmp_path / "a.png", 50, 31)
    drive = film(tmp_path / "b.mp4", frames, fps, height, width)
    out = tmp_path / "c.mp4"
    count = reenact.reenact(run, str(content), str(drive), str(out), together=TOGETHER)
    with av.open(str(out)) as container:
        (stream,) = container.streams  # no sound in, so none out
        assert stream.average_rate == fps
        shown = [frame.time for frame in container.decode(stream)]
        assert (stream.height, stream.width) == (SIZE, SIZE)
    assert count == len(shown) == frames
    np.testing.assert_allclose(shown, np.arange(frames) / float(fps), atol=1e-3)


def test_side_by_side_is_content_motion_result(run, tmp_path, monkeypatch):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 3)
    kept = written(monkeypatch)
    arguments = (run, str(content), str(drive), str(tmp_path / "c.mp4"))
    reenact.reenact(*arguments, together=TOGETHER)
    alone = np.stack(kept)
    kept.clear()
    reenact.reenact(*arguments, together=TOGETHER, side_by_side=True)
    wide = np.stack(kept)
    assert wide.shape == (3, SIZE, 3 * SIZE, 3)
    np.testing.assert_array_equal(wide[:, :, :SIZE], clip(1, seed=9).repeat(3, axis=0))
    np.testing.assert_array_equal(wide[:, :, SIZE : 2 * SIZE], media.read_video(drive).frames)
    np.testing.assert_array_equal(wide[:, :, 2 * SIZE :], alone)


def test_a_manifest_tells_a_video_from_a_recording(run, tmp_path):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 2)
    out = tmp_path / "c.mp4"
    reenact.reenact(run, str(content), str(drive), str(out), together=TOGETHER, seed=3)
    said = json.loads((tmp_path / "c.mp4.json").read_text())
    for entry, path in (
        (said["video"], out),
        (said["inputs"]["content"], content),
        (said["inputs"]["motion"], drive),
    ):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry == {"file": path.name, "sha256": digest}
    assert said["settings"]["seed"] == 3 and said["model"]["system"] == "bcd"
    assert said["model"]["weights_sha256"] == run.weights_digest() and said["commit"]


def test_the_result_goes_back_into_the_whole_picture(run, tmp_path, monkeypatch):
    content, drive = picture(tmp_path / "a.png", 40, 64), film(tmp_path / "b.mp4", 2)
    kept = written(monkeypatch)
    arguments = (run, str(content), str(drive), str(tmp_path / "c.mp4"))
    reenact.reenact(*arguments, together=TOGETHER, where=animate.Faces(paste=True))
    whole = media.read_picture(content)
    frames = np.stack(kept)
    assert frames.shape == (2, 40, 64, 3)
    # The centre square has the columns 12 to 52.
    np.testing.assert_array_equal(frames[:, :, :12], np.stack([whole[:, :12]] * 2))
    np.testing.assert_array_equal(frames[:, :, 52:], np.stack([whole[:, 52:]] * 2))
    assert np.abs(frames[:, :, 20:44].astype(int) - whole[:, 20:44]).mean() > 5
    arguments = (run, str(drive), str(drive), str(tmp_path / "c.mp4"))
    with pytest.raises(ConfigError, match="is not a picture into which"):
        reenact.reenact(*arguments, where=animate.Faces(paste=True))


def test_sound_is_carried_over(run, tmp_path):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 12, fps=12, sound=True)
    out = tmp_path / "c.mp4"
    reenact.reenact(run, str(content), str(drive), str(out), together=TOGETHER)

    def sound(path):
        with av.open(str(path)) as container:
            return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])

    before, after = sound(drive), sound(out)
    assert len(after) == pytest.approx(48000, abs=2048)
    common = min(len(before), len(after))
    np.testing.assert_array_equal(after[:common], before[:common])  # copied, not encoded again


def test_the_centre_square_is_taken():
    frame = np.zeros((40, 90, 3), np.uint8)
    frame[:, 25:65] = 200  # exactly the square in the middle
    np.testing.assert_array_equal(reenact.fit(frame, 16), np.full((16, 16, 3), 200))
    tall = frame.transpose(1, 0, 2)
    np.testing.assert_array_equal(reenact.fit(tall, 16), np.full((16, 16, 3), 200))


def test_a_picture_of_a_phone_is_turned_upright(tmp_path):
    upright = clip(1, 32, 32, seed=3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF 2.3, orientation: turn by 90 degrees clockwise to show
    turned = Image.fromarray(np.rot90(upright).copy())
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(reenact.read_content(str(tmp_path / "a.png"), 4, 32)[0], upright)


def test_content_is_spread_over_its_video(tmp_path):
    film(tmp_path / "a.mp4", 11)
    frames = media.read_video(tmp_path / "a.mp4").frames
    np.testing.assert_array_equal(
        reenact.read_content(str(tmp_path / "a.mp4"), 3, SIZE), frames[[0, 5, 10]]
    )
    film(tmp_path / "short.mp4", 2)
    assert len(reenact.read_content(str(tmp_path / "short.mp4"), 8, SIZE)) == 2


# -- how much is held -----------------------------------------------------------------------------


class Frame(np.ndarray):
    """A frame that can be counted."""


@pytest.mark.parametrize("frames", [3 * CHUNK, 24 * CHUNK])
def test_no_more_than_two_chunks_are_held_at_any_length(run, tmp_path, monkeypatch, frames):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 2)
    alive, read, most, ahead = weakref.WeakSet(), [0], [0], [0]

    class Marked:
        """A mark to be kept in a set, which would compare frames by value."""

    def endless(path):
        for frame in np.random.default_rng(0).integers(0, 256, (frames, 24, 24, 3), np.uint8):
            marked = frame.copy().view(Frame)
            marked.mark = Marked()
            alive.add(marked.mark)
            read[0] += 1
            most[0] = max(most[0], len(alive))
            yield marked
            del marked, frame

    fit = reenact.fit

    def fitted(frame, size):
        small = fit(frame, size).copy().view(Frame)
        small.mark = Marked()
        alive.add(small.mark)
        return small

    def write(path, made, fps, audio_from):
        for count, _ in enumerate(made, 1):
            ahead[0] = max(ahead[0], read[0] - count)
        Path(path).touch()

    monkeypatch.setattr(media, "iter_video", endless)
    monkeypatch.setattr(media, "write_mp4", write)
    monkeypatch.setattr(reenact, "fit", fitted)
    total = reenact.reenact(
        run, str(content), str(drive), str(tmp_path / "c.mp4"), together=TOGETHER
    )
    assert total == frames
    assert ahead[0] == CHUNK - 1  # a chunk is written before the next is read
    assert CHUNK <= most[0] <= 2 * CHUNK


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def say(run, monkeypatch, caplog):
    """Returns a function that runs the command in this process and returns (exit code, its errors)."""
    for name in ("set_up_log", "set_up_devices"):
        monkeypatch.setattr(startup, name, lambda: None)
    monkeypatch.setattr(startup.logging.getLogger("vidmotion"), "propagate", True)
    known = str(run.workdir)

    def opened(path, changes):
        return run if path == known and not changes else open_run(path, changes)

    monkeypatch.setattr(reenact, "open_run", opened)

    def call(*arguments, **flags):
        caplog.clear()
        words = [f"--{name}={value}" for name, value in {"workdir": known, **flags}.items()]
        code = reenact.main([*words, "--windows=2", *arguments])
        return code, [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]

    return call


def test_done_from_the_command_line(say, tmp_path):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 5)
    out = tmp_path / "new" / "c.mp4"
    assert say("--side_by_side", content=content, motion=drive, out=out) == (0, [])
    assert media.read_video(out).frames.shape == (5, SIZE, 3 * SIZE, 3)


def no_frames(path):
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()


def test_files_that_cannot_be_used_are_one_sentence(say, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    content, drive = picture(folder / "a.png"), film(folder / "b.mp4", 3)
    (folder / "text.png").write_text("not a picture")
    (folder / "text.mp4").write_text("not a video " * 99)
    cut = content.read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    no_frames(folder / "none.avi")
    rng = np.random.default_rng(0)
    media.write_mp4(folder / "long.mp4", rng.integers(0, 256, (24, 64, 64, 3), np.uint8))
    data = (folder / "long.mp4").read_bytes()
    (folder / "tail.mp4").write_bytes(data[: len(data) * 7 // 10])
    out = tmp_path / "out"
    out.mkdir()
    for changes, message in (
        (dict(motion=folder / "none.avi"), "none.avi: its video stream has no frames"),
        (dict(content=folder / "none.avi"), "none.avi: its video stream has no frames"),
        (dict(motion=folder / "tail.mp4"), "tail.mp4: damaged"),
        (dict(content=folder / "tail.mp4"), "tail.mp4: damaged"),
        (dict(content=folder / "text.png"), "text.png is not a picture"),
        (dict(content=folder / "cut.png"), "cut.png is not a picture"),
        (dict(content=folder / "gone.png"), "there is no file"),
        (dict(content=folder / "gone.mp4"), "gone.mp4: there is no such file"),
        (dict(motion=folder / "gone.mp4"), "gone.mp4: there is no such file"),
        (dict(motion=folder / "text.mp4"), "text.mp4: not a readable video"),
        (dict(out=out / "c.avi"), "must end in .mp4"),
        (dict(motion=drive, out=drive), "would overwrite"),
        (dict(out=content / "c.mp4"), "a.png"),
    ):
        before = drive.read_bytes()
        flags = {"content": content, "motion": drive, "out": out / "c.mp4", **changes}
        code, said = say(**flags)
        assert code == 2 and len(said) == 1, (changes, said)
        assert message in said[0] and "\n" not in said[0]
        assert not list(out.iterdir()) and drive.read_bytes() == before


def test_the_broken_tail_was_reached(run, tmp_path):
    # Whole chunks were drawn before the damage showed; the file they were written to is removed.
    media.write_mp4(
        tmp_path / "b.mp4", np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    )
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) * 7 // 10])
    content = picture(tmp_path / "a.png")
    with pytest.raises(media.MediaError, match=r"after (\d+) frames") as caught:
        reenact.reenact(
            run, str(content), str(tmp_path / "b.mp4"), str(tmp_path / "c.mp4"), together=1
        )
    assert int(str(caught.value).split("after ")[1].split()[0]) >= 2 * HALF
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.mp4"}


def test_workdirs_that_cannot_be_used_are_one_sentence(say, run, judge_workdir, tmp_path):
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 3)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((run.workdir / "config.json").read_text())
    for workdir, message in (
        (tmp_path / "gone", "gone holds no run"),
        (tmp_path, "holds no run"),
        (unfinished, "unfinished holds no checkpoint"),
        (judge_workdir, "judge holds a run of sprites_judge, which cannot transfer motion"),
    ):
        out = tmp_path / "c.mp4"
        code, said = say(workdir=workdir, content=content, motion=drive, out=out)
        assert code == 2 and len(said) == 1 and message in said[0] and "\n" not in said[0]
        assert not out.exists()


def test_a_flag_that_is_missing_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        reenact.main(["--workdir=x"])
    assert caught.value.code == 2 and "--content" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_devices_and_the_checkpoint_itself(heads_run, tmp_path, monkeypatch):
    """Runs without the shortcuts of the fixture: every device draws the same, and the rate is kept."""
    content, drive = picture(tmp_path / "a.png"), film(tmp_path / "b.mp4", 3, fps=12)
    kept = written(monkeypatch)
    run = open_run(str(heads_run))
    assert run.rows(1) == 8
    out = tmp_path / "c.mp4"
    assert reenact.reenact(run, str(content), str(drive), str(out), together=1) == 3
    assert np.stack(kept).shape == (3, SIZE, SIZE, 3)
    assert media.read_video(out).fps == 12


def test_a_run_of_other_devices_can_be_used(heads_run, tmp_path):
    config = (heads_run / "config.json").read_text().replace('"data": -1', '"data": 512')
    assert '"data": 512' in config
    (tmp_path / "config.json").write_text(config)
    assert dict(open_run(str(tmp_path)).mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
