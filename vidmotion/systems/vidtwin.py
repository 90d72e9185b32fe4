"""VidTwin: a video autoencoder with a structure and a dynamics latent, trained with a GAN (CVPR 2025).

Wang et al., arXiv 2412.17726; losses as in the released code (spec vidtwin.md, section 7). There are two players:
``model``, the autoencoder, and ``disc``, a discriminator of single frames that sees the reconstructions from the same
forward pass:

    L_model = nll(|x - x'|, LPIPS(x, x')) + kl_weight * KL + w * on * (-mean D(x'))
    L_disc  = on * (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2

The weight w is adaptive: it makes the adversarial gradient at the decoder's last kernel a fixed share of the
likelihood's gradient. `on` becomes 1 for the discriminator with batch `gan.start`, for the autoencoder one batch later.

x are pixels in [-1, 1], as in the paper, or the latents of a frozen image autoencoder (`codec`), which then decodes the
samples. With latents a small VidTwin learns faster, because a frame consists of few numbers of similar scale.

Shape suffixes: b batch, t frames, h w rows and columns, c channels, n = b t single frames.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidmotion import paths
from vidmotion.config_schema import from_config
from vidmotion.convert import folder
from vidmotion.diffusion.windows import fade
from vidmotion.errors import ConfigError
from vidmotion.losses.gan import adaptive_weight, hinge_discriminator, hinge_generator
from vidmotion.losses.kl import gaussian_kl
from vidmotion.losses.reconstruction import laplace_nll
from vidmotion.models.features.lpips import LPIPS
from vidmotion.models.patchgan import PatchDiscriminator
from vidmotion.models.vidtwin import VidTwin
from vidmotion.models.vidtwin_ablations import ABLATIONS
from vidmotion.system import (
    Const,
    Describes,
    MotionTransfer,
    Out,
    Player,
    Released,
    System,
    Vars,
    begun,
    dtype,
    fresh_statistics,
    when,
)
from vidmotion.systems import codecs
from vidmotion.systems.codecs import LatentCodec, PixelCodec

log = logging.getLogger(__name__)

PyTree = Any
PARTS = ("both", "structure", "dynamics")
SOURCES = ("clip", "shuffled", "other", "either")
PAIRED = ("other", "either")
LAST_KERNEL = "decoder/out/kernel"


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Settings of the LPIPS term in the likelihood, which uses VGG-16.

    Attributes:
      weight: the weight of a frame's LPIPS distance, which is added at every value of the frame.
      weights: the folder that ``python -m vidmotion.convert lpips_vgg`` wrote; empty leaves the term out.
    """

    weight: float = 0.05
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Gan:
    """Settings of the discriminator and of the adversarial term.

    Attributes:
      weight: the size of the adversarial gradient relative to the likelihood's, at the last kernel; 0 trains without a
        discriminator.
      start: the first batch from which the discriminator learns, counted in batches, not in optimiser steps.
      width, layers: the sizes of `PatchDiscriminator`.
    """

    weight: float = 0.05
    start: int = 10_000
    width: int = 64
    layers: int = 3


