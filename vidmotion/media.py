"""Reads pictures and videos, writes PNG, GIF and mp4 files, and lays out grids of images and clips.

Images are uint8 RGB (H, W, 3), clips (T, H, W, 3). A file is written under a temporary name and then renamed, so a
file under its final name is always complete.
"""

import contextlib
import io
import itertools
import logging
import math
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps

from vidmotion.files import aside, not_a_file

log = logging.getLogger(__name__)

# Suffixes of picture files (any other file is taken for a video), and the formats accepted regardless of the suffix.
PICTURES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif")
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF")
_BACKGROUND = 255
_CAPTION_SIZE = 12  # pixels
_LEAST_LABELLED = 48  # pixels; a label of one word does not fit over a narrower picture
# The audio codecs that browsers play from an mp4. Cameras also write PCM, which browsers do not play.
_AUDIO_OF_MP4 = {"aac", "mp3", "opus", "flac", "ac3", "eac3", "alac"}
_AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
_AAC_SAMPLES = 1024  # samples per AAC frame
_LEAD = 0.05  # seconds of sound before the first picture, which a decoder needs to start with
_BT709, _LIMITED = 1, 1  # codes of ITU-T H.273, which FFmpeg uses too


class MediaError(Exception):
    """A picture or video that cannot be read or written; the message names the file and why."""


# --- Arranging ------------------------------------------------------------------------------------


