"""Conversion table of `models.features.i3d.I3D`, from the public PyTorch port of TensorFlow Hub's network.

The file is i3d_pretrained_400.pt, github.com/wilson1yan/VideoGPT. It holds the weights of
https://tfhub.dev/deepmind/i3d-kinetics-400/1 unchanged, so it serves all conventions of FVD. The target
tree holds all variables: ``params/...`` and ``batch_stats/...``.
"""

from vidmotion.convert.engine import Ignore, Rules, batch_norm, layer
from vidmotion.convert.transforms import conv3d, pointwise

LAYERS = (
    *("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"),
    *(
        f"Mixed_{block}.{branch}"
        for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
        for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    ),
)

RULES: Rules = (
    *(
        rule
        for name in LAYERS
        for path in (name.replace(".", "/"),)
        for rule in (
            (f"params/{path}/conv3d/kernel", f"{name}.conv3d.weight", conv3d),
            *batch_norm(f"{path}/bn", f"{name}.bn"),
        )
    ),
    *layer("params/logits", "logits.conv3d", pointwise(3)),
    Ignore("*num_batches_tracked", "counts updates; the statistics are fixed"),
)
