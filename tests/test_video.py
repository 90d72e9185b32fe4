"""Videos shown as they are meant to be: times, sound, pixels that are not square, fields, colours, damage."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from vidmotion import media, video
from vidmotion.media import MediaError


def sound_of(path):
    with av.open(str(path)) as file:
        frames = [f.to_ndarray().astype(float) for f in file.decode(audio=0)]
        rate = file.streams.audio[0].rate
    return np.abs(np.concatenate([f.mean(0) for f in frames])), rate


def film(path, codec, count=50, at=25, lead=0.0, **options):
    """Writes a video of `count` grey pictures at 25 per second; number `at` is white, and the sound clicks with it."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        voice = file.add_stream("mp2" if path.suffix != ".flv" else "aac", rate=44100)
        for k in range(count):
            grey = np.full((64, 64, 3), 255 if k == at else 60, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = k + round(25 * lead), Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        wave = np.zeros(44100 * count // 25, np.float32)
        wave[44100 * at // 25 :][:400] = 0.9
        sound = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
        sound.sample_rate, sound.pts = 44100, round(44100 * lead)
        sound.time_base = Fraction(1, 44100)
        context = voice.codec_context
        resampler = av.AudioResampler(
            context.format.name, context.layout.name, 44100, frame_size=context.frame_size or 1024
        )
        for piece in [*resampler.resample(sound), *resampler.resample(None)]:
            file.mux(voice.encode(piece))
        file.mux(voice.encode())
    return path


def click_and_white(path, tmp_path):
    """Writes a video again; returns the seconds of its click and of its white picture, and the length of its
    pictures."""
    out = tmp_path / "out.mp4"
    media.write_mp4(out, media.iter_video(path), media.probe(path).fps, audio_from=path)
    shown = media.read_video(out)
    white = np.argmax(shown.frames.mean((1, 2, 3))) / shown.fps
    with av.open(str(out)) as file:
        frame = next(file.decode(audio=0))
        begin = max(0.0, frame.time or 0.0)
    heard, rate = sound_of(out)
    return begin + np.argmax(heard > 0.3) / rate, white, len(shown.frames) / shown.fps


def test_a_varying_rate_keeps_its_speed_and_its_sound(hard, tmp_path):
    click, white, length = click_and_white(hard / "vfr.mp4", tmp_path)
    assert length == pytest.approx(3.0, abs=0.001)
    assert white == pytest.approx(1.0, abs=0.001) and click == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(
    "name, codec", [("a.mpg", "mpeg2video"), ("a.ts", "libx264"), ("a.flv", "flv1")]
)
def test_a_clock_that_does_not_begin_at_nought(tmp_path, name, codec):
    source = film(tmp_path / name, codec)
    click, white, length = click_and_white(source, tmp_path)
    assert length == pytest.approx(2.0, abs=0.001)
    assert white == pytest.approx(1.0, abs=0.001)
    assert click == pytest.approx(1.0, abs=0.04)
    heard, rate = sound_of(tmp_path / "out.mp4")
    assert len(heard) / rate > 1.95


def test_pixels_that_are_not_square(hard):
    frame = next(media.iter_video(hard / "anamorphic.mp4"))
    assert frame.shape == (96, 128, 3)
    grey = frame.mean(-1)
    bright = np.abs(grey - np.median(grey)) > 60
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 3


def test_fields_are_not_shown_as_combs(hard):
    frames = media.read_video(hard / "interlaced.mp4").frames.astype(float)
    assert len(frames) == 50

    def comb(frames):
        lines = np.abs(np.diff(frames, axis=1)).mean()
        return lines / np.abs(frames[:, 2:] - frames[:, :-2]).mean()

    assert comb(frames) < 2


@pytest.mark.parametrize("light, expected", [(10, 63), (50, 136), (100, 186), (203, 255)])
def test_greys_of_high_dynamic_range(light, expected):
    # The inverse of SMPTE ST 2084, and of the curve of HLG for a display of 1000 cd/m2 (BT.2100).
    power = (light / 10000) ** 0.1593017578125
    pq = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    scene = (light / 1000) ** (1 / 1.2)
    hlg = np.sqrt(3 * scene)
    if scene > 1 / 12:
        hlg = 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    for signal, transfer in ((pq, video.PQ), (hlg, video.HLG)):
        grey = np.full((1, 1, 3), round(signal * 65535), np.uint16)
        np.testing.assert_allclose(video._standard_range(grey, transfer), expected, atol=2)


def test_a_file_of_high_dynamic_range(hard):
    grey = next(media.iter_video(hard / "hdr10.mp4"))[48].mean(-1)
    found = [grey[16 + 32 * k] for k in range(4)]
    np.testing.assert_allclose(found, [63, 136, 186, 255], atol=3)


def test_bt709_is_read_as_bt709(tmp_path):
    """Y'CbCr (81, 90, 240) is (255, 0, 0) in BT.601; in BT.709 this red is (63, 102, 240)."""
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width = stream.height = 32
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        planes = [np.full((32, 32), 63, np.uint8).reshape(32, 32)]
        planes += [np.full((8, 32), value, np.uint8) for value in (102, 240)]
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes), format="yuv420p")
        frame.colorspace, frame.color_range = 1, 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    red = media.read_video(tmp_path / "a.mp4").frames[0]
    np.testing.assert_allclose(red, np.broadcast_to([255, 0, 0], red.shape), atol=2)


def test_what_is_written_says_its_colours(tmp_path):
    colour = np.broadcast_to(np.uint8([200, 40, 90]), (2, 32, 32, 3))
    media.write_mp4(tmp_path / "a.mp4", colour, crf=1)
    with av.open(str(tmp_path / "a.mp4")) as file:
        frame = next(file.decode(video=0))
    tags = (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries)
    assert [int(tag) for tag in tags] == [1, 1, 1, 1]
    np.testing.assert_allclose(media.read_video(tmp_path / "a.mp4").frames, colour, atol=3)


def test_a_change_of_size_is_shown_within_the_first(tmp_path):
    path, parts = tmp_path / "a.h264", b""
    for width in (64, 128):
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"bf": "0"})
            stream.width, stream.height = width, 64
            grey = av.VideoFrame.from_ndarray(np.full((64, width, 3), 200, np.uint8))
            for _ in range(5):
                file.mux(stream.encode(grey))
            file.mux(stream.encode())
        parts += path.read_bytes()
    path.write_bytes(parts)
    frames = media.read_video(path).frames
    assert frames.shape[1:] == (64, 64, 3)
    assert frames[-1, 32].mean() > 180 and frames[-1, 4].mean() < 20


