"""Shows the shipped networks at work, without any training: heads that move like other heads, beside the exact answer.

    vidmotion demo --out=demo
    vidmotion demo --out=compared --runs runs/heads_mini runs/xnemo_mini heads_warpface    # your own runs

Each system that this package has trained on Heads (``vidmotion weights``) transfers the motion of the same drivers to
the same faces, which it has never seen. These files are written into the folder: first ``faces.png``, the faces, their
drivers and the exact answers; ``demo.mp4`` and ``demo.gif``, with a row per pair of source and driver and a column per
system; ``demo.png``, the first pair frame by frame. PSNR against the exact answer over these few pairs is printed. The
cards of the networks, ``vidmotion/weights/*.json``, give the PSNR over more pairs, and tell how each was trained.

With ``--runs``, runs that were trained on Heads of 64 px take the place of the shipped networks.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidmotion import media, startup, weights
from vidmotion.data.pipeline import make_source
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.transfer import derangement, to_uint8, transfer
from vidmotion.metrics import pixel
from vidmotion.open_run import open_run
from vidmotion.system import MotionTransfer

log = logging.getLogger("vidmotion.demo")

# Arguments of the clips: those on which the shipped networks are trained, with as many frames as the longest window.
FACES = {"size": 64, "frames": 8, "fps": 2.0, "seed": 0, "split": "eval"}
SHOWN_FPS = 4.0  # twice the clips' own rate, so that there is little standstill
SCALE = 2  # enlargement of a clip in the pictures
TITLES = {"bcd": "BCD", "vidtwin": "VidTwin", "xnemo": "X-NeMo", "warpface": "WarpFace"}


class Pairs(NamedTuple):
    """Pairs of a source and a driver, with exact answers; clips are uint8 (N, T, H, W, 3).

    Attributes:
      source: the clips of the heads to move.
      driver: the clips whose motion each source is to take.
      answer: the exact answers.
      boxes: the boxes of the faces, of the sources and of the drivers.
    """

    source: np.ndarray
    driver: np.ndarray
    answer: np.ndarray
    boxes: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]


def shipped() -> dict[str, str]:
    """Return the names of the shipped networks that transfer motion, by the titles of their systems."""
    found = {title: weights.of_system(system) for system, title in TITLES.items()}
    return {title: name for title, name in found.items() if name}


def titled(places: Sequence[str]) -> dict[str, str]:
    """Return runs by the titles of their systems; where two are of one system, by the names of their folders.

    Args:
      places: workdirs, or names of shipped networks.

    Raises:
      ConfigError: one is no run, does not transfer motion, or was not trained on Heads of 64 px; or two have the same
        title.
    """
    systems = []
    for place in places:
        run = open_run(place)
        name, data = run.config.system.name, run.config.data
        if not isinstance(run.system, MotionTransfer):
            raise ConfigError(f"{place} holds a run of {name}, which cannot transfer motion")
        kind, size = data.train.get("kind", data.kind), data.common.get("size")
        if kind not in ("heads", "head_portraits") or size != FACES["size"]:
            raise ConfigError(
                f"{place} was trained on data of kind {kind!r} (size {size}), but this shows heads of "
                f"{FACES['size']} pixels"
            )
        systems.append(name)
    titles = [
        TITLES.get(name, name) if systems.count(name) == 1 else Path(place).name
        for name, place in zip(systems, places)
    ]
    if len(set(titles)) < len(titles):
        raise ConfigError(
            f"two of {', '.join(places)} have the same name; give one of their folders another"
        )
    return dict(zip(titles, places))


def drawn(count: int) -> Pairs:
    """Draw `count` pairs of heads on which no network was trained.

    Raises:
      ConfigError: `count` is less than two.
    """
    if count < 2:
        raise ConfigError(
            f"--pairs={count}: at least two are needed, since each head is driven by the next"
        )
    source = make_source("heads", clips=count, **FACES)
    clips = [source[i]["video"] for i in range(count)]
    boxes = [source.boxes(i) for i in range(count)]
    paired = derangement(count).tolist()
    return Pairs(
        np.stack(clips),
        np.stack([clips[j] for j in paired]),
        np.stack([source.swap(i, j) for i, j in enumerate(paired)]),
        (boxes, [boxes[j] for j in paired]),
    )


def moved(name: str, pairs: Pairs) -> np.ndarray:
    """Transfer the motion of the pairs with a run or a shipped network: uint8, shaped like their answers."""
    run = open_run(name)
    made = transfer(
        run, run.trained_vars(), pairs.source, pairs.driver, len(pairs.source), name, pairs.boxes
    )
    return to_uint8(np.concatenate([batch["video"] for batch in made]))


def psnr(videos: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean over frames of the PSNR, in dB, of uint8 clips."""
    unit = [clip.astype(np.float32) / 255 for clip in (videos, truth)]
    return float(np.mean(np.asarray(pixel.psnr(*unit, "common"))))


