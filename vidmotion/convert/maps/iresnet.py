"""Conversion table of `models.features.iresnet.IResNet`, from the files of insightface's `arcface_torch`.

The target tree holds all variables: ``params/...`` and ``batch_stats/...``.
"""

import math
from collections.abc import Mapping

from vidmotion.convert.engine import ConversionError, Ignore, Rules, batch_norm, layer
from vidmotion.convert.transforms import conv2d, linear, same

PUBLISHED = (
    "backbone.pth of arcface_torch (ms1mv3_arcface_r50 or another r18 to r100; model zoo of "
    "github.com/deepinsight/insightface, recognition/arcface_torch)"
)

_OURS, _THEIRS = "layer{s}_{i}", "layer{s}.{i}"

RULES: Rules = (
    ("params/conv1/kernel", "conv1.weight", conv2d),
    *batch_norm("bn1", "bn1"),
    ("params/prelu/slope", "prelu.weight", same),
    *(
        rule
        for name in ("bn1", "bn2", "bn3")
        for rule in batch_norm(f"{_OURS}/{name}", f"{_THEIRS}.{name}")
    ),
    *(
        (f"params/{_OURS}/{name}/kernel", f"{_THEIRS}.{name}.weight", conv2d)
        for name in ("conv1", "conv2")
    ),
    (f"params/{_OURS}/prelu/slope", f"{_THEIRS}.prelu.weight", same),
    (f"params/{_OURS}/downsample_conv/kernel", f"{_THEIRS}.downsample.0.weight", conv2d),
    *batch_norm(f"{_OURS}/downsample_bn", f"{_THEIRS}.downsample.1"),
    *batch_norm("bn2", "bn2"),
    *layer("params/fc", "fc", linear),
    *batch_norm("features", "features"),
    Ignore("*num_batches_tracked", "counts updates; the statistics are fixed"),
)


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | int]:
    """Reads the attributes of `IResNet` from the shapes of a checkpoint.

    They are the blocks and the width of each stage, the width of the embedding, and the side of the faces in pixels.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: this is not the file of an IResNet; the message says which file is.
    """
    layers, widths = [], []
    while len(shape := shapes.get(f"layer{len(layers) + 1}.0.conv1.weight", ())) == 4:
        stage, depth = len(layers) + 1, 0
        while f"layer{stage}.{depth}.bn1.weight" in shapes:
            depth += 1
        layers.append(depth)
        widths.append(shape[0])
    last = shapes.get("fc.weight", ())
    if not layers or len(last) != 2 or "layer1.0.prelu.weight" not in shapes:
        raise ConversionError([f"not the file of an IResNet: give --src={PUBLISHED}"])
    side = math.isqrt(last[1] // widths[-1])
    return {
        "layers": tuple(layers),
        "widths": tuple(widths),
        "embedding": last[0],
        "size": side * 2 ** len(layers),
    }
