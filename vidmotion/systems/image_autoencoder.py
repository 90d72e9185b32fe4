"""An image autoencoder of Stable Diffusion's class, trained on your own pictures, whose latents can then be diffused.

Latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G) first trains the autoencoder, with

    L_model = l1 |x - x'| + l2 (x - x')^2 + perceptual LPIPS(x, x') + kl KL + gan (-mean D(x'))
    L_disc  = (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2

with means over pixels and, for the divergence, over the numbers of a latent. The perceptual and the adversarial term
are optional: without them the autoencoder is sharp where its latents can hold the detail, and blurred elsewhere.

Shape suffixes: n single pictures, h w rows and columns, c colours.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion.config_schema import from_config
from vidmotion.convert import folder
from vidmotion.errors import ConfigError
from vidmotion.losses.gan import hinge_discriminator, hinge_generator
from vidmotion.losses.kl import gaussian_kl
from vidmotion.models import vae
from vidmotion.models.features.lpips import LPIPS
from vidmotion.models.patchgan import PatchDiscriminator
from vidmotion.system import (
    Const,
    Out,
    Player,
    System,
    Vars,
    begun,
    dtype,
    fresh_statistics,
)
from vidmotion.systems import codecs

log = logging.getLogger(__name__)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the terms of L_model.

    Attributes:
      l1, l2: the weights of the mean absolute and the mean squared error, pixels in [-1, 1].
      kl: the weight of the divergence from the standard normal distribution, in nats per number of the latent.
      perceptual: the weight of LPIPS, which is left out if `ImageAutoencoder.lpips` is empty.
    """

    l1: float = 1.0
    l2: float = 1.0
    kl: float = 1e-6
    perceptual: float = 1.0


@dataclasses.dataclass(frozen=True)
class Gan:
    """Settings of the adversarial term.

    Attributes:
      weight: the weight of -mean D(x'); 0 trains without a discriminator.
      start: the step from which the discriminator learns and its term counts in the autoencoder's loss.
      width, layers: the sizes of `PatchDiscriminator`.
    """

    weight: float = 0.0
    start: int = 0
    width: int = 32
    layers: int = 2


