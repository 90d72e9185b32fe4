"""VidTwin: a video autoencoder with a structure and a dynamics latent, trained with a GAN (CVPR 2025).

Wang et al., arXiv 2412.17726; losses as in the released code (spec vidtwin.md, section 7). Two players: ``model``,
the autoencoder, and ``disc``, a discriminator of single frames that sees the reconstructions of the same forward
pass:

    L_model = nll(|x - x'|, LPIPS(x, x')) + kl_weight * KL + w * on * (-mean D(x'))
    L_disc  = on * (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2

w is adaptive: it makes the adversarial gradient at the decoder's last kernel a fixed share of the likelihood's.
`on` begins for the discriminator with batch `gan.start`, for the autoencoder one batch later.

Shape suffixes: b batch, t frames, h w rows and columns, c colours, n = b t single frames.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths
from vidmotion.convert import folder
from vidmotion.errors import ConfigError
from vidmotion.losses.gan import adaptive_weight, hinge_discriminator, hinge_generator
from vidmotion.losses.kl import gaussian_kl
from vidmotion.losses.reconstruction import laplace_nll
from vidmotion.models.features.lpips import LPIPS
from vidmotion.models.patchgan import PatchDiscriminator
from vidmotion.models.vidtwin import VidTwin
from vidmotion.system import Const, Out, Player, System, Vars, dtype, record, when

log = logging.getLogger(__name__)

PyTree = Any
PARTS = ("both", "structure", "dynamics")
LAST_KERNEL = "decoder/out/kernel"


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """LPIPS with VGG-16 in the likelihood.

    Attributes:
      weight: of the distance, at every value of its frame.
      weights: folder that ``python -m vidmotion.convert lpips_vgg`` wrote; empty leaves the term out.
    """

    weight: float = 0.05
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Gan:
    """The discriminator and its part in the loss.

    Attributes:
      weight: of the adversarial gradient against the likelihood's, at the last kernel.
      start: first batch from which the discriminator learns; batches, not optimiser steps.
      width, layers: of `PatchDiscriminator`.
    """

    weight: float = 0.05
    start: int = 10_000
    width: int = 64
    layers: int = 3


@dataclasses.dataclass(frozen=True)
class VidTwinAutoencoder(System):
    """VidTwin with its losses.

    Attributes:
      network: sizes of `models.vidtwin.VidTwin`, all its fields but dtype, remat and scan.
      kl_weight: of the divergence summed over the latents of a clip.
      perceptual, gan: the records above, or mappings of their fields.
      compute: ``float32`` or ``bfloat16``; parameters, latents and losses are float32 either way.
      remat, scan: of both transformers; see `models.spacetime.Trunk`.

    Raises:
      ConfigError: sizes that do not exist or do not fit together.
    """

    network: Mapping[str, Any]
    kl_weight: float = 1e-3
    perceptual: Perceptual = Perceptual()
    gan: Gan = Gan()
    compute: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        for name, cls in (("perceptual", Perceptual), ("gan", Gan)):
            object.__setattr__(self, name, record(cls, getattr(self, name), name))
        dtype(self.compute)
        record(VidTwin, self.network, "network")
        try:
            self.net.check()
        except ValueError as error:
            raise ConfigError(f"config.system.network: {error}") from error
        least = 3 * 2**self.gan.layers
        if self.net.size < least:
            raise ConfigError(
                f"config.system.gan.layers={self.gan.layers} needs frames of {least} px or more, "
                f"config.system.network.size is {self.net.size}"
            )

    # -- networks ---------------------------------------------------------------------------------

    @property
    def net(self) -> VidTwin:
        """The autoencoder."""
        return VidTwin(**self.network, dtype=dtype(self.compute), remat=self.remat, scan=self.scan)

    @property
    def size(self) -> int:
        """Height and width of a frame."""
        return self.net.size

    @property
    def window(self) -> int:
        """Frames of a clip: each window of structure goes with one of dynamics."""
        return self.net.frames

    @property
    def parts(self) -> tuple[str, ...]:
        """Each latent can be shown alone."""
        return PARTS[1:]

    @property
    def disc(self) -> PatchDiscriminator:
        """The discriminator."""
        return PatchDiscriminator(self.gan.width, self.gan.layers, dtype(self.compute))

    @property
    def lpips(self) -> LPIPS:
        """The perceptual distance."""
        return LPIPS(trunk="vgg", dtype=dtype(self.compute))

    # -- the interface ----------------------------------------------------------------------------

    @property
    def players(self) -> tuple[Player, ...]:
        """The autoencoder; from batch `gan.start` on the discriminator, on the same reconstructions."""
        return (Player("model"), Player("disc", start=self.gan.start, shares_forward=True))

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """``video``: uint8 (B, T, H, W, 3)."""
        shape = (batch, self.net.frames, self.net.size, self.net.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """``{"model": {autoencoder, logvar}, "disc": ...}``."""
        keys = jax.random.split(key)
        net = self.net
        video = jnp.zeros((1, net.frames, net.size, net.size, 3))
        return {
            "model": {
                "autoencoder": net.init(keys[0], video)["params"],
                "logvar": jnp.zeros(()),
            },
            "disc": self.disc.init(keys[1], video[0], True)["params"],
        }

    def init_mutable(self) -> PyTree:
        """``{"disc": running statistics}``."""
        frame = jax.ShapeDtypeStruct((1, self.net.size, self.net.size, 3), jnp.float32)
        shapes = jax.eval_shape(
            lambda x: self.disc.init(jax.random.key(0), x, True)["batch_stats"], frame
        )
        fresh = {
            path: (jnp.ones if path.endswith("var") else jnp.zeros)(leaf.shape)
            for path, leaf in paths.flatten(shapes).items()
        }
        return {"disc": paths.unflatten(fresh)}

    def consts_spec(self) -> dict[str, Const]:
        """``{"lpips": ...}``, nothing without its weights, which the log then says."""
        if not self.perceptual.weights:
            log.info(
                "config.system.perceptual.weights is empty: the reconstruction is judged by L1 alone, without "
                "LPIPS; `python -m vidmotion.convert lpips_vgg` makes that folder"
            )
            return {}
        return {"lpips": Const(self._lpips_shapes, self._load_lpips)}

    def _lpips_shapes(self) -> PyTree:
        x = jnp.zeros((1, 64, 64, 3))
        return jax.eval_shape(self.lpips.init, jax.random.key(0), x, x)["params"]

    def _load_lpips(self) -> PyTree:
        field = f"config.system.perceptual.weights={self.perceptual.weights!r}"
        return folder.load_wanted(field, self.perceptual.weights, "lpips_vgg")[1]

    def tokens(self, batch: int) -> int:
        """Patches that the encoder reads, and as many the decoder."""
        t, h, w = self.net.grid
        return 2 * batch * t * h * w

    def released(self, params: PyTree) -> PyTree:
        """``{"model": tree}`` of this system from a network of ``python -m vidmotion.convert vidtwin``."""
        return {"model": {"autoencoder": params, "logvar": jnp.zeros(())}}

    def paper_counts(self, params: PyTree) -> dict[str, int]:
        """Parameters as the paper's figures have them.

        The released code also holds a last layer in the encoder and a patch embedding in the decoder, which nothing
        reads and which are not made here, and its figures take in VGG-16 with its LPIPS heads, the discriminator
        and the log-variance (spec, section 5).
        """
        net = self.net
        pixels = math.prod(net.patch) * 3
        unread = (2 * net.width + net.width * pixels + pixels) + (pixels * net.width + net.width)
        own = _count(params["model"]["autoencoder"]) + unread
        judges = _count(self._lpips_shapes()) + _count(params["disc"]) + 1
        return {"autoencoder": own, "with loss networks": own + judges}

    def facts(self, params: PyTree) -> dict[str, str]:
        """Parameters as the paper counts them, and how many numbers are kept of a clip."""
        counts = self.paper_counts(params)
        shapes = self.net.structure_shape, self.net.dynamics_shape
        structure, dynamics = ("x".join(map(str, shape)) for shape in shapes)
        return {f"as the paper: {name}": f"{count:,}" for name, count in counts.items()} | {
            "latents of a clip": f"structure {structure}, dynamics {dynamics}; {self.net.rate:.4%} of its numbers"
        }

    def evaluators(self) -> tuple[str, ...]:
        """Reconstruction of clips; transfer of dynamics against the exact render of heads; leakage."""
        return ("reconstruction", "swap", "drivers", "reading", "leakage")

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """The player's loss on a batch of clips (see the module's docstring)."""
        x_bthwc = _unit(batch["video"])
        x_nhwc = x_bthwc.reshape(-1, *x_bthwc.shape[2:])
        if player == "disc":
            return self._disc_loss(vars, x_nhwc, carry["reconstruction"])
        params = vars.params["model"]
        net = params["autoencoder"]
        dropout_key, draw_key = jax.random.split(key)
        latents = self._apply(net, x_bthwc, False, method="encode", rngs={"dropout": dropout_key})
        drawn = [g.sample(k) for g, k in zip(latents, jax.random.split(draw_key))]
        features = self._apply(net, *drawn, method="decode_features")
        made = self._crop(self._apply(net, features, method="to_pixels"))
        made_nhwc = made.reshape(x_nhwc.shape)
        kl = jnp.mean(sum(gaussian_kl(g.mean, g.logvar) for g in latents))

        judged, mutable, metrics = self._judge(vars, x_nhwc, features, made_nhwc, step)
        loss = judged + self.kl_weight * kl
        error = made_nhwc - x_nhwc
        metrics |= {
            "kl": kl,
            "logvar": params["logvar"],
            "l1": jnp.mean(jnp.abs(error)),
            # Of the range [-1, 1], clipped or not: a number to watch, not the metric.
            "psnr": -10.0 * jnp.log10(jnp.mean(jnp.square(error)) / 4.0),
        }
        carry = {"reconstruction": jax.lax.stop_gradient(made_nhwc)}
        return loss, Out(metrics, mutable, carry)

    def _judge(self, vars, x_nhwc, features, made_nhwc, step):
        """Likelihood and adversarial term: (their value, mutable, metrics).

        Both networks that judge a reconstruction run forward and backward once: the gradient with respect to it
        is taken here, weighed, and handed on to the autoencoder as that of a linear function.
        """
        params = vars.params["model"]
        made, logvar, net = jax.lax.stop_gradient(
            (made_nhwc, params["logvar"], params["autoencoder"])
        )
        lpips = {"params": vars.consts["lpips"]} if "lpips" in vars.consts else None
        seen = lpips and self.lpips.apply(lpips, x_nhwc, method="features")

        def likelihood(made, logvar):
            distance_n = jnp.zeros(len(made))
            if lpips:
                maps = self.lpips.apply(lpips, made, method="features")
                distances = self.lpips.apply(lpips, seen, maps, method="distances")
                distance_n = jnp.sum(distances, axis=-1)
            error = jnp.abs(x_nhwc - made)
            return laplace_nll(error, distance_n, logvar, self.perceptual.weight), distance_n

        (nll, distance_n), (pull_nll, pull_logvar) = jax.value_and_grad(
            likelihood, argnums=(0, 1), has_aux=True
        )(made, logvar)

        def adversarial(made):
            variables = {"params": vars.params["disc"], "batch_stats": vars.mutable["disc"]}
            logits, state = self.disc.apply(variables, made, True, mutable="batch_stats")
            return hinge_generator(logits), state["batch_stats"]

        def kernel_gradient(pull):
            def last_layer(kernel):
                changed = paths.unflatten({**paths.flatten(net), LAST_KERNEL: kernel})
                made = self._apply(changed, jax.lax.stop_gradient(features), method="to_pixels")
                return self._crop(made).reshape(made_nhwc.shape)

            _, back = jax.vjp(last_layer, paths.flatten(net)[LAST_KERNEL])
            return back(pull)[0]

        def play():
            (term, stats), pull = jax.value_and_grad(adversarial, has_aux=True)(made)
            weight = adaptive_weight(
                kernel_gradient(pull_nll), kernel_gradient(pull), self.gan.weight
            )
            return weight * term, stats, weight * pull, {"gan": term, "gan_weight": weight}

        def rest():
            zero = jnp.zeros(())
            none = {"gan": zero, "gan_weight": zero}
            return zero, vars.mutable["disc"], jnp.zeros_like(made), none

        on = step > self.gan.start
        term, stats, pull_gan, metrics = when(on, play, rest)
        moved = jnp.sum(made_nhwc * (pull_nll + pull_gan)) + params["logvar"] * pull_logvar
        value = nll + term
        metrics = {"nll": nll, **metrics}
        if lpips:
            metrics["lpips"] = jnp.mean(distance_n)
        return jax.lax.stop_gradient(value - moved) + moved, {"disc": stats}, metrics

    def _disc_loss(self, vars, x_nhwc, made_nhwc):
        params, stats = vars.params["disc"], vars.mutable["disc"]
        logits = []
        for frames in (x_nhwc, made_nhwc):
            variables = {"params": params, "batch_stats": stats}
            seen, state = self.disc.apply(variables, frames, True, mutable="batch_stats")
            stats = state["batch_stats"]
            logits.append(seen)
        metrics = {"logits_real": jnp.mean(logits[0]), "logits_fake": jnp.mean(logits[1])}
        return hinge_discriminator(*logits), Out(metrics, {"disc": stats})

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        part: str = "both",
        draw: bool = False,
    ) -> PyTree:
        """Cross-reenactment: the structure of one clip with the dynamics of another (section 10).

        Both are cut into windows of the network's length and paired in order; the last window of each is filled
        up with its last frame, and the content's last window serves what is longer.

        Args:
          vars: parameters.
          batch: ``content`` uint8 (B, T_c, H, W, 3) and ``motion`` uint8 (B, T, H, W, 3); the same clip for
            reconstruction.
          key: of the draw.
          part: decode ``both`` latents, or ``structure`` or ``dynamics`` alone.
          draw: sample the latents, as the released scripts do, rather than take their means.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1].

        Raises:
          ConfigError: unknown `part`.
        """
        if part not in PARTS:
            raise ConfigError(f"part={part!r}: choose {', '.join(PARTS)}")
        clips, frames = batch["motion"].shape[:2]
        content, motion = (self._windows(batch[name]) for name in ("content", "motion"))
        count = motion.shape[1]
        shown = content[:, jnp.minimum(jnp.arange(count), content.shape[1] - 1)]
        keys = jax.random.split(key)

        def latents(x, key):
            found = self._encode(vars, x.reshape(-1, *x.shape[2:]))
            return [g.sample(k) if draw else g.mean for g, k in zip(found, jax.random.split(key))]

        structure = latents(shown, keys[0])[0] if part != "dynamics" else None
        dynamics = latents(motion, keys[1])[1] if part != "structure" else None
        video = self._decode(vars, structure, dynamics)
        return {"video": video.reshape(clips, -1, *video.shape[2:])[:, :frames]}

    def read(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Means of the latents: ``video`` uint8 (B, T, H, W, 3) -> ``structure`` and ``dynamics``, float32,
        as of `models.vidtwin.Latents`."""
        found = self._encode(vars, batch["video"])
        return {"structure": found.structure.mean, "dynamics": found.dynamics.mean}

    def render(self, vars: Vars, batch: PyTree) -> jax.Array:
        """``structure``, ``dynamics``, or one alone, as of `read` -> video (B, T, H, W, 3) in [0, 1]."""
        return self._decode(vars, batch.get("structure"), batch.get("dynamics"))

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """``content``: the structure of clips ``content``, (B, numbers); ``motion``: the dynamics of clips
        ``motion``, (B, T, numbers of a frame)."""
        content = self.read(vars, {"video": batch["content"]})["structure"]
        motion = self.read(vars, {"video": batch["motion"]})["dynamics"]
        return {
            "content": content.reshape(len(content), -1),
            "motion": motion.reshape(*motion.shape[:2], -1),
        }

    # -- parts ------------------------------------------------------------------------------------

    def _apply(self, net, *inputs, **options):
        return self.net.apply({"params": net}, *inputs, **options)

    def _crop(self, video_bthwc):
        """Whole patches -> the clip's own size."""
        net = self.net
        return video_bthwc[:, : net.frames, : net.size, : net.size]

    def _encode(self, vars, video):
        return self._apply(vars.params["model"]["autoencoder"], _unit(video), method="encode")

    def _decode(self, vars, structure, dynamics):
        net = vars.params["model"]["autoencoder"]
        video = self._apply(net, structure, dynamics, method="decode")
        return jnp.clip(self._crop(video) * 0.5 + 0.5, 0.0, 1.0)

    def _windows(self, video_bthwc):
        """(B, T, ...) -> (B, windows, frames, ...), the last one filled up with the last frame."""
        length = self.net.frames
        count = -(-video_bthwc.shape[1] // length)
        index = jnp.minimum(jnp.arange(count * length), video_bthwc.shape[1] - 1)
        return video_bthwc[:, index].reshape(
            len(video_bthwc), count, length, *video_bthwc.shape[2:]
        )


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _unit(video: jax.Array) -> jax.Array:
    """uint8 -> [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0
