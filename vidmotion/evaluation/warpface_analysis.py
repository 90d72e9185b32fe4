"""Analyses of WarpFace's motion code, as pictures, curves and numbers (spec warpface.md, section 11).

    python -m vidmotion.main --config=configs/warpface.py:demo --workdir=DIR --mode=sample \
        --config.sample.analyses='("canonical","subspace","vector","curves","collapse")'

With ``motion=none`` only ``noises`` is available; ``comparison`` and ``failures`` are in
`vidmotion.evaluation.sheets`. All analyses use the first ``config.sample.clips`` clips of the eval split. Sheets show
``config.sample.rows`` of them; all pictures of a sheet are sampled from the same noise.

Shape suffixes: b pictures, k groups, i coefficients of a group, e dimensions of a group, m = k e, those of the code.
"""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion import media
from vidmotion.diffusion import samplers
from vidmotion.errors import ConfigError
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.models.mgme import MotionCodes

log = logging.getLogger(__name__)

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)  # neither the scales nor the shifts are in the paper
SHIFTS = (-3, -2, -1, 0, 1, 2, 3)  # standard deviations of a coefficient over the clips
STILL = 0.01  # a coordinate stands still if it deviates by less than this share of the code's root mean square


def analyse(run, vars, asked) -> None:
    """Write the analyses named in `asked`, keys of `ANALYSES`, into ``<workdir>/samples``.

    Raises:
      ConfigError: an unknown name, or an analysis that does not apply to the run's kind of motion.
    """
    motion, inject = run.system.motion.kind, run.system.inject
    for name in asked:
        if name not in ANALYSES:
            raise ConfigError(
                f"config.sample.analyses: there is no {name!r}; choose from {', '.join(ANALYSES)}"
            )
        needs_codes = name in ("canonical", "subspace", "vector")
        if (motion == "none" and name != "noises") or (motion == "ip" and needs_codes):
            raise ConfigError(
                f"config.sample.analyses: {name!r} needs motion codes, not {motion!r}"
            )
        if name == "curves" and not (inject.time_modulation and inject.mode == "warpca"):
            raise ConfigError("config.sample.analyses: 'curves' needs a code modulated by time")
    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    clips = _clips(run)
    codes = _codes(run, vars, clips)
    for name in asked:
        ANALYSES[name](run, vars, clips, codes, folder)


# -- editing codes --------------------------------------------------------------------------------


def scaled(theta_bm: np.ndarray, groups: int, group: int, by: float) -> np.ndarray:
    """Return codes with one group (counted from 0) multiplied: g_k <- by * g_k."""
    parts_bke = np.array(theta_bm).reshape(len(theta_bm), groups, -1)
    parts_bke[:, group] *= by
    return parts_bke.reshape(theta_bm.shape)


def shifted(
    theta_bm: np.ndarray, basis_kei: np.ndarray, group: int, by_i: np.ndarray
) -> np.ndarray:
    """Return codes with `by_i` added to the coefficients of one group (counted from 0): g_k <- g_k + Q_k by."""
    parts_bke = np.array(theta_bm).reshape(len(theta_bm), len(basis_kei), -1)
    parts_bke[:, group] += (basis_kei[group] @ by_i)[None]
    return parts_bke.reshape(theta_bm.shape)


def collapse(own_bm: np.ndarray, clips: int) -> dict[str, float]:
    """Measure how much a motion code varies over a dataset; near zero if motion has collapsed.

    Args:
      own_bm: the codes of all frames, with the frames of each clip together; all clips are equally long.
      clips: the number of clips.

    Returns:
      ``spread``, the standard deviation, averaged over coordinates; ``relative``, the spread divided by the root mean
      square of the code, so that codes in different units can be compared; ``within``, the share of the variance that
      lies between the frames of a clip; ``still``, the share of coordinates that stand still.
    """
    own = np.asarray(own_bm, np.float64)
    deviation = own.std(axis=0)
    size = max(float(np.sqrt(np.mean(np.square(own)))), 1e-12)
    within = own.reshape(clips, -1, own.shape[1]).var(axis=1).mean()
    return {
        "spread": float(deviation.mean()),
        "relative": float(deviation.mean() / size),
        "within": float(within / max(own.var(axis=0).mean(), 1e-24)),
        "still": float(np.mean(deviation < STILL * size)),
    }


