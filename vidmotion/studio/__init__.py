"""The functions behind the page of ``vidmotion studio``: finding runs, moving heads, checking uploads, reading curves.

`page` lays the page out; `guard` protects the files of each visitor from other visitors.
"""

import dataclasses
import functools
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidmotion import media, weights
from vidmotion.checkpoint import CheckpointError
from vidmotion.data import heads
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import face_views, to_uint8
from vidmotion.media import MediaError
from vidmotion.metric_writer import METRICS_FILE, read_metrics
from vidmotion.metrics import codebook, pixel
from vidmotion.open_run import CONFIG_FILE, open_run
from vidmotion.run import Run
from vidmotion.run_record import RECORD
from vidmotion.system import Vars

MOVERS = ("bcd", "vidtwin", "warpface", "xnemo")  # systems that make one clip move like another
MENDABLE = (ConfigError, DatasetError, CheckpointError, MediaError, OSError)
MOST_BYTES = 200 * 2**20  # largest size of an upload
MOST_SECONDS = 60.0
MOST_SIDE = 4096  # largest side of an uploaded picture or video in pixels
SIZE = 64  # side of a head's picture in pixels, on which the demos are trained
FPS = 2.0  # frame rate of random motion, on which the demos are trained
KEPT = 8  # number of runs that stay open


class Stopped(Exception):
    """Raised inside a piece of work when nobody waits for it any more."""


# -- runs -----------------------------------------------------------------------------------------


