"""X-NeMo: portrait animation by one motion vector per frame, read in cross-attention (ICLR 2025).

A reference network supplies the identity: the denoiser's self-attentions read its features. A motion encoder E_mot
turns a face crop of each driving frame into one vector; together with the position and size of the face (`f_rts`) it
becomes 32 tokens that the denoiser's motion modules read. A GAN head, which consists of an appearance encoder E_app and
a StyleGAN generator, must reproduce the driving crop from the same vector. There are three players in one forward pass:

    L_model = L_ldm + L_gan                                             (Eq. 1 and 7: both reach E_mot)
    L_head  = L_gan = L_adv + L_r + 3e-2 L_vgg + 6e-3 L_face + 10 L_fm  (its gradients come with `carry`)
    L_disc  = (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2

Training has four stages, each a separate run (`Stage`; ``config.optimizer`` says which parameters learn). The parameter
tree is the same in all stages. Choices that the paper leaves open follow the recommendations of spec xnemo.md.

Shape suffixes: b batch, f frames, n = b f, h w latent rows and columns, m motion vector, s motion tokens, c channels.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vidmotion import paths
from vidmotion.config_schema import from_config
from vidmotion.convert import folder
from vidmotion.convert.maps.xnemo import PUBLISHED
from vidmotion.diffusion import samplers
from vidmotion.diffusion.guidance import XNEMO_PRESETS, guide, scale_of
from vidmotion.diffusion.process import DDPM, PREDICTIONS
from vidmotion.diffusion.start import start_from_reference
from vidmotion.diffusion.windows import Windows, windowed
from vidmotion.errors import ConfigError
from vidmotion.losses.gan import hinge_discriminator
from vidmotion.losses.gan_head import Weights, generator_loss
from vidmotion.models.features import vgg
from vidmotion.models.features.clip import SIZES as CLIP_SIZES
from vidmotion.models.features.clip import ClipVision, normalise
from vidmotion.models.motion_attention import MAX_FRAMES, DenoisingUNet
from vidmotion.models.motion_encoder import MotionEncoder
from vidmotion.models.projection_discriminator import Discriminator
from vidmotion.models.resnet import AppearanceEncoder
from vidmotion.models.stylegan import Synthesis
from vidmotion.models.unet import SIZES, Pairs, ReferenceUNet, project_banks, random_banks
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
    fingerprint,
    fresh_statistics,
    inherited,
)
from vidmotion.systems import codecs

log = logging.getLogger(__name__)

PyTree = Any
STARTS = ("blur", "noise")
NULLS = ("both", "appearance", "motion")
MODULES = ("motion", "temporal")
BURKOV = Weights()  # those of the latent pose descriptors (Burkov et al.), which the paper uses
SOURCES = {  # where to get the frozen networks
    "clip_vision": "pytorch_model.bin of lambdalabs/sd-image-variations-diffusers, folder image_encoder, on "
    "Hugging Face",
}
STILL = (0.0, 0.0, 1.0)  # f_rts of a face that stays where the reference has it


@dataclasses.dataclass(frozen=True)
class Stage:
    """Settings of one stage of the training (section 4.1).

    Attributes:
      frames: F, the number of target frames in a training example; 1 makes it a pair of pictures.
      skip: the modules of the denoiser that are left out: ``motion``, ``temporal`` or both.
      masking: r, the share of the reference's tokens that are hidden from the blocks of a sample.
      encoder: whether E_mot learns, that is, runs with dropout and with the batch's own statistics in batch norms.
      gan_frames: the number of frames of each example that the GAN head must reproduce; 0 trains without the GAN head.
    """

    frames: int = 1
    skip: tuple[str, ...] = ("temporal",)
    masking: float = 0.3
    encoder: bool = True
    gan_frames: int = 1


@dataclasses.dataclass(frozen=True)
class Clip:
    """Settings of CLIP's image tower, whose embedding of the reference all text cross-attentions read.

    Attributes:
      network: a name in `features.clip.SIZES`; with ``none`` the token is zero, and the log says so.
      weights: the folder that ``python -m vidmotion.convert clip_vision`` wrote.
    """

    network: str = "vit_l14"
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Settings of a perceptual loss, which compares the activations of a VGG for two pictures.

    Attributes:
      weights: the folder that ``python -m vidmotion.convert vgg19`` (or ``vgg_face``) wrote; empty leaves the
        term out, and the log says so.
    """

    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Gan:
    """Settings of the GAN head; the sizes are not in paper.

    Attributes:
      enabled: whether there is a GAN head with its discriminator.
      weight: the weight of L_gan, where L_ldm has the weight 1.
      start: the first step at which the head learns; before it the head is not computed at all.
      pull_start: the first step at which the gradient of L_gan reaches E_mot. If it reaches a small E_mot before the
        head can read the vectors, E_mot collapses to one code for all faces before the denoiser has a use for it.
      adversarial_start: the first step at which the discriminator learns and its two terms count.
      clip: the largest norm of L_gan's gradient with respect to the motion vectors of a batch; 0 does not limit it.
      appearance: fields of `AppearanceEncoder`.
      generator: fields of `Synthesis`.
      discriminator: fields of `Discriminator`.
      terms: the weights of Eq. 7.
      vgg19, vgg_face: the networks of Eq. 4 and 5.
    """

    enabled: bool = True
    weight: float = 1.0
    start: int = 0
    pull_start: int = 0
    adversarial_start: int = 0
    clip: float = 0.0
    appearance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    generator: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    discriminator: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    terms: Weights = BURKOV
    vgg19: Perceptual = Perceptual()
    vgg_face: Perceptual = Perceptual()

    def __post_init__(self):
        if not 0 <= self.start <= min(self.pull_start, self.adversarial_start) or self.clip < 0:
            raise ConfigError(
                "config.system.gan: start must be the first of the three steps, and clip at least 0, got "
                f"start={self.start}, pull_start={self.pull_start}, "
                f"adversarial_start={self.adversarial_start}, clip={self.clip}"
            )


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Settings of conditioning dropout, which classifier-free guidance needs.

    Attributes:
      drop: probability per sample of training without reference and CLIP token; motion tokens stay, as in
        the negative branch of sampling. Not in paper.
    """

    drop: float = 0.1


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of sampling: DDIM, guidance and windows.

    Attributes:
      preset: a name in `XNEMO_PRESETS`, which fixes the number of steps and the guidance.
      steps: the number of DDIM steps; 0 takes the preset's.
      scale: s in neg + s * (pos - neg); 0 takes the preset's.
      start: where sampling starts: ``blur``, from the reference's latent, blurred and noised, as released; ``noise``,
        from pure noise, as in the paper.
      null: the conditions that the null branch of guidance lacks (Figure 6). ``both``, as in the paper: the reference
        and the driver's motion, which is replaced by the portrait's own; ``appearance`` or ``motion``: only one of the
        two.
      window, overlap: the number of frames in a window, and the number that it shares with the next.
    """

    preset: str = "paper"
    steps: int = 0
    scale: float = 0.0
    start: str = "blur"
    null: str = "both"
    window: int = 24
    overlap: int = 4


