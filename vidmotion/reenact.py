"""Makes your own picture or video move like your own video, and writes an mp4.

    python -m vidmotion.reenact --workdir=RUN --content=A.(png|jpg|mp4) --motion=B.mp4 --out=C.mp4 [--side_by_side]

The content comes from A, the motion from B. B is streamed in windows, so memory does not grow with its length. The
result has B's frame rate and audio. Both are cropped to the centre square and resized to the model's size. A BCD takes
the content from frames spread over A. A VidTwin combines the structure of window k of A with the dynamics of window k
of B for as long as both last; if A is a picture, its structure goes with every window. --part=structure|dynamics shows
what one of the two latents holds. If A and B are the same video, the result is its reconstruction. Instead of a run,
--weights=DIR takes a released network that `python -m vidmotion.convert vidtwin` (or `xnemo`) wrote.

An X-NeMo looks for the faces in A and B (--box and --motion_box: detect, whole, x0,y0,x1,y1 or a box file), and takes
the surroundings of A's face as the portrait. It samples the whole length of B in overlapping windows: all latents
together, then the pictures one second at a time. With --follow=first the face moves and grows within the picture as
B's face does. An X-NeMo also takes motion that does not come from a video: --keys=A.png,B.mp4,... are key frames, whose
codes are interpolated over --between=N frames from each to the next; --codes=FILE are codes that a run of
configs/xnemo_gpt.py generated; and with --outpaint=RUN --more=N such a run continues for N frames where B ends.
--strength=S scales how far the expression departs from the portrait's own. With --relative=N, only the difference of B
from its own frame N is transferred; with --relative=best, the difference from the frame that is most like A.

With --paste and a picture A, any system's animated square is put back into the whole of A, at A's own size.

If weights have moved since training, or to sample with other settings, override fields of the config:
--config.system.codec.weights=FILE, --config.system.sampler.steps=16.
"""

import argparse
import dataclasses
import itertools
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from vidmotion import animate, files, media, run_record, startup
from vidmotion.diffusion.windows import fade
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.open_run import open_run, open_weights
from vidmotion.progress import watched
from vidmotion.run import Run
from vidmotion.system import MotionTransfer, System

log = logging.getLogger("vidmotion.reenact")

PARTS = ("both", "structure", "dynamics")
PANELS = ("content", "motion", "result")
ANYWHERE = animate.Faces()
CAN = "runs of BCD, X-NeMo, WarpFace and, with two latents, VidTwin can"


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """Cut the centre square out of a frame, uint8 (H, W, 3), and resize it with antialiasing to (size, size, 3)."""
    height, width, _ = frame.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def read_content(path: str, frames: int, size: int) -> np.ndarray:
    """Read the content as a clip, uint8 (T, size, size, 3): a picture, or up to `frames` frames spread over a video.

    Raises:
      MediaError: the file is not a picture or video that can be read.
    """
    if media.is_picture(path):
        return fit(media.read_picture(path), size)[None]
    count = media.probe(path).frames or sum(1 for _ in media.iter_video(path))
    wanted = set(np.linspace(0, max(count - 1, 0), frames).round().astype(int).tolist())
    picked = [fit(frame, size) for i, frame in enumerate(media.iter_video(path)) if i in wanted]
    return np.stack(picked)


