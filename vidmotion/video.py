"""Reads videos from disk frame by frame, each frame as it is meant to be seen and with the time at which it is shown.

All of the project's video reading goes through this module. Frames come out upright, with square pixels, without
interlacing, in sRGB (for high dynamic range, white is at 203 cd/m2, ITU-R BT.2408), and with transparent parts on
white.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vidmotion import files
from vidmotion.data import faces
from vidmotion.media import MediaError

log = logging.getLogger(__name__)

FRAME_RATE = 25  # frames per second of a folder of pictures, which states no rate
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
SPARE = 50  # a video counts as damaged if more than one frame in 50 is missing
WHITE = 203.0  # cd/m2 of diffuse white (ITU-R BT.2408, table 1)
PQ, HLG = 16, 18  # transfer characteristics (ITU-T H.273, table 3)
# Linear BT.2020 to linear BT.709 (ITU-R BT.2087, section 3).
TO_709 = np.float32(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)


class Picture:
    """A decoded frame that can be rendered upright and with square pixels.

    Attributes:
      frame: the frame as decoded.
      size: the width and height of the upright picture with square pixels, in pixels.
    """

    def __init__(self, frame: av.VideoFrame, aspect: Fraction | None):
        """Wrap `frame`; `aspect` is the width of a stored pixel over its height, or None if the file states none."""
        self.frame = frame
        # Quarter turns counter-clockwise: phones store the sensor's view.
        self._turns = round(frame.rotation / 90)
        self._stretch = (float(aspect or 1), 1.0)
        size = (frame.width * self._stretch[0], float(frame.height))
        if self._turns % 2:
            self._stretch, size = self._stretch[::-1], size[::-1]
        self.size = size

    def render(self, reformatter: VideoReformatter, box=None, size=None) -> np.ndarray:
        """Render a region of the picture, scaled without aliasing.

        Args:
          reformatter: a reformatter used by one thread only, and for pictures of one kind, because it caches its
            setup.
          box: the region x0, y0, x1, y1; the whole picture by default. The parts outside the picture are black.
          size: the width and height of the result; unscaled by default.

        Returns:
          uint8 (H, W, 3).
        """
        whole = box is None and size is None and self._stretch == (1.0, 1.0)
        upright = np.rot90(_rgb(self.frame, reformatter), self._turns)
        if whole:
            return upright
        box = (0.0, 0.0, *self.size) if box is None else box
        size = tuple(max(1, round(side)) for side in self.size) if size is None else size
        return faces.crop(upright, [x / s for x, s in zip(box, self._stretch * 2)], size)


class Survey(NamedTuple):
    """The timing and size of a video, found from its packets without decoding them.

    Attributes:
      rate: the constant rate, in frames per second, at which to show the video.
      steady: whether frame k is shown at tick k of that rate, for every k from 0 on.
      frames: the number of ticks from the first frame to the end of the last; the number of packets if any of them
        states no time.
      start: the time of the first frame, in seconds on the file's own clock.
      size: the stored width and height, in pixels.
    """

    rate: Fraction
    steady: bool
    frames: int
    start: float
    size: tuple[int, int] = (0, 0)


def survey(path: str | os.PathLike) -> Survey:
    """Find the rate, length, start time and size of a video.

    If frames come at varying intervals, the rate is the one that the file states if it is within a tenth of the
    number of frames in the busiest second; otherwise it is that number.

    Raises:
      MediaError: the file cannot be read or holds no video. The message does not name the file.
    """
    times, lasting = [], Fraction(0)
    with _opened(path) as (container, stream):
        rates = [stream.average_rate, stream.guessed_rate, Fraction(FRAME_RATE)]
        rates = [rate for rate in rates if rate]
        size = stream.codec_context.width, stream.codec_context.height
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(None if packet.pts is None else packet.pts * packet.time_base)
                if packet.duration and times[-1] is not None:
                    lasting = max(lasting, times[-1] + packet.duration * packet.time_base)
    if None in times or not times:
        known = next((time for time in times if time is not None), 0)
        return Survey(rates[0], True, len(times), float(known), size)
    times.sort()
    since = [time - times[0] for time in times]
    for rate in rates:
        if all(abs(time * rate - k) < Fraction(1, 2) for k, time in enumerate(since)):
            return Survey(rate, True, len(times), float(times[0]), size)
    seconds = np.array(since, np.float64)
    busiest = int(max(np.searchsorted(seconds, seconds + 0.98) - np.arange(len(seconds))))
    near = [rate for rate in rates[:-1] if abs(rate / busiest - 1) < 0.1]
    rate = near[0] if near else Fraction(busiest)
    end = max(lasting, times[-1] + 1 / rate) - times[0]
    return Survey(rate, False, _tick(end, rate), float(times[0]), size)


def read_steadily(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield all frames of a video at the constant rate of its `survey`, uint8 (H, W, 3), in the size of the first.

    A frame of another size is scaled to fit whole into the first frame's size, on black.

    Raises:
      MediaError: as for `read_frames`.
    """
    reformatter, first, last, pixels = VideoReformatter(), None, None, None
    for _, picture in _steadily(path):
        if picture is not last:
            first, last = first or picture, picture
            if picture.size == first.size:
                pixels = picture.render(reformatter)
            else:
                scale = max(a / b for a, b in zip(picture.size, first.size))
                middle = np.array(picture.size) / 2
                half = np.array(first.size) * scale / 2
                target = tuple(max(1, round(side)) for side in first.size)
                box = [*(middle - half), *(middle + half)]
                pixels = picture.render(reformatter, box, target)
        yield pixels


