"""Run what ``python -m vidmotion.export`` wrote: this file needs jax alone, and is copied beside the programs."""

import json
import pathlib

import jax
import numpy as np
from jax import export


class Model:
    """A trained system, from the folder of its export; `about` says what it is and which shapes it takes.

    Both functions take uint8 clips: content (1, T, H, W, 3), and motion (1, F, H, W, 3).
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.about = json.loads((folder / "model.json").read_text())
        with np.load(folder / "weights.npz") as file:
            self._weights = {name: jax.numpy.asarray(file[name]) for name in file.files}
        programs = [(folder / f"{name}.stablehlo").read_bytes() for name in ("encode", "sample")]
        self._encode, self._sample = (jax.jit(export.deserialize(p).call) for p in programs)

    def encode(self, content, motion):
        """The codes: {"content": floats (1, D), "motion": floats (1, F, M)}."""
        return self._encode(self._weights, content, motion)

    def sample(self, content, motion, seed=0):
        """The content moving as the motion does, floats (1, F, H, W, 3) in [0, 1]."""
        return self._sample(self._weights, content, motion, np.uint32(seed))
