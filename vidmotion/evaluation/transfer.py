"""Motion transfer over pairs of clips: what the transfer protocols and the pictures share."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from vidmotion import sharding


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """(count,) seeded permutation without fixed points: clip i takes the motion of clip result[i].

    Raises:
      ValueError: fewer than two clips.
    """
    if count < 2:
        raise ValueError("pairing clips with others needs at least two")
    # One cycle through a random order moves every clip.
    order = np.random.default_rng(seed).permutation(count)
    paired = np.empty(count, np.int64)
    paired[order] = np.roll(order, -1)
    return paired


def clip_of(element: dict[str, np.ndarray]) -> np.ndarray:
    """The clip of a source's element as systems take it: pixels, or latents from a cache."""
    return element["latents"] if "latents" in element else element["video"]


def as_pictures(run, vars, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clips as uint8 (T, H, W, 3): pixels as they are, latents from a cache decoded."""
    if clips[0].dtype == np.uint8:
        return list(clips)
    decode = jax.jit(run.system.reconstruct, out_shardings=sharding.replicated(run.mesh))
    rows = run.rows(1)
    return [
        to_uint8(np.asarray(decode(vars, run.put_rows(np.repeat(clip[None], rows, axis=0)))[0]))
        for clip in clips
    ]


def transfer(
    run, vars, contents: np.ndarray, motions: np.ndarray, batch: int, what: str, **options
) -> Iterator[dict[str, np.ndarray]]:
    """Sample content i with motion i, batch by batch.

    Args:
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      contents, motions: sequences of N clips (T, H, W, 3) uint8, or of their latents from a cache, indexable by
        integers.
      batch: pairs at a time; rounded up to what the mesh divides, the last batch is padded.
      what: name of the progress bar.
      options: passed to `System.sample`.

    Yields:
      numpy outputs of `System.sample` for each batch's pairs, padding removed.
    """
    rows = run.rows(batch)
    sample = run.jit_sample(**options)
    key = jax.random.key(run.config.seed)
    starts = range(0, len(contents), rows)
    for start in tqdm(starts, desc=what, disable=None):
        picked = np.minimum(np.arange(start, start + rows), len(contents) - 1)
        inputs = {
            "content": np.stack([contents[i] for i in picked]),
            "motion": np.stack([motions[i] for i in picked]),
        }
        outputs = sample(vars, run.put_rows(inputs), jax.random.fold_in(key, start))
        kept = min(rows, len(contents) - start)
        yield {name: np.asarray(value)[:kept] for name, value in outputs.items()}


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> rounded uint8."""
    return np.clip(np.rint(video * 255.0), 0, 255).astype(np.uint8)
