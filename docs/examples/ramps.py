"""A whole dataset source: grey clips whose brightness rises or falls evenly."""

import numpy as np

from vidmotion.data.clip_source import ClipSource


class Ramps(ClipSource):
    """Grey clips, each with its own first brightness and its own constant change from frame to frame."""

    def __init__(self, split: str, clips: int, size: int, frames: int):
        """Takes the fields of ``config.data.common`` and of the split's section as its arguments."""
        self._clips, self._shape = clips, (frames, size, size, 3)
        self._seed = ("train", "eval").index(split)
        # A run resumes only on data with the same fingerprint, so it contains everything that decides a pixel.
        self.fingerprint = f"ramps-1/{split}/{clips}/{size}/{frames}"

    def __len__(self):
        return self._clips

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        if not 0 <= index < self._clips:
            raise IndexError(index)
        first, last = np.random.default_rng([self._seed, index]).uniform(0, 255, 2)
        level_t = np.linspace(first, last, self._shape[0])
        video = np.broadcast_to(level_t[:, None, None, None], self._shape)
        return {"video": np.rint(video).astype(np.uint8)}