# -- the analyses ---------------------------------------------------------------------------------


def _canonical(run, vars, clips, codes: MotionCodes, folder) -> None:
    """Figure 7: each source, its picture with theta = 0, which should rebuild it, and with theta_{s->r}, canonical."""
    sources = clips[: run.config.sample.rows, 0]
    frames = clips.shape[1]
    canonical = codes.to_canonical_bm[: len(sources) * frames : frames]
    made = _render(run, vars, sources, np.stack([np.zeros_like(canonical), canonical], axis=1))
    cells = [cell for source, row in zip(sources, made) for cell in (source, *row)]
    _sheet(folder, "canonical", cells, 3, ["source", "no motion", "canonical"])


def _noises(run, vars, clips, codes, folder) -> None:
    """Figure 1, top: each source without motion under several noises; without a motion encoder the poses are random."""
    sources, columns = clips[: run.config.sample.rows, 0], run.config.sample.columns
    still = np.zeros((len(sources), 1, run.system.code_width), np.float32)
    made = [_render(run, vars, sources, still, seed)[:, 0] for seed in range(columns)]
    cells = [cell for source, row in zip(sources, zip(*made)) for cell in (source, *row)]
    titles = ["source", *(f"noise {seed}" for seed in range(columns))]
    _sheet(folder, "noises", cells, columns + 1, titles)


def _subspace(run, vars, clips, codes: MotionCodes, folder) -> None:
    """Figure 5, left: a row per group of theta_{s->d}, with the group scaled and then its coefficients shifted."""
    basis, deviation = np.asarray(run.system.basis(vars)), codes.alpha_bki.std(axis=0)
    frames = clips.shape[1]
    theta = codes.from_canonical_bm
    # theta_{s->d}: from the first frame of the first clip to the last frame of the second, another person's motion.
    base = theta[2 * frames - 1 : 2 * frames] - theta[:1]
    rows = {}
    for k in range(len(basis)):
        edits = [scaled(base, len(basis), k, by) for by in SCALES]
        edits += [
            shifted(base, basis, k, by * deviation[k].mean() * np.ones(len(deviation[k])))
            for by in SHIFTS
        ]
        rows[f"group {k + 1}"] = np.concatenate(edits)
    titles = [f"x {by:g}" for by in SCALES] + [f"{by:+d} sd" for by in SHIFTS]
    _edit_sheet(run, vars, clips[0, 0], rows, titles, folder, "subspace")


def _vector(run, vars, clips, codes: MotionCodes, folder) -> None:
    """Figure 5, right: a row per vector, added to the source's own pose with -3 to 3 standard deviations."""
    basis, deviation = np.asarray(run.system.basis(vars)), codes.alpha_bki.std(axis=0)
    groups, count = deviation.shape
    wanted = [(int(k), int(n)) for k, n in run.config.sample.vectors]
    wanted = wanted or [(k + 1, int(np.argmax(deviation[k])) + 1) for k in range(groups)]
    rows, zero = {}, np.zeros((1, codes.from_canonical_bm.shape[1]), np.float32)
    for k, n in wanted:
        if not (1 <= k <= groups and 1 <= n <= count):
            raise ConfigError(
                f"config.sample.vectors: there is no group {k} vector {n}; groups are 1 to {groups}, "
                f"each with vectors 1 to {count}"
            )
        one = np.eye(count, dtype=np.float32)[n - 1] * deviation[k - 1, n - 1]
        edits = [shifted(zero, basis, k - 1, by * one) for by in SHIFTS]
        rows[f"{k}: {n}"] = np.concatenate(edits)
    _edit_sheet(run, vars, clips[0, 0], rows, [f"{by:+d} sd" for by in SHIFTS], folder, "vector")


