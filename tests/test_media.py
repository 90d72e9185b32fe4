"""Grids checked cell by cell, and files read back by Pillow and PyAV."""

import struct

import av
import numpy as np
import pytest
from PIL import Image

from vidmotion import media
from vidmotion.media import MediaError


def smooth_clip(frames=6, height=64, width=64):
    """Returns a clip of a bright disc that moves over a colour gradient."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(float)
    disc = np.exp(-((y - height / 2) ** 2 + (x - 10 - 6 * t) ** 2) / 60)
    clip = np.stack([255 * disc, 180 * x / width, 180 * y / height], axis=-1)
    return clip.round().astype(np.uint8)


def decibel(x, y):
    return 10 * np.log10(255**2 / np.mean((x.astype(float) - y) ** 2))


def flat(value, *shape):
    return np.full((*shape, 3), value, np.uint8)


def test_captions_stand_in_the_corners_of_their_items():
    items = np.full((3, 2, 40, 60, 3), 9, np.uint8)
    plain, named = media.grid(items, cols=3), media.grid(items, cols=3, captions=["a", "", "b"])
    changed = np.any(named != plain, axis=(0, 3))
    lefts = [2 + 62 * k for k in range(3)]
    assert [changed[2:20, left : left + 4].any() for left in lefts] == [True, False, True]
    assert not changed[:, lefts[1] : lefts[1] + 60].any() and not changed[30:].any()
    np.testing.assert_array_equal(named[0], named[1])


def test_grid_places_each_image():
    images = [flat(i, 2, 3) for i in range(5)]
    out = media.grid(images, cols=3, pad=1, scale=2, fill=200)
    assert out.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    for i in range(5):
        top, left = (i // 3) * 5 + 1, (i % 3) * 7 + 1
        assert (out[top : top + 4, left : left + 6] == i).all()
    assert (out[0] == 200).all()
    assert (out[6:10, 15:21] == 200).all()  # the empty sixth cell
    assert media.grid(images, pad=0).shape == (2 * 2, 3 * 3, 3)  # near-square
    assert media.grid(images, rows=5, pad=0).shape == (10, 3, 3)
    assert media.grid(np.zeros((4, 7, 2, 3, 3), np.uint8), pad=0).shape == (7, 4, 6, 3)


def test_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="5 items do not fit in 2 rows of 2"):
        media.grid([flat(0, 2, 2)] * 5, rows=2, cols=2)
    with pytest.raises(ValueError, match=r"item 1 has shape \(3, 2, 3\)"):
        media.grid([flat(0, 2, 2), flat(0, 3, 2)])
    with pytest.raises(ValueError, match="float64"):
        media.grid(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="no images"):
        media.grid([])


def test_strip_takes_first_and_last():
    frames = np.stack([flat(i, 4, 4) for i in range(9)])
    out = media.strip(frames, n=3, pad=0)
    assert out.shape == (4, 12, 3)
    assert out[0, ::4, 0].tolist() == [0, 4, 8]
    assert media.strip(frames[:2], n=8, pad=0).shape == (4, 8, 3)


def test_transfer_grid_is_content_down_motion_across():
    # Cell (i, j) holds 100 + 10 i + j; contents 10, 11; motions 20, 21, 22.
    contents = [flat(10 + i, 64, 64) for i in range(2)]
    motions = [flat(20 + j, 64, 64) for j in range(3)]
    results = [[flat(100 + 10 * i + j, 64, 64) for j in range(3)] for i in range(2)]
    out = media.transfer_grid(contents, motions, results, pad=2)
    assert out.shape == (3 * 130 + 2 + 4, 4 * 130 + 2 + 4, 3)  # cells of 2 x 64, wider gap of 4
    centres = np.array([66, 66 + 134, 66 + 264, 66 + 394])
    assert out[np.ix_(centres[:3], centres)][..., 0].tolist() == [
        [255, 20, 21, 22],
        [10, 100, 101, 102],
        [11, 110, 111, 112],
    ]


def test_transfer_grid_of_clips_holds_stills_and_draws_labels():
    content = flat(50, 130, 130)
    clip = np.stack([flat(t, 130, 130) for t in range(4)])
    plain = media.transfer_grid([content], [clip], [[clip]])
    assert plain.shape == (4, 270, 270, 3)
    assert plain[:, 200, 70, 0].tolist() == [50] * 4
    assert plain[:, 200, 200, 0].tolist() == [0, 1, 2, 3]
    labelled = media.transfer_grid(
        [content], [clip], [[clip]], content_labels=["id 7"], motion_labels=["walk"]
    )
    changed = (labelled != plain).any(axis=(0, 3))
    assert changed[:130, 138:].any()  # a label on the motion
    assert changed[138:, :130].any()  # a label on the content
    assert not changed[138:, 138:].any()  # no label on a result


def test_transfer_grid_refuses_wrong_counts():
    a = flat(0, 8, 8)
    with pytest.raises(ValueError, match=r"1 rows \(contents\) of 2 \(motions\)"):
        media.transfer_grid([a], [a, a], [[a]])
    with pytest.raises(ValueError, match="motion_labels must be 1 strings, got 2"):
        media.transfer_grid([a], [a], [[a]], motion_labels=["x", "y"])


def test_png_is_lossless_and_nothing_is_left_aside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    media.write_png(tmp_path / "deep" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), image)
    with pytest.raises(ValueError, match="uint8"):
        media.write_png(tmp_path / "deep" / "b.png", image.astype(float))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_gif_frames_times_and_colours(tmp_path):
    clip = smooth_clip()
    media.write_gif(tmp_path / "a.gif", clip, fps=30)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6
        assert gif.info["loop"] == 0
        times, frames = [], []
        for index in range(6):
            gif.seek(index)
            times.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    assert sum(times) == 200  # six frames at 30 per second, in ms: no rounding error piles up
    assert decibel(np.stack(frames), clip) > 30


def test_gif_with_few_colours_is_exact(tmp_path):
    clip = np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), (3, 16, 16, 3))
    media.write_gif(tmp_path / "a.gif", clip)
    with Image.open(tmp_path / "a.gif") as gif:
        for index in range(3):
            gif.seek(index)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), clip[index])


def test_mp4_round_trip(tmp_path):
    clip = smooth_clip(frames=12)
    media.write_mp4(tmp_path / "a.mp4", iter(clip), fps=29.97)
    video = media.read_video(tmp_path / "a.mp4")
    assert video.frames.shape == clip.shape
    assert video.frames.dtype == np.uint8
    assert video.fps == pytest.approx(29.97, abs=1e-3)
    assert decibel(video.frames, clip) > 35
    np.testing.assert_array_equal(
        np.stack(list(media.iter_video(tmp_path / "a.mp4"))), video.frames
    )
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_mp4_pads_odd_sizes_with_the_edge(tmp_path):
    clip = smooth_clip(frames=3, height=33, width=47)
    media.write_mp4(tmp_path / "a.mp4", clip)
    frames = media.read_video(tmp_path / "a.mp4").frames
    assert frames.shape == (3, 34, 48, 3)
    assert decibel(frames[:, :33, :47], clip) > 32
    assert decibel(frames[:, 33, :47], clip[:, 32]) > 28


def test_mp4_refuses_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        media.write_mp4(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match="frame 1 has shape"):
        media.write_mp4(tmp_path / "a.mp4", [flat(0, 16, 16), flat(0, 16, 18)])
    with pytest.raises(ValueError, match="fps"):
        media.write_mp4(tmp_path / "a.mp4", [flat(0, 16, 16)], fps=0)
    assert list(tmp_path.iterdir()) == []


def test_video_of_a_phone_is_turned_upright(tmp_path):
    clip = smooth_clip(frames=3, height=32, width=64)
    media.write_mp4(tmp_path / "a.mp4", clip)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # ISO 14496-12, 8.3.2: the matrix lies 40 bytes behind the name of a version-0 track header.
    # (0 1; -1 0) is what a phone held upright writes: turn by 90 degrees clockwise to show.
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    upright = media.read_video(tmp_path / "b.mp4").frames
    assert upright.shape == (3, 64, 32, 3)
    assert decibel(upright, np.rot90(clip, k=-1, axes=(1, 2))) > 30


@pytest.mark.parametrize(
    ("codec", "container", "expected"),
    [
        ("aac", "mkv", "aac"),
        ("pcm_s16le", "mkv", "aac"),
        ("pcm_u8", "avi", "aac"),
        ("mp3", "mkv", "mp3"),
    ],
)
def test_audio_is_carried_over_and_cut_where_the_frames_end(tmp_path, codec, container, expected):
    # Two seconds of 440 Hz, of which only one is needed.
    source = tmp_path / f"sound.{container}"
    wave = (12000 * np.sin(2 * np.pi * 440 * np.arange(96000) / 48000)).astype(np.int16)
    with av.open(str(source), "w") as file:
        stream = file.add_stream(codec, rate=48000, layout="mono")
        context = stream.codec_context
        resampler = av.AudioResampler(
            context.format.name, "mono", 48000, frame_size=context.frame_size or 1024
        )
        sound = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
        sound.sample_rate = 48000
        for piece in [*resampler.resample(sound), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    media.write_mp4(tmp_path / "a.mp4", smooth_clip(25), fps=25, audio_from=source)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.audio[0].codec_context.codec.canonical_name == expected
        frames = [f.to_ndarray().reshape(-1).astype(float) for f in file.decode(audio=0)]
    heard = np.concatenate(frames)
    assert len(heard) == pytest.approx(48000, abs=4096)  # whole frames of up to 4096 samples
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * 48000 / len(heard) == pytest.approx(440, abs=2)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"gone\.mp4: there is no such file"):
        media.read_video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with pytest.raises(MediaError, match=r"text\.mp4: not a readable video"):
        media.read_video(tmp_path / "text.mp4")
    media.write_mp4(
        tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    )
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    with pytest.raises(MediaError, match=r"cut\.mp4: damaged or cut short after"):
        list(media.iter_video(tmp_path / "cut.mp4"))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MediaError, match="no video stream"):
        media.read_video(tmp_path / "sound.wav")


def test_a_picture_is_read_as_it_is_meant_to_be_seen(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)

    def read(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        got = media.read_picture(tmp_path / name)
        assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[-1] == 3
        return got

    np.testing.assert_array_equal(read(Image.fromarray(pixels)), pixels)
    # Orientation 6: the camera was turned clockwise, so the stored picture must be turned clockwise, too.
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(read(Image.fromarray(pixels), exif=exif), np.rot90(pixels, -1))
    # Transparent parts show a white background, half-transparent parts half of it.
    alpha = np.array([[255, 0, 128]], np.uint8)
    colour = np.array([[[10, 20, 30], [10, 20, 30], [0, 100, 200]]], np.uint8)
    got = read(Image.fromarray(np.concatenate([colour, alpha[..., None]], -1)))
    expected = 255 + (colour - 255.0) * (alpha[..., None] / 255)
    np.testing.assert_allclose(got, expected, atol=1)
    # Pictures in grey, in grey with alpha, and with a palette that has a transparent colour.
    grey = pixels[..., 0]
    np.testing.assert_array_equal(read(Image.fromarray(grey)), grey[..., None].repeat(3, -1))
    clear = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (7, 5), 0)))
    assert np.all(read(clear) == 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    assert read(palette, transparency=1).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    # 16 bits are scaled to 8; values above 255 are not cut off.
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    got = read(Image.fromarray(deep))
    np.testing.assert_array_equal(got[0, :, 0], np.rint(deep[0] / 257.0))
    # A jpeg in CMYK, and a picture of a single pixel.
    assert read(Image.fromarray(flat(200, 8, 8)).convert("CMYK"), "a.jpg").shape == (8, 8, 3)
    assert read(Image.new("1", (1, 1), 1)).tolist() == [[[255, 255, 255]]]


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    for name in ("text.png", "cut.png"):
        with pytest.raises(media.MediaError, match=f"{name} is not a picture that can be read"):
            media.read_picture(tmp_path / name)
    with pytest.raises(media.MediaError, match=r"there is no file .*none\.png"):
        media.read_picture(tmp_path / "none.png")


def test_a_colour_profile_is_carried_out(hard):
    found = media.read_picture(hard / "display_p3.png")
    np.testing.assert_allclose(found[0, 0], [143, 183, 10], atol=6)


@pytest.mark.parametrize("name", ["a.avif", "a.tiff", "a.webp", "a.png"])
def test_transparency_shows_white_in_every_format(tmp_path, name):
    Image.new("RGBA", (32, 32), (200, 30, 40, 0)).save(tmp_path / name)
    assert media.is_picture(tmp_path / name)
    assert media.read_picture(tmp_path / name).min() >= 254


def test_a_transparent_video_shows_white(tmp_path):
    frames = [Image.new("RGBA", (16, 16), (200, 30, 40, 0)) for _ in range(2)]
    frames[1].putpixel((3, 3), (9, 9, 9, 255))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    assert media.read_video(tmp_path / "a.gif").frames[0].min() >= 254


def test_only_pictures_are_opened_and_none_that_fill_the_memory(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("started"))
    with pytest.raises(MediaError, match=r"a\.png is not a picture"):
        media.read_picture(tmp_path / "a.png")
    Image.new("L", (300, 200)).save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59_999)
    with pytest.raises(MediaError, match=r"b\.png has more than 59,999 pixels"):
        media.read_picture(tmp_path / "b.png")


def test_floats(tmp_path):
    def read(values):
        Image.fromarray(np.float32([values])).save(tmp_path / "a.tiff")
        return media.read_picture(tmp_path / "a.tiff")[0, :, 0].tolist()

    assert read([0, 0.5, 1]) == [0, 128, 255] and read([0, 100, 300]) == [0, 100, 255]
    with pytest.raises(MediaError, match="not numbers"):
        read([0, np.nan])


def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        media.write_png(tmp_path / "a.png", flat(9, 4, 4))
    assert caught.value.filename == str(tmp_path / "a.png") and not list(tmp_path.iterdir())


def test_panels_have_their_names_above_them_where_these_fit():
    panels = [np.full((64, width, 3), 10 * k, np.uint8) for k, width in enumerate((64, 48, 90))]
    row = media.beside(panels, ("content", "motion", "result"))
    assert row.shape == (18 + 64, 64 + 48 + 90, 3)
    np.testing.assert_array_equal(row[18:], np.concatenate(panels, axis=1))
    for first, last in ((0, 64), (64, 112), (112, 202)):
        band = row[:18, first:last]
        assert band.min() < 100 and band[:, -3:].min() > 250  # a name that ends within its panel
    narrow = [panel[:, :47] for panel in panels]
    np.testing.assert_array_equal(media.beside(narrow, "abc"), np.concatenate(narrow, axis=1))


def test_a_note_stands_in_the_empty_corner():
    clips = [np.zeros((128, 128, 3), np.uint8)] * 2
    plain = media.transfer_grid(clips, clips, [clips, clips])
    noted = media.transfer_grid(clips, clips, [clips, clips], note="step 1200")
    rows, columns = np.nonzero((plain != noted).any(axis=-1))
    assert len(rows) and rows.max() < 128 and columns.max() < 128
