"""The shipped networks at work, without any training: heads moved as other heads move, beside the exact answer.

    vidmotion demo --out=demo

Each system that this package has trained on Heads (``vidmotion weights``) gives the same faces, which it has never
seen, the motion of the same drivers. Files in the folder: ``faces.png``, who is to move and how, at once;
``demo.mp4`` and ``demo.gif``, all pairs of a source and a driver, one a row, a system a column; ``demo.png``, the first
pair frame by frame. On the screen: PSNR against the exact answer, over these few pairs. The cards of the networks,
``vidmotion/weights/*.json``, have it over more of them, and how each was trained.
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

log = logging.getLogger("vidmotion.demo")

# Of the clips: what the shipped networks are trained on, and as many frames as the longest window.
FACES = {"size": 64, "frames": 8, "fps": 2.0, "seed": 0, "split": "eval"}
SHOWN_FPS = 4.0  # twice as fast as they are, so that little of it is standing still
SCALE = 2  # of a cell, over FACES
TITLES = {"bcd": "BCD", "vidtwin": "VidTwin", "xnemo": "X-NeMo", "warpface": "WarpFace"}


class Pairs(NamedTuple):
    """Who is to move and how: clips uint8 (N, T, H, W, 3), drivers among them, exact answers, boxes of the faces."""

    source: np.ndarray
    driver: np.ndarray
    answer: np.ndarray
    boxes: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]


def shipped() -> dict[str, str]:
    """The shipped networks that move one clip as another, by the titles of their systems."""
    found = {title: weights.of_system(system) for system, title in TITLES.items()}
    return {title: name for title, name in found.items() if name}


def drawn(count: int) -> Pairs:
    """`count` pairs of heads that nobody has trained on.

    Raises:
      ConfigError: fewer than two.
    """
    if count < 2:
        raise ConfigError(f"--pairs={count}: two at least, since each head is moved as the next")
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
    """What a shipped network makes of the pairs, uint8 like their answers."""
    run = open_run(name)
    made = transfer(
        run, run.trained_vars(), pairs.source, pairs.driver, len(pairs.source), name, pairs.boxes
    )
    return to_uint8(np.concatenate([batch["video"] for batch in made]))


def psnr(videos: np.ndarray, truth: np.ndarray) -> float:
    """Mean of per-frame dB of uint8 clips."""
    unit = [clip.astype(np.float32) / 255 for clip in (videos, truth)]
    return float(np.mean(np.asarray(pixel.psnr(*unit, "common"))))


def sheet(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clips (N, T, H, W, 3) by their captions, side by side, a row for each of the N: (T, H', W', 3)."""
    cells = [clip for row in zip(*columns.values(), strict=True) for clip in row]
    return media.grid(cells, cols=len(columns), scale=SCALE, captions=[*columns])


def strip(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clips (T, H, W, 3) by their captions, one below the other, a column for each of the T frames: (H', W', 3)."""
    cells = [frame for clip in rows.values() for frame in clip]
    captions = [name if t == 0 else "" for name, clip in rows.items() for t in range(len(clip))]
    return media.grid(cells, rows=len(rows), scale=SCALE, captions=captions)


def demo(out: Path, count: int = 4) -> dict[str, float]:
    """Write the files of the module's docstring.

    Args:
      out: a folder, made where there is none.
      count: pairs of a source and a driver.

    Returns:
      PSNR against the exact answers by column, the source and the driver themselves among them.

    Raises:
      ConfigError: no system is shipped, or too few pairs.
    """
    networks = shipped()
    if not networks:
        raise ConfigError("no network that moves heads is shipped with this package")
    pairs = drawn(count)
    columns = {"source": pairs.source, "driver": pairs.driver, "exact answer": pairs.answer}
    out.mkdir(parents=True, exist_ok=True)
    middle = FACES["frames"] // 2
    media.write_png(out / "faces.png", sheet(columns)[middle])
    log.info("%s: who is to move, as whom, and the exact answer", out / "faces.png")
    for title, name in networks.items():
        begun = time.perf_counter()
        columns[title] = moved(name, pairs)
        log.info("%s: %d clips in %.0f s", title, count, time.perf_counter() - begun)
    moving = sheet(columns)
    media.write_mp4(out / "demo.mp4", moving, fps=SHOWN_FPS)
    media.write_gif(out / "demo.gif", moving, fps=SHOWN_FPS)
    media.write_png(out / "demo.png", strip({name: clip[0] for name, clip in columns.items()}))
    log.info("%s, .gif and .png", out / "demo.mp4")
    return {
        name: psnr(clip, pairs.answer) for name, clip in columns.items() if name != "exact answer"
    }


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="vidmotion demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (default demo)")
    parser.add_argument("--pairs", type=startup.at_least(2), default=4, help="default 4")
    args = parser.parse_args(argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        figures = demo(args.out, args.pairs)
        print(f"PSNR against the exact answer, {args.pairs} pairs:")
        for name, value in figures.items():
            print(f"  {name:<10} {value:6.2f} dB")
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, "stopped")


if __name__ == "__main__":
    sys.exit(main())
