"""One video file -> clips of equal length, frame rate and size.

Frames are taken by presentation time: tick k of the new rate lies k / fps seconds after the first
frame, a frame is shown from the tick nearest to its own time until the next frame is, and the last
one as long as the file says. So a constant rate keeps its frames one by one whatever the rounding
of their times, and a varying one keeps its speed.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from av.video.reformatter import VideoReformatter

from vidmotion.data import faces
from vidmotion.data.clips import encode_clip, frame_rate
from vidmotion.video import Picture, read_frames, resample

HOLD = 1.0  # seconds: a picture that stands longer is a gap in the video, which ends a clip
THUMB = 32  # side of the grey pictures that are compared to find cuts, pixels
LOOKS = 5  # pictures of a clip in which its face is looked for
TUBE_STEP = 5  # pictures from one to the next in which the face of a tube is looked for


@dataclasses.dataclass(frozen=True)
class Cutting:
    """What the clips of a video depend on besides the video.

    Attributes:
      fps: frames per second of the clips.
      size: their height and width, pixels, even.
      seconds: their length.
      cut: mean absolute difference of successive pictures, of 255, that ends a clip.
      crop: "centre", the largest square in the middle; "face", one steady square per clip; or "tube",
        one steady square about all places where the face goes in the clip, with the face's box in every
        frame.
      face_scale: side of that square over the side of the face, or of the tube, that was found.
      codec: "h264" or "raw", see `vidmotion.data.clips`.
      least: side of the smallest face that is good enough for "tube", pixels of the video.
      border: what a tube does that does not fit in the picture: "black" around it, as X-NeMo's release
        does, or "shrink", which is for videos that are close crops already.
    """

    fps: float
    size: int
    seconds: float
    cut: float
    crop: str
    face_scale: float
    codec: str
    least: int = 0
    border: str = "black"

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return max(1, round(self.fps * self.seconds))


@dataclasses.dataclass
class Tally:
    """How many clips a video gave, and why other parts of it gave none.

    Attributes:
      clips: how many clips it gave.
      frames: how many frames were decoded.
      seconds: its length.
      cuts: scene changes and gaps.
      short: remainders of scenes, each less than a clip, that were left out.
      faceless: clips left out because no face was found in them.
      small: clips left out because the face in them is too small.
      lost: frames that the file has and that cannot be decoded; a few, or it would not be read at all.
    """

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    cuts: int = 0
    short: int = 0
    faceless: int = 0
    small: int = 0
    lost: int = 0


def cut_video(
    path: str | os.PathLike,
    cutting: Cutting,
    tally: Tally,
    *,
    box: np.ndarray | None = None,
    threads: int = 1,
    check: Callable[[], None] = lambda: None,
) -> Iterator[dict]:
    """The clips of a video, in order, one after the other within each scene.

    The pictures of one clip are held as they were decoded: 100 of 1920x1080 are 0.3 GB.

    Args:
      path: the path of the video, or of a folder of numbered pictures.
      cutting: settings.
      tally: filled in as clips are made.
      box: x0, y0, x1, y1 of the crop in the upright video, in place of `cutting.crop`; it is made
        square by its longer side and moved inside the picture.
      threads: the number of threads of the decoder.
      check: called for every frame; may raise to stop.

    Yields:
      records as `vidmotion.data.clips` describes them, without `source`.

    Raises:
      MediaError: the file cannot be read, or not to its end; clips before that have been given.
    """

    def lose(count):
        tally.lost += count

    def counted(shown):
        for start, end, picture in shown:
            check()
            tally.frames += 1
            tally.seconds = float(end)
            yield start, end, picture

    ticks = resample(counted(read_frames(path, threads, lose)), frame_rate(cutting.fps), HOLD)
    for first, pictures in _pieces(ticks, cutting, tally):
        size, track = pictures[0].size, None
        if box is not None:
            region = faces.square(box, *size)
        elif cutting.crop == "centre":
            region = faces.square((0, 0, *size), *size)
        elif cutting.crop == "tube":
            track = _track(pictures)
            if track is None:
                tally.faceless += 1
                continue
            if (track.boxes[:, 2] - track.boxes[:, 0]).min() < cutting.least:
                tally.small += 1
                continue
            union = np.concatenate([track.boxes[:, :2].min(0), track.boxes[:, 2:].max(0)])
            region = faces.square(union, *size, cutting.face_scale)
            if cutting.border == "black":
                region = faces.inside(faces.about(union, cutting.face_scale), *size)
        else:
            looks = np.linspace(0, len(pictures) - 1, LOOKS).round().astype(int)
            reformatter = VideoReformatter()
            face = faces.face_box([pictures[k].render(reformatter) for k in looks])
            if face is None:
                tally.faceless += 1
                continue
            region = faces.square(face, *size, cutting.face_scale)
        video = _crop(pictures, region, cutting.size)
        clip = (
            {"video": video}
            if cutting.codec == "raw"
            else {"clip": np.frombuffer(encode_clip(video, cutting.fps), np.uint8)}
        )
        if track is not None:
            scale = cutting.size / (region[2] - region[0])
            clip["boxes"] = ((track.boxes - np.tile(region[:2], 2)) * scale).astype(np.float32)
            clip["seen"] = track.seen
        tally.clips += 1
        yield {
            **clip,
            "length": np.int32(len(video)),
            "fps": np.float32(cutting.fps),
            "start": np.float64(first / cutting.fps),
            "box": region.astype(np.float32),
        }


def _pieces(
    ticks: Iterable[tuple[int, Picture]], cutting: Cutting, tally: Tally
) -> Iterator[tuple[int, list[Picture]]]:
    """Runs of `cutting.frames` pictures without a cut or gap, each with its first tick."""
    reformatter, pictures = VideoReformatter(), []
    last_tick, last, last_thumb = None, None, None
    for tick, picture in ticks:
        thumb = last_thumb
        if picture is not last:
            thumb = reformatter.reformat(
                picture.frame, THUMB, THUMB, "gray", interpolation="AREA", threads=1
            )
            thumb = thumb.to_ndarray().astype(np.int16)
        if last is not None and (
            tick != last_tick + 1
            or picture.size != last.size
            or np.abs(thumb - last_thumb).mean() > cutting.cut
        ):
            tally.cuts += 1
            tally.short += bool(pictures)
            pictures = []
        last_tick, last, last_thumb = tick, picture, thumb
        pictures.append(picture)
        if len(pictures) == cutting.frames:
            full, pictures = pictures, []
            yield tick + 1 - cutting.frames, full
    tally.short += bool(pictures)


def _track(pictures: list[Picture]) -> faces.Track | None:
    """The face of a clip, looked for in every `TUBE_STEP`-th picture and in the last; None where it is
    not in half of these."""
    looks = sorted({*range(0, len(pictures), TUBE_STEP), len(pictures) - 1})
    reformatter = VideoReformatter()
    found, several = faces.follow(faces.find_faces(pictures[k].render(reformatter)) for k in looks)
    seen = ~np.isnan(found[:, 0])
    if 2 * seen.sum() < len(looks):
        return None
    boxes, known = np.full((len(pictures), 4), np.nan), np.zeros(len(pictures), bool)
    boxes[looks], known[looks] = faces.steady(found), seen
    return faces.Track(faces.fill(boxes), known, several)


def _crop(pictures: list[Picture], region: np.ndarray, size: int) -> np.ndarray:
    """uint8 (T, size, size, 3); a picture that is shown again is not rendered again."""
    reformatter, video = VideoReformatter(), np.empty((len(pictures), size, size, 3), np.uint8)
    for k, picture in enumerate(pictures):
        if k and picture is pictures[k - 1]:
            video[k] = video[k - 1]
        else:
            video[k] = picture.render(reformatter, region, (size, size))
    return video