def sheet(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lay out N clips per caption, (N, T, H, W, 3), in N rows with a column per caption: (T, H', W', 3)."""
    cells = [clip for row in zip(*columns.values(), strict=True) for clip in row]
    return media.grid(cells, cols=len(columns), scale=SCALE, captions=[*columns])


def strip(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lay out one clip per caption, (T, H, W, 3), in a row per caption with a column per frame: (H', W', 3)."""
    cells = [frame for clip in rows.values() for frame in clip]
    captions = [name if t == 0 else "" for name, clip in rows.items() for t in range(len(clip))]
    return media.grid(cells, rows=len(rows), scale=SCALE, captions=captions)


def demo(out: Path, count: int = 4, runs: Sequence[str] = ()) -> dict[str, float]:
    """Write the files that the module's docstring describes.

    Args:
      out: the folder to write to, made if absent.
      count: the number of pairs of a source and a driver.
      runs: the workdirs to show; none: the shipped networks.

    Returns:
      The PSNR against the exact answers, by column; source and driver are columns too.

    Raises:
      ConfigError: no system is shipped, a run cannot be shown (see `titled`), or there are too few pairs.
    """
    networks = titled(runs) if runs else shipped()
    if not networks:
        raise ConfigError("this package ships no network that moves heads")
    pairs = drawn(count)
    columns = {"source": pairs.source, "driver": pairs.driver, "exact answer": pairs.answer}
    out.mkdir(parents=True, exist_ok=True)
    middle = FACES["frames"] // 2
    media.write_png(out / "faces.png", sheet(columns)[middle])
    log.info("%s: the sources, their drivers and the exact answers", out / "faces.png")
    for title, name in networks.items():
        begun = time.perf_counter()
        columns[title] = moved(name, pairs)
        log.info("%s: %d clips in %.0f s", title, count, time.perf_counter() - begun)
    moving = sheet(columns)
    media.write_mp4(out / "demo.mp4", moving, fps=SHOWN_FPS)
    media.write_gif(out / "demo.gif", moving, fps=SHOWN_FPS)
    media.write_png(out / "demo.png", strip({name: clip[0] for name, clip in columns.items()}))
    log.info("wrote %s, and the same as .gif and .png", out / "demo.mp4")
    return {
        name: psnr(clip, pairs.answer) for name, clip in columns.items() if name != "exact answer"
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="vidmotion demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder to write to (default demo)"
    )
    parser.add_argument(
        "--pairs", type=startup.at_least(2), default=4, help="number of pairs of heads (default 4)"
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=(),
        help="workdirs of runs on Heads of 64 px (default: the shipped networks)",
    )
    args = parser.parse_args(argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        figures = demo(args.out, args.pairs, args.runs)
        print(f"PSNR against the exact answer, {args.pairs} pairs:")
        for name, value in figures.items():
            print(f"  {name:<10} {value:6.2f} dB")
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, "stopped")


if __name__ == "__main__":
    sys.exit(main())
