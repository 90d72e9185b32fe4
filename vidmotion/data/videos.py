"""Clips in a dataset folder, and reading windows of them.

A clip is stored as H.264 in an mp4 file of its own, `clip`, or as its pixels, `video`; which of the
two was chosen when `vidmotion.data.prepare` wrote the folder. There is never sound. Beside it stand

    length   int32 ()      frames
    fps      float32 ()    frames per second
    source   text          the video file, relative to the folder that was prepared
    start    float64 ()    seconds from that video's first frame
    box      float32 (4,)  x0, y0, x1, y1 of the crop in the upright video, pixels
"""

import dataclasses
import hashlib
import io
from fractions import Fraction

import av
import grain
import numpy as np
from av.video.reformatter import VideoReformatter

from vidmotion.data.records import DatasetError, RecordSource
from vidmotion.errors import ConfigError

# Every GOP-th frame stands alone, so a window costs at most GOP - 1 frames before its first. No
# frame waits for a later one (`bf`), and `fastdecode` leaves out what is dearest to undo, arithmetic
# coding and deblocking, for 5% more bytes.
GOP = 10
CRF = 15  # about 42 dB at 256 pixels, most of the error in the chroma, which is at half resolution


def encode_clip(video: np.ndarray, fps: float) -> bytes:
    """An mp4 file of one H.264 stream (yuv420p); equal input gives equal bytes.

    Args:
      video: uint8 (T, H, W, 3) with even H and W.
      fps: frames per second.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frame_rate(fps))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(CRF),
            "g": str(GOP),
            "bf": "0",
            "preset": "veryfast",
            "tune": "fastdecode",
            "threads": "1",  # their number would show in the bytes
        }
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def decode_clip(clip: bytes | np.ndarray, frames: range) -> np.ndarray:
    """Some frames of an mp4 file of `encode_clip`; decoding begins at the nearest one before them.

    Args:
      clip: the file, bytes or uint8 (n,).
      frames: indices of the frames, ascending; at least one.

    Returns:
      uint8 (len(frames), H, W, 3).

    Raises:
      DatasetError: it is not such a file, is damaged, or lacks one of the frames.
    """
    reformatter, video, found = VideoReformatter(), None, 0
    try:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are read in parallel, not parts of them
            period = 1 / (stream.average_rate * stream.time_base)
            container.seek(round(frames[0] * period), stream=stream)
            for frame in container.decode(stream):
                index = round(frame.pts / period)
                if index > frames[-1]:
                    break
                if index not in frames:
                    continue
                picture = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if video is None:
                    video = np.empty((len(frames), *picture.shape), np.uint8)
                video[frames.index(index)] = picture
                found += 1
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"a stored clip cannot be decoded: {error}") from error
    if found < len(frames):
        raise DatasetError(f"a stored clip has {found} of the {len(frames)} frames {frames}")
    return video


@dataclasses.dataclass(frozen=True)
class Window(grain.transforms.RandomMap):
    """Stored clip -> window of it: decodes `frames` frames, every `decimate`-th of the clip.

    The element becomes `video` uint8 (frames, H, W, 3), `fps` float32 () the rate of that video and
    `start` float64 (), seconds from the first frame of the source to the first of the window.

    Attributes:
      frames: length of the window; None takes the whole clip.
      decimate: step in the stored clip.
      random: begin anywhere, evenly distributed, rather than leave equal rests on both sides.
    """

    frames: int | None = None
    decimate: int = 1
    random: bool = True

    def random_map(self, element, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: ConfigError where the clip is too short; DatasetError as `decode_clip`."""
        length, fps = int(element["length"]), float(element["fps"])
        frames = self.frames or -(-length // self.decimate)
        span = (frames - 1) * self.decimate + 1
        if span > length:
            raise ConfigError(
                f"{frames} frames, every {self.decimate} of a clip, span {span} frames; the stored "
                f"clips have {length}: ask for fewer, or prepare longer ones (--seconds)"
            )
        first = int(rng.integers(length - span + 1)) if self.random else (length - span) // 2
        picked = range(first, first + span, self.decimate)
        if "clip" in element:
            video = decode_clip(element["clip"], picked)
        else:
            video = element["video"][first : first + span : self.decimate]
        return {
            "video": video,
            "fps": np.float32(fps / self.decimate),
            "start": np.float64(element["start"] + first / fps),
        }


class VideoSource:
    """Random access to windows of the clips of one split; elements as `Window` makes them.

    With `random`, the place of a window is drawn anew each time, which takes the loader's random
    numbers: elements are then clips as they are stored, and `transforms` is to follow in the loader:
    `Loader(source, transforms=source.transforms, ...)`. Otherwise windows lie in the middle of their
    clips, and `transforms` is empty.

    Attributes:
      transforms: see above.
      fingerprint: hex text naming the clips and the windows taken of them.
    """

    def __init__(
        self,
        directory,
        split: str = "train",
        frames: int | None = None,
        decimate: int = 1,
        random: bool = False,
    ):
        """Opens a split of a folder that `vidmotion.data.prepare` wrote; arguments as of `Window`.

        Raises:
          DatasetError: as `RecordSource`, or the folder does not hold clips.
          ConfigError: `frames` or `decimate` below 1, or clips too short for them.
        """
        if decimate < 1 or (frames is not None and frames < 1):
            raise ConfigError(f"frames and decimate are at least 1, got {frames=}, {decimate=}")
        self._records = RecordSource(directory, split)
        if not {"clip", "video"} & self._records.features.keys() or not (
            {"length", "fps", "start", "source"} <= self._records.features.keys()
        ):
            raise DatasetError(
                f"{directory}: holds {', '.join(self._records.features)}: not clips of videos, as "
                "written by python -m vidmotion.data.prepare videos"
            )
        self._window = Window(frames, decimate, random)
        self.transforms = (self._window,) if random else ()
        self.fingerprint = hashlib.sha256(
            f"{self._records.fingerprint}/{self._window}".encode()
        ).hexdigest()
        self._arguments = (self._records.directory, split, frames, decimate, random)
        Window(frames, decimate, random=False).random_map(self._records[0], None)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        """Raises: IndexError out of range; DatasetError where the data are damaged."""
        record = self._records[index]
        return record if self._window.random else self._window.random_map(record, None)

    def name(self, index) -> str:
        """The video file that a clip is from."""
        return self._records[index]["source"].tobytes().decode()

    def __reduce__(self):
        return type(self), self._arguments

    def __repr__(self):
        return f"VideoSource{self._arguments!r}"


def frame_rate(fps: float) -> Fraction:
    """Frames per second as containers count them, to 1/1001."""
    return Fraction(fps).limit_denominator(1001)