@dataclasses.dataclass(frozen=True)
class VidTwinAutoencoder(System, MotionTransfer, Released, Describes):
    """VidTwin with its losses.

    Attributes:
      network: the sizes of `models.vidtwin.VidTwin`, in pixels: all its fields except channels, dtype, remat and scan,
        and the additional fields of an ablation.
      ablation: the letter of an ablation in Table 3 of the main text, see `models.vidtwin_ablations`; "" is the full
        model.
      codec: the image autoencoder whose latents the network reads and writes, see `systems.codecs`; None: the network
        reads and writes pixels.
      structure_from: where training reads the structure that is decoded with a clip's dynamics. ``clip``: from the
        clip itself, as in the paper. ``shuffled``: from its frames in random order (a variant in the released code,
        which has another variant that reorders the encoder's output; that one changes nothing, since the Q-Former sees
        a set). ``other``: from another window of the same video, which shows the same objects in other motion, so that
        motion can only come from the dynamics. ``either``: as ``other`` in half of the videos, drawn anew at each step,
        and as ``clip`` in the rest, so that a clip's own structure still provides its details. With ``other`` and
        ``either``, training reads videos of two windows.
      recolour: the share of the training windows whose colours are changed, each at random. The target of the decoder
        has the colours of the window from which the structure was read, so that the dynamics cannot provide them. 0, as
        in the paper, changes none. Needs ``structure_from`` ``other`` or ``either``, and no cached latents.
      kl_weight: the weight of the divergence, which is summed over the latents of a clip.
      perceptual, gan: see `Perceptual` and `Gan`.
      overlap: the number of frames that a window shares with the next when `sample` cuts a long clip into windows; at
        most half a window.
      compute: ``float32`` or ``bfloat16``; parameters, latents and losses are float32 either way.
      remat, scan: settings of both transformers, see `models.spacetime.Trunk`.

    Raises:
      ConfigError: sizes that do not exist or do not fit together.
    """

    network: Mapping[str, Any]
    ablation: str = ""
    codec: PixelCodec | LatentCodec | Mapping[str, Any] | None = None
    structure_from: str = "clip"
    recolour: float = 0.0
    kl_weight: float = 1e-3
    perceptual: Perceptual = Perceptual()
    gan: Gan = Gan()
    overlap: int = 0
    compute: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        dtype(self.compute)
        if self.structure_from not in SOURCES:
            raise ConfigError(
                f"config.system.structure_from={self.structure_from!r}: choose {', '.join(SOURCES)}"
            )
        if not 0 <= self.recolour <= 1:
            raise ConfigError(
                f"config.system.recolour={self.recolour} must be a share, from 0 to 1"
            )
        if self.recolour and self.structure_from not in PAIRED:
            raise ConfigError(
                f"config.system.recolour={self.recolour} needs config.system.structure_from to be one of "
                f"{', '.join(PAIRED)}: the colours go with another window's structure"
            )
        if self.ablation not in ABLATIONS:
            raise ConfigError(
                f"config.system.ablation={self.ablation!r}: choose {', '.join(filter(None, ABLATIONS))}, or '' for the "
                "full model"
            )
        from_config(ABLATIONS[self.ablation], self.network, "system.network")
        if self.codec is not None:
            object.__setattr__(self, "codec", codecs.make(self.codec))
            self._check_codec()
        try:
            self.net.check()
        except ValueError as error:
            raise ConfigError(f"config.system.network: {error}") from error
        if not self.parts and self.structure_from != "clip":
            raise ConfigError(
                f"config.system.structure_from={self.structure_from!r}: with config.system.ablation='a' there is one "
                "latent, which is that of the clip"
            )
        if not 0 <= self.overlap <= self.net.frames // 2:
            raise ConfigError(
                f"config.system.overlap={self.overlap} must be from 0 to half of a window's {self.net.frames} frames"
            )
        least = 3 * 2**self.gan.layers
        if self.gan.weight and self.net.size < least:
            raise ConfigError(
                f"config.system.gan.layers={self.gan.layers} needs frames of {least} places or more, but those that "
                f"the network makes for config.system.network.size={self.size} have {self.net.size}"
            )

    def _check_codec(self):
        side, _ = self.codec.latent_shape(self.size)
        factor = self.size // side
        patch = tuple(self.network.get("patch", VidTwin.patch))
        if any(pixels % factor for pixels in patch[1:]):
            raise ConfigError(
                f"config.system.network.patch={patch}: rows and columns are in pixels, and must be multiples of the "
                f"{factor} pixels of a place of this codec's latents"
            )
        if self.recolour and self.codec.cached:
            raise ConfigError(
                f"config.system.recolour={self.recolour} changes pixels: set config.system.codec.cached=False"
            )
        if self.perceptual.weights:
            raise ConfigError(
                "config.system.perceptual.weights: LPIPS judges pixels, but with config.system.codec the network "
                "makes latents; leave one of the two out"
            )

    # -- networks ---------------------------------------------------------------------------------

    @property
    def net(self) -> VidTwin:
        """The autoencoder's network, sized for the pixels or latents that it reads."""
        sizes = dict(self.network)
        if self.codec is not None:
            sizes["size"], sizes["channels"] = self.codec.latent_shape(self.size)
            frames, *sides = sizes.get("patch", VidTwin.patch)
            factor = self.size // sizes["size"]
            sizes["patch"] = (frames, *(pixels // factor for pixels in sides))
        cls = ABLATIONS[self.ablation]
        return cls(**sizes, dtype=dtype(self.compute), remat=self.remat, scan=self.scan)

    @property
    def size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.network.get("size", VidTwin.size)

    @property
    def share_kept(self) -> float:
        """The share of a clip that its latents keep: how many numbers they have over how many the clip's pixels have
        (supplement B.1)."""
        net = self.net
        return net.rate * net.channels * net.size**2 / (3 * self.size**2)

    @property
    def window(self) -> int:
        """The number of frames in a window, for which one structure goes with one dynamics; 0 without dynamics."""
        return self.net.frames if self.parts else 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The latents that can be decoded alone: both, or none if the network has only one."""
        return PARTS[1:] if self.net.dynamics_shape else ()

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
        """The autoencoder and, from batch `gan.start` on, the discriminator, which sees the same reconstructions.

        The discriminator's learning rate schedule counts from batch 0. The adversarial term reaches the autoencoder one
        batch after the discriminator starts.
        """
        if not self.gan.weight:
            return (Player("model"),)
        disc = Player("disc", start=self.gan.start, shares_forward=True, whole_schedule=True)
        return (Player("model", switches=(self.gan.start + 1,)), disc)

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), or ``latents`` float16 (B, T, h, w, C) if the
        codec's latents are cached.

        T is the length of one window, or of two where the structure may come from another window.
        """
        net = self.net
        frames = net.frames * (2 if self.structure_from in PAIRED else 1)
        if self.codec is not None and self.codec.cached:
            shape = (batch, frames, net.size, net.size, net.channels)
            return {"latents": jax.ShapeDtypeStruct(shape, jnp.float16)}
        shape = (batch, frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": {autoencoder, logvar}, "disc": ...}``, the latter if there is a
        discriminator."""
        keys = jax.random.split(key)
        net = self.net
        video = jnp.zeros((1, net.frames, net.size, net.size, net.channels))
        params = {
            "model": {
                "autoencoder": net.init(keys[0], video)["params"],
                "logvar": jnp.zeros(()),
            }
        }
        if self.gan.weight:
            params["disc"] = self.disc.init(keys[1], video[0], True)["params"]
        return params

    def init_mutable(self) -> PyTree:
        """Returns the initial non-gradient state, ``{"disc": running statistics}`` if there is a discriminator."""
        if not self.gan.weight:
            return {}
        net = self.net
        frame = jax.ShapeDtypeStruct((1, net.size, net.size, net.channels), jnp.float32)
        shapes = jax.eval_shape(
            lambda x: self.disc.init(jax.random.key(0), x, True)["batch_stats"], frame
        )
        return {"disc": fresh_statistics(shapes)}

    def consts_spec(self) -> dict[str, Const]:
        """Returns the frozen networks: the codec's if there is one, else ``{"lpips": ...}``.

        Without weights for LPIPS it returns nothing and says so in the log.
        """
        if self.codec is not None:
            return self.codec.consts()
        if not self.perceptual.weights:
            log.info(
                "config.system.perceptual.weights is empty: the reconstruction is judged by L1 alone, without "
                "LPIPS; `python -m vidmotion.convert lpips_vgg` makes that folder"
            )
            return {}
        return {"lpips": Const(self._lpips_shapes, self._load_lpips)}

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the frozen networks, or with a codec those of the codec."""
        if self.codec is not None:
            return self.codec.fingerprints(consts)
        return super().fingerprints(consts)

    def _lpips_shapes(self) -> PyTree:
        x = jnp.zeros((1, 64, 64, 3))
        return jax.eval_shape(self.lpips.init, jax.random.key(0), x, x)["params"]

    def _load_lpips(self) -> PyTree:
        field = f"config.system.perceptual.weights={self.perceptual.weights!r}"
        return folder.load_wanted(field, self.perceptual.weights, "lpips_vgg")[1]

    def tokens(self, batch: int) -> int:
        """Returns the number of patches in a batch that the encoder reads, plus those that the decoder writes."""
        t, h, w = self.net.grid
        passes = {"clip": 2, "shuffled": 3}.get(self.structure_from, 4)
        return passes * batch * t * h * w

    @staticmethod
    def released_fields(arguments: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Returns the network's sizes; those of the discriminator stay as in the config."""
        sizes = {name: x for name, x in arguments.items() if name != "discriminator_width"}
        return {"network": sizes}

    def released(self, params: PyTree) -> PyTree:
        """Returns this system's parameters from those that ``python -m vidmotion.convert vidtwin`` wrote.

        The log-variance and the discriminator come from the checkpoint if it has them; otherwise the log-variance is 0
        and the discriminator is left out.
        """
        logvar = params.get("loss", {}).get("logvar", np.zeros((), np.float32))
        network = {name: part for name, part in params.items() if name != "loss"}
        whole = {"model": {"autoencoder": network, "logvar": logvar}}
        if "disc" in params.get("loss", {}):
            whole["disc"] = params["loss"]["disc"]["params"]
        return whole

    def released_mutable(self, params: PyTree) -> PyTree:
        """Returns the discriminator's running statistics, from the checkpoint if it has them, else fresh ones."""
        fresh = self.init_mutable()
        if fresh and "disc" in params.get("loss", {}):
            return {"disc": params["loss"]["disc"]["batch_stats"]}
        return fresh

    def paper_counts(self, params: PyTree) -> dict[str, int]:
        """Counts the parameters in the way of the paper.

        The released code also has a last layer in the encoder and a patch embedding in the decoder, which are never
        used and which this network lacks. The second figure adds VGG-16 with its LPIPS heads, the discriminator and the
        log-variance (spec, section 5).
        """
        net = self.net
        pixels = math.prod(net.patch) * net.channels
        unread = (2 * net.width + net.width * pixels + pixels) + (pixels * net.width + net.width)
        own = _count(params["model"]["autoencoder"]) + unread
        judges = _count(self._lpips_shapes()) + _count(params.get("disc", {})) + 1
        return {"autoencoder": own, "with loss networks": own + judges}

    def facts(self, params: PyTree) -> dict[str, str]:
        """Returns the numbers of parameters as the paper counts them, and how many numbers the latents of a clip
        have."""
        counts = self.paper_counts(params)
        shapes = self.net.structure_shape, self.net.dynamics_shape
        structure, dynamics = ("x".join(map(str, shape or ("none",))) for shape in shapes)
        return {f"as in the paper: {name}": f"{count:,}" for name, count in counts.items()} | {
            "latents of a clip": f"structure {structure}, dynamics {dynamics}; {self.share_kept:.4%} of its numbers"
        }

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluators of reconstruction; with two latents also those of motion transfer, against the exact
        render of Heads, and of leakage."""
        two = ("swap", "drivers", "reading", "leakage") if self.parts else ()
        return ("reconstruction", *two)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the player's loss on a batch of clips (see the module's docstring)."""
        seen_bthwc, x_bthwc, crossed_b = self._views(vars, batch, key)
        x_nhwc = x_bthwc.reshape(-1, *x_bthwc.shape[2:])
        if player == "disc":
            return self._disc_loss(vars, x_nhwc, carry["reconstruction"])
        params = vars.params["model"]
        net = params["autoencoder"]
        dropout_key, draw_key = jax.random.split(key)
        latents = self._gaussians(net, seen_bthwc, dropout_key)
        structure, dynamics = latents.taken(draw_key)
        if self.structure_from in PAIRED:
            structure = _crossed(structure, crossed_b)
        features = self._apply(net, structure, dynamics, method="decode_features")
        made = self._crop(self._apply(net, features, method="to_pixels"))
        made_nhwc = made.reshape(x_nhwc.shape)
        gaussians = latents._asdict() if self.net.variational else {}
        divergences = {name: jnp.mean(gaussian_kl(*g)) for name, g in gaussians.items() if g}
        kl = sum(divergences.values())

        judged, mutable, metrics = self._judge(vars, x_nhwc, features, made_nhwc, step)
        loss = judged + self.kl_weight * kl
        error = made_nhwc - x_nhwc
        metrics |= {
            "kl": jnp.asarray(kl, jnp.float32),
            **{f"kl/{name}": value for name, value in divergences.items()},
            "logvar": params["logvar"],
            "l1": jnp.mean(jnp.abs(error)),
            "mse": jnp.mean(jnp.square(error)),
        }
        if self.codec is None:
            # Measured in [-1, 1] without clipping: for monitoring only, not the metric of the evaluation.
            metrics["psnr"] = -10.0 * jnp.log10(metrics["mse"] / 4.0)
        carry = {"reconstruction": jax.lax.stop_gradient(made_nhwc)}
        return loss, Out(metrics, mutable, carry)

    def _views(self, vars, batch, key):
        """Returns (the clips to encode, the target clips of the decoder, and for each clip whether it takes the other
        window's structure and colours; None if none does)."""
        cached = self.codec is not None and self.codec.cached
        clips = self._windows(batch["latents" if cached else "video"])
        clips = clips.reshape(-1, *clips.shape[2:])
        crossed_b = None
        if self.structure_from in PAIRED:
            share = 1.0 if self.structure_from == "other" else 0.5
            coins = jax.random.bernoulli(jax.random.fold_in(key, 2), share, (len(clips) // 2,))
            crossed_b = jnp.repeat(coins, 2)
        if not self.recolour:
            x_bthwc = self._read(vars, clips)
            return x_bthwc, x_bthwc, crossed_b
        own = _colours(jax.random.fold_in(key, 3), len(clips), self.recolour)
        theirs = [_crossed(part, crossed_b) for part in own]
        seen, made = (self._read(vars, _painted(clips, *colours)) for colours in (own, theirs))
        return seen, made, crossed_b

    def _gaussians(self, net, x_bthwc, key):
        """Returns the Gaussians of both latents in training, with the structure that `structure_from` asks for.

        The structures of a video's two windows are exchanged only later.
        """
        options = {"method": "encode", "rngs": {"dropout": key}}
        latents = self._apply(net, x_bthwc, False, **options)
        if self.structure_from == "shuffled":
            keys = jax.random.split(jax.random.fold_in(key, 1), len(x_bthwc))
            mixed = jax.vmap(jax.random.permutation)(keys, x_bthwc)
            latents = latents._replace(
                structure=self._apply(net, mixed, False, **options).structure
            )
        return latents

    def _judge(self, vars, x_nhwc, features, made_nhwc, step):
        """Returns the sum of the likelihood and the adversarial term, the mutable state and the metrics.

        Both networks that judge a reconstruction run forward and backward only once: this method takes the gradient
        with respect to the reconstruction, weights it, and passes it on to the autoencoder as the gradient of a linear
        function.
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

        metrics, mutable, value, pull = {"nll": nll}, vars.mutable, nll, pull_nll
        if self.gan.weight:
            on = begun(step, self.gan.start + 1)
            term, stats, pull_gan, seen_gan = when(on, play, rest)
            metrics |= seen_gan
            mutable, value, pull = {"disc": stats}, nll + term, pull_nll + pull_gan
        moved = jnp.sum(made_nhwc * pull) + params["logvar"] * pull_logvar
        if lpips:
            metrics["lpips"] = jnp.mean(distance_n)
        return jax.lax.stop_gradient(value - moved) + moved, mutable, metrics

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
        """Cross-reenacts clips: combines the structure of one clip with the dynamics of another (section 10).

        Both clips are cut into windows of the network's length, which are paired in order. The last window of each clip
        is padded with its last frame, and if the motion is longer, the content's last window is used again. Frames that
        two windows share (`overlap`) fade from one window to the next. With the ablation that has one latent, the
        result is the reconstructed content.

        Args:
          vars: parameters.
          batch: ``content`` uint8 (B, T_c, H, W, 3) and ``motion`` uint8 (B, T, H, W, 3); the same clip for
            reconstruction.
          key: the random key of the draw.
          part: which latents to decode: ``both``, or ``structure`` or ``dynamics`` alone.
          draw: whether to sample the latents, as the released scripts do, rather than take their means.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1].

        Raises:
          ConfigError: unknown `part`.
        """
        if part not in ("both", *self.parts):
            raise ConfigError(f"part={part!r}: choose {', '.join(('both', *self.parts))}")
        clips, frames = batch["motion"].shape[:2]
        content, motion = (
            self._windows(batch[name], self.overlap) for name in ("content", "motion")
        )
        count = motion.shape[1]
        shown = content[:, jnp.minimum(jnp.arange(count), content.shape[1] - 1)]
        keys = jax.random.split(key)

        def latents(x, key):
            return self._encode(vars, x.reshape(-1, *x.shape[2:])).taken(key if draw else None)

        structure = latents(shown, keys[0])[0] if part != "dynamics" else None
        dynamics = latents(motion, keys[1])[1] if part != "structure" else None
        video = self._decode(vars, structure, dynamics)
        video = video.reshape(clips, count, *video.shape[1:])
        return {"video": crossfade(video, self.overlap)[:, :frames]}

    def read(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Encodes ``video``, uint8 (B, T, H, W, 3), and returns the means of the latents.

        They are ``structure`` and, if the network has it, ``dynamics``, float32, shaped as in
        `models.vidtwin.Latents`.
        """
        found = self._encode(vars, batch["video"]).taken()
        return {name: mean for name, mean in found._asdict().items() if mean is not None}

    def render(self, vars: Vars, batch: PyTree) -> jax.Array:
        """Decodes ``structure`` and ``dynamics``, or one of them alone, as returned by `read`; returns video
        (B, T, H, W, 3) in [0, 1]."""
        return self._decode(vars, batch.get("structure"), batch.get("dynamics"))

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Returns the codes that probes read.

        They are ``content``, the structure of the first window of the clips ``content``, (B, numbers), and ``motion``,
        the dynamics of the clips ``motion`` of any length T, (B, T, numbers of a frame).
        """
        content = self.read(vars, {"video": self._windows(batch["content"])[:, 0]})["structure"]
        windows = self._windows(batch["motion"])
        motion = self.read(vars, {"video": windows.reshape(-1, *windows.shape[2:])})["dynamics"]
        clips, frames = batch["motion"].shape[:2]
        return {
            "content": content.reshape(len(content), -1),
            "motion": motion.reshape(clips, -1, math.prod(motion.shape[2:]))[:, :frames],
        }

    # -- parts ------------------------------------------------------------------------------------

    def _apply(self, net, *inputs, **options):
        return self.net.apply({"params": net}, *inputs, **options)

    def _crop(self, video_bthwc):
        """Crops a video of whole patches to the size of the clip."""
        net = self.net
        return video_bthwc[:, : net.frames, : net.size, : net.size]

    def _read(self, vars, video):
        """Turns uint8 pixels or cached latents into the network's input."""
        if self.codec is None:
            return codecs.signed(video)
        return self.codec.encode(vars.consts, video)

    def _encode(self, vars, video):
        net = vars.params["model"]["autoencoder"]
        return self._apply(net, self._read(vars, video), method="encode")

    def _decode(self, vars, structure, dynamics):
        net = vars.params["model"]["autoencoder"]
        video = self._crop(self._apply(net, structure, dynamics, method="decode"))
        if self.codec is None:
            return jnp.clip(video * 0.5 + 0.5, 0.0, 1.0)
        return self.codec.decode(vars.consts, video)

    def _windows(self, video_bthwc, overlap=0):
        """Cuts clips into windows: (B, T, ...) -> (B, windows, frames, ...).

        Each window shares `overlap` frames with the next, and the last one is padded with the last frame.
        """
        frames, length = video_bthwc.shape[1], self.net.frames
        count = max(1, -(-(frames - overlap) // (length - overlap)))
        index = np.arange(count)[:, None] * (length - overlap) + np.arange(length)[None]
        return video_bthwc[:, np.minimum(index, frames - 1)]


def crossfade(windows_bkfhwc: jax.Array, overlap: int) -> jax.Array:
    """Joins windows (B, K, F, H, W, C), of which each shares n = `overlap` frames with the next, to one video.

    The shared frames fade from one window to the other (`fade`); n is at most F / 2. Returns
    (B, K (F - n) + n, H, W, C).
    """
    x, step = windows_bkfhwc, windows_bkfhwc.shape[2] - overlap
    faded = fade(x[:, :-1, step:], x[:, 1:, :overlap])
    begins = jnp.concatenate([x[:, :1, :overlap], faded], axis=1)
    steps = jnp.concatenate([begins, x[:, :, overlap:step]], axis=2)
    return jnp.concatenate([steps.reshape(len(x), -1, *x.shape[3:]), x[:, -1, step:]], axis=1)


def _crossed(x: jax.Array, crossed_b: jax.Array) -> jax.Array:
    """Exchanges the values x (B, ...) of a video's two windows, which are neighbours along B, where `crossed_b`."""
    other = x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    return jnp.where(crossed_b.reshape(-1, *[1] * (x.ndim - 1)), other, x)


def _colours(key: jax.Array, count: int, share: float) -> tuple[jax.Array, jax.Array]:
    """Draws random linear colour transforms around grey: matrices (count, 3, 3) and offsets (count, 1).

    Each rotates the hue, multiplies every channel by a gain from 0.6 to 1.35 and adds a brightness from -0.2 to 0.2.
    Only a `share` of them, on average, changes anything; the others are the identity.
    """
    hue_key, gain_key, light_key, share_key = jax.random.split(key, 4)
    angle = jax.random.uniform(hue_key, (count, 1, 1), minval=-math.pi, maxval=math.pi)
    # Rodrigues' formula for a rotation about the axis of the greys.
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / math.sqrt(3)
    turn = np.eye(3, dtype=np.float32)[None] + jnp.sin(angle) * axis[None]
    turn += (1 - jnp.cos(angle)) * (axis @ axis)[None]
    gain = jnp.exp(jax.random.uniform(gain_key, (count, 3, 1), minval=-0.5, maxval=0.3))
    light = jax.random.uniform(light_key, (count, 1), minval=-0.2, maxval=0.2)
    changed = jax.random.bernoulli(share_key, share, (count, 1))
    matrix = jnp.where(changed[..., None], gain * turn, np.eye(3, dtype=np.float32)[None])
    return matrix, jnp.where(changed, light, 0.0)


def _painted(clips_bthwc: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
    """Applies the colour transforms of `_colours` to uint8 clips; returns uint8."""
    about_grey = clips_bthwc.astype(jnp.float32) / 255.0 - 0.5
    painted = jnp.einsum("bthwc,bdc->bthwd", about_grey, matrix) + offset[:, :, None, None, None]
    return jnp.clip(jnp.round((painted + 0.5) * 255.0), 0, 255).astype(jnp.uint8)


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