def windows(
    path: str, length: int, size: int, overlap: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield chunks (length, size, size, 3) of a video, and how many frames of each are real.

    The last chunk is filled up by repeating its last frame, so that all chunks have the same shape. Each chunk begins
    with the last `overlap` frames of the chunk before.

    Raises:
      MediaError: the video cannot be read; raised at the frame where the fault appears.
    """
    chunk: list[np.ndarray] = []
    begun = 0  # frames of the chunk that the previous chunk has too
    for frame in media.iter_video(path):
        chunk.append(fit(frame, size))
        if len(chunk) == length:
            yield np.stack(chunk), length
            chunk = chunk[length - overlap :]
            begun = overlap
    if len(chunk) > begun:
        real = len(chunk)
        yield np.stack(chunk + chunk[-1:] * (length - real)), real


def contents(path: str, system: System, length: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the content clip for each chunk of motion in turn, and how many frames of the chunk it serves.

    Raises:
      MediaError: as for `read_content` and `windows`.
    """
    if system.content_frames or media.is_picture(path):
        still = read_content(path, system.content_frames, system.size)
        return itertools.repeat((still, length))
    return windows(path, length, system.size, system.overlap)


def reenact(
    run: Run,
    content: str,
    motion: str,
    out: str,
    side_by_side: bool = False,
    together: int = 4,
    seed: int = 0,
    part: str = "both",
    where: animate.Faces = ANYWHERE,
    drive: animate.Drive = animate.VIDEO,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Make the content move like the motion, and write the result as a video with a manifest (`write_manifest`).

    Args:
      run: a trained run that transfers motion.
      content: a picture or video of the person or thing to move.
      motion: a video of the motion; "" if `drive` has another source of motion.
      out: the mp4 to write, whole or not at all.
      side_by_side: whether to show content and motion beside the result.
      together: the number of windows that are sampled together.
      seed: the seed of the initial noise.
      part: one of `PARTS`; other than ``both``, one of a VidTwin's latents is decoded alone.
      where: where the faces are, for systems that look at faces.
      drive: key frames, codes, or a generator that continues the motion, for systems that look at faces.
      tell: called after each frame with the number of frames made so far and in all (0: not known); an exception from
        it ends the work.

    Returns:
      The number of frames.

    Raises:
      MediaError, ConfigError, CheckpointError: see their messages; no file is then left under the name `out`.
    """
    system = run.system
    if not isinstance(system, MotionTransfer) or not system.window:
        raise ConfigError(
            f"{run.workdir} holds a run of {run.config.system.name}, which cannot transfer motion; {CAN}"
        )
    options = {} if part == "both" else {"part": part}
    if options and part not in system.parts:
        raise ConfigError(
            f"--part={part}: {run.workdir} holds a {run.config.system.name}, not a VidTwin, whose "
            "latents can be shown alone"
        )
    faces_asked = dataclasses.replace(where, paste=False) != ANYWHERE
    if (faces_asked or drive != animate.VIDEO) and not system.face_side:
        raise ConfigError(
            "--box, --motion_box, --follow, --keys, --codes, --outpaint, --strength, --relative: "
            f"{run.workdir} holds a {run.config.system.name}, which looks "
            "at whole pictures; leave them out, or use a run of X-NeMo"
        )
    if os.path.splitext(out)[1].lower() != ".mp4":
        raise ConfigError(f"--out={out}: the name must end in .mp4")
    if os.path.exists(out) and any(
        os.path.exists(path) and os.path.samefile(path, out)
        for path in (content, motion, *drive.keys)
    ):
        raise ConfigError(f"--out={out} would overwrite one of the inputs; choose another name")
    if motion and media.is_picture(motion):
        raise ConfigError(
            f"--motion={motion} is a picture, which does not move: give a video, a GIF, or a folder of numbered "
            "pictures"
        )
    if where.paste and not media.is_picture(content):
        raise ConfigError(
            f"--paste: {content} is not a picture into which the result could be pasted"
        )
    extent = animate.first_picture(content).shape[1::-1]
    log.info("content %s: %d x %d pixels", content, *extent)
    frames_there, fps = 0, 25.0
    if motion:
        info = media.probe(motion)
        log.info(
            "motion %s: %d x %d pixels, %s frames, %g frames/s",
            motion,
            info.width,
            info.height,
            info.frames or "an unknown number of",
            info.fps or fps,
        )
        frames_there, fps = info.frames + drive.more if info.frames else 0, info.fps or fps
    elif drive.codes:
        fps = animate.read_codes(drive.codes)[1]
    if system.face_side:
        rows = _by_faces(run, content, motion, seed, where, drive)
    else:
        rows = _by_windows(run, content, motion, together, seed, options)
        if where.paste:
            rows = _into(media.read_picture(content), rows)
    made = extent if where.paste else (system.size, system.size)
    log.info("result %s: %d x %d pixels", out, *made)
    if made != extent and media.is_picture(content):
        log.info("to get %d x %d pixels, the size of %s, use --paste", *extent, content)
    total = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal total
        for row in watched(rows, "reenacting", frames_there, "frames"):
            yield media.beside(row, PANELS) if side_by_side else row[-1]
            total += 1
            tell(total, frames_there)

    media.write_mp4(out, frames(), fps, audio_from=motion or None)
    given = {"content": content, "motion": motion, "codes": drive.codes}
    given |= {f"key {k}": name for k, name in enumerate(drive.keys)}
    settings = {"side_by_side": side_by_side, "windows": together, "seed": seed, "part": part}
    settings |= dataclasses.asdict(where) | dataclasses.asdict(drive)
    write_manifest(run, out, {name: path for name, path in given.items() if path}, settings)
    return total


def write_manifest(
    run: Run, out: str, inputs: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Write ``<out>.json``, which marks a video as generated and tells from which weights and files it was made.

    Args:
      run: the run that made the video.
      out: the video.
      inputs: the files that the video was made from, by their role.
      settings: the settings with which the video was made, JSON-able.
    """

    def known(path: str) -> dict[str, str]:
        return {"file": os.path.basename(path), "sha256": files.digest(pathlib.Path(path))}

    content = {
        "generated": "this video was made by a neural network and shows nothing that happened",
        "video": known(out),
        "inputs": {name: known(path) for name, path in inputs.items()},
        "model": {
            "system": run.config.system.name,
            "weights_sha256": run.weights_digest(),
            "config": run_record.without_places(run.config.to_dict()),
        },
        "settings": run_record.without_places(dict(settings)),
        **run_record.environment(),
    }
    run_record.write(pathlib.Path(f"{out}.json"), content)


def _into(picture: np.ndarray, rows: Iterator[tuple]) -> Iterator[tuple[np.ndarray, ...]]:
    """Enlarge the rows of `_by_windows` to the size of the content picture.

    The result is put in place of the picture's centre square; the motion is scaled to the picture's height.
    """
    height, width, _ = picture.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    region = np.array([left, top, left + side, top + side], np.float64)
    for _, moved, frame in rows:
        yield picture, fit(moved, height), animate.pasted(picture, frame, region)


def _by_windows(
    run: Run, content: str, motion: str, together: int, seed: int, options: Mapping[str, str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield content, motion and result of each frame, for systems that look at whole pictures.

    Windows are sampled one after the other, and each fades into the next over the frames that they share.
    """
    system = run.system
    overlap = system.overlap
    length = system.window * together - overlap * (together - 1)
    shown = contents(content, system, length)
    vars = run.trained_vars()
    sample = run.jit_sample(**options)
    rows = run.rows(1)  # the mesh may want more than one row; the extra ones repeat the first
    key = jax.random.key(seed)  # the same noise for every window: less flicker
    # The last frames of the previous chunk, which overlap the next one.
    held = np.zeros((0, system.size, system.size, 3), np.float32)
    rest = (None, None, None, range(0))
    chunks = windows(motion, length, system.size, overlap)
    for (chunk, moved), (still, lasts) in zip(chunks, shown):
        batch = {
            "content": np.repeat(still[None], rows, axis=0),
            "motion": np.repeat(chunk[None], rows, axis=0),
        }
        made = np.array(sample(vars, run.put_rows(batch), key)["video"][0])
        made[: len(held)] = fade(held, made[: len(held)])
        real = min(moved, lasts)
        # The last `overlap` frames of a full chunk are made again with the next chunk, if there is one.
        ready = real - overlap if real == length else real
        yield from _rows(system, still, chunk, made, range(ready))
        held, rest = made[ready:real], (still, chunk, made, range(ready, real))
    yield from _rows(system, *rest)


def _rows(system: System, still, chunk, made, frames: range):
    """Yield content, motion and result of some frames of a chunk."""
    for i in frames:
        beside = len(still) // 2 if system.content_frames else min(i, len(still) - 1)
        yield still[beside], chunk[i], to_uint8(made[i])


def _by_faces(
    run: Run, content: str, motion: str, seed: int, where: animate.Faces, drive: animate.Drive
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield content, motion and result of each frame, for systems that look at faces and make the video as a whole.

    The motion is grey if there is no motion video or it has ended.
    """
    picture = animate.first_picture(content)
    made = animate.animated(run, picture, content, motion, where, seed, drive)
    size = picture.shape[0] if where.paste else run.system.size
    shown = (fit(frame, size) for frame in media.iter_video(motion)) if motion else iter(())
    grey = np.full((size, size, 3), 128, np.uint8)
    for portrait, result in made:
        yield portrait, next(shown, grey), result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vidmotion.reenact", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", help="folder of a trained run")
    model.add_argument(
        "--weights", help="folder written by python -m vidmotion.convert, instead of a run"
    )
    flag("--content", required=True, help="picture or video of the person or thing to move")
    driver = parser.add_mutually_exclusive_group(required=True)
    driver.add_argument("--motion", default="", help="video of the motion to transfer")
    driver.add_argument("--keys", default="", help="for an X-NeMo: key frames A.png,B.mp4,...")
    driver.add_argument("--codes", default="", help="for an X-NeMo: file of generated codes")
    flag("--out", required=True, help="MP4 file to write")
    flag("--side_by_side", action="store_true", help="show content and motion beside the result")
    flag(
        "--windows",
        type=startup.at_least(1),
        default=4,
        help="number of windows to sample at a time (default 4)",
    )
    flag(
        "--seed", type=startup.at_least(0), default=0, help="seed of the initial noise (default 0)"
    )
    flag("--part", choices=PARTS, default="both", help="for a VidTwin: decode one latent alone")
    place = "detect (default), whole, x0,y0,x1,y1 in pixels, or a box file"
    flag("--box", default="detect", help=f"where the content's face is, for an X-NeMo: {place}")
    flag(
        "--motion_box",
        default="detect",
        help="the same for the motion; one box holds for all frames",
    )
    flag(
        "--follow",
        choices=animate.FOLLOWS,
        default="still",
        help="first: let the face move and grow within the picture as B's does",
    )
    flag(
        "--paste",
        action="store_true",
        help="put the result back into the whole picture, at its own size",
    )
    flag(
        "--strength",
        type=float,
        default=1.0,
        help="strength of the expression, for an X-NeMo (default 1)",
    )
    flag(
        "--relative",
        default="",
        help="measure motion from a frame of the driver: its number, or best",
    )
    flag(
        "--between",
        type=startup.at_least(1),
        default=24,
        help="number of frames from one key frame to the next (default 24)",
    )
    flag(
        "--outpaint", default="", help="for an X-NeMo: run of a generator that continues the motion"
    )
    flag(
        "--more",
        type=startup.at_least(0),
        default=0,
        help="number of frames that the generator adds",
    )
    args, changes = startup.parse_with_config(parser, sys.argv[1:] if argv is None else argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        opened = open_weights if args.weights else open_run
        count = reenact(
            opened(args.weights or args.workdir, changes),
            args.content,
            args.motion,
            args.out,
            args.side_by_side,
            args.windows,
            args.seed,
            args.part,
            animate.Faces(args.box, args.motion_box, args.follow, args.paste),
            animate.Drive(
                tuple(filter(None, args.keys.split(","))),
                args.between,
                args.codes,
                args.outpaint,
                args.more,
                args.strength,
                args.relative,
            ),
        )
        log.info("wrote %d frames to %s", count, args.out)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; no file is left at {args.out}")


if __name__ == "__main__":
    sys.exit(main())
