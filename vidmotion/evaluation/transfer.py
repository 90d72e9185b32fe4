"""Functions for motion transfer over pairs of clips, shared by the evaluators and the sample pictures."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from vidmotion.data import faces
from vidmotion.data.clip_source import Boxes
from vidmotion.progress import watched


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """Return a seeded permutation (count,) without fixed points: clip i takes the motion of clip result[i].

    Raises:
      ValueError: fewer than two clips.
    """
    if count < 2:
        raise ValueError("pairing clips with others needs at least two clips")
    # One cycle through a random order moves every clip.
    order = np.random.default_rng(seed).permutation(count)
    paired = np.empty(count, np.int64)
    paired[order] = np.roll(order, -1)
    return paired


def clip_of(element: dict[str, np.ndarray]) -> np.ndarray:
    """Return the clip of a source's element in the form that systems take: pixels, or latents from a cache."""
    return element["latents"] if "latents" in element else element["video"]


def as_pictures(run, vars, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return clips as uint8 (T, H, W, 3): pixels unchanged, latents from a cache decoded."""
    if clips[0].dtype == np.uint8:
        return list(clips)
    decode = run.jit(run.system.reconstruct)
    rows = run.rows(1)
    return [
        to_uint8(np.asarray(decode(vars, run.put_rows(np.repeat(clip[None], rows, axis=0)))[0]))
        for clip in clips
    ]


def boxes_of(source, index: int, element: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the face box in each frame of a source's element, (T, 4); None if the source does not know it."""
    if isinstance(source, Boxes):
        return source.boxes(index)
    return element.get("boxes")


def face_views(
    side: int,
    content: np.ndarray,
    content_boxes: np.ndarray,
    motion: np.ndarray,
    motion_boxes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the face crops that a system with a `System.face_side` reads, for one pair of clips.

    Both clips must share the same picture coordinates.

    Args:
      side: the side of the crops in pixels.
      content, motion: the clips, uint8 (T, H, W, 3).
      content_boxes, motion_boxes: the boxes of their faces, (T, 4).
    """
    height, width = motion.shape[1:3]
    squares = faces.driving_boxes(motion_boxes, width, height)
    still = faces.reference_box(content_boxes[0], content.shape[2], content.shape[1])
    return {
        "driving": np.stack([faces.crop(f, box, side) for f, box in zip(motion, squares)]),
        "reference_face": faces.crop(content[0], still, side),
        "f_rts": faces.f_rts(motion_boxes, content_boxes[0]),
    }


def transfer(
    run,
    vars,
    contents: np.ndarray,
    motions: np.ndarray,
    batch: int,
    what: str,
    boxes: tuple[Sequence, Sequence] | None = None,
    **options,
) -> Iterator[dict[str, np.ndarray]]:
    """Sample content i with motion i, batch by batch.

    Args:
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      contents, motions: sequences of N clips, uint8 (T, H, W, 3) or their latents from a cache.
      batch: the number of pairs at a time; rounded up to a number that the mesh divides. The last batch is padded.
      what: the name of the progress bar.
      boxes: the face boxes in contents and in motions, (T, 4) each, for systems with a `face_side`. If this or any
        entry is None, the boxes are not known and whole pictures are taken as faces.
      options: options passed to `System.sample`.

    Yields:
      the numpy outputs of `System.sample` for the pairs of each batch, with the padding removed.
    """
    rows = run.rows(batch)
    sample = run.jit_sample(**options)
    key = jax.random.key(run.config.seed)
    starts = range(0, len(contents), rows)
    for start in watched(starts, what):
        picked = np.minimum(np.arange(start, start + rows), len(contents) - 1)
        inputs = {
            "content": np.stack([contents[i] for i in picked]),
            "motion": np.stack([motions[i] for i in picked]),
        }
        if run.system.face_side and boxes and all(b is not None for part in boxes for b in part):
            views = [
                face_views(run.system.face_side, contents[i], boxes[0][i], motions[i], boxes[1][i])
                for i in picked
            ]
            inputs |= {name: np.stack([view[name] for view in views]) for name in views[0]}
        outputs = sample(vars, run.put_rows(inputs), jax.random.fold_in(key, start))
        kept = min(rows, len(contents) - start)
        yield {name: np.asarray(value)[:kept] for name, value in outputs.items()}


def through(
    run, function: Callable, vars, clips: Sequence[np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    """Apply a compiled function to single clips, batch by batch.

    Args:
      run: a `vidmotion.run.Run`.
      function: a compiled function of ``(vars, {"video": (B, T, H, W, 3)}, key)`` that returns a dict of arrays
        (B, ...).
      vars: the system's variables.
      clips: N clips, (T, H, W, 3) each.
      batch: the number of clips at a time; rounded up to a number that the mesh divides. The last batch is padded.

    Returns:
      the function's outputs by name, (N, ...), with the padding removed.
    """
    rows, parts = run.rows(batch), []
    for start in range(0, len(clips), rows):
        picked = np.minimum(np.arange(start, start + rows), len(clips) - 1)
        inputs = run.put_rows({"video": np.stack([clips[i] for i in picked])})
        outputs = jax.tree.map(np.asarray, function(vars, inputs, jax.random.key(start)))
        parts.append({name: value[: len(clips) - start] for name, value in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Round floats in [0, 1] to uint8."""
    return np.clip(np.rint(video * 255.0), 0, 255).astype(np.uint8)
