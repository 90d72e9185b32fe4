"""Your own picture and video in, an mp4 out.

    python -m vidmotion.reenact --workdir=RUN --content=A.(png|jpg|mp4) --motion=B.mp4 --out=C.mp4 [--side_by_side]

The content comes from A, the motion from B. B is streamed in windows, so memory does not grow with its length; its
frame rate is kept and its audio carried over. Both are cropped to the centre square and resized to the model's size.
Where weights lie elsewhere than in training, or for other sampling: --config.system.codec.weights=FILE,
--config.system.sampler.steps=16.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from vidmotion import media, startup
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.run import Run, open_run

log = logging.getLogger("vidmotion.reenact")

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
        return fit(media.read_picture(path), size)[None]
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
    run: Run,
    content: str,
    motion: str,
    out: str,
    side_by_side: bool = False,
    together: int = 4,
    seed: int = 0,
) -> int:
    """Write `out`.

    Args:
      run: a trained run that transfers motion.
      content: picture or video of who or what is to move.
      motion: video of how to move.
      out: mp4 to write, whole or not at all.
      side_by_side: content and motion beside the result.
      together: windows sampled at a time.
      seed: of the initial noise.

    Returns:
      The number of frames.

    Raises:
      MediaError, ConfigError, CheckpointError: nothing is then left under the name `out`.
    """
    system = run.system
    if not hasattr(system, "render"):
        raise ConfigError(
            f"{run.workdir} holds a {run.config.system.name}, which cannot transfer motion"
        )
    if os.path.splitext(out)[1].lower() != ".mp4":
        raise ConfigError(f"--out={out}: the name must end in .mp4")
    if os.path.exists(out) and any(
        os.path.exists(path) and os.path.samefile(path, out) for path in (content, motion)
    ):
        raise ConfigError(f"--out={out} would overwrite what it is made from")
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


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vidmotion.reenact", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--workdir", required=True, help="folder of a trained run")
    flag("--content", required=True, help="picture or video of who or what is to move")
    flag("--motion", required=True, help="video of how to move")
    flag("--out", required=True, help="mp4 to write")
    flag("--side_by_side", action="store_true", help="content and motion beside the result")
    flag("--windows", type=startup.at_least(1), default=4, help="sampled at a time (default 4)")
    flag("--seed", type=startup.at_least(0), default=0, help="of the initial noise (default 0)")
    args, changes = startup.parse_with_config(parser, sys.argv[1:] if argv is None else argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        count = reenact(
            open_run(args.workdir, changes),
            args.content,
            args.motion,
            args.out,
            args.side_by_side,
            args.windows,
            args.seed,
        )
        log.info("%d frames: %s", count, args.out)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; nothing is left under the name {args.out}")


if __name__ == "__main__":
    sys.exit(main())
