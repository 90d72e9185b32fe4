"""Conversion table of `models.resnet.ResNet`, from torchvision's classifier.

The target tree holds all variables: ``params/...`` and ``batch_stats/...``.
"""

from vidmotion.convert.engine import Ignore, Rules, batch_norm
from vidmotion.convert.transforms import conv2d

_BLOCK, _SOURCE = "stage{s}_{i}", "layer{s}.{i}"

RULES: Rules = (
    ("params/stem/kernel", "conv1.weight", conv2d),
    *batch_norm("stem_norm", "bn1"),
    *(
        rule
        for i in (1, 2, 3)
        for rule in (
            (f"params/{_BLOCK}/conv{i}/kernel", f"{_SOURCE}.conv{i}.weight", conv2d),
            *batch_norm(f"{_BLOCK}/norm{i}", f"{_SOURCE}.bn{i}"),
        )
    ),
    (f"params/{_BLOCK}/shortcut/kernel", f"{_SOURCE}.downsample.0.weight", conv2d),
    *batch_norm(f"{_BLOCK}/shortcut_norm", f"{_SOURCE}.downsample.1"),
    Ignore("fc.*", "the classifier after the pooling"),
    Ignore("*num_batches_tracked", "counts updates; not needed with a fixed momentum"),
)
