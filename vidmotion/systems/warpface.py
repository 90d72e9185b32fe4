"""WarpFace: self-supervised face reenactment by warping inside cross-attention (anonymous, under review).

Training takes two frames of one clip: the source gives the identity, the driving frame the motion. A motion encoder
sees both after augmentation and gives each a code relative to a canonical pose. The difference of the codes (Eq. 4)
warps the denoiser's hidden states by `WarpCA`, while a reference network supplies the features of the source.

    L = mean(w_adapt * (eps - eps_hat)^2) + lambda_sym * |theta_{s->r} + theta_{r->s}|^2        (Eq. 11-13)

Every choice that the paper leaves open is a field whose default is the recommended choice (spec warpface.md, section
15).

Shape suffixes: b batch, f frames, h w latent rows and columns, c channels, m motion code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion.config_schema import from_config
from vidmotion.convert.maps import unet as unet_maps
from vidmotion.convert.maps.warpface import WANTED
from vidmotion.diffusion import samplers
from vidmotion.diffusion.guidance import guide
from vidmotion.diffusion.process import DDPM, PREDICTIONS
from vidmotion.errors import ConfigError
from vidmotion.losses.motion import adaptive_weight, symmetry_loss
from vidmotion.models import mgme, warpca
from vidmotion.models.keypoints import KeypointMotion
from vidmotion.models.mgme import MGME, MotionCodes
from vidmotion.models.unet import SIZES, ReferenceUNet, UNet, project_banks
from vidmotion.models.warp_unet import BLOCKS, WarpUNet, keep_blocks
from vidmotion.system import Const, Describes, MotionTransfer, Out, Released, System, Vars, dtype
from vidmotion.systems import codecs

PyTree = Any
TOGETHER = 8  # frames of a long video that are generated together
MOTIONS = ("vector", "ip", "none")
NULLS = ("both", "appearance", "motion")


@dataclasses.dataclass(frozen=True)
class Motion:
    """Settings of the motion encoder, `MGME`, and of its replacements in ablations.

    Attributes:
      kind: ``vector``, MGME; ``ip``, keypoints (Table 3); ``none``, no motion at all, the intrinsic-motion
        baseline of Figure 1.
      patch, depth, width, heads, groups, basis, size, hidden, wide: the fields of `MGME`.
      transfer: how two codes are combined: ``difference``, as in Eq. 4, or ``sum``.
      keypoints: arguments of `KeypointDetector`, for ``ip``.
      equivariance: the weight of the keypoints' equivariance loss. Not in paper.
    """

    kind: str = "vector"
    patch: int = 2
    depth: int = 6
    width: int = 256
    heads: int = 0
    groups: int = 4
    basis: int = 128
    size: int = 256
    hidden: int = 256
    wide: str = "tight_frame"
    transfer: str = "difference"
    keypoints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    equivariance: float = 1.0


@dataclasses.dataclass(frozen=True)
class Inject:
    """How the motion code enters the denoiser: the fields of `WarpCA`, and which `blocks` have one (Tables 3, 4)."""

    blocks: str = "mid+up"
    mode: str = "warpca"
    tokens: str = "chunk"
    token_width: int = 16
    flow_input: str = "attn_plus_query"
    time_modulation: bool = True
    fusion: str = "add"
    flow_range: float = 1.0
    flow_start: float = 0.0
    occlusion_bias: float = -2.0


@dataclasses.dataclass(frozen=True)
class Loss:
    """Settings of the loss (Eq. 11 to 13).

    Attributes:
      symmetry: lambda_sym, the weight of the symmetry term.
      detach: whether Eq. 13 holds theta_{r->s} fixed, so that the term pulls theta_{s->r} towards its opposite and not
        the other way round. Flow, occlusion and the last layers of the transformers start at zero, so at first the
        denoising loss has no gradient for the motion encoder. In the paper's form, the symmetry term alone then trains
        the encoder, and its easiest solution is the same code for all pictures; a small weight does not help, because
        an adaptive optimizer rescales the gradient. False is the equation of the paper.
      tau, epsilon: the weight of regions that hardly move, and how much more weight the others get (Eq. 12).
      symmetry_on: the frames whose codes the symmetry term sees: ``source``, as in Eq. 13, or ``both``.
    """

    symmetry: float = 0.1
    detach: bool = False
    tau: float = 0.5
    epsilon: float = 2.0
    symmetry_on: str = "source"


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance.

    Attributes:
      drop: probability per pair of leaving out reference and motion together in training. Not in paper.
      scale: w in eps_null + w * (eps_cond - eps_null).
      null: the conditions that the null branch lacks: ``both``, ``appearance`` or ``motion``. Not in paper.
    """

    drop: float = 0.1
    scale: float = 2.5
    null: str = "both"


