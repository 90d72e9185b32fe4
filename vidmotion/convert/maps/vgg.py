"""Conversion tables of `models.features.vgg.VGGActivations`, from torchvision's layout: VGG-19 and the face VGG-16.

The keys may be those of the whole classifier (``features.0.weight``) or of its convolutions alone
(``0.weight``), as in the face recogniser's file of the latent pose descriptors.
"""

from vidmotion.convert.engine import Ignore, Rule, Rules, layer
from vidmotion.convert.transforms import conv2d


def _rules(depths: tuple[int, ...], used: tuple[int, ...]) -> Rules:
    """Returns the rules of a VGG whose stages have `depths` convolutions; the first `used` of each stage are kept."""
    rules: list[Rule | Ignore] = [Ignore("classifier.*", "the dense layers of the classifier")]
    place = 0
    for stage, (depth, wanted) in enumerate(zip(depths, used), 1):
        for i in range(1, depth + 1):
            names = (f"features.{place}", f"{place}")
            if i <= wanted:
                rules += layer(f"conv{stage}_{i}", names, conv2d)
            else:
                rules += [Ignore(f"{name}.*", "after the last layer in use") for name in names]
            place += 2  # a convolution and its ReLU
        place += 1  # the pooling
    return tuple(rules)


VGG19: Rules = _rules((2, 2, 4, 4, 4), (2, 2, 4, 4, 1))
VGG_FACE: Rules = _rules((2, 2, 3, 3, 3), (2, 2, 3, 3, 3))