@dataclasses.dataclass(frozen=True)
class ImageAutoencoder(System):
    """An `AutoencoderKL` with its losses.

    Attributes:
      size: height and width of a picture.
      frames: the number of pictures in a training example, which is a clip.
      network: a name in `vae.SIZES`, or a mapping of `AutoencoderKL`'s sizes.
      loss_terms, gan: see `Loss` and `Gan`.
      lpips: the folder that ``python -m vidmotion.convert lpips_vgg`` wrote; empty leaves the perceptual term out.
      compute: ``float32`` or ``bfloat16``; parameters and losses are float32 either way.

    Raises:
      ConfigError: sizes that do not exist or do not fit together.
    """

    size: int
    frames: int
    network: Any = "sd"
    loss_terms: Loss = Loss()
    gan: Gan = Gan()
    lpips: str = ""
    compute: str = "float32"

    def __post_init__(self):
        if isinstance(self.network, str) and self.network not in vae.SIZES:
            raise ConfigError(
                f"config.system.network={self.network!r}: choose {', '.join(vae.SIZES)}, or give the "
                "sizes of AutoencoderKL"
            )
        from_config(vae.AutoencoderKL, self._sizes, "system.network")
        if self.size % self.net.factor:
            raise ConfigError(
                f"config.system.size={self.size}: this autoencoder needs a multiple of {self.net.factor}"
            )

    # -- networks ---------------------------------------------------------------------------------

    @property
    def _sizes(self) -> Mapping[str, Any]:
        return vae.SIZES[self.network] if isinstance(self.network, str) else self.network

    @property
    def net(self) -> vae.AutoencoderKL:
        """The autoencoder."""
        return vae.AutoencoderKL(**self._sizes, dtype=dtype(self.compute))

    @property
    def _disc(self) -> PatchDiscriminator:
        return PatchDiscriminator(self.gan.width, self.gan.layers, dtype(self.compute))

    @property
    def _lpips(self) -> LPIPS:
        return LPIPS(trunk="vgg", dtype=dtype(self.compute))

    # -- the interface ----------------------------------------------------------------------------

    @property
    def players(self) -> tuple[Player, ...]:
        """``model``; with an adversarial term also ``disc``, which learns from the same reconstructions."""
        disc = Player("disc", start=self.gan.start, shares_forward=True)
        return (Player("model"), disc) if self.gan.weight else (Player("model"),)

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), whose frames are independent examples."""
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": autoencoder, "disc": discriminator}``, the latter if there is one."""
        keys = jax.random.split(key)
        picture = jnp.zeros((1, self.size, self.size, 3))
        params = {"model": self.net.init(keys[0], picture)["params"]}
        if self.gan.weight:
            params["disc"] = self._disc.init(keys[1], picture, True)["params"]
        return params

    def init_mutable(self) -> PyTree:
        """Returns ``{"disc": running statistics}`` of the discriminator, if there is one."""
        if not self.gan.weight:
            return {}
        picture = jnp.zeros((1, self.size, self.size, 3))
        shapes = jax.eval_shape(
            lambda: self._disc.init(jax.random.key(0), picture, True)["batch_stats"]
        )
        return {"disc": fresh_statistics(shapes)}

    def consts_spec(self) -> dict[str, Const]:
        """Returns ``{"lpips": ...}``; nothing if no folder with its weights is given."""
        if not self.lpips:
            return {}
        picture = jnp.zeros((1, 64, 64, 3))
        field = f"config.system.lpips={self.lpips!r}"
        return {
            "lpips": Const(
                lambda: jax.eval_shape(self._lpips.init, jax.random.key(0), picture, picture)[
                    "params"
                ],
                lambda: folder.load_wanted(field, self.lpips, "lpips_vgg")[1],
            )
        }

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures the autoencoder's error on held-out pictures."""
        return ("codec",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the player's loss on a batch (see the module's docstring)."""
        x = codecs.signed(batch["video"]).reshape(-1, self.size, self.size, 3)
        if player == "disc":
            return self._disc_loss(vars, x, carry["reconstruction"])
        params = {"params": vars.params["model"]}
        mean, logvar = self.net.apply(params, x, method="encode")
        drawn = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        made = self.net.apply(params, drawn, method="decode")
        error = made - x
        terms = self.loss_terms
        l1, l2 = jnp.mean(jnp.abs(error)), jnp.mean(jnp.square(error))
        kl = jnp.mean(gaussian_kl(mean, logvar)) / mean[0].size
        loss = terms.l1 * l1 + terms.l2 * l2 + terms.kl * kl
        metrics = {
            "l1": l1,
            "l2": l2,
            "kl": kl,
            "psnr": jnp.mean(-10.0 * jnp.log10(jnp.mean(jnp.square(error), axis=(1, 2, 3)) / 4.0)),
        }
        if "lpips" in vars.consts:
            metrics["lpips"] = jnp.mean(
                self._lpips.apply({"params": vars.consts["lpips"]}, x, made)
            )
            loss += terms.perceptual * metrics["lpips"]
        mutable, on = vars.mutable, begun(step, self.gan.start)
        if self.gan.weight and on is not False:
            logits, mutable = self._judged(vars.params["disc"], vars.mutable, made)
            metrics["gan"] = hinge_generator(logits)
            loss += jnp.asarray(on, jnp.float32) * self.gan.weight * metrics["gan"]
        return loss, Out(metrics, mutable, {"reconstruction": made} if self.gan.weight else {})

    def _judged(self, params, mutable, pictures):
        """Returns the discriminator's logits for pictures, and the mutable state afterwards."""
        variables = {"params": params, "batch_stats": mutable["disc"]}
        logits, state = self._disc.apply(variables, pictures, True, mutable="batch_stats")
        return logits, {"disc": state["batch_stats"]}

    def _disc_loss(self, vars, x, made):
        real, mutable = self._judged(vars.params["disc"], vars.mutable, x)
        fake, mutable = self._judged(vars.params["disc"], mutable, made)
        metrics = {"logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
        return hinge_discriminator(real, fake), Out(metrics, mutable)

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array) -> PyTree:
        """Rebuilds pictures through the mean of their latents.

        Args:
          vars: parameters.
          batch: ``video`` uint8 (B, T, H, W, 3).
          key: not read.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1]; ``latent`` float32 (B, T, H/f, W/f, C), where f is the factor of
          the autoencoder.
        """
        params = {"params": vars.params["model"]}
        video = batch["video"]
        x = codecs.signed(video).reshape(-1, *video.shape[2:])
        latent = self.net.apply(params, x, method="encode")[0]
        made = jnp.clip(self.net.apply(params, latent, method="decode") * 0.5 + 0.5, 0.0, 1.0)
        return {
            "video": made.reshape(video.shape),
            "latent": latent.reshape(*video.shape[:2], *latent.shape[1:]),
        }