STABLE_DIFFUSION = DDPM(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear")


@dataclasses.dataclass(frozen=True)
class WarpFace(System, MotionTransfer, Released, Describes):
    """Face reenactment by warping inside cross-attention.

    Attributes:
      size: the height and width of a frame.
      codec: a codec of `codecs`, or a mapping of its fields.
      unet: the sizes of `UNet`, the same for both networks.
      reference: the name of the set of blocks that read the reference (Table 4a).
      motion, inject, loss_terms, guidance, diffusion: see `Motion`, `Inject`, `Loss`, `Guidance` and `DDPM`.
      prediction: what the denoiser predicts: ``eps``, as in the paper, ``x0`` or ``v``; ``x0`` is the easiest for a
        small network.
      steps: the number of DDIM steps in sampling.
      compute: ``float32`` or ``bfloat16``.
      remat: whether both UNets recompute their blocks in the backward pass.

    Raises:
      ConfigError: values that do not exist or do not fit together.
    """

    size: int
    codec: codecs.PixelCodec | codecs.LatentCodec
    unet: Mapping[str, Any]
    reference: str = "down+mid"
    motion: Motion = Motion()
    inject: Inject = Inject()
    loss_terms: Loss = Loss()
    guidance: Guidance = Guidance()
    diffusion: DDPM = STABLE_DIFFUSION
    prediction: str = "eps"
    steps: int = 40
    compute: str = "float32"
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "codec", codecs.make(self.codec))
        sets = ", ".join(BLOCKS)
        for field, value, known in (
            ("reference", self.reference, BLOCKS),
            ("inject.blocks", self.inject.blocks, BLOCKS),
            ("inject.mode", self.inject.mode, ("warpca", "ca")),
            ("inject.tokens", self.inject.tokens, warpca.TOKENS),
            ("inject.flow_input", self.inject.flow_input, warpca.FLOW_INPUTS),
            ("inject.fusion", self.inject.fusion, warpca.FUSIONS),
            ("motion.kind", self.motion.kind, MOTIONS),
            ("motion.wide", self.motion.wide, mgme.WIDE),
            ("motion.transfer", self.motion.transfer, mgme.TRANSFERS),
            ("guidance.null", self.guidance.null, NULLS),
            ("loss_terms.symmetry_on", self.loss_terms.symmetry_on, ("source", "both")),
            ("prediction", self.prediction, PREDICTIONS),
        ):
            if value not in known:
                choices = sets if known is BLOCKS else ", ".join(known)
                raise ConfigError(f"config.system.{field}={value!r}: choose {choices}")
        if self.motion.kind != "none" and self.code_width % self.inject.token_width:
            raise ConfigError(
                f"config.system.inject.token_width={self.inject.token_width} does not divide the motion "
                f"code of {self.code_width} numbers"
            )
        dtype(self.compute)
        from_config(UNet, self.unet, "system.unet")

    # -- networks ---------------------------------------------------------------------------------

    @property
    def code_width(self) -> int:
        """D_m, the length of a motion code."""
        if self.motion.kind == "ip":
            return self.motion.keypoints.get("points", 15) * self.inject.token_width
        return self.motion.groups * self.motion.size

    @property
    def _unet_sizes(self) -> dict[str, Any]:
        channels = self.codec.latent_shape(self.size)[1]
        fixed = {"latent_channels": channels, "remat": self.remat, "dtype": dtype(self.compute)}
        return {**self.unet, "context_width": 0, **fixed}

    @property
    def _reference(self) -> ReferenceUNet:
        return ReferenceUNet(**self._unet_sizes, up=self.reference in ("up", "all", "mid+up"))

    @property
    def _denoiser(self) -> WarpUNet:
        fields = dataclasses.asdict(self.inject)
        blocks = fields.pop("blocks") if self.motion.kind != "none" else "none"
        groups = 1 if self.motion.kind == "ip" else self.motion.groups
        warp = tuple(sorted({**fields, "groups": groups}.items()))
        return WarpUNet(**self._unet_sizes, warpca=blocks, warp=warp)

    @property
    def _encoder(self) -> MGME | KeypointMotion:
        m, compute = self.motion, dtype(self.compute)
        if m.kind == "ip":
            return KeypointMotion(dict(m.keypoints), self.inject.token_width, compute)
        return MGME(
            side=self.codec.latent_shape(self.size)[0],
            patch=m.patch,
            depth=m.depth,
            width=m.width,
            heads=m.heads,
            groups=m.groups,
            basis=m.basis,
            size=m.size,
            hidden=m.hidden,
            wide=m.wide,
            dtype=compute,
        )

    # -- the interface ----------------------------------------------------------------------------

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: two frames of each clip, uint8, as `data.portraits` pairs them.

        They are the source ``reference`` (B, H, W, 3) and the frame to be made ``target`` (B, 1, H, W, 3), and for the
        motion encoder alone augmented versions of both, ``reference_driving`` and ``driving``.
        """
        shape = (self.size, self.size, 3)
        one = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
        many = jax.ShapeDtypeStruct((batch, 1, *shape), jnp.uint8)
        return {"reference": one, "target": many, "driving": many, "reference_driving": one}

    def consts_spec(self) -> dict[str, Const]:
        """Returns the codec's frozen network, if it has one."""
        return self.codec.consts()

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprints of the codec's networks."""
        return self.codec.fingerprints(consts)

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": {reference, denoiser, motion}}``.

        Layers that both UNets have start with the same values in both, as they do when both start from Stable
        Diffusion.
        """
        network_key, motion_key = jax.random.split(key)
        side, channels = self.codec.latent_shape(self.size)
        z = jnp.zeros((1, side, side, channels))
        banks = self._reference.init(network_key, z)
        theta = jnp.zeros((1, 1, self.code_width))
        params = {
            "reference": banks["params"],
            "denoiser": self._denoiser.init(network_key, z[:, None], jnp.zeros(1), None, theta)[
                "params"
            ],
        }
        if self.motion.kind == "ip":
            picture = jnp.zeros((1, self.size, self.size, 3))
            params["motion"] = self._encoder.init(motion_key, picture, method="everything")[
                "params"
            ]
        elif self.motion.kind == "vector":
            params["motion"] = self._encoder.init(motion_key, z)["params"]
        return {"model": params}

    def released(self, params: PyTree) -> PyTree:
        """Returns the parameters of both UNets from Stable Diffusion's UNet, without its cross-attention to text.

        `params` come from the folder that ``python -m vidmotion.convert warpface`` wrote. No published file contains
        the motion encoder or WarpCA.

        Raises:
          ConfigError: the folder holds another network.
        """
        if "unet" not in params:
            raise ConfigError(
                f"config.init_from holds {', '.join(params)}, but WarpFace begins with a UNet of Stable Diffusion: "
                f"`python -m vidmotion.convert warpface --base=FILE --vae=FILE --out=DIR` makes that folder. {WANTED}"
            )
        trunk = unet_maps.without_text(params["unet"])
        return {"model": {"reference": trunk, "denoiser": trunk}}

    def facts(self, params: PyTree) -> dict[str, str]:
        """Returns which published files training starts from, if the UNets have Stable Diffusion's sizes."""
        size = SIZES["sd15"]["channels"]
        return {"begins with": WANTED} if tuple(self.unet.get("channels", size)) == size else {}

    def tokens(self, batch: int) -> int:
        """Returns the number of latent pixels in the denoised frames of a batch."""
        return batch * self.codec.latent_shape(self.size)[0] ** 2

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Returns the codes that probes read.

        They are ``motion`` float32 (B, T, D_m), each frame's own code theta_{r->x}, and ``content`` float32 (B, D_c),
        the mean over positions of each channel of the reference features of the first frame of ``content``.
        """
        params = vars.params["model"]
        motion, first = batch["motion"], batch["content"][:, :1]
        flat = motion.reshape(-1, *motion.shape[2:])
        code = self._own(self._see(params, vars.consts, flat)[0])
        z_s = self.codec.encode(vars.consts, first)[:, 0]
        banks = self._reference.apply({"params": params["reference"]}, z_s)
        banks = keep_blocks(banks, self._denoiser, self.reference)
        content = [jnp.mean(bank.astype(jnp.float32), axis=1) for bank in banks.values()]
        return {
            "content": jnp.concatenate(content, axis=-1),
            "motion": code.reshape(*motion.shape[:2], -1),
        }

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluators of motion transfer, against the exact render of Heads, and of leakage."""
        return ("swap", "drivers", "reading", "leakage")

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the loss of Eq. 11 on a batch of pairs."""
        params = vars.params["model"]
        time_key, noise_key, drop_key, bend_key, draw_key = jax.random.split(key, 5)
        size = len(batch["reference"])
        z_s = self.codec.encode(vars.consts, batch["reference"][:, None])[:, 0]
        # Only the latent of the target is drawn from the autoencoder's posterior; all others are its mean.
        mean_d, z_d = (
            z[:, 0] for z in self.codec.encode_and_draw(vars.consts, batch["target"], draw_key)
        )
        views = batch["reference_driving"], batch["driving"][:, 0]
        seen = self._see(params, vars.consts, *views)
        theta = self._code(params, *seen)
        keep = jax.random.bernoulli(drop_key, 1.0 - self.guidance.drop, (size,))
        theta = jnp.where(keep[:, None], theta, self._code(params, seen[0], seen[0]))

        time = jax.random.randint(time_key, (size,), 0, self.diffusion.steps)
        noise = jax.random.normal(noise_key, z_d.shape)
        noisy = self.diffusion.noised(z_d, noise, time)
        banks = self._banks(params, z_s)
        out, state = self._denoiser.apply(
            {"params": params["denoiser"]},
            noisy[:, None],
            time,
            None,
            theta[:, None],
            banks,
            keep,
            mutable="motion",
        )
        target = self.diffusion.target(z_d, noise, time, self.prediction)
        error_bhwc = jnp.square(target - out[:, 0])
        weight_bhw = adaptive_weight(z_s, mean_d, self.loss_terms.tau, self.loss_terms.epsilon)
        ldm = jnp.mean(weight_bhw[..., None] * error_bhwc)
        metrics = {"ldm": ldm, "mse": jnp.mean(error_bhwc), **_motion_metrics(state)}
        loss = ldm
        if self.motion.kind == "vector":
            sides = seen if self.loss_terms.symmetry_on == "both" else seen[:1]
            hold = jax.lax.stop_gradient if self.loss_terms.detach else lambda x: x
            terms = [symmetry_loss(c.to_canonical_bm, hold(c.from_canonical_bm)) for c in sides]
            metrics["symmetry"] = jnp.mean(sum(terms[1:], terms[0])) / len(terms)
            loss += self.loss_terms.symmetry * metrics["symmetry"]
        if self.motion.kind == "ip":
            bent = self._motion(
                params, codecs.signed(views[0]), seen[0], bend_key, method="equivariance"
            )
            metrics["equivariance"] = jnp.mean(bent)
            loss += self.motion.equivariance * metrics["equivariance"]
        if self.motion.kind != "none":
            metrics["code_spread"] = _spread(self._own(seen[1]))
        return loss, Out(metrics, vars.mutable)

    @property
    def window(self) -> int:
        """The number of frames of a long driver that are generated together.

        `sample` takes any number of frames and makes each independently of the others.
        """
        return TOGETHER

    @property
    def content_frames(self) -> int:
        """The number of content frames that are read: one, the source."""
        return 1

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> PyTree:
        """Reenacts a face: makes the first frame of one clip move like another clip.

        Args:
          vars: parameters.
          batch: ``content`` uint8 (B, T_c, H, W, 3), whose first frame is the source; ``motion`` uint8
            (B, T, H, W, 3).
          key: the random key of the initial noise, which is the same for all frames of a clip.
          steps, guidance: the number of steps and the scale of the guidance; None takes the config's.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1]; ``code`` float32 (B, T, D_m), each driving frame's own code.
        """
        params = vars.params["model"]
        source, driving = batch["content"][:, :1], batch["motion"]
        clips, frames = driving.shape[:2]
        flat = driving.reshape(clips * frames, *driving.shape[2:])
        seen_s, seen_d = self._see(params, vars.consts, source[:, 0], flat)
        every = jax.tree.map(lambda x: jnp.repeat(x, frames, axis=0), seen_s)
        theta, still = (
            self._code(params, every, to).reshape(clips, frames, -1) for to in (seen_d, every)
        )
        z_s = self.codec.encode(vars.consts, source)[:, 0]
        video = self.render(vars, z_s, theta, key, steps, guidance, still)
        return {"video": video, "code": self._own(seen_d).reshape(clips, frames, -1)}

    def render(
        self,
        vars: Vars,
        z_s: jax.Array,
        theta: jax.Array,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
        still: jax.Array | None = None,
    ) -> jax.Array:
        """Generates a video of a source under given motion codes.

        Args:
          vars: parameters.
          z_s: latents of the sources (B, h, w, C).
          theta: theta_{s->d} for each frame, (B, T, D_m).
          key: the random key of the noise.
          steps, guidance: the number of steps and the scale of the guidance; None takes the config's.
          still: the code of no motion, of the shape of `theta`; None takes zeros, the code of no motion for the vectors
            of MGME with the transfer ``difference``.

        Returns:
          float32 (B, T, H, W, 3) in [0, 1].
        """
        params = vars.params["model"]
        scale = self.guidance.scale if guidance is None else guidance
        banks = self._banks(params, z_s)
        reads = jnp.ones(len(z_s), bool)
        null_theta = theta
        if self.guidance.null != "appearance":
            null_theta = jnp.zeros_like(theta) if still is None else still
        null_reads = reads if self.guidance.null == "motion" else ~reads

        def both(x, *more):
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), x, *more)

        def predict(x, time):
            run = (params["denoiser"], x, time, theta, banks, reads)
            if scale == 1.0:
                return self._denoise(*run)
            pair = (
                both(x, x),
                time,
                both(theta, null_theta),
                both(banks, banks),
                both(reads, null_reads),
            )
            return guide(*jnp.split(self._denoise(params["denoiser"], *pair), 2), scale)

        noise = jax.random.normal(key, z_s.shape)
        noise = jnp.broadcast_to(noise[:, None], (*theta.shape[:2], *z_s.shape[1:]))
        alpha_bar = self.diffusion.alpha_bar()
        times = samplers.leading_times(steps or self.steps, self.diffusion.steps)
        final = float(alpha_bar[0])
        latent = samplers.ddim(predict, noise, times, alpha_bar, self.prediction, final)
        return self.codec.decode(vars.consts, latent)

    # -- for analyses -----------------------------------------------------------------------------

    def codes(self, vars: Vars, pictures: jax.Array) -> MotionCodes | jax.Array:
        """Runs the motion encoder on uint8 pictures (B, H, W, 3); returns `MotionCodes`, or keypoints (B, J, 2)."""
        return self._see(vars.params["model"], vars.consts, pictures)[0]

    def latents(self, vars: Vars, pictures: jax.Array) -> jax.Array:
        """Encodes uint8 pictures (B, H, W, 3) as the latents (B, h, w, C) that `render` takes."""
        return self.codec.encode(vars.consts, pictures[:, None])[:, 0]

    def basis(self, vars: Vars) -> jax.Array:
        """Returns the orthonormal vectors of every group, (K, D_k, N_k); only for motion ``vector``."""
        return self._motion(vars.params["model"], method="basis_kei")

    def modulation(self, vars: Vars, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns gamma and delta of Eq. 9 at times (N,), each (N,): their means over all `WarpCA` and over the code.

        They depend on the time alone, so zeros serve as the array to be denoised.
        """
        side, channels = self.codec.latent_shape(self.size)
        run = jnp.zeros((len(time), 1, side, side, channels)), time, None
        theta = jnp.zeros((len(time), 1, self.code_width))
        params = {"params": vars.params["model"]["denoiser"]}
        found = _sown(self._denoiser.apply(params, *run, theta, mutable="motion")[1])
        return tuple(
            jnp.mean(jnp.stack([jnp.mean(leaf, axis=-1) for leaf in found[name]]), axis=0)
            for name in ("gamma", "delta")
        )

    # -- parts ------------------------------------------------------------------------------------

    def _motion(self, params, *inputs, method=None):
        return self._encoder.apply({"params": params["motion"]}, *inputs, method=method)

    def _see(self, params, consts, *views) -> tuple:
        """Runs the motion encoder on one or two batches of frames; returns `MotionCodes` or keypoints for each."""
        if self.motion.kind == "none":
            return tuple(jnp.zeros((len(view), 0)) for view in views)
        counts = [len(view) for view in views]
        together = jnp.concatenate(views)
        if self.motion.kind == "ip":
            seen = self._motion(params, codecs.signed(together))
        else:
            seen = self._motion(params, self.codec.encode(consts, together[:, None])[:, 0])
        first = counts[0]
        return jax.tree.map(lambda x: x[:first], seen), jax.tree.map(lambda x: x[first:], seen)

    def _code(self, params, source, driving) -> jax.Array:
        """Returns theta_{s->d} (b, m) from the encoder's results for source and driving frames."""
        if self.motion.kind == "none":
            return jnp.zeros((len(driving), self.code_width))
        if self.motion.kind == "ip":
            return self._motion(params, source, driving, method="code")
        return mgme.transfer(source, driving, self.motion.transfer)

    def _own(self, seen) -> jax.Array:
        """Returns each frame's own code (b, m): theta_{r->x}, or its keypoints."""
        if isinstance(seen, MotionCodes):
            return seen.from_canonical_bm
        return seen.reshape(len(seen), -1)

    def _banks(self, params, z_s):
        banks = self._reference.apply({"params": params["reference"]}, z_s)
        banks = keep_blocks(banks, self._denoiser, self.reference)
        return project_banks(self._denoiser, params["denoiser"], banks)

    def _denoise(self, params, x_bfhwc, time, theta_bfm, banks, reads):
        times = jnp.full((len(x_bfhwc),), time)
        return self._denoiser.apply(
            {"params": params}, x_bfhwc, times, None, theta_bfm, banks, reads
        )


def _spread(code_bm: jax.Array) -> jax.Array:
    """Returns the standard deviation over the batch, averaged over coordinates; it is near zero if motion collapses."""
    return jnp.mean(jnp.std(code_bm, axis=0))


def _sown(state: PyTree) -> dict[str, list[jax.Array]]:
    """Collects by name the values that the `WarpCA` modules sowed."""
    found: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.get("motion", {})):
        name = next(key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey))
        found.setdefault(name, []).append(leaf)
    return found


def _motion_metrics(state: PyTree) -> dict[str, jax.Array]:
    """Returns the means over all `WarpCA` of |gamma| and |delta| of Eq. 9, |flow| and occlusion."""
    return {
        name: jnp.mean(jnp.stack([jnp.mean(jnp.abs(leaf)) for leaf in leaves]))
        for name, leaves in _sown(state).items()
    }
