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
    """Equation 7's; there that of the adversarial term is 1.

    Attributes:
      adversarial: the weight of the discriminator's score.
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
    """The generator's loss of the GAN head, Equation 7.

    Args:
      target_nhwc, image_nhwc: I_D and I_{R->D}, RGB in [-1, 1].
      score_n: the discriminator's scores of `image_nhwc`; None leaves the adversarial term out, as below.
      matching: its features of both, target first.
      vgg, face: activations of VGG-19 and of the face recogniser for both, target first.
      weights: the weight of each term.

    Returns:
      Scalar float32, and the terms before weighting by name: ``reconstruction`` (equation 3, mean
      absolute difference), and of ``adversarial``, ``matching`` (6), ``vgg`` (4), ``face`` (5) those
      that are there.
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