def _curves(run, vars, clips, codes, folder) -> None:
    """Figure 6: the means of gamma and delta of Eq. 9 at the sampler's times, as numbers and as a plot."""
    system = run.system
    times = samplers.leading_times(system.steps, system.diffusion.steps)
    gamma, delta = jax.jit(system.modulation)(vars, jnp.asarray(times))
    curves = {"time": times.tolist()}
    curves |= {"gamma": np.asarray(gamma).tolist(), "delta": np.asarray(delta).tolist()}
    (folder / "curves.json").write_text(json.dumps(curves))
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        log.warning("curves.png is not drawn: matplotlib is missing; pip install 'vidmotion[plot]'")
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("gamma", "delta"), ("scale gamma", "shift delta")
    ):
        axes.plot(curves["time"], curves[name], marker=".")
        axes.invert_xaxis()  # sampling runs from late times to early ones
        axes.set_xlabel("time")
        axes.set_ylabel(f"{label}, mean")
    with (folder / "curves.png").open("wb") as file:
        figure.savefig(file, format="png", dpi=150)


def _collapse(run, vars, clips, codes, folder) -> None:
    """Figure 1, bottom, as numbers: see `collapse`."""
    own = codes.from_canonical_bm if isinstance(codes, MotionCodes) else codes
    found = collapse(own.reshape(len(own), -1), len(clips))
    (folder / "collapse.json").write_text(json.dumps(found))
    log.info("collapse: %s", ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


ANALYSES = {
    "canonical": _canonical,
    "subspace": _subspace,
    "vector": _vector,
    "curves": _curves,
    "collapse": _collapse,
    "noises": _noises,
}


# -- helpers --------------------------------------------------------------------------------------


def _clips(run) -> np.ndarray:
    """Return the clips to analyse, uint8 (clips, T, H, W, 3)."""
    source, wanted = run.source("eval"), run.config.sample.clips
    if wanted < 2 or len(source) < 2:
        raise ConfigError("config.sample.clips: analyses need at least 2 clips")
    return np.stack([source[i]["video"] for i in range(min(wanted, len(source)))])


def _codes(run, vars, clips):
    """Return the motion encoder's numpy outputs for all frames, with the frames of each clip together."""
    see = jax.jit(run.system.codes)
    parts = [jax.tree.map(np.asarray, see(vars, clip)) for clip in clips]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _render(run, vars, sources_bhwc, theta_bnm, seed: int = 0) -> np.ndarray:
    """Render each source under its n codes, uint8 (b, n, H, W, 3), from the noise of `seed`."""

    @jax.jit
    def show(vars, sources, theta):
        system = run.system
        return system.render(vars, system.latents(vars, sources), theta, jax.random.key(seed))

    return to_uint8(np.asarray(show(vars, sources_bhwc, theta_bnm)))


def _edit_sheet(run, vars, source, rows, titles, folder, name) -> None:
    """Write a sheet of one source, with a row of pictures for each entry of `rows`, codes (n, m)."""
    made = _render(run, vars, source[None], np.concatenate(list(rows.values()))[None])[0]
    made = made.reshape(len(rows), -1, *made.shape[1:])
    cells = [cell for row in made for cell in (source, *row)]
    _sheet(folder, name, cells, 1 + made.shape[1], ["source", *titles], list(rows))


def _sheet(folder, name, cells, columns, titles, rows=()) -> None:
    captions = [*titles] + [""] * (len(cells) - len(titles))
    for place, row in enumerate(rows):
        captions[place * columns] = row
    scale = max(1, -(-96 // cells[0].shape[0]))
    media.write_png(
        folder / f"{name}.png", media.grid(cells, cols=columns, scale=scale, captions=captions)
    )
    log.info("pictures: %s", folder / f"{name}.png")
