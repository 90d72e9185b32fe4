"""Writes sample pictures: the motion-transfer grid (contents down, motions across) and a sheet of each code alone."""

import logging

import jax
import numpy as np

from vidmotion import checkpoint, media
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import as_pictures, boxes_of, clip_of, to_uint8, transfer

log = logging.getLogger(__name__)


def pictures(run, vars, step: int | None = None) -> dict[str, np.ndarray]:
    """Sample ``config.sample.rows`` contents with ``config.sample.columns`` motions, and write the grid.

    The grid is smaller if the eval split has too few clips, see `grid`. For a system with `parts` there is a second
    sheet, ``parts``, with a row for each content A and the clip B after it: A, A rebuilt, each part of A alone, A with
    the motion of B, and B.

    The files are ``<workdir>/samples/<sheet>[-<step>].{png,mp4,gif}``; the PNG shows the middle frame.

    Args:
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      step: the training step of the variables, which becomes part of the file names; None leaves it out. The corner of
        the grid shows this step, or else the step of the newest checkpoint, if there is one.

    Returns:
      ``{sheet: uint8 (H, W, 3)}`` for the metric writer: ``transfer``, and ``parts`` if the system has parts.
    """
    source = run.source("eval")
    rows, columns = grid(run, source)
    picked = np.random.default_rng(run.config.seed).permutation(len(source))
    picked = np.resize(picked, rows + columns)  # a single clip is moved by itself
    elements = [source[int(i)] for i in picked]
    clips = [clip_of(element) for element in elements]
    pairs = [(i, rows + j) for i in range(rows) for j in range(columns)]
    if run.system.parts:
        pairs += [(i, i) for i in range(rows)] + [(i, i + 1) for i in range(rows)]
    placed = [boxes_of(source, int(i), element) for i, element in zip(picked, elements)]
    batches = transfer(
        run,
        vars,
        [clips[i] for i, _ in pairs],
        [clips[j] for _, j in pairs],
        len(pairs),
        "sampling",
        ([placed[i] for i, _ in pairs], [placed[j] for _, j in pairs]),
    )
    videos = np.concatenate([to_uint8(batch["video"]) for batch in batches])
    count = rows * columns
    results = videos[:count].reshape(rows, columns, *videos.shape[1:])
    shown = as_pictures(run, vars, clips)
    suffix = "" if step is None else f"-{step}"
    if step is None:
        step = (checkpoint.read_position(str(run.workdir)) or {}).get("step")
    note = "" if step is None else f"step {step}"
    sheets = {"transfer": media.transfer_grid(shown[:rows], shown[rows:], results, note=note)}
    if run.system.parts:
        rebuilt, crossed = np.split(videos[count:], 2)
        sheets["parts"] = _parts(run, vars, shown[: rows + 1], rebuilt, crossed)
    for sheet, video in sheets.items():
        write(run, f"{sheet}{suffix}", video)
    return {name: video[len(video) // 2] for name, video in sheets.items()}


def grid(run, source) -> tuple[int, int]:
    """Return the numbers of rows and columns of the grid.

    They are those of ``config.sample``. If there are too few clips, the larger number is reduced until there are clips
    for all rows and columns; a single clip gives one row and one column, and is moved by itself.

    Raises:
      ConfigError: the eval split `source` has no clip.
    """
    rows, columns = run.config.sample.rows, run.config.sample.columns
    if not len(source):
        raise ConfigError("config.sample: the eval split has no clip to move")
    while rows + columns > max(len(source), 2):
        rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
    if (rows, columns) != (run.config.sample.rows, run.config.sample.columns):
        log.warning(
            "config.sample asks for %d contents and %d motions; the eval split has only %d clips: showing %d and %d",
            run.config.sample.rows,
            run.config.sample.columns,
            len(source),
            rows,
            columns,
        )
    return rows, columns


def _parts(run, vars, clips: list[np.ndarray], rebuilt, crossed) -> np.ndarray:
    """Make the sheet ``parts``, (T, H, W, 3)."""
    columns = {"A": clips[:-1], "A rebuilt": rebuilt}
    for part in run.system.parts:
        batches = transfer(run, vars, clips[:-1], clips[:-1], len(rebuilt), part, part=part)
        columns[f"A: {part}"] = to_uint8(np.concatenate([batch["video"] for batch in batches]))
    columns |= {"A, motion of B": crossed, "B": clips[1:]}
    cells = [cell for row in zip(*columns.values(), strict=True) for cell in row]
    captions = [*columns] + [""] * (len(cells) - len(columns))
    scale = max(1, -(-128 // cells[0].shape[1]))
    return media.grid(cells, cols=len(columns), scale=scale, captions=captions)


def write(run, name: str, sheet: np.ndarray) -> None:
    """Write a sheet to ``<workdir>/samples``; only the first process writes.

    A still sheet, uint8 (H, W, 3), becomes ``<name>.png``. A moving sheet, (T, H, W, 3), becomes a PNG of its middle
    frame, an mp4 and a GIF.
    """
    if jax.process_index() == 0:
        folder = run.workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        moves = sheet.ndim == 4
        media.write_png(folder / f"{name}.png", sheet[len(sheet) // 2] if moves else sheet)
        if moves:
            media.write_mp4(folder / f"{name}.mp4", sheet, fps=run.config.sample.fps)
            media.write_gif(folder / f"{name}.gif", sheet, fps=run.config.sample.fps)
        log.info("pictures: %s", folder / f"{name}.png")