def test_frames_that_cannot_be_decoded_are_missed(tmp_path):
    path = film(tmp_path / "a.mp4", "libx264", count=100, at=3, g="10", bf="0")
    assert len(media.read_video(path).frames) == 100
    with av.open(str(path)) as file:
        places = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for place, size in places[30:80]:
        data[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4: damaged"):
        media.read_video(path)


def test_a_few_frames_that_cannot_be_decoded_are_said(tmp_path, caplog):
    """MPEG-2's decoder skips zeros without an error."""
    path = film(tmp_path / "a.mkv", "mpeg2video", count=100, at=3, g="1", bf="0")
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    data = path.read_bytes()
    for k in (40, 70):
        data = data.replace(packets[k], bytes(len(packets[k])), 1)
    path.write_bytes(data)
    assert len(media.read_video(path).frames) == 98
    assert "a.mkv: 2 of its 100 frames cannot be decoded" in caplog.text
    caplog.clear()
    assert len(media.read_video(film(tmp_path / "b.mp4", "libx264", bf="3")).frames) == 50
    assert not caplog.text


def test_frames_of_a_varying_rate_know_their_own(hard):
    """The video has 25 frames in the first second and 10 in the next two: at 25 a second, each of the 10 is shown five
    times."""
    numbers, count = media.own_frames(hard / "vfr.mp4")
    frames = media.read_video(hard / "vfr.mp4").frames
    assert count == 35 and len(numbers) == len(frames) == 75
    assert numbers.tolist() == [*range(25), *np.repeat(range(25, 35), 5)]
    for k in range(1, 75):  # a frame is new where its number is new
        if numbers[k] == numbers[k - 1]:
            np.testing.assert_array_equal(frames[k], frames[k - 1])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    for read in (media.probe, media.read_video, media.read_picture):
        with pytest.raises(MediaError, match="not a file"):
            read(tmp_path / "a.mp4")


def test_names_with_colons_and_gifs_and_folders_of_pictures(tmp_path, hard):
    media.write_mp4(tmp_path / "12:30.mp4", np.full((3, 16, 16, 3), 90, np.uint8))
    assert len(media.read_video(tmp_path / "12:30.mp4").frames) == 3
    assert media.read_video(hard / "frames.gif").frames.shape == (40, 128, 128, 3)
    for k in range(20):
        media.write_png(tmp_path / "frames" / f"{k:07d}.png", np.full((16, 16, 3), 5 * k, np.uint8))
    found = media.read_video(tmp_path / "frames")
    assert found.fps == 25 and found.frames[:, 3, 3, 0].tolist() == list(range(0, 100, 5))
    (tmp_path / "frames" / "0000007.png").unlink()
    with pytest.raises(MediaError, match="19 pictures numbered 0 to 19: some are missing"):
        media.read_video(tmp_path / "frames")
