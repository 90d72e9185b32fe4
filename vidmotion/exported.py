"""Runs the programs of ``python -m vidmotion.export``; it is copied beside them and needs only jax and flatbuffers."""

import json
import pathlib

import jax
import numpy as np
from jax import export


class Model:
    """A trained system, loaded from the folder of its export; `about` describes it and the shapes that it takes.

    Both methods take uint8 clips: content (1, T, H, W, 3), and motion (1, F, H, W, 3).
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.about = json.loads((folder / "model.json").read_text())
        with np.load(folder / "weights.npz") as file:
            self._weights = {name: jax.numpy.asarray(file[name]) for name in file.files}
        programs = [(folder / f"{name}.stablehlo").read_bytes() for name in ("encode", "sample")]
        self._encode, self._sample = (jax.jit(export.deserialize(p).call) for p in programs)

    def encode(self, content, motion):
        """Compute the codes: {"content": floats (1, D), "motion": floats (1, F, M)}."""
        return self._encode(self._weights, content, motion)

    def sample(self, content, motion, seed=0):
        """Make the content move like the motion: floats (1, F, H, W, 3) in [0, 1]."""
        return self._sample(self._weights, content, motion, np.uint32(seed))
