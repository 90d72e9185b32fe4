"""Conversion table of `models.features.lpips.LPIPS`, from its two public files or from VidTwin's checkpoint.

The trunk is torchvision's classifier without its dense layers; the heads are in the package `lpips`.
VidTwin's checkpoint holds both.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vidmotion.convert.engine import ConversionError, Ignore, Rule, Rules, layer
from vidmotion.convert.transforms import conv2d, pointwise

VIDTWIN = "loss.perceptual_loss"
LAYERS = range(5)


class Files(NamedTuple):
    """Where the weights of LPIPS with one kind of trunk are published.

    Attributes:
      trunk: torchvision's file, which has the trunk.
      heads: the file inside the package `lpips` that has the heads.
    """

    trunk: str
    heads: str


_HEADS = (
    "in the package lpips of PyPI (its wheel is a zip archive) and in "
    "github.com/richzhang/PerceptualSimilarity"
)
FILES = {
    "vgg": Files(
        "vgg16-397923af.pth (VGG16_Weights.IMAGENET1K_V1 of torchvision), "
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        f"lpips/weights/v0.1/vgg.pth, {_HEADS}",
    ),
    "alex": Files(
        "alexnet-owt-7be5be79.pth (AlexNet_Weights.IMAGENET1K_V1 of torchvision), "
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        f"lpips/weights/v0.1/alex.pth, {_HEADS}",
    ),
}

# Our layer -> its place in torchvision's `features`, for VGG with its stage, a slice of lpips.
_VGG = {
    f"conv{stage}_{i}": (stage, place)
    for stage, places in enumerate(
        ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1
    )
    for i, place in enumerate(places, start=1)
}
_ALEX = {f"conv{i}": place for i, place in enumerate((0, 3, 6, 8, 10), start=1)}

_HEAD_RULES: tuple[Rule, ...] = tuple(
    (
        f"head_{i}/kernel",
        (f"lin{i}.model.1.weight", f"{VIDTWIN}.lin{i}.model.1.weight"),
        pointwise(2),
    )
    for i in LAYERS
)
_CLASSIFIER = Ignore("classifier.*", "the dense layers of the classifier")
# Templates of all other keys in a checkpoint of VidTwin.
_VIDTWIN_PARTS = (
    "encoder.*",
    "decoder.*",
    "temporal_qformer.*",
    "cont_emb.*",
    "conv_in.*",
    "conv_out.*",
    "content_downsample_blocks.*",
    "content_upsample_blocks.*",
    "bottle_down.*",
    "bottle_up.*",
    "downsample_motion_module.*",
    "motion_head.*",
    "motion_emb.*",
    "up_motion.*",
    "loss.discriminator.*",
    "loss.logvar",
)

VGG: Rules = (
    *(
        rule
        for name, (stage, place) in _VGG.items()
        for rule in layer(
            f"net/{name}", (f"features.{place}", f"{VIDTWIN}.net.slice{stage}.{place}"), conv2d
        )
    ),
    *_HEAD_RULES,
    _CLASSIFIER,
    Ignore(f"{VIDTWIN}.scaling_layer.shift", "ImageNet's mean colour, a constant of the port"),
    Ignore(f"{VIDTWIN}.scaling_layer.scale", "ImageNet's deviation, a constant of the port"),
    *(Ignore(part, "other parts of VidTwin") for part in _VIDTWIN_PARTS),
)
ALEX: Rules = (
    *(
        rule
        for name, place in _ALEX.items()
        for rule in layer(f"net/{name}", f"features.{place}", conv2d)
    ),
    *_HEAD_RULES,
    _CLASSIFIER,
)


def arguments(trunk: str, keys: Iterable[str]) -> dict[str, str]:
    """Returns the attributes of `LPIPS`, after checking that the weights of trunk and heads are there.

    Args:
      trunk: ``vgg`` or ``alex``.
      keys: all keys of the files that were given.

    Raises:
      ConversionError: there is no key of the trunk, or none of the heads; the message says which file has
        them, and where it is published.
    """
    keys = tuple(keys)
    trunk_keys = ("features.", f"{VIDTWIN}.net.") if trunk == "vgg" else ("features.",)
    head_keys = tuple(f"{prefix}lin{i}." for prefix in ("", f"{VIDTWIN}.") for i in LAYERS)
    files, problems = FILES[trunk], []
    if not any(key.startswith(trunk_keys) for key in keys):
        problems.append(f"no weights of the trunk: give --src={files.trunk}")
    if not any(key.startswith(head_keys) for key in keys):
        problems.append(f"no weights of the heads: give --heads={files.heads}")
    if problems:
        raise ConversionError(problems)
    return {"trunk": trunk}


def constants(shift: tuple[float, ...], scale: tuple[float, ...]) -> Mapping[str, np.ndarray]:
    """Returns the colour shift and scale of the port with the keys and shapes that VidTwin's checkpoint gives them."""
    return {
        f"{VIDTWIN}.scaling_layer.{name}": np.asarray(values, np.float32).reshape(1, 3, 1, 1)
        for name, values in (("shift", shift), ("scale", scale))
    }
