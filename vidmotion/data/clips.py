"""Encodes and decodes clips of videos as they are stored in a dataset folder.

A clip is stored either as `clip`, an H.264 mp4 file, or as `video`, its pixels; this was chosen when
`vidmotion.data.prepare` wrote the folder. Clips have no sound. Each record also has

    length   int32 ()      number of frames
    fps      float32 ()    frames per second
    source   text          the video file, relative to the folder that was prepared
    start    float64 ()    seconds from that video's first frame
    box      float32 (4,)  x0, y0, x1, y1 of the crop in the upright video, pixels

and, if the crop is a tube about one face,

    boxes    float32 (T, 4)  x0, y0, x1, y1 of the face in each frame, pixels of the stored pictures
    seen     bool (T,)       whether the face was searched for and found in a frame; elsewhere its box is estimated
    person   text            the person in the clip, if the data set says
    level    int32 ()        the strength of the emotion `label`, 1 to 3 (MEAD)
"""

import io
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidmotion.data.records import DatasetError

# Every GOP-th frame is a key frame, so decoding a window costs at most GOP - 1 extra frames before it. There are no
# B-frames (`bf`), and `fastdecode` turns off the parts that are slowest to decode, arithmetic coding and deblocking,
# for 5% more bytes.
GOP = 10
CRF = 15  # about 42 dB at 256 pixels; most of the error is in the chroma, stored at half resolution


def encode_clip(video: np.ndarray, fps: float) -> bytes:
    """Encodes a video as an mp4 file with one H.264 stream (yuv420p); equal input gives equal bytes.

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
            "threads": "1",  # the number of threads would change the bytes
            # x264's macroblock tree (AVX-512 code) reads uninitialised memory, so that the bytes would differ from run
            # to run. With a GOP this short it gains little.
            "mbtree": "0",
        }
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def decode_clip(clip: bytes | np.ndarray, frames: range) -> np.ndarray:
    """Decodes some frames of an mp4 file that `encode_clip` made, starting at the last key frame before them.

    Args:
      clip: the file, bytes or uint8 (n,).
      frames: the indices of the frames, ascending; at least one.

    Returns:
      uint8 (len(frames), H, W, 3).

    Raises:
      DatasetError: the file is of another kind, damaged, or lacks one of the frames.
    """
    reformatter, video, found = VideoReformatter(), None, 0
    try:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # whole clips are decoded in parallel
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
        raise DatasetError(
            f"a stored clip has only {found} of the {len(frames)} frames to read: {frames}"
        )
    return video


def frame_rate(fps: float) -> Fraction:
    """Returns frames per second as a fraction, as containers store it, with a denominator of at most 1001."""
    return Fraction(fps).limit_denominator(1001)