def own_frames(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Tell which of the file's frames each frame of `read_steadily` is.

    Returns:
      The frame numbers, int (T,), ascending and counted from 0; and the number of frames in the file.

    Raises:
      MediaError: as for `read_frames`.
    """
    count = 0

    def counted(shown):
        nonlocal count
        for item in shown:
            count += 1
            yield item

    numbers = [number for number, _ in _steadily(path, counted)]
    return np.array(numbers), count


def _steadily(
    path: str | os.PathLike, watch: Callable[[Iterator], Iterator] = iter
) -> Iterator[tuple[int, Picture]]:
    """Yield (frame number, picture) for `read_steadily`; `watch` wraps the iterator over the file's frames."""
    found = survey(path)
    numbered = (
        (start, end, (number, picture))
        for number, (start, end, picture) in enumerate(watch(read_frames(path, threads=0)))
    )
    if found.steady:
        return (item for _, _, item in numbered)
    return (item for _, item in resample(numbered, found.rate, hold=math.inf))


def read_frames(
    path: str | os.PathLike, threads: int = 1, missed: Callable[[int], None] | None = None
) -> Iterator[tuple[Fraction, Fraction, Picture]]:
    """Yield (start, end, picture) for each frame of a file's main video stream.

    A folder of numbered pictures is a video of `FRAME_RATE`. Times are in seconds from the first frame. A frame
    ends when its stated duration does, which need not be when the next frame starts.

    Args:
      path: the path of the file or folder.
      threads: the number of threads of the decoder; 0 lets it choose.
      missed: called at the end with the number of frames that could not be decoded, if it is above 0 but too small
        for an error; by default a warning that names the file is logged.

    Raises:
      MediaError: the file cannot be read, holds no video, is damaged or cut short, or its times run backwards;
        raised at the frame where the fault appears. The message does not name the file.
    """
    count, origin, last, woven = 0, None, Fraction(-1), False
    times, unshown = [], 0
    try:
        with _opened(path) as (container, stream):
            stream.codec_context.thread_count = threads
            stream.thread_type = "AUTO"
            period = 1 / (stream.average_rate or stream.guessed_rate or Fraction(FRAME_RATE))
            aspect, stated = stream.sample_aspect_ratio, stream.frames

            def decoded() -> Iterator[av.VideoFrame]:
                nonlocal unshown
                for packet in container.demux(stream):
                    if packet.is_corrupt:  # FFmpeg reports no error for a file cut short
                        raise MediaError(f"damaged or cut short after {count} frames")
                    if packet.is_discard or not packet.size:
                        unshown += 1
                    elif packet.pts is not None:
                        times.append(packet.pts * packet.time_base)
                    yield from packet.decode()

            for frame in _progressive(decoded()):
                time = last + period if frame.pts is None else frame.pts * frame.time_base
                if origin is None:
                    origin, last = time, time
                if time < last:
                    raise MediaError(f"times run backwards after {count} frames")
                woven |= frame.interlaced_frame
                lasts = frame.duration * frame.time_base if frame.duration else period
                yield time - origin, time - origin + lasts, Picture(frame, aspect)
                count, last = count + 1, time
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"damaged after {count} frames" if count else "not a readable video, or damaged"
        raise MediaError(f"{what} ({reason})") from error
    if not count:
        raise MediaError("its video stream has no frames")
    # Frames before the first decoded one are not expected, because they depend on frames that the file lacks. In an
    # interlaced video a packet may hold one field of a frame, so packets cannot be counted.
    early = sum(time < origin for time in times)
    expected = stated - unshown - early if stated else 0 if woven else len(times) - early
    lost = expected - count
    if lost > max(2, expected // SPARE):
        raise MediaError(f"damaged: only {count} of its {expected} frames can be decoded")
    if lost > 0 and missed:
        missed(lost)
    elif lost > 0:
        log.warning(
            "%s: %d of its %d frames cannot be decoded and are left out", path, lost, expected
        )


def resample(
    shown: Iterable[tuple[Fraction, Fraction, Any]], rate: Fraction, hold: float
) -> Iterator[tuple[int, Any]]:
    """Resample frames to a constant rate: yield pairs of a tick and the picture shown at that tick.

    Ticks ascend by one, except after a picture that is shown for longer than `hold` seconds: such a picture is
    yielded only once.

    Args:
      shown: (start, end, picture) of each frame, in seconds, as from `read_frames`.
      rate: ticks per second.
      hold: the longest time, in seconds, for which a picture is repeated.
    """

    def held_for(picture, since, until):
        for k in range(since, until if until - since <= hold * rate else since + 1):
            yield k, picture

    held, since, until = None, 0, 0
    for start, end, picture in shown:
        yield from held_for(held, since, _tick(start, rate))
        held, since, until = picture, _tick(start, rate), _tick(end, rate)
    yield from held_for(held, since, until)


def _tick(time: Fraction, rate: Fraction) -> int:
    return math.floor(time * rate + Fraction(1, 2))


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or a folder of numbered pictures, and yield its container and its main video stream."""
    try:
        container = _open(os.fspath(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"not a readable video, or damaged ({reason})") from error
    with container:
        stream = container.streams.best("video")  # not the cover picture
        if stream is None:
            raise MediaError("it has no video stream")
        if stream.codec_context is None:
            raise MediaError("its codec is unknown, or it is damaged")
        yield container, stream


def _open(path: str):
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise MediaError("there is no such file")
        if files.not_a_file(path):
            raise MediaError("not a file")
        # A name with a colon must not be taken for a protocol, and a playlist must not lead to other protocols.
        return av.open(f"file:{path}", container_options={"protocol_whitelist": "file"})
    names = sorted(
        name
        for name in os.listdir(path)
        if name.lower().endswith(FRAME_SUFFIXES) and os.path.splitext(name)[0].isdecimal()
    )
    if not names:
        raise MediaError("the folder has no numbered pictures")
    stem, suffix = os.path.splitext(names[0])
    first, last = int(stem), int(os.path.splitext(names[-1])[0])
    kinds = {os.path.splitext(name)[1] for name in names}
    if last - first + 1 != len(names) or len(kinds) != 1:
        raise MediaError(
            f"{len(names)} pictures numbered {first} to {last}: some are missing, or are of another kind"
        )
    pattern = os.path.join(path.replace("%", "%%"), f"%0{len(stem)}d{suffix}")
    options = {"framerate": str(FRAME_RATE), "start_number": stem}
    return av.open(pattern, format="image2", options=options)


# --- Fields and colours ---------------------------------------------------------------------------


def _progressive(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield frames as they are up to the first interlaced one, and from then on deinterlaced (bwdif)."""
    graph, kind = None, None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if kind != (frame.width, frame.height, frame.format.name):
            if graph:
                yield from _pull(graph, None)
            kind = frame.width, frame.height, frame.format.name
            graph = _deinterlacer(frame)
        yield from _pull(graph, frame)
    if graph:
        yield from _pull(graph, None)


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
    )
    weave = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(weave)
    weave.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _pull(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Convert a frame, in its stored orientation, to sRGB, uint8 (H, W, 3)."""

    def as_format(name: str) -> np.ndarray:
        return reformatter.reformat(frame, format=name, threads=1).to_ndarray()

    if frame.color_trc in (PQ, HLG):
        return _standard_range(as_format("rgb48le"), frame.color_trc)
    if any(component.is_alpha for component in frame.format.components):
        rgba = as_format("rgba").astype(np.uint16)
        alpha = rgba[..., 3:]
        return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return as_format("rgb24")


def _standard_range(signal: np.ndarray, transfer: int) -> np.ndarray:
    """Convert a PQ or HLG signal, uint16 (H, W, 3) in BT.2020, to sRGB uint8; light above white is clipped."""
    level = np.linspace(0, 1, 65536, dtype=np.float64)
    if transfer == PQ:  # SMPTE ST 2084, equation 4.1
        root = level ** (1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        light = (10000 * ratio ** (1 / 0.1593017578125) / WHITE).astype(np.float32)[signal]
    else:  # ITU-R BT.2100, table 5: the light of the scene, then the light of a display of 1000 cd/m2
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12)
        light = scene.astype(np.float32)[signal]
        luminance = light @ np.float32([0.2627, 0.6780, 0.0593])
        light *= (1000 / WHITE) * luminance[..., None] ** np.float32(0.2)
    linear = np.clip(light @ TO_709.T, 0, 1)
    curve = np.where(level <= 0.0031308, 12.92 * level, 1.055 * level ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)[np.rint(linear * 65535).astype(np.uint16)]
