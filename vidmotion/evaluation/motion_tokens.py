"""Evaluation of motion tokens: how well they rebuild held-out codes, and how many of them are in use.

The paper gives no numbers for this. Errors are measured on standardised codes, so predicting the mean of the train
split costs about 1; that error is reported too.
"""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import numpy as np

from vidmotion import animate, media
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.transfer import boxes_of, face_views, to_uint8
from vidmotion.metrics import codebook
from vidmotion.metrics.accumulate import Mean
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import open_run
from vidmotion.run import Run

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerErrors(Evaluator):
    """Measures how well motion tokens rebuild held-out codes, and how many of them are in use.

    Attributes:
      batch: the number of clips at a time.
      clips: the number of clips to render.
      xnemo: the workdir of the X-NeMo run that the codes come from; "": nothing is rendered, and the log says so.
    """

    batch: int
    clips: int
    xnemo: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        run.source("eval")
        open_xnemo(self.xnemo, run.system.codes, encoded.MotionCodesSource)

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return errors on the eval split and the use of the codebook; also render `clips` clips with the X-NeMo run.

        Raises:
          ConfigError: `xnemo` is not the run that the codes come from.
        """
        system, source = run.system, run.source("eval")
        xnemo = open_xnemo(self.xnemo, system.codes, encoded.MotionCodesSource)
        rows = run.rows(self.batch)
        rebuild = run.jit(system.rebuilt)
        means: dict[str, Mean] = {}
        ids, shown = [], []
        for start in range(0, len(source), rows):
            picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
            motion = np.stack([source[int(i)]["motion"] for i in picked])
            made = rebuild(vars, run.put_rows({"motion": motion}))
            kept = min(rows, len(source) - start)
            target, rebuilt = (
                np.asarray(x)[:kept] for x in (made.target_btc, made.reconstruction_btc)
            )
            ids.append(np.asarray(made.ids_bu)[:kept])
            shown += zip(target, rebuilt)
            for name, x, y in (
                ("mse", target, rebuilt),
                ("mse_mean", target, 0 * target),
                ("velocity", np.diff(target, axis=1), np.diff(rebuilt, axis=1)),
                ("velocity_still", np.diff(target, axis=1), 0 * target[:, 1:]),
            ):
                errors = np.mean(np.square(x - y), axis=(1, 2))
                means[name] = means.get(name, Mean()).update(errors)
        standard = jax.device_get(vars.consts["standard"])
        shown = [[x * standard["deviation"] + standard["mean"] for x in pair] for pair in shown]
        _show(run, xnemo, shown[: self.clips])
        found = {name: mean.compute() for name, mean in means.items()}
        counts = codebook.usage_counts(np.concatenate(ids)[..., None], system.net.entries)
        total, entries = int(counts.sum()), system.net.entries
        results = [
            ("mse/reconstruction", found["mse"], "of standardised codes"),
            ("mse/mean", found["mse_mean"], "predicting the mean of the train split"),
            ("explained", 1 - found["mse"] / found["mse_mean"], "1 - the ratio of these"),
            (
                "explained/velocity",
                1 - found["velocity"] / found["velocity_still"],
                "the same of differences between frames, against none",
            ),
            (
                "usage",
                float(codebook.used_fraction(counts)[0]),
                f"of {entries} entries, {total} tokens",
            ),
            ("usage_perplexity", float(codebook.perplexity(counts)[0]), f"of {entries}"),
            (
                "bits_per_frame",
                codebook.bits_per_frame(counts) / 2**system.net.halvings,
                "entropy of the tokens' histogram",
            ),
        ]
        return [
            MetricResult(name, value, note, "none", "codes", len(source))
            for name, value, note in results
        ]


def _show(run, xnemo, pairs: Sequence) -> None:
    """Write ``samples/rebuilt.*``: for each clip the portrait, its codes rendered, and its rebuilt codes rendered."""
    if xnemo is None:
        return
    codes = np.stack([np.stack(pair) for pair in pairs])
    fps = encoded.MotionCodesSource.read_provenance(run.system.codes)["fps"]
    write_sheet(run, xnemo, "rebuilt", codes, fps)


# -- pictures of codes ----------------------------------------------------------------------------


def open_xnemo(
    workdir: str, folder: str, kind: type[encoded.EncodedSource]
) -> tuple[Run, object] | None:
    """Open the X-NeMo run that renders codes; None if `workdir` is empty.

    Args:
      workdir: the workdir of the X-NeMo run.
      folder: the folder of the codes to render.
      kind: the class of the source that reads `folder`.

    Returns:
      the run and its variables.

    Raises:
      ConfigError: the workdir holds no X-NeMo run, or not the one whose encoder made the codes.
    """
    if not workdir:
        log.info("nothing is rendered: the evaluator's field xnemo names no X-NeMo run")
        return None
    xnemo = open_run(workdir)
    if xnemo.config.system.name != "xnemo":
        raise ConfigError(f"xnemo={workdir!r} holds a {xnemo.config.system.name}, not an X-NeMo")
    vars = xnemo.trained_vars()
    encoder = kind.read_provenance(folder)["encoder"]
    animate.check_encoder(xnemo, vars, encoder, f"config.system.codes={folder!r}")
    return xnemo, vars


def write_sheet(run, opened, name: str, codes: np.ndarray, fps: float) -> None:
    """Write ``samples/<name>.{png,mp4,gif}``: a row for each clip, with its portrait and a column for each motion.

    Args:
      run: the run whose workdir the files are written to.
      opened: the result of `open_xnemo`.
      name: the name of the files. The PNG is laid out differently: eight frames of each motion in a row.
      codes: float32 (clips, motions, F, D); the codes of clip i move the first picture of clip i of the X-NeMo run's
        eval split.
      fps: frames per second.
    """
    xnemo, vars = opened
    clips, motions, frames, width = codes.shape
    source, side = xnemo.source("eval"), xnemo.system.face_side
    pictures, own_faces = [], []
    for i in range(clips):
        element = source[i]
        video = element["video"][:1]
        boxes = boxes_of(source, i, element)
        views = face_views(side, video, boxes, video, boxes[:1])
        pictures.append(video[0])
        own_faces.append(views["reference_face"])
    picked = np.minimum(np.arange(xnemo.rows(clips * motions)), clips * motions - 1)
    f_rts = np.tile(np.float32([0, 0, 1]), (len(picked), frames, 1))

    def paint(vars, portrait, vectors, moves, faces, key):
        own = xnemo.system.motion_of(vars, faces)
        latent = xnemo.system.animate(vars, portrait, vectors, moves, own, key)
        return xnemo.system.codec.decode(vars.consts, latent)

    made = xnemo.jit(paint)(
        vars,
        *xnemo.put_rows(
            (
                np.stack(pictures)[picked // motions],
                codes.reshape(-1, frames, width)[picked],
                f_rts,
                np.stack(own_faces)[picked // motions][:, None],
            )
        ),
        jax.random.key(run.config.seed),
    )
    videos = to_uint8(np.asarray(made)[: clips * motions])
    if jax.process_index() != 0:
        return
    cells = []
    for i, picture in enumerate(pictures):
        still = np.broadcast_to(picture, videos.shape[1:])
        cells += [still, *videos[i * motions : (i + 1) * motions]]
    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sheet = media.grid(cells, cols=1 + motions, scale=2)
    media.write_mp4(folder / f"{name}.mp4", sheet, fps=fps)
    media.write_gif(folder / f"{name}.gif", sheet, fps=fps)
    media.write_png(
        folder / f"{name}.png",
        np.concatenate([media.strip(video, 8, scale=2) for video in videos]),
    )
    log.info("pictures: %s", folder / f"{name}.png")