def grid(
    images: np.ndarray | Sequence[np.ndarray],
    rows: int | None = None,
    cols: int | None = None,
    pad: int = 2,
    scale: int = 1,
    fill: int = _BACKGROUND,
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Lay out N equal images, or clips of equal length, in reading order.

    Args:
        images: N items, uint8 (H, W, 3) or (T, H, W, 3).
        rows, cols: the number of rows and columns. If one is None, it follows from the other and N; if both are
            None, the layout is nearly square.
        pad: the width of the separators and the border, in pixels.
        scale: a whole number by which each item is enlarged (nearest neighbour).
        fill: the grey value of separators and empty cells, 0..255.
        captions: one caption per item, written in the item's corner; "" writes none.

    Returns:
        uint8 (GH, GW, 3) or (T, GH, GW, 3) with GH = rows * (scale * H + pad) + pad.

    Raises:
        ValueError: there are no items, they are not uint8 RGB, their shapes differ, or they outnumber the cells.
    """
    items = _same_shape(images)
    count = len(items)
    if cols is None:
        cols = math.ceil(math.sqrt(count)) if rows is None else math.ceil(count / rows)
    if rows is None:
        rows = math.ceil(count / cols)
    if rows * cols < count:
        raise ValueError(f"{count} items do not fit in {rows} rows of {cols}")
    items = items.repeat(scale, axis=-3).repeat(scale, axis=-2)
    *time, height, width, _ = items.shape[1:]
    canvas = np.full(
        (*time, rows * (height + pad) + pad, cols * (width + pad) + pad, 3), fill, np.uint8
    )
    corners = []
    for index, item in enumerate(items):
        row, col = divmod(index, cols)
        top, left = row * (height + pad) + pad, col * (width + pad) + pad
        canvas[..., top : top + height, left : left + width, :] = item
        corners.append((left, top))
    return _caption(canvas, [(at, text) for at, text in zip(corners, captions) if text])


def strip(frames: np.ndarray, n: int = 8, pad: int = 2, scale: int = 1) -> np.ndarray:
    """Show a clip at a glance: lay out n frames, evenly spaced from first to last, side by side.

    Args:
        frames: uint8 (T, H, W, 3).
        n: the number of frames to show; at most T are shown.
        pad: as for `grid`.
        scale: as for `grid`.

    Returns:
        uint8 (scale * H + 2 * pad, n * (scale * W + pad) + pad, 3).

    Raises:
        ValueError: as for `grid`.
    """
    picked = np.linspace(0, len(frames) - 1, min(n, len(frames))).round().astype(int)
    return grid(frames[picked], rows=1, pad=pad, scale=scale)


def transfer_grid(
    contents: np.ndarray | Sequence[np.ndarray],
    motions: np.ndarray | Sequence[np.ndarray],
    results: np.ndarray | Sequence[Sequence[np.ndarray]],
    *,
    content_labels: Sequence[str] | None = None,
    motion_labels: Sequence[str] | None = None,
    note: str = "",
    pad: int = 2,
    scale: int | None = None,
) -> np.ndarray:
    """Lay out motion transfers as a table: the cell in row i and column j shows content i moving like clip j.

    The left column holds the contents and the top row holds the motions; a wider separator sets both apart from the
    results. If some items are clips, each still picture is repeated for the whole length.

    Args:
        contents: I items, uint8 (H, W, 3) or (T, H, W, 3).
        motions: J items, uint8 (H, W, 3) or (T, H, W, 3).
        results: I rows of J items, uint8 (H, W, 3) or (T, H, W, 3).
        content_labels, motion_labels: I and J captions.
        note: an extra line of text in the empty corner.
        pad: the width of a separator, in pixels.
        scale: a whole number by which each item is enlarged (nearest neighbour); None takes the smallest that makes
            cells at least 128 pixels high.

    Returns:
        uint8 (GH, GW, 3), or (T, GH, GW, 3) if any item is a clip.

    Raises:
        ValueError: the counts, shapes or clip lengths do not agree, or an item is not uint8 RGB.
    """
    rows, cols = len(contents), len(motions)
    if len(results) != rows or any(len(row) != cols for row in results):
        raise ValueError(
            f"results must be {rows} rows (contents) of {cols} (motions), "
            f"got rows of {[len(row) for row in results]}"
        )
    for name, labels, count in (
        ("content_labels", content_labels, rows),
        ("motion_labels", motion_labels, cols),
    ):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{name} must be {count} strings, got {len(labels)}")
    body = (cell for content, row in zip(contents, results) for cell in (content, *row))
    cells = _hold_stills([*motions, *body])
    if scale is None:
        scale = max(1, math.ceil(128 / cells.shape[-3]))
    height, width = (scale * side for side in cells.shape[-3:-1])

    # One plain grid with an empty corner, cut behind its header row and column to widen the gap.
    corner = np.full_like(cells[:1], _BACKGROUND)
    sheet = grid(np.concatenate([corner, cells]), rows + 1, cols + 1, pad, scale)
    below, right, gap = height + pad, width + pad, 2 * pad
    sheet = np.insert(sheet, [below] * gap, _BACKGROUND, axis=-3)
    sheet = np.insert(sheet, [right] * gap, _BACKGROUND, axis=-2)

    lines = ["motion across,", "content down", note]
    captions = [
        ((pad, pad + k * (_CAPTION_SIZE + 6)), line) for k, line in enumerate(lines) if line
    ]
    for index, label in enumerate(motion_labels or ()):
        captions.append(((right + gap + pad + index * (width + pad), pad), label))
    for index, label in enumerate(content_labels or ()):
        captions.append(((pad, below + gap + pad + index * (height + pad)), label))
    return _caption(sheet, captions)


def beside(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Put pictures of equal height side by side, each under its label if all of them are wide enough for labels.

    Args:
        pictures: uint8 (H, W, 3) each; W may differ.
        labels: one word per picture.

    Returns:
        uint8 (H + band, sum of W, 3); the band has 18 rows, or none if any picture is narrower than 48 pixels.
    """
    row = np.concatenate(pictures, axis=1)
    widths = [picture.shape[1] for picture in pictures]
    if min(widths) < _LEAST_LABELLED:
        return row
    band = np.full((_CAPTION_SIZE + 6, row.shape[1], 3), _BACKGROUND, np.uint8)
    places = np.cumsum([0, *widths[:-1]]).tolist()
    return np.concatenate([_caption(band, [((x, 0), t) for x, t in zip(places, labels)]), row])


def _same_shape(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Stack images into (N, ..., H, W, 3), or raise a ValueError that names the item that differs."""
    if len(images) == 0:
        raise ValueError("no images to lay out")
    first = np.asarray(images[0])
    for index, image in enumerate(map(np.asarray, images)):
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise ValueError(
                f"item {index} must be uint8 (H, W, 3) or (T, H, W, 3), "
                f"got {image.dtype} {image.shape}"
            )
        if image.shape != first.shape:
            raise ValueError(f"item {index} has shape {image.shape}, item 0 has {first.shape}")
    return np.asarray(images)


def _hold_stills(images: Sequence[np.ndarray]) -> np.ndarray:
    images = [np.asarray(image) for image in images]
    clip = next((image for image in images if image.ndim == 4), None)
    if clip is not None:
        images = [
            np.broadcast_to(image, (len(clip), *image.shape)) if image.ndim == 3 else image
            for image in images
        ]
    return _same_shape(images)


def _caption(sheet: np.ndarray, captions: Sequence[tuple[tuple[int, int], str]]) -> np.ndarray:
    """Write each ((left, top), text) pair in black on white over a sheet, or over each frame of a sheet of clips."""
    font = ImageFont.load_default(_CAPTION_SIZE)
    sheet = sheet.copy()
    for (left, top), text in captions:
        x0, y0, x1, y1 = font.getbbox(text)
        label = Image.new("RGB", (math.ceil(x1 - x0) + 6, math.ceil(y1 - y0) + 6), "white")
        ImageDraw.Draw(label).text((3 - x0, 3 - y0), text, fill="black", font=font)
        room = sheet[..., top : top + label.height, left : left + label.width, :]
        room[...] = np.asarray(label)[: room.shape[-3], : room.shape[-2]]
    return sheet


# --- Writing --------------------------------------------------------------------------------------


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write one image, uint8 (H, W, 3), without loss.

    Raises:
        ValueError: the image has another dtype or shape.
    """
    with _written(path) as written:
        Image.fromarray(_frame(image)).save(written, format="PNG")


def write_gif(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float = 25) -> None:
    """Write a GIF that loops forever, with one palette of 256 colours for the whole clip.

    A separate palette for each frame would flicker. Colours are exact if the clip has at most 256 of them; otherwise
    the palette is fitted to the clip and the frames are dithered. GIF times are multiples of 1/100 s: frame times are
    rounded so that the errors do not add up. A run of equal frames is stored as one frame that is shown longer.

    Args:
        frames: T frames, each uint8 (H, W, 3).
        fps: frames per second, at most 100; viewers play a GIF above 50 more slowly.

    Raises:
        ValueError: there are no frames, a frame is not uint8 RGB, their shapes differ, or `fps` is out of range.
    """
    if not 0 < fps <= 100:
        raise ValueError(f"a GIF shows more than 0 and at most 100 frames per second, got {fps}")
    clip = _same_shape([_frame(frame) for frame in frames])
    # To save time, the palette is fitted to about a hundred thousand evenly spaced pixels at most.
    pixels = clip.reshape(-1, 3)
    pixels = pixels[:: math.ceil(len(pixels) / 2**17)]
    palette = Image.fromarray(pixels[None]).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in clip
    ]
    ticks = np.diff(np.round(np.arange(len(clip) + 1) * 100 / fps)).astype(int)
    with _written(path) as written:
        images[0].save(
            written,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=[int(10 * tick) for tick in ticks],
            loop=0,
        )


def write_mp4(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    fps: float = 25,
    crf: int = 18,
    audio_from: str | os.PathLike | None = None,
) -> None:
    """Write an H.264 video that browsers play (libx264, yuv420p, tagged BT.709), taking the frames one at a time.

    yuv420p needs even sides: a picture with an odd side gets one more row or column, which repeats the edge.

    Args:
        frames: an iterable of T frames, each uint8 (H, W, 3).
        fps: frames per second.
        crf: the constant rate factor, 0 (nearly lossless) to 51; 18 looks the same as the original.
        audio_from: a file whose first audio stream is added, up to the end of the last frame. The stream is
            encoded again only if mp4 cannot hold its codec. A file without audio adds none.

    Raises:
        ValueError: there are no frames, a frame is not uint8 RGB, their shapes differ, or `fps` is not positive.
        MediaError: `audio_from` cannot be read.
    """
    import av
    from av.video.reformatter import VideoReformatter

    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    height, width, _ = _frame(first).shape
    with (
        _written(path) as written,
        # The index goes to the front so that playback starts before the download ends.
        av.open(
            os.fspath(written), "w", format="mp4", options={"movflags": "+faststart"}
        ) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.options = {"crf": str(crf)}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        reformatter = VideoReformatter()
        audio = _AudioCopy(container, audio_from) if audio_from else contextlib.nullcontext()
        count = 0
        with audio:
            for index, frame in enumerate(itertools.chain([first], frames)):
                if _frame(frame).shape != (height, width, 3):
                    raise ValueError(
                        f"frame {index} has shape {frame.shape}, frame 0 has {(height, width, 3)}"
                    )
                frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                coded = reformatter.reformat(
                    av.VideoFrame.from_ndarray(frame, format="rgb24"),
                    format="yuv420p",
                    dst_colorspace=_BT709,
                    dst_color_range=_LIMITED,
                    dst_color_trc=_BT709,
                    dst_color_primaries=_BT709,
                    threads=1,
                )
                container.mux(stream.encode(coded))
                count = index + 1
            container.mux(stream.encode())
            if audio_from:
                audio.copy(until=count / fps)


class _AudioCopy:
    """Copies a file's first audio stream into an open mp4, encoding it as AAC if mp4 cannot hold its codec."""

    def __init__(self, container, path: str | os.PathLike):
        import av

        self._path, self._container = path, container
        self._target = self._resampler = None
        if not_a_file(path):
            raise MediaError(f"no audio can be read from {path}: not a file")
        try:
            self._input = av.open(f"file:{os.fspath(path)}")
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f"no audio can be read from {path}: {error}") from error
        self._source = next(iter(self._input.streams.audio), None)
        if self._source is None:
            return
        # The file's clock need not start at 0: sound is timed from the first picture, or, in a file without video,
        # from its own first sample.
        if self._input.streams.best("video"):
            self._origin = probe(path).start
        else:
            self._origin = float((self._source.start_time or 0) * self._source.time_base)
        codec = self._source.codec_context
        if codec is None or not codec.sample_rate or not codec.channels:
            raise MediaError(f"the audio of {path} is damaged, or its codec is unknown")
        if codec.codec.canonical_name in _AUDIO_OF_MP4:
            self._target = container.add_stream_from_template(self._source)
            return
        rate = codec.sample_rate if codec.sample_rate in _AAC_RATES else 48000
        layout = "mono" if codec.channels == 1 else "stereo"
        self._target = container.add_stream("aac", rate=rate, layout=layout)
        self._resampler = av.AudioResampler(
            format="fltp", layout=layout, rate=rate, frame_size=_AAC_SAMPLES
        )

    def __enter__(self) -> "_AudioCopy":
        return self

    def __exit__(self, *_) -> None:
        self._input.close()

    def copy(self, until: float) -> None:
        """Write the sound that begins earlier than `until` seconds after the first picture."""
        import av

        if self._target is None:
            return
        try:
            if self._resampler is None:
                self._copy_packets(until)
            else:
                self._encode_again(until)
        except av.FFmpegError as error:
            raise MediaError(f"the audio of {self._path} is damaged: {error}") from error

    def _copy_packets(self, until: float) -> None:
        for packet in self._input.demux(self._source):
            if packet.dts is None or packet.pts is None:
                continue
            shift = round(self._origin / packet.time_base)
            time = float(packet.pts * packet.time_base) - self._origin
            if not -_LEAD <= time < until:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._target
            self._container.mux(packet)

    def _encode_again(self, until: float) -> None:
        for frame in self._input.decode(self._source):
            if frame.time is not None:
                time = frame.time - self._origin
                if time >= until:
                    break
                if time < -_LEAD:
                    continue
                frame.pts -= round(self._origin / frame.time_base)
            for piece in self._resampler.resample(frame):
                self._container.mux(self._target.encode(piece))
        for piece in self._resampler.resample(None):
            self._container.mux(self._target.encode(piece))
        self._container.mux(self._target.encode(None))


def _frame(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    return image


@contextlib.contextmanager
def _written(path: str | os.PathLike) -> Iterator[Path]:
    """Wrap `files.aside`; any exception with an error number, such as for a full disk, becomes an OSError."""
    path = Path(path)
    with aside(path) as written:
        try:
            yield written
        except (OSError, MediaError):
            raise
        except Exception as error:
            if not getattr(error, "errno", None):
                raise
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


# --- Reading --------------------------------------------------------------------------------------


def is_picture(path: str | os.PathLike) -> bool:
    """Tell by its name whether a file is a picture, for `read_picture`; any other file is taken for a video."""
    return Path(path).suffix.lower() in PICTURES


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Read a picture file as it is meant to be seen: uint8 (H, W, 3), upright, in sRGB.

    The rotation that cameras store beside the pixels is applied, and so is the colour profile. Grey becomes RGB,
    16 bits per channel become 8, and transparent parts are put on white. Only the first frame of an animation is
    read. Float values range up to 1 if none is larger, and otherwise up to 255.

    Raises:
        MediaError: the file is missing, not a picture that can be read, or too large.
    """
    if not_a_file(path):
        raise MediaError(f"{path}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I") or upright.mode == "F":  # Pillow would cut off at 255
            return np.repeat(_grey(path, upright)[..., None], 3, axis=-1)
        upright = _srgb(path, upright)
        if upright.has_transparency_data:
            coloured = upright.convert("RGBA")
            behind = Image.new("RGBA", coloured.size, "white")
            upright = Image.alpha_composite(behind, coloured)
        return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise MediaError(f"there is no file {path}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MediaError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller ({error})"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError) as error:
        raise MediaError(f"{path} is not a picture that can be read: {error}") from error


def _grey(path: str | os.PathLike, picture: Image.Image) -> np.ndarray:
    """Convert a picture with one channel of more than 8 bits to uint8 (H, W)."""
    values = np.asarray(picture)
    if picture.mode == "F":
        if np.isnan(values).any():
            raise MediaError(f"{path} holds values that are not numbers (NaN)")
        full = 1 if values.max(initial=0) <= 1 else 255
    else:
        full = 65535 if values.max(initial=0) > 255 else 255
    scaled = np.clip(values, 0, full).astype(np.float32)
    scaled *= 255 / full
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _srgb(path: str | os.PathLike, picture: Image.Image) -> Image.Image:
    """Convert a picture from its colour profile to sRGB; a profile that cannot be used is logged and ignored."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    plain = picture.convert(picture.mode[:-1]) if alpha else picture
    try:
        shown = ImageCms.profileToProfile(
            plain,
            io.BytesIO(profile),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("%s: its colour profile cannot be used: %s", path, error)
        return picture
    if alpha:
        shown.putalpha(alpha)
    return shown


class Video(NamedTuple):
    """A decoded video: its frames, uint8 (T, H, W, 3), and their constant rate in frames per second."""

    frames: np.ndarray
    fps: float


def read_video(path: str | os.PathLike) -> Video:
    """Read a whole video into memory; the frames are those of `iter_video`.

    Raises:
        MediaError: the file is missing, damaged, cut short, or holds no video.
    """
    info = probe(path)
    return Video(np.stack(list(iter_video(path))), info.fps)


class VideoInfo(NamedTuple):
    """The rate, length and size of a video.

    Attributes:
        fps: the frames per second that `iter_video` yields.
        frames: the number of frames that `iter_video` yields; 0 if it is unknown.
        start: the time at which the first frame is shown, in seconds on the file's own clock.
        width, height: the stored width and height, in pixels.
    """

    fps: float
    frames: int
    start: float
    width: int = 0
    height: int = 0


def probe(path: str | os.PathLike) -> VideoInfo:
    """Find the rate, length, start time and size of a video from its packets, without decoding any.

    Raises:
        MediaError: the file is missing, damaged, or holds no video.
    """
    from vidmotion import video

    with _named(path):
        found = video.survey(path)
        return VideoInfo(float(found.rate), found.frames, found.start, *found.size)


def iter_video(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the frames of a video one by one, uint8 (H, W, 3), as they are meant to be seen.

    The frames come at the constant rate that `probe` returns. A video whose rate varies keeps its speed, because
    frames are repeated or left out.

    Raises:
        MediaError: as for `read_video`, raised at the frame where the fault appears.
    """
    from vidmotion import video

    with _named(path):
        yield from video.read_steadily(path)


def own_frames(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Tell which of the file's frames each frame of `iter_video` is.

    If the rate varies, some of the file's frames are shown several times and others not at all. Only times are
    looked at, so this is faster than `iter_video`.

    Returns:
        The frame numbers, int (T,), counted from 0; and the number of frames in the file.

    Raises:
        MediaError: as for `read_video`.
    """
    from vidmotion import video

    with _named(path):
        return video.own_frames(path)


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from error
