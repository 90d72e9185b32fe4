"""Conversion table of `models.features.inception.InceptionV3`, from the public port of FID's TensorFlow graph.

The file is pt_inception-2015-12-05-6726825d.pth, https://github.com/mseitzer/pytorch-fid/releases.
The target tree holds all variables: ``params/...`` and ``batch_stats/...``.
"""

from vidmotion.convert.engine import Ignore, Rules, batch_norm, layer
from vidmotion.convert.transforms import conv2d, linear

_BRANCHES = {
    "5b 5c 5d": (
        "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
    ),
    "6a": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
    "6b 6c 6d 6e": (
        "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 "
        "branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool"
    ),
    "7a": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    "7b 7c": (
        "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 "
        "branch3x3dbl_3a branch3x3dbl_3b branch_pool"
    ),
}
LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *(
        f"Mixed_{block}.{branch}"
        for blocks, branches in _BRANCHES.items()
        for block in blocks.split()
        for branch in branches.split()
    ),
)

RULES: Rules = (
    *(
        rule
        for name in LAYERS
        for path in (name.replace(".", "/"),)
        for rule in (
            (f"params/{path}/conv/kernel", f"{name}.conv.weight", conv2d),
            *batch_norm(f"{path}/bn", f"{name}.bn"),
        )
    ),
    *layer("params/fc", "fc", linear),
    Ignore("AuxLogits.*", "the second classifier, for training"),
    Ignore("*num_batches_tracked", "counts updates; the statistics are fixed"),
)
