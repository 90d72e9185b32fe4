"""Finds X-NeMo's released files, and joins those that hold weights of the same network.

The released loader loads the denoising file over Stable Diffusion's UNet and the temporal file over both,
and does not check that any key is there. `denoising` does the same; the engine then says which keys are
missing or unknown (spec xnemo.md, section 6).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vidmotion.convert.maps import unet

FILES = {
    "reference": "xnemo_reference_unet",
    "denoiser": "xnemo_denoising_unet",
    "temporal": "xnemo_temporal_module",
    "motion": "xnemo_motion_encoder",
}
# Of the folder that training begins with: the network of each part.
BEGINNINGS = {
    "reference": "xnemo_reference_unet",
    "denoiser": "sd_unet",
    "temporal": "animatediff",
    "appearance": "resnet50",
}
PUBLISHED = "the four files that the README of github.com/bytedance/X-NeMo links to (CC BY-NC 4.0)"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
Arrays = Mapping[str, np.ndarray]


def find(src: Path) -> tuple[dict[str, Path], list[str]]:
    """Returns the released files in a folder, by part, and the names of those that are missing."""
    found, missing = {}, []
    for part, stem in FILES.items():
        paths = (src / f"{stem}{suffix}" for suffix in SUFFIXES)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            missing.append(f"{stem}.pth")
        else:
            found[part] = path
    return found, missing


def unwrapped(source: Arrays) -> dict[str, np.ndarray]:
    """Removes the ``module.`` that a data-parallel wrapper puts before every key."""
    if source and all(key.startswith("module.") for key in source):
        return {key.removeprefix("module."): x for key, x in source.items()}
    return dict(source)


def headless(base: Arrays) -> dict[str, np.ndarray]:
    """Removes the output layer from Stable Diffusion's UNet, as the reference file has none."""
    head = ("conv_norm_out.", "conv_out.")
    return {key: x for key, x in base.items() if not key.startswith(head)}


def denoising(base: Arrays, own: Arrays, temporal: Arrays) -> dict[str, np.ndarray]:
    """Joins the files of the denoising UNet into one checkpoint; a later file's key replaces an earlier file's.

    Args:
      base: the arrays of Stable Diffusion's UNet; may be empty.
      own: the arrays of the denoising file.
      temporal: the arrays of the temporal file, in X-NeMo's or AnimateDiff's spelling; may be empty.
    """
    return {**base, **own, **unet.as_temporal(temporal)}
