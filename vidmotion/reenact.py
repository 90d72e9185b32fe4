"""Your own picture and video in, an mp4 out.

    python -m vidmotion.reenact --workdir=RUN --content=A.(png|jpg|mp4) --motion=B.mp4 --out=C.mp4 [--side_by_side]

The content comes from A, the motion from B. B is streamed in windows, so memory does not grow with its length; its
frame rate is kept and its audio carried over. Both are cropped to the centre square and resized to the model's size.
"""

import logging
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from vidmotion import media
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.main import set_up_devices, set_up_log

log = logging.getLogger("vidmotion.reenact")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_CONTENT = flags.DEFINE_string("content", None, "Picture or video of who or what is to move.")
_MOTION = flags.DEFINE_string("motion", None, "Video of how to move.")
_OUT = flags.DEFINE_string("out", None, "mp4 to write.")
_SIDE = flags.DEFINE_bool("side_by_side", False, "Content and motion beside the result.")
_WINDOWS = flags.DEFINE_integer("windows", 4, "Windows sampled together.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the initial noise.")

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """Centre square of a frame (H, W, 3) uint8, resized with antialiasing to (size, size, 3)."""
    height, width, _ = frame.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def read_content(path: str, frames: int, size: int) -> np.ndarray:
    """A clip (T, size, size, 3) uint8: the picture alone, or up to `frames` frames spread over a video.

    Raises:
      MediaError: not a picture or video that can be read.
    """
    if os.path.splitext(path)[1].lower() in PICTURES:
        try:
            with Image.open(path) as picture:
                return fit(np.asarray(picture.convert("RGB")), size)[None]
        except FileNotFoundError:
            raise media.MediaError(f"there is no file {path}") from None
        except (UnidentifiedImageError, OSError) as error:
            raise media.MediaError(f"{path} is not a picture that can be read: {error}") from error
    count = media.probe(path).frames or sum(1 for _ in media.iter_video(path))
    wanted = set(np.linspace(0, max(count - 1, 0), frames).round().astype(int).tolist())
    picked = [fit(frame, size) for i, frame in enumerate(media.iter_video(path)) if i in wanted]
    return np.stack(picked)


def windows(path: str, length: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Chunks (length, size, size, 3) of a video and how many frames of each are real.

    The last chunk is filled up by repeating its last frame, so that all have one shape.

    Raises:
      MediaError: not a video that can be read, at the frame where it shows.
    """
    chunk: list[np.ndarray] = []
    for frame in media.iter_video(path):
        chunk.append(fit(frame, size))
        if len(chunk) == length:
            yield np.stack(chunk), length
            chunk = []
    if chunk:
        real = len(chunk)
        yield np.stack(chunk + chunk[-1:] * (length - real)), real


def reenact(
    run, content: str, motion: str, out: str, side_by_side: bool, together: int, seed: int
) -> int:
    """Write `out`; returns the number of frames. See the module's docstring for the rest.

    Raises:
      MediaError, ConfigError, CheckpointError: nothing is then left under the name `out`.
    """
    system = run.system
    still = read_content(content, system.half, system.size)
    info = media.probe(motion)
    vars = run.trained_vars()
    sample = run.jit_sample()
    rows = run.rows(1)  # the mesh may want more than one row; the extra ones repeat the first
    key = jax.random.key(seed)  # the same noise for every window: less flicker
    length = (system.sampler.window or system.half) * together
    total = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal total
        with tqdm(total=info.frames or None, unit="frame", disable=None) as bar:
            for chunk, real in windows(motion, length, system.size):
                batch = {
                    "content": np.repeat(still[None], rows, axis=0),
                    "motion": np.repeat(chunk[None], rows, axis=0),
                }
                result = to_uint8(np.asarray(sample(vars, run.put_rows(batch), key)["video"][0]))
                for i in range(real):
                    row = (still[len(still) // 2], chunk[i], result[i])
                    yield np.concatenate(row, axis=1) if side_by_side else result[i]
                total += real
                bar.update(real)

    media.write_mp4(out, frames(), info.fps or 25.0, audio_from=motion)
    return total


def main(argv: list[str]) -> None:
    """Entry point under `absl.app.run`."""
    set_up_log()
    set_up_devices()
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.run import open_run

    try:
        run = open_run(_WORKDIR.value)
        count = reenact(
            run,
            _CONTENT.value,
            _MOTION.value,
            _OUT.value,
            _SIDE.value,
            _WINDOWS.value,
            _SEED.value,
        )
    except (ConfigError, CheckpointError, media.MediaError) as error:
        log.error("%s", error)
        sys.exit(EXIT_REFUSED)
    log.info("%d frames: %s", count, _OUT.value)
    sys.exit(EXIT_DONE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "content", "motion", "out"])
    app.run(main)
