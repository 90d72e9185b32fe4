"""Conversion table of `models.patchgan.PatchDiscriminator` with 3 layers, from VidTwin's checkpoint.

The targets are all variables of the network, ``{"params": ..., "batch_stats": ...}``; the sources are
the keys that begin with ``loss.discriminator.``.
"""

from vidmotion.convert.engine import Ignore, Rule, batch_norm, layer
from vidmotion.convert.transforms import conv2d

_MAIN = "loss.discriminator.main"


def _normed(i: int) -> tuple[Rule, ...]:
    """Returns the rules of convolution number i, which has no bias, and of the norm after it."""
    return (
        (f"params/conv_{i}/kernel", f"{_MAIN}.{3 * i - 1}.weight", conv2d),
        *batch_norm(f"norm_{i}", f"{_MAIN}.{3 * i}"),
    )


RULES = (
    *layer("params/conv_0", f"{_MAIN}.0", conv2d),
    *_normed(1),
    *_normed(2),
    *_normed(3),
    *layer("params/conv_4", f"{_MAIN}.11", conv2d),
    Ignore(f"{_MAIN}.*.num_batches_tracked", "counts batches; never read"),
)