def found(runs: str, workdirs: Sequence[str] = ()) -> dict[str, str]:
    """Finds runs and returns their workdirs by the names that the page shows, "folder (system)".

    Args:
      runs: the folder whose subfolders are searched; it need not exist.
      workdirs: further folders to consider.
    """
    below = sorted(Path(runs).iterdir()) if Path(runs).is_dir() else []
    known = {}
    for folder in [*map(Path, workdirs), *below]:
        try:
            system = json.loads((folder / CONFIG_FILE).read_text())["system"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        known[f"{folder.name} ({system})"] = str(folder)
    return known


def shipped() -> dict[str, str]:
    """Returns the shipped networks of `MOVERS` by names like those of `found`; `opened` takes them like workdirs."""
    networks = {system: weights.of_system(system) for system in MOVERS}
    return {f"{name} ({system})": name for system, name in networks.items() if name}


def movers(known: Mapping[str, str]) -> list[str]:
    """Returns those names of `found` whose systems make one clip move like another."""
    return [name for name in known if name.rpartition("(")[2][:-1] in MOVERS]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run with its weights on the device and its sampler, which is compiled once for each shape of batch."""

    run: Run
    vars: Vars
    sample: Callable


def opened(workdir: str) -> Opened:
    """Opens a run or a shipped network; the result is cached until the run has a newer checkpoint.

    Raises:
      ConfigError, CheckpointError: the folder holds no trained run, or no longer does.
    """
    if workdir in weights.names():
        return _opened(workdir, 0)
    folder = Path(workdir, "checkpoints")
    if not Path(workdir, CONFIG_FILE).exists():
        raise ConfigError(f"{workdir} no longer holds a run; choose another one")
    newest = max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=-1)
    return _opened(workdir, newest)


@functools.lru_cache(KEPT)
def _opened(workdir: str, newest: int) -> Opened:
    run = open_run(workdir)
    return Opened(run, run.trained_vars(), run.jit_sample())


# -- heads ----------------------------------------------------------------------------------------


def head(seed: int) -> dict[str, float | int]:
    """Draws a random identity; returns the value of each factor by name."""
    return heads.sample_identity(np.random.default_rng([seed, 0]))


def motion_of(seed: int, frames: int) -> np.ndarray:
    """Draws a random motion (frames, 14)."""
    return heads.sample_motion(np.random.default_rng([seed, 1]), frames, FPS)


def rest() -> dict[str, float]:
    """Returns the motion factors of a head at rest."""
    factors = heads.MOTION_FACTORS
    return {f.name: min(max(0.0, f.low), f.high) for f in factors}


def between(poses: Sequence[Mapping[str, float]], frames: int) -> np.ndarray:
    """Returns a motion (frames, 14) that passes through recorded poses at equal intervals."""
    points = np.array([[pose[f.name] for f in heads.MOTION_FACTORS] for pose in poses], np.float32)
    place = np.linspace(0, len(points) - 1, frames)
    before = np.minimum(place.astype(int), max(len(points) - 2, 0))
    after = np.minimum(before + 1, len(points) - 1)
    share = (place - before)[:, None].astype(np.float32)
    return (1 - share) * points[before] + share * points[after]


@dataclasses.dataclass(frozen=True)
class Moved:
    """The result of moving a head by a driver.

    Attributes:
      video: the generated video, uint8 (T, H, W, 3).
      psnr: its PSNR against the exact answer, in dB.
      wrong: the PSNR against the same answer when the driver makes another motion, in dB.
    """

    video: np.ndarray
    psnr: float
    wrong: float


def move_head(
    one: Opened,
    identity: Mapping[str, float],
    motion: np.ndarray,
    driver: Mapping[str, float],
    seed: int = 0,
) -> Moved:
    """Makes a head move like a driver and compares the result with the exact answer.

    Args:
      one: a run trained on heads of `SIZE` pixels.
      identity: the identity of the head.
      motion: the motion (T, 14), which is resampled to the number of frames of the run.
      driver: the identity of the driver.
      seed: the seed of the noise, and of the other motion that `Moved.wrong` takes.

    Raises:
      ConfigError: the run was trained at another size.
    """
    system = one.run.system
    if system.size != SIZE:
        raise ConfigError(
            f"{one.run.workdir} was trained at {system.size} pixels, but these heads have {SIZE}; "
            "choose a run that was trained on Heads"
        )
    frames = system.window
    motion = resampled(motion, frames)
    truth = heads.render(identity, motion, SIZE)
    other = motion_of(seed + 1, frames)
    psnrs = []
    videos = []
    for course in (motion, other):
        video = _sampled(one, identity, course, driver, seed)
        videos.append(to_uint8(video))
        unit = truth.astype(np.float32) / 255
        psnrs.append(float(np.mean(np.asarray(pixel.psnr(video, unit, "common")))))
    return Moved(videos[0], *psnrs)


def _sampled(one: Opened, identity, motion, driver, seed: int) -> np.ndarray:
    system, frames = one.run.system, len(motion)
    # A system that reads several content frames gets as many different poses, as in training.
    still = between([rest()], 1) if system.content_frames == 1 else motion_of(seed + 2, frames)
    content, moving = heads.render(identity, still, SIZE), heads.render(driver, motion, SIZE)
    batch = {"content": content, "motion": moving}
    if system.face_side:
        boxes = heads.face_boxes(identity, still, SIZE), heads.face_boxes(driver, motion, SIZE)
        batch |= face_views(system.face_side, content, boxes[0], moving, boxes[1])
    rows = one.run.rows(1)
    batch = {name: np.repeat(value[None], rows, axis=0) for name, value in batch.items()}
    made = one.sample(one.vars, one.run.put_rows(batch), jax.random.key(seed))
    return np.clip(np.asarray(made["video"][0], np.float32), 0, 1)


def resampled(motion: np.ndarray, frames: int) -> np.ndarray:
    """Resamples a motion to another number of frames, taking the nearest frame in time."""
    return motion[np.linspace(0, len(motion) - 1, frames).round().astype(int)]


# -- latents --------------------------------------------------------------------------------------


def parts(one: Opened, identity, motion, driver, seed: int = 0) -> dict[str, np.ndarray]:
    """Decodes each latent of a VidTwin alone; returns uint8 clips by the name of the latent.

    Raises:
      ConfigError: the run's system has no latents that can be decoded alone.
    """
    system = one.run.system
    if not system.parts:
        raise ConfigError(
            f"{one.run.workdir} holds a run of {one.run.config.system.name}, but only VidTwin has latents "
            "that can be shown alone"
        )
    shown = {}
    for part in system.parts:
        alone = dataclasses.replace(one, sample=one.run.jit_sample(part=part))
        course = resampled(motion, system.window)
        shown[part] = to_uint8(_sampled(alone, identity, course, driver, seed))
    return shown


def bits(one: Opened, clips: int = 8) -> list[tuple[int, float]]:
    """Measures how many bits the motion codes of a BCD take in each frame, over `clips` random heads.

    Returns:
      Pairs of frame number and bits.

    Raises:
      ConfigError: the run's system has no quantiser.
    """
    system = one.run.system
    if not hasattr(system, "quantizer"):
        raise ConfigError(
            f"{one.run.workdir} holds a run of {one.run.config.system.name}, but only BCD has motion "
            "codes whose bits can be counted"
        )
    videos = [heads.render(head(k), motion_of(k, system.window), SIZE)[None] for k in range(clips)]
    rows, found_ids = one.run.rows(1), []
    for video in videos:
        batch = {name: np.repeat(video, rows, axis=0) for name in ("content", "motion")}
        made = one.sample(one.vars, one.run.put_rows(batch), jax.random.key(0))
        found_ids.append(np.asarray(made["ids"][0]))
    ids = np.stack(found_ids)  # clips, frames, books
    entries = system.quantizer.entries
    return [
        (k, codebook.bits_per_frame(codebook.usage_counts(ids[:, k], entries)))
        for k in range(ids.shape[1])
    ]


def walk(one: Opened, first, second, frames: int = 8, seed: int = 0) -> np.ndarray:
    """Moves a head along the straight line between two random poses, uint8 (T, H, W, 3).

    Args:
      one: the run.
      first: the identity of the head.
      second: the identity of the driver.
      frames: the largest number of frames to return, evenly spaced from one end of the line to the other.
      seed: the seed of the poses and of the noise.
    """
    ends = [motion_of(seed, 1)[0], motion_of(seed + 7, 1)[0]]
    names = [f.name for f in heads.MOTION_FACTORS]
    course = between([dict(zip(names, end)) for end in ends], one.run.system.window)
    made = to_uint8(_sampled(one, first, course, second, seed))
    return made[np.linspace(0, len(made) - 1, min(frames, len(made))).round().astype(int)]


# -- files of somebody's own ----------------------------------------------------------------------


def check_upload(path: str | None, what: str, moving: bool) -> None:
    """Checks an uploaded file before any work on it begins.

    Args:
      path: the path of the file; None or "" if nothing was uploaded.
      what: the word for the expected file in messages: "picture" or "video".
      moving: whether the file must be a video.

    Raises:
      MediaError: there is no file, or it is empty, too large, too long or unreadable; the message is one sentence.
    """
    if not path:
        raise MediaError(f"choose a {what} first")
    name = os.path.basename(path)
    size = os.path.getsize(path)
    if not size:
        raise MediaError(f"{name} is empty: 0 bytes")
    if size > MOST_BYTES:
        raise MediaError(
            f"{name} has {size / 2**20:.0f} MiB; the limit is {MOST_BYTES // 2**20} MiB"
        )
    if media.is_picture(path):
        if moving:
            raise MediaError(f"{name} is a picture; choose a video here")
        height, width = media.read_picture(path).shape[:2]
        if max(height, width) > MOST_SIDE:
            raise MediaError(
                f"{name} has {width} x {height} pixels; the limit is {MOST_SIDE} on each side"
            )
        return
    info = media.probe(path)
    if max(info.width, info.height) > MOST_SIDE:
        raise MediaError(
            f"{name} has {info.width} x {info.height} pixels; the limit is {MOST_SIDE} on each side"
        )
    if info.frames / info.fps > MOST_SECONDS:
        raise MediaError(
            f"{name} lasts {info.frames / info.fps:.0f} s; the limit is {MOST_SECONDS:.0f} s"
        )


def in_steps(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[tuple[int, int] | Any]:
    """Does long work in a separate thread, so that the caller can stop waiting for it at any time.

    Args:
      work: the function that does the work. It is given a function ``tell(done, total)`` to report its progress, which
        raises `Stopped` once the caller has stopped waiting.

    Yields:
      Pairs (done, total) from time to time; finally the result of `work`.

    Raises:
      Any exception that `work` raises.
    """
    told: queue.Queue = queue.Queue()
    stop = threading.Event()

    def tell(done: int, total: int) -> None:
        if stop.is_set():
            raise Stopped
        told.put((False, (done, total)))

    def run() -> None:
        try:
            told.put((True, work(tell)))
        except BaseException as error:
            told.put((True, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            last, value = told.get()
            if not last:
                yield value
            elif isinstance(value, BaseException):
                raise value
            else:
                yield value
                return
    finally:
        stop.set()


# -- what a run has become ------------------------------------------------------------------------


def curves(workdirs: Mapping[str, str], metric: str) -> list[tuple[int, float, str]]:
    """Reads the curve of a metric of several runs.

    Args:
      workdirs: the workdirs of the runs by name.
      metric: the name of the metric.

    Returns:
      Points (step, value, name of the run).

    Raises:
      ConfigError: no run has the metric.
    """
    points = []
    for name, workdir in workdirs.items():
        file = Path(workdir, METRICS_FILE)
        if file.exists():
            points += [
                (row["step"], float(row[metric]), name)
                for row in read_metrics(file)
                if metric in row and np.isfinite(float(row[metric]))
            ]
    if not points:
        raise ConfigError(
            f"none of these runs has recorded {metric!r}, or the runs no longer exist"
        )
    return points


def metrics(workdir: str) -> list[str]:
    """Returns the names of all numeric metrics of a run."""
    file = Path(workdir, METRICS_FILE)
    rows = read_metrics(file) if file.exists() else ()
    names = {n for row in rows for n, v in row.items() if not isinstance(v, str) or v == "nan"}
    return sorted(names - {"step", "time"})


def pictures(workdir: str) -> list[str]:
    """Returns the files of a run's pictures, the newest last."""
    return sorted(map(str, Path(workdir, "samples").glob("*.png")), key=os.path.getmtime)


def results(workdir: str) -> list[list[str]]:
    """Returns the results in a run's record as rows of metric and value."""
    try:
        rows = json.loads(Path(workdir, RECORD).read_text())["results"]
    except (OSError, ValueError, KeyError):
        return []
    return [[row["metric"], f"{row['value']:.4g}"] for row in rows if row["value"] is not None]