AS_RELEASED = DDPM(beta_start=0.00085, beta_end=0.02, schedule="scaled_linear")


class Portrait(NamedTuple):
    """The encoded portrait on which the denoiser is conditioned; it is the same for all frames and steps.

    Attributes:
      latent_bhwc: the codec's latent of the portrait.
      banks: the reference network's features, block -> (b, l, c).
      context: CLIP's token (b, 1, c); None for UNets without text cross-attention.
    """

    latent_bhwc: jax.Array
    banks: Mapping[str, jax.Array]
    context: jax.Array | None


@dataclasses.dataclass(frozen=True)
class XNeMo(System, MotionTransfer, Released, Describes):
    """Portrait animation by one motion vector per frame.

    Attributes:
      size: the height and width of a frame.
      codec: a codec of `codecs`, or a mapping of its fields.
      unet: the sizes of both UNets: a name in `unet.SIZES`, or a mapping of `UNet`'s sizes.
      modules: the additional fields of `DenoisingUNet`: those of its motion and temporal modules, and of the control
        that replaces the motion modules in an ablation.
      motion: fields of `MotionEncoder`.
      stage, clip, gan, guidance, sampler, diffusion: see `Stage`, `Clip`, `Gan`, `Guidance`, `Sampler` and `DDPM`.
      prediction: what the denoiser predicts: ``eps``, as in the paper, ``x0`` or ``v``; ``x0`` is the easiest for a
        small network.
      compute: ``float32`` or ``bfloat16``.
      remat: whether both UNets recompute their blocks in the backward pass.

    Raises:
      ConfigError: values that do not exist or do not fit together.
    """

    size: int
    codec: codecs.PixelCodec | codecs.LatentCodec
    unet: Any = "sd15"
    modules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    motion: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: Stage = Stage()
    clip: Clip = Clip()
    gan: Gan = Gan()
    guidance: Guidance = Guidance()
    sampler: Sampler = Sampler()
    diffusion: DDPM = AS_RELEASED
    prediction: str = "eps"
    compute: str = "float32"
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "codec", codecs.make(self.codec))
        stage, sampler = self.stage, self.sampler
        for field, value, known in (
            ("clip.network", self.clip.network, (*CLIP_SIZES, "none")),
            ("sampler.preset", sampler.preset, tuple(XNEMO_PRESETS)),
            ("sampler.start", sampler.start, STARTS),
            ("sampler.null", sampler.null, NULLS),
            ("prediction", self.prediction, PREDICTIONS),
            *(("stage.skip", name, MODULES) for name in stage.skip),
        ):
            if value not in known:
                raise ConfigError(f"config.system.{field}={value!r}: choose {', '.join(known)}")
        if isinstance(self.unet, str) and self.unet not in SIZES:
            raise ConfigError(f"config.system.unet={self.unet!r}: choose {', '.join(SIZES)}")
        for field, frames in (("stage.frames", stage.frames), ("sampler.window", sampler.window)):
            if not 1 <= frames <= MAX_FRAMES:
                raise ConfigError(
                    f"config.system.{field}={frames} must be from 1 to {MAX_FRAMES}, the most frames that "
                    "the temporal modules can take"
                )
        if not 0 <= sampler.overlap < sampler.window:
            raise ConfigError(
                f"config.system.sampler.overlap={sampler.overlap} must be at least 0 and less than "
                f"window={sampler.window}"
            )
        if not 0 <= stage.masking < 1 or not 0 <= stage.gan_frames <= stage.frames:
            raise ConfigError(
                "config.system.stage: masking must be at least 0 and below 1, and gan_frames at most frames, got "
                f"masking={stage.masking}, gan_frames={stage.gan_frames}, frames={stage.frames}"
            )
        if self.clip.network != "none":
            width = CLIP_SIZES[self.clip.network]["embedding"]
            if width != self._denoiser.context_width:
                raise ConfigError(
                    f"config.system.clip.network={self.clip.network!r} gives {width} numbers, but the UNets' "
                    f"context_width is {self._denoiser.context_width}"
                )
        control, middle = self._denoiser.control_side, self._middle_side
        if control and (control != middle or control < 4 or control & (control - 1)):
            raise ConfigError(
                f"config.system.modules.control_side={control} must be the side of the features in the middle of the "
                f"UNets, here {middle}, and that must be 4, 8, 16, ..."
            )
        for name, cls in (
            ("motion", MotionEncoder),
            ("gan.appearance", AppearanceEncoder),
            ("gan.generator", Synthesis),
            ("gan.discriminator", Discriminator),
        ):
            fields = functools.reduce(getattr, name.split("."), self)
            from_config(cls, fields, f"system.{name}")
        dtype(self.compute)

    # -- networks ---------------------------------------------------------------------------------

    @property
    def _unet_sizes(self) -> dict[str, Any]:
        sizes = SIZES[self.unet] if isinstance(self.unet, str) else self.unet
        channels = self.codec.latent_shape(self.size)[1]
        fixed = {"latent_channels": channels, "remat": self.remat, "dtype": dtype(self.compute)}
        return {**sizes, **fixed}

    @property
    def _reference(self) -> ReferenceUNet:
        return ReferenceUNet(**self._unet_sizes)

    @property
    def _denoiser(self) -> DenoisingUNet:
        return DenoisingUNet(**self._unet_sizes, **self.modules)

    @property
    def _middle_side(self) -> int:
        return self.codec.latent_shape(self.size)[0] // 2 ** (len(self._denoiser.channels) - 1)

    @property
    def encoder(self) -> MotionEncoder:
        """E_mot, the motion encoder."""
        return MotionEncoder(**self.motion, dtype=dtype(self.compute))

    @property
    def _appearance(self) -> AppearanceEncoder:
        return AppearanceEncoder(**self.gan.appearance, dtype=dtype(self.compute))

    @property
    def _generator(self) -> Synthesis:
        return Synthesis(**self.gan.generator, dtype=dtype(self.compute))

    @property
    def _disc(self) -> Discriminator:
        return Discriminator(**self.gan.discriminator, dtype=dtype(self.compute))

    @property
    def _has_motion(self) -> bool:
        return "motion" not in self.stage.skip

    @property
    def _has_gan(self) -> bool:
        return self.gan.enabled and self.stage.gan_frames > 0

    # -- the interface ----------------------------------------------------------------------------

    @property
    def players(self) -> tuple[Player, ...]:
        """``model`` has both UNets and E_mot, ``head`` has E_app and the generator, ``disc`` is the discriminator."""
        if not self.gan.enabled:
            return (Player("model"),)
        head = Player("head", self.gan.start, shares_forward=True)
        disc = Player("disc", self.gan.adversarial_start, shares_forward=True)
        # From `pull_start` on L_gan reaches E_mot.
        pulled = (self.gan.pull_start,) if self._has_gan else ()
        return (Player("model", switches=pulled), head, disc)

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch, as `data.portraits` makes it with the recipe "face".

        It always has ``reference`` and ``target``; with motion modules or the GAN head also ``driving`` and ``f_rts``;
        with the GAN head also ``driving_clean`` and ``reference_face``.
        """
        frames, side = self.stage.frames, self.encoder.size

        def pictures(*shape):
            return jax.ShapeDtypeStruct((batch, *shape, 3), jnp.uint8)

        spec = {
            "reference": pictures(self.size, self.size),
            "target": pictures(frames, self.size, self.size),
        }
        if self._has_motion or self._has_gan:
            spec["driving"] = pictures(frames, side, side)
            spec["f_rts"] = jax.ShapeDtypeStruct((batch, frames, 3), jnp.float32)
        if self._has_gan:
            spec["driving_clean"] = pictures(frames, side, side)
            spec["reference_face"] = pictures(side, side)
        return spec

    def consts_spec(self) -> dict[str, Const]:
        """Returns the frozen networks: the codec's autoencoder, ``clip``, ``vgg19`` and ``vgg_face``.

        Networks that the config does not name are left out, and the log says so.
        """
        specs = self.codec.consts()
        if self.clip.network == "none" and self._denoiser.context_width:
            log.info(
                "config.system.clip.network is none: the text cross-attentions read a token of zeros"
            )
        elif self.clip.network != "none":
            net, side = self._clip_net, self._clip_net.size
            specs["clip"] = _const(net, side, "clip.weights", self.clip.weights, "clip_vision")
        for name in ("vgg19", "vgg_face") if self._has_gan else ():
            weights = getattr(self.gan, name).weights
            if weights:
                specs[name] = _const(self._vgg(name), 64, f"gan.{name}.weights", weights, name)
            else:
                log.info(
                    "config.system.gan.%s.weights is empty: the GAN head trains without this perceptual loss; "
                    "`python -m vidmotion.convert %s` makes that folder",
                    *(name, name),
                )
        return specs

    @property
    def _clip_net(self) -> ClipVision:
        return ClipVision(**CLIP_SIZES[self.clip.network], dtype=dtype(self.compute))

    def _vgg(self, name: str) -> vgg.VGGActivations:
        return vgg.VGGActivations(**vgg.SIZES[name], dtype=dtype(self.compute))

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the codec's networks, and of CLIP if it is used."""
        own = {name: tree for name, tree in consts.items() if name == "clip"}
        return {**self.codec.fingerprints(consts), **super().fingerprints(own)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters.

        They are ``{"model": {reference, denoiser, motion}, "head": {appearance, generator}, "disc": ...}``.
        Layers that both UNets have start with the same values in both, as they do when both start from Stable
        Diffusion.
        """
        network_key, *keys = jax.random.split(key, 4)
        net, encoder = self._denoiser, self.encoder
        # The smallest possible side: parameters do not depend on it, unless a control makes a map of its own side.
        side = (net.control_side or 1) * 2 ** (len(net.channels) - 1)
        z = jnp.zeros((1, side, side, net.latent_channels))
        context = jnp.zeros((1, 1, net.context_width)) if net.context_width else None
        tokens = jnp.zeros((1, 1, encoder.tokens, encoder.token_width))
        crop = jnp.zeros((1, encoder.size, encoder.size, 3))
        model = {
            "reference": self._reference.init(network_key, z, context),
            "denoiser": net.init(network_key, z[:, None], jnp.zeros(1), context, tokens),
            "motion": encoder.init(keys[0], crop, jnp.asarray(STILL)[None]),
        }
        params = {"model": _only_params(model)}
        if self.gan.enabled:
            head = {
                "appearance": self._appearance.init(keys[1], crop),
                "generator": self._generator.init(keys[2], self._style(jnp.zeros((1, 1)))),
            }
            params["head"] = _only_params(head)
            params["disc"] = self._fresh_disc()["params"]
        return params

    def _style(self, like_n: jax.Array) -> jax.Array:
        return jnp.zeros((len(like_n), self._appearance.features + self.encoder.latent))

    def _fresh_disc(self) -> PyTree:
        # The key is the same in all runs, because `init_mutable` is given none and must compute the singular vectors of
        # the very kernels that `init` returns.
        side = self._generator.size
        return self._disc.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))

    def init_mutable(self) -> PyTree:
        """Returns the initial running statistics of E_mot (``motion``) and E_app (``appearance``), and the singular
        vectors of ``disc``."""
        crop = jax.ShapeDtypeStruct((1, self.encoder.size, self.encoder.size, 3), jnp.float32)
        nets = {"motion": self.encoder}
        if self.gan.enabled:
            nets["appearance"] = self._appearance
        fresh = {}
        for name, net in nets.items():
            method = "encode" if name == "motion" else None
            make = functools.partial(net.init, jax.random.key(0), method=method)
            fresh[name] = fresh_statistics(jax.eval_shape(make, crop)["batch_stats"])
        if self.gan.enabled:
            fresh["disc"] = self._fresh_disc()["spectral"]
        return fresh

    @property
    def window(self) -> int:
        """The number of frames that the denoiser sees together; `sample` takes any number."""
        return self.sampler.window

    @property
    def content_frames(self) -> int:
        """The number of content frames that are read: one, the portrait."""
        return 1

    @staticmethod
    def released_fields(arguments: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Returns the sizes of the UNets and of E_mot in a converted folder.

        Raises:
          ConfigError: the folder lacks a network, such as E_mot in a folder that is only for starting a training.
        """
        if lacks := ", ".join(sorted({"reference", "denoiser", "motion"} - arguments.keys())):
            raise ConfigError(
                f"the folder lacks {lacks}: a UNet of Stable Diffusion alone animates nothing; give it to "
                f"--config.init_from. `python -m vidmotion.convert xnemo --src=FOLDER` takes {PUBLISHED}"
            )
        own = {key: x for key, x in arguments["denoiser"].items() if key != "head"}
        return {"unet": {**SIZES["sd15"], **own}, "motion": arguments["motion"]}

    def released(self, params: PyTree) -> PyTree:
        """Returns ``{player: tree}`` of this system from what ``python -m vidmotion.convert xnemo`` wrote.

        The released X-NeMo gives all of ``model``. A folder for starting a training gives those layers of both UNets
        that Stable Diffusion has and, if it has them, the denoiser's temporal modules and the trunk of E_app (in
        ``head``).
        """
        model = {name: params[name] for name in ("reference", "denoiser") if name in params}
        if "motion" in params:
            model["motion"] = params["motion"]["params"]
        if "temporal" in params:
            both = paths.flatten(model["denoiser"]) | paths.flatten(params["temporal"])
            model["denoiser"] = paths.unflatten(both)
        if "appearance" not in params:
            return {"model": model}
        return {"model": model, "head": {"appearance": {"trunk": params["appearance"]["params"]}}}

    def released_mutable(self, params: PyTree) -> PyTree:
        """Returns the initial state, with the running statistics of E_mot and of E_app's trunk if the folder has
        them."""
        there = {"motion": params["motion"]["batch_stats"]} if "motion" in params else {}
        if "appearance" in params:
            there["appearance"] = {"trunk": params["appearance"]["batch_stats"]}
        return inherited(self.init_mutable(), there)

    @property
    def face_side(self) -> int:
        """The side of the face crops that E_mot reads."""
        return self.encoder.size

    def tokens(self, batch: int) -> int:
        """Returns the number of latent pixels in the denoised frames of a batch."""
        return batch * self.stage.frames * self.codec.latent_shape(self.size)[0] ** 2

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluators of motion transfer, against the exact render of Heads, and of leakage."""
        return ("swap", "drivers", "reading", "leakage")

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Returns the codes that probes read.

        They are ``motion`` float32 (B, T, D), each frame's f_mot, and ``content`` float32 (B, D_c), the mean over
        positions of each channel of the reference network's features of the first frame of ``content``.
        """
        banks = self._reference_features(vars, batch["content"][:, 0])[0]
        content = [jnp.mean(bank.astype(jnp.float32), axis=1) for bank in banks.values()]
        motion = self.motion_of(vars, self._faces(batch)["driving"])
        return {"content": jnp.concatenate(content, axis=-1), "motion": motion}

    # -- training ---------------------------------------------------------------------------------

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the player's loss on a batch of pairs or clips (see the module's docstring)."""
        if player == "model":
            return self._model_loss(vars, batch, key, step)
        if not self._has_gan or not carry:  # without a carry the head has not started to learn
            return jnp.zeros(()), Out({}, vars.mutable)
        if player == "head":
            # A linear function of the parameters that has the gradient and the value of L_gan.
            moved = sum(map(jnp.vdot, *map(jax.tree.leaves, (vars.params["head"], carry["pull"]))))
            return carry["value"] + moved - jax.lax.stop_gradient(moved), Out({}, vars.mutable)
        variables = {"params": vars.params["disc"], "spectral": vars.mutable["disc"]}
        both = jnp.concatenate([carry["target"], carry["image"]])
        judged, state = self._disc.apply(variables, both, True, mutable="spectral")
        real, fake = jnp.split(judged.score_n, 2)
        metrics = {"score_real": jnp.mean(real), "score_fake": jnp.mean(fake)}
        mutable = {**vars.mutable, "disc": state["spectral"]}
        return hinge_discriminator(real, fake), Out(metrics, mutable)

    def _model_loss(self, vars, batch, key, step):
        keys = jax.random.split(key, 7)
        size = len(batch["target"])
        mutable, tokens, vector_bfm = vars.mutable, None, None
        if self._has_motion or self._has_gan:
            vector_bfm, mutable = self._encode(vars, batch["driving"], keys[0])
        if self._has_motion:
            tokens = self._fuse(vars, vector_bfm, batch["f_rts"])

        z_bfhwc = self.codec.encode(vars.consts, batch["target"], keys[1])
        time_b = jax.random.randint(keys[2], (size,), 0, self.diffusion.steps)
        noise = jax.random.normal(keys[3], z_bfhwc.shape)
        noisy = self.diffusion.noised(z_bfhwc, noise, time_b)
        banks, context = self._reference_features(vars, batch["reference"])
        banks = random_banks(keys[5], banks, self.stage.masking)
        pairs = project_banks(self._denoiser, vars.params["model"]["denoiser"], banks)
        keep_b = jax.random.bernoulli(keys[4], 1.0 - self.guidance.drop, (size,))
        if context is not None:
            context = context * keep_b[:, None, None]
        out = self._predict(vars, noisy, time_b, context, tokens, pairs, keep_b)
        target = self.diffusion.target(z_bfhwc, noise, time_b, self.prediction)
        ldm = jnp.mean(jnp.square(target - out))
        loss, metrics, carry = ldm, {"ldm": ldm}, {}
        if vector_bfm is not None:
            # The standard deviation of the vectors over the batch is near zero if motion collapses.
            spread = jnp.std(vector_bfm.reshape(-1, vector_bfm.shape[-1]), axis=0)
            metrics["code_spread"] = jnp.mean(spread)
        if self._has_gan and begun(step, self.gan.start) is not False:
            gan, seen, carry, mutable = self._gan_loss(
                vars, mutable, batch, vector_bfm, keys[6], step
            )
            loss += self.gan.weight * gan
            metrics |= {f"gan/{name}": term for name, term in seen.items()}
        return loss, Out(metrics, mutable, carry)

    def _gan_loss(self, vars, mutable, batch, vector_bfm, key, step):
        """Returns L_gan as a function of the motion vectors alone, its terms, the carry and the mutable state.

        The head runs forward and backward only once: this method takes the gradients with respect to the head's
        parameters and to the vectors. The former go into the carry, for the player ``head``. The latter, limited by
        `Gan.clip`, reach E_mot as the gradient of a linear function.
        """
        picks = jax.random.permutation(key, self.stage.frames)[: self.stage.gan_frames]
        count = len(picks)
        vector_nm = vector_bfm[:, picks].reshape(-1, vector_bfm.shape[-1])
        clean = codecs.signed(batch["driving_clean"][:, picks])
        side = self._generator.size
        target = clean.reshape(-1, *clean.shape[2:])
        if side != target.shape[1]:
            target = jax.image.resize(target, (len(target), side, side, 3), "cubic")
            target = jnp.clip(target, -1.0, 1.0)
        face = codecs.signed(batch["reference_face"])
        judge = {"params": vars.params["disc"], "spectral": vars.mutable["disc"]}
        judge = jax.lax.stop_gradient(judge)
        nets = [name for name in ("vgg19", "vgg_face") if name in vars.consts]
        judging = begun(step, self.gan.adversarial_start)
        weights = self.gan.terms
        if not isinstance(judging, bool):
            on = jnp.asarray(judging, jnp.float32)
            weights = dataclasses.replace(
                weights, adversarial=weights.adversarial * on, matching=weights.matching * on
            )

        def maps(name, image):
            return self._vgg(name).apply({"params": vars.consts[name]}, image)

        def l_gan(head, vector_nm):
            variables = {"params": head["appearance"], "batch_stats": mutable["appearance"]}
            look_bm, state = self._appearance.apply(variables, face, True, mutable="batch_stats")
            style = jnp.concatenate([jnp.repeat(look_bm, count, axis=0), vector_nm], axis=-1)
            image = self._generator.apply({"params": head["generator"]}, style)
            score, matching = None, None
            if judging is not False:
                judged = self._disc.apply(judge, image)
                score = judged.score_n
                matching = self._disc.apply(judge, target).features, judged.features
            pairs = {name: (maps(name, target), maps(name, image)) for name in nets}
            value, terms = generator_loss(
                target,
                image,
                score,
                matching,
                pairs.get("vgg19"),
                pairs.get("vgg_face"),
                weights,
            )
            return value, (image, terms, state["batch_stats"])

        fixed = jax.lax.stop_gradient((vars.params["head"], vector_nm))
        (value, aux), pulls = jax.value_and_grad(l_gan, argnums=(0, 1), has_aux=True)(*fixed)
        (image, terms, stats), (pull_head, pull_nm) = aux, pulls
        terms["pull"] = optax.global_norm(pull_nm)
        if self.gan.clip:
            pull_nm *= self.gan.clip / jnp.maximum(terms["pull"], self.gan.clip)
        moved = jnp.sum(vector_nm * pull_nm) * begun(step, self.gan.pull_start)
        carry = {"pull": pull_head, "value": value, "image": image, "target": target}
        loss = value + moved - jax.lax.stop_gradient(moved)
        return loss, terms, carry, {**mutable, "appearance": stats}

    # -- sampling ---------------------------------------------------------------------------------

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> PyTree:
        """Animates a portrait: makes the first frame of one clip move like another clip.

        Args:
          vars: parameters.
          batch: ``content`` uint8 (B, T_c, H, W, 3), whose first frame is the portrait, and ``motion`` uint8
            (B, T, H, W, 3). If the faces are known, also ``driving`` uint8 (B, T, s, s, 3), the driver's face crops,
            ``reference_face`` uint8 (B, s, s, 3), the portrait's face crop, and ``f_rts`` (B, T, 3); otherwise the
            whole pictures are used as crops of faces that do not change their position.
          key: the random key of the noise and of the windows.
          steps, guidance: the number of steps and the scale of the guidance; None takes the config's.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1]; ``code`` float32 (B, T, D), each driving frame's f_mot.
        """
        faces = self._faces(batch)
        vector_bfm = self.motion_of(vars, faces["driving"])
        still_b1m = self.motion_of(vars, faces["reference_face"][:, None])
        portrait = batch["content"][:, 0]
        latent = self.animate(
            vars, portrait, vector_bfm, faces["f_rts"], still_b1m, key, steps, guidance
        )
        return {"video": self.codec.decode(vars.consts, latent), "code": vector_bfm}

    def animate(
        self,
        vars: Vars,
        portrait: jax.Array,
        vector_bfm: jax.Array,
        f_rts: jax.Array,
        still_b1m: jax.Array,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> jax.Array:
        """Animates a portrait by given motion vectors: calls `look`, then `move`.

        `portrait` is uint8 (B, H, W, 3); all other arguments and the result are those of `move`.
        """
        seen = self.look(vars, portrait)
        return self.move(vars, seen, vector_bfm, f_rts, still_b1m, key, steps, guidance)

    def look(self, vars: Vars, portrait: jax.Array) -> Portrait:
        """Encodes a portrait, uint8 (B, H, W, 3), once for all frames; it reads only the parameters ``reference``."""
        banks, context = self._reference_features(vars, portrait)
        return Portrait(self._still_latent(vars, portrait), banks, context)

    def move(
        self,
        vars: Vars,
        seen: Portrait,
        vector_bfm: jax.Array,
        f_rts: jax.Array,
        still_b1m: jax.Array,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> jax.Array:
        """Generates the latents of a portrait under given motion of any length (section 3.3).

        The denoiser sees one window after the other. Only the parameters ``denoiser`` and ``motion`` are read.

        Args:
          vars: parameters.
          seen: the portrait, from `look`.
          vector_bfm: f_mot of each frame, (B, F, D).
          f_rts: position and size of the face in each frame, (B, F, 3).
          still_b1m: the portrait's own f_mot, (B, 1, D), for the negative branch of guidance.
          key, steps, guidance: see `sample`.

        Returns:
          The latents, float32 (B, F, h, w, C), for the codec to decode.
        """
        steps, scale = self._chosen(steps, guidance)
        frames = vector_bfm.shape[1]
        tokens = self._fuse(vars, vector_bfm, f_rts)
        null = self._fuse(vars, still_b1m, jnp.broadcast_to(jnp.asarray(STILL), (len(f_rts), 1, 3)))
        z_bhwc, banks, context = seen
        pairs = project_banks(self._denoiser, vars.params["model"]["denoiser"], banks)
        nothing = None if context is None else jnp.zeros_like(context)

        def predict(x, time, tokens):
            time_b = jnp.full((len(x),), time)
            with_cond = self._predict(vars, x, time_b, context, tokens, pairs)
            if scale == 1.0:
                return with_cond
            # Two calls rather than one batch, because the null branch may have no reference to attend to.
            lacks = self.sampler.null
            seen = (context, pairs) if lacks == "motion" else (nothing, None)
            moved = tokens if lacks == "appearance" else jnp.broadcast_to(null, tokens.shape)
            without = self._predict(vars, x, time_b, seen[0], moved, seen[1])
            return guide(with_cond, without, scale)

        start_key, window_key = jax.random.split(key)
        times = samplers.leading_times(steps, self.diffusion.steps)
        if self.sampler.start == "blur":
            x = start_from_reference(start_key, z_bhwc, frames, self.diffusion, int(times[0]))
        else:
            x = jax.random.normal(start_key, (len(z_bhwc), frames, *z_bhwc.shape[1:]))
        windows = Windows(frames, self.sampler.window, self.sampler.overlap)
        whole = windowed(predict, tokens, windows, window_key)
        return samplers.ddim(whole, x, times, self.diffusion.alpha_bar(), self.prediction)

    def motion_of(self, vars: Vars, crops: jax.Array) -> jax.Array:
        """Computes f_mot (B, T, D) of clips of face crops, uint8 (B, T, s, s, 3), with the running statistics.

        A temporal motion encoder (`MotionEncoder.frames`) processes the frames of a clip window by window, starting
        with the first.
        """
        variables = {
            "params": vars.params["model"]["motion"],
            "batch_stats": vars.mutable["motion"],
        }
        flat = codecs.signed(crops).reshape(-1, *crops.shape[2:])
        vector_nm = self.encoder.apply(variables, flat, method="encode")
        return self._join(vars, vector_nm.reshape(*crops.shape[:2], -1))

    def encoder_fingerprint(self, vars: Vars) -> str:
        """Returns the fingerprint of E_mot as `motion_of` runs it; codes of different fingerprints are incompatible."""
        return fingerprint(
            {"params": vars.params["model"]["motion"], "state": vars.mutable["motion"]}
        )

    # -- parts ------------------------------------------------------------------------------------

    def _chosen(self, steps, guidance) -> tuple[int, float]:
        preset = XNEMO_PRESETS[self.sampler.preset]
        own = self.sampler.scale or scale_of(preset.weight, preset.reading)
        return steps or self.sampler.steps or preset.steps, own if guidance is None else guidance

    def _faces(self, batch) -> dict[str, jax.Array]:
        """Returns the face crops of a batch for `sample`, or resized whole pictures if it has none, and ``f_rts``."""
        side = self.encoder.size

        def small(pictures):
            shape = (*pictures.shape[:-3], side, side, 3)
            if pictures.shape == shape:
                return pictures
            resized = jax.image.resize(pictures.astype(jnp.float32), shape, "lanczos3")
            return jnp.clip(jnp.rint(resized), 0, 255).astype(jnp.uint8)

        still = jnp.broadcast_to(jnp.asarray(STILL), (*batch["motion"].shape[:2], 3))
        faces = {"driving": batch["motion"], "reference_face": batch["content"][:, 0]}
        faces |= {name: batch[name] for name in faces if name in batch}
        return {**jax.tree.map(small, faces), "f_rts": batch.get("f_rts", still)}

    def _encode(self, vars, crops, key):
        """Computes f_mot (b, f, m) of uint8 crops in training; returns it and the mutable state afterwards."""
        if not self.stage.encoder:
            return self.motion_of(vars, crops), vars.mutable
        variables = {
            "params": vars.params["model"]["motion"],
            "batch_stats": vars.mutable["motion"],
        }
        vector_nm, state = self.encoder.apply(
            variables,
            codecs.signed(crops).reshape(-1, *crops.shape[2:]),
            True,
            method="encode",
            mutable="batch_stats",
            rngs={"dropout": key},
        )
        mutable = {**vars.mutable, "motion": state["batch_stats"]}
        return self._join(vars, vector_nm.reshape(*crops.shape[:2], -1)), mutable

    def _join(self, vars, vector_bfm) -> jax.Array:
        """Applies the temporal layers of a temporal motion encoder to the vectors of clips."""
        variables = {"params": vars.params["model"]["motion"]}
        return self.encoder.apply(variables, vector_bfm, method="join")

    def _fuse(self, vars, vector_bfm, f_rts) -> jax.Array:
        """Computes motion tokens (b, f, s, c) from motion vectors and the position of the face."""
        b, f, m = vector_bfm.shape
        variables = {"params": vars.params["model"]["motion"]}
        flat = vector_bfm.reshape(b * f, m), f_rts.reshape(b * f, 3)
        tokens = self.encoder.apply(variables, *flat, method="fuse")
        return tokens.reshape(b, f, *tokens.shape[1:])

    def _reference_features(self, vars, pictures) -> tuple[Mapping[str, jax.Array], Any]:
        """Computes the reference network's features of pictures, uint8 (b, H, W, 3), and their CLIP token (b, 1, c),
        which is None for UNets without text cross-attention."""
        context = self._clip_token(vars.consts, pictures)
        params = {"params": vars.params["model"]["reference"]}
        return self._reference.apply(params, self._still_latent(vars, pictures), context), context

    def _still_latent(self, vars, pictures) -> jax.Array:
        """Encodes pictures, uint8 (b, H, W, 3), as the codec's posterior mean (b, h, w, c)."""
        return self.codec.encode(vars.consts, pictures[:, None])[:, 0]

    def _clip_token(self, consts, pictures) -> jax.Array | None:
        width = self._denoiser.context_width
        if not width:
            return None
        if "clip" not in consts:
            return jnp.zeros((len(pictures), 1, width))
        side = self._clip_net.size
        small = jax.image.resize(codecs.signed(pictures), (len(pictures), side, side, 3), "cubic")
        seen = normalise(jnp.clip(0.5 * small + 0.5, 0.0, 1.0))
        return self._clip_net.apply({"params": consts["clip"]}, seen)[:, None]

    def _predict(
        self,
        vars: Vars,
        x_bfhwc: jax.Array,
        time_b: jax.Array,
        context: jax.Array | None,
        tokens: jax.Array | None,
        pairs: Pairs | None = None,
        reads_b: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the denoiser's prediction, float32; without `pairs` the denoiser sees no reference."""
        params = {"params": vars.params["model"]["denoiser"]}
        return self._denoiser.apply(
            params, x_bfhwc, time_b, context, tokens, pairs, reads_b, self.stage.skip
        )


def _only_params(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tree["params"] for name, tree in variables.items()}


def _const(net: nn.Module, side: int, field: str, weights: str, network: str) -> Const:
    """Describes a frozen network whose parameters are in a folder that `convert` wrote.

    Args:
      net: the network, which takes a picture.
      side: the side in pixels of the picture with which the network is initialised.
      field: the config field of the folder, for messages.
      weights: the folder.
      network: the name under which `convert` knows the network.
    """

    def shapes() -> PyTree:
        picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(net.init, jax.random.key(0), picture)["params"]

    return Const(shapes, _loader(field, weights, network))


def _loader(field: str, weights: str, network: str) -> Callable[[], PyTree]:
    def load() -> PyTree:
        make = f"`python -m vidmotion.convert {network}` makes that folder"
        make += f" from {SOURCES[network]}" if network in SOURCES else ""
        if not weights:
            raise ConfigError(f"config.system.{field} is empty: {make}")
        return folder.load_wanted(f"config.system.{field}={weights!r}", weights, network, make)[1]

    return load
