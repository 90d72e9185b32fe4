"""Cuts one video file into clips of equal length, frame rate and size.

Frames are taken by presentation time. Tick k of the new rate lies k / fps seconds after the first frame. A frame is
shown from the tick nearest to its own time until the next frame is shown; the last frame lasts as long as the file
says. So a video of constant rate keeps every frame once, however its times are rounded, and a video of varying rate
keeps its speed.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from av.video.reformatter import VideoReformatter

from vidmotion.data import faces
from vidmotion.data.clips import encode_clip, frame_rate
from vidmotion.video import Picture, read_frames, resample

HOLD = 1.0  # seconds: a picture shown for longer counts as a gap in the video, which ends a clip
THUMB = 32  # side of the grey pictures that are compared to find cuts, pixels
LOOKS = 5  # number of pictures of a clip in which the detector looks for its face
TUBE_STEP = 5  # for a tube, the detector searches every TUBE_STEP-th picture


@dataclasses.dataclass(frozen=True)
class Cutting:
    """The settings with which clips are cut.

    Attributes:
      fps: frames per second of the clips.
      size: height and width of the clips in pixels; even.
      seconds: length of the clips.
      cut: mean absolute difference of successive pictures, out of 255, above which a clip ends.
      crop: "centre", the largest square in the middle; "face", one fixed square per clip about the face; or "tube", one
        fixed square about everywhere the face goes in the clip, with the face's box in every frame.
      face_scale: side of the square over the side of the face or tube that was found.
      codec: "h264" or "raw", see `vidmotion.data.clips`.
      least: side of the smallest face that "tube" accepts, in pixels of the video.
      border: what to do with a tube that does not fit in the picture: "black" pads it with black, as X-NeMo's release
        does; "shrink" makes the square smaller, for videos that are close crops already.
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
        """The number of frames of a clip."""
        return max(1, round(self.fps * self.seconds))


@dataclasses.dataclass
class Tally:
    """How many clips a video gave, and why other parts of it gave none.

    Attributes:
      clips: the number of clips that the video gave.
      frames: the number of frames that were decoded.
      seconds: the length of the video.
      cuts: the number of scene changes and gaps.
      short: the number of scene remainders that were left out because they are shorter than a clip.
      faceless: the number of clips left out because no face was found in them.
      small: the number of clips left out because the face in them is too small.
      lost: the number of frames that could not be decoded; with more than a few, the whole file is rejected.
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
    """Cuts a video into clips, in order, one after the other within each scene.

    The decoded pictures of one clip are held in memory: 100 pictures of 1920x1080 take 0.3 GB.

    Args:
      path: the path of the video, or of a folder of numbered pictures.
      cutting: how clips are cut.
      tally: counts that are updated as clips are made.
      box: x0, y0, x1, y1 of a crop in the upright video, used instead of `cutting.crop`. It is extended to a square of
        its longer side and moved inside the picture.
      threads: the number of threads of the decoder.
      check: called for every frame; it may raise to stop the work.

    Yields:
      Records as `vidmotion.data.clips` describes them, without `source`.

    Raises:
      MediaError: the file cannot be read, or not to its end; the clips before that point have been yielded.
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
    """Yields runs of `cutting.frames` pictures without a cut or gap, each with its first tick."""
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
    """Tracks the face of a clip by searching every `TUBE_STEP`-th picture and the last.

    Returns:
      The track; None if the face is in fewer than half of the pictures that were searched.
    """
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
    """Renders a region of the pictures, uint8 (T, size, size, 3); a picture shown repeatedly is rendered once."""
    reformatter, video = VideoReformatter(), np.empty((len(pictures), size, size, 3), np.uint8)
    for k, picture in enumerate(pictures):
        if k and picture is pictures[k - 1]:
            video[k] = video[k - 1]
        else:
            video[k] = picture.render(reformatter, region, (size, size))
    return video
