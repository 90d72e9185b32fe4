"""Clips of videos as they are stored in a dataset folder.

A clip is stored as H.264 in an mp4 file of its own, `clip`, or as its pixels, `video`; which of the
two was chosen when `vidmotion.data.prepare` wrote the folder. There is never sound. Beside it stand

    length   int32 ()      frames
    fps      float32 ()    frames per second
    source   text          the video file, relative to the folder that was prepared
    start    float64 ()    seconds from that video's first frame
    box      float32 (4,)  x0, y0, x1, y1 of the crop in the upright video, pixels

and, where the crop is a tube about one face,

    boxes    float32 (T, 4)  x0, y0, x1, y1 of the face in each frame, pixels of the stored pictures
    seen     bool (T,)       whether it was looked for there and found; its place is estimated elsewhere
    person   text            who it is, as far as the data set says
    level    int32 ()        how strong the emotion `label` is, 1 to 3 (MEAD)
"""

import io
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidmotion.data.records import DatasetError

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
            # x264's tree of macroblocks reads memory that it never set (its AVX-512 code): bytes would
            # differ from run to run. With a GOP this short it gains little.
            "mbtree": "0",
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


def frame_rate(fps: float) -> Fraction:
    """Frames per second as containers count them, to 1/1001."""
    return Fraction(fps).limit_denominator(1001)
