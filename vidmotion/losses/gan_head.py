"""The generator's objective of X-NeMo's GAN head (equation 7; spec xnemo.md, 2.1)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vidmotion.losses.feature_matching import feature_distance
from vidmotion.losses.gan import hinge_generator

Maps = Sequence[jax.Array]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of the terms of Equation 7.

    Attributes:
      adversarial: the weight of the adversarial term; Equation 7 has 1.
      reconstruction, vgg, face, matching: lambda_r, lambda_vgg, lambda_vggf, lambda_fm.
    """

    adversarial: float = 1.0
    reconstruction: float = 1.0
    vgg: float = 3e-2
    face: float = 6e-3
    matching: float = 10.0


def generator_loss(
    target_nhwc: jax.Array,
    image_nhwc: jax.Array,
    score_n: jax.Array | None = None,
    matching: tuple[Maps, Maps] | None = None,
    vgg: tuple[Maps, Maps] | None = None,
    face: tuple[Maps, Maps] | None = None,
    weights: Weights = Weights(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the generator's loss of the GAN head, Equation 7.

    Args:
      target_nhwc, image_nhwc: I_D and I_{R->D}, RGB in [-1, 1].
      score_n: the discriminator's scores of `image_nhwc`; None leaves the adversarial term out.
      matching: the discriminator's features of both images, target first; None leaves this term out.
      vgg, face: the activations of VGG-19 and of the face recogniser for both images, target first; None leaves the
        term out.
      weights: the weight of each term.

    Returns:
      The loss, scalar float32, and a dictionary of the terms before weighting: ``reconstruction`` (equation 3, mean
      absolute difference) and, unless left out, ``adversarial``, ``matching`` (6), ``vgg`` (4) and ``face`` (5).
    """
    gap = target_nhwc.astype(jnp.float32) - image_nhwc.astype(jnp.float32)
    terms = {"reconstruction": jnp.mean(jnp.abs(gap))}
    if score_n is not None:
        terms["adversarial"] = hinge_generator(score_n)
    if matching is not None:
        terms["matching"] = feature_distance(*matching)
    for name, maps in (("vgg", vgg), ("face", face)):
        if maps is not None:
            terms[name] = feature_distance(*maps, layers="sum")
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms
