"""The motion-transfer grid: content down, motion across, as PNG, mp4 and GIF."""

import logging

import jax
import numpy as np

from vidmotion import media
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import as_pictures, clip_of, to_uint8, transfer

log = logging.getLogger(__name__)


def pictures(run, vars, step: int | None) -> dict[str, np.ndarray]:
    """Sample ``config.sample.rows`` contents x ``columns`` motions and write the grid.

    Files ``<workdir>/samples/transfer[-<step>].{png,mp4,gif}``; the PNG shows the middle frame.

    Args:
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      step: part of the file name; None leaves it out.

    Returns:
      ``{"transfer": uint8 (H, W, 3)}`` for the metric writer.
    """
    layout = run.config.sample
    source = run.source("eval")
    rows, columns = layout.rows, layout.columns
    if len(source) < rows + columns:
        raise ConfigError(
            f"config.sample: {rows} contents and {columns} motions need {rows + columns} clips, the eval "
            f"split has {len(source)}"
        )
    picked = np.random.default_rng(run.config.seed).permutation(len(source))[: rows + columns]
    clips = [clip_of(source[int(i)]) for i in picked]
    contents, motions = clips[:rows], clips[rows:]
    pairs = [(i, j) for i in range(rows) for j in range(columns)]
    batches = transfer(
        run,
        vars,
        [contents[i] for i, _ in pairs],
        [motions[j] for _, j in pairs],
        len(pairs),
        "sampling",
    )
    videos = np.concatenate([to_uint8(batch["video"]) for batch in batches])
    results = videos.reshape(rows, columns, *videos.shape[1:])
    shown = as_pictures(run, vars, clips)
    sheet = media.transfer_grid(shown[:rows], shown[rows:], results)
    still = sheet[sheet.shape[0] // 2]
    if jax.process_index() == 0:
        name = "transfer" if step is None else f"transfer-{step}"
        folder = run.workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        media.write_png(folder / f"{name}.png", still)
        media.write_mp4(folder / f"{name}.mp4", sheet, fps=layout.fps)
        media.write_gif(folder / f"{name}.gif", sheet, fps=layout.fps)
        log.info("pictures: %s", folder / f"{name}.png")
    return {"transfer": still}
