"""Draws sheets of pictures for any system that moves one clip by another.

    python -m vidmotion.main --config=configs/warpface.py --workdir=RUN --mode=sample \
        --config.sample.analyses='("comparison","failures")'

comparison (WarpFace, Figures 4 and 8)
    ``config.sample.rows`` clips of the eval split, each moved by a clip of another person. The upper row shows evenly
    spaced frames of the driver; below are the source and the frames made from it.
failures (WarpFace, Figure 9)
    The first ``config.sample.clips`` clips are each moved by themselves from the first frame on. The sheet shows the
    ``rows`` clips with the worst frames: the source, the true frame, the made frame and its PSNR.
"""

import numpy as np

from vidmotion import media
from vidmotion.errors import ConfigError
from vidmotion.evaluation.pictures import write
from vidmotion.evaluation.protocols import partners
from vidmotion.evaluation.transfer import boxes_of, clip_of, to_uint8, transfer
from vidmotion.metrics import pixel

SIDE = 96  # the least height of a cell in pixels


def draw(run, vars, names) -> None:
    """Draw the sheets in `names`, keys of `SHEETS`, and write each as ``<workdir>/samples/<name>.png``.

    Raises:
      ConfigError: the system does not move clips, or the eval split has fewer than two.
    """
    if not names:
        return
    if "swap" not in run.system.evaluators():
        raise ConfigError(
            f"config.sample.analyses: {names[0]!r} shows clips moved by others, but {run.config.system.name} moves none"
        )
    source = run.source("eval")
    if len(source) < 2:
        raise ConfigError("config.sample.analyses: the eval split needs at least two clips")
    for name in names:
        SHEETS[name](run, vars, source)


def _comparison(run, vars, source) -> None:
    rows, columns = min(run.config.sample.rows, len(source)), run.config.sample.columns
    by = partners([source.origin(i) for i in range(len(source))], run.config.seed)
    pairs = [(i, int(by[i])) for i in range(rows)]
    made = _moved(run, vars, source, pairs, slice(None), "comparison")
    cells = []
    for (i, j), video in zip(pairs, made):
        driver = clip_of(source[j])
        shown = np.linspace(0, len(driver) - 1, columns).round().astype(int)
        cells += [np.zeros_like(driver[0]), *driver[shown], clip_of(source[i])[0], *video[shown]]
    _write(run, "comparison", cells, columns + 1, ["", "driver"])


def _failures(run, vars, source) -> None:
    count = min(run.config.sample.get("clips", 64), len(source))
    pairs = [(i, i) for i in range(count)]
    made = _moved(run, vars, source, pairs, slice(1, None), "failures")
    found = []
    for (i, _), video in zip(pairs, made):
        truth = clip_of(source[i])[1:]
        unit = [clip.astype(np.float32) / 255 for clip in (video, truth)]
        decibel = np.asarray(pixel.psnr(*unit, "common"))
        worst = int(np.argmin(decibel))
        found.append((float(decibel[worst]), i, worst + 1, truth[worst], video[worst]))
    cells, captions = [], []
    for decibel, i, frame, truth, video in sorted(found, key=lambda one: one[:2])[
        : run.config.sample.rows
    ]:
        cells += [clip_of(source[i])[0], truth, video]
        captions += [f"clip {i}", f"frame {frame}", f"{decibel:.1f} dB"]
    _write(run, "failures", cells, 3, captions)


SHEETS = {"comparison": _comparison, "failures": _failures}


def _moved(run, vars, source, pairs, frames: slice, what: str) -> list[np.ndarray]:
    """Return clips uint8 (T, H, W, 3): for each pair (i, j), the first frame of clip i moved by `frames` of clip j."""
    elements = {k: source[k] for k in {k for pair in pairs for k in pair}}
    clips = {k: clip_of(element) for k, element in elements.items()}
    placed = {k: boxes_of(source, k, element) for k, element in elements.items()}
    # A system that needs a content frame for each motion frame takes the whole clip.
    still = slice(1) if run.system.content_frames else slice(None)
    content = [clips[i][still] for i, _ in pairs]
    motion = [clips[j][frames] for _, j in pairs]
    boxes = (
        [placed[i] for i, _ in pairs],
        [None if placed[j] is None else placed[j][frames] for _, j in pairs],
    )
    batches = transfer(run, vars, content, motion, run.config.evals.swap.batch, what, boxes)
    return [video for batch in batches for video in to_uint8(batch["video"])]


def _write(run, name: str, cells, columns: int, captions) -> None:
    captions = [*captions] + [""] * (len(cells) - len(captions))
    scale = max(1, -(-SIDE // cells[0].shape[0]))
    write(run, name, media.grid(cells, cols=columns, scale=scale, captions=captions))
