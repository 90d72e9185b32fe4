"""BCD: bitrate-controlled diffusion for disentangling motion and content in video (ICCV 2025).

Li, Chen, Peng, Yu, Chen, Lu, arXiv 2509.08376. A clip is cut into two halves A and B. The content c comes from A and
the motion m from B. A vector quantiser whose entropy is held to a target bitrate turns m into m_hat, and a diffusion
denoiser rebuilds B from (c, m_hat). Since c never sees B, it cannot carry B's motion; since m_hat has too few bits to
carry appearance, it must rely on c for that.

    L = L_d + lambda * L_rate                                                    (lambda = 0.04)

Every choice that the paper leaves open is a field whose default is the recommended choice; these numbered gaps are
described in the docstrings below and in those of the three networks.

Shape suffixes: b batch, t frames, k content tokens, d content width, m motion feature; v video in pixels,
z latent video (both b t h w c).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion.config_schema import from_config
from vidmotion.diffusion import process, samplers
from vidmotion.diffusion.guidance import guided
from vidmotion.errors import ConfigError
from vidmotion.losses import bitrate
from vidmotion.models import disentangle, quantizer
from vidmotion.models.disentangle import DisentanglingEncoder
from vidmotion.models.dit import VideoDiT
from vidmotion.models.quantizer import GroupedQuantizer, temperature
from vidmotion.system import (
    Const,
    Describes,
    MotionTransfer,
    Out,
    Player,
    System,
    Vars,
    begun,
    dtype,
    when,
)
from vidmotion.systems import codecs

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Rate:
    """Settings of the rate term (gap 3).

    Attributes:
      target: the target bitrate in bits per second, at the nominal 25 frames/s.
      weight: lambda, the weight of the rate term.
      mode: which quantity is squared. Not in paper; see `losses.bitrate.rate_loss`.
    """

    target: float
    weight: float = 0.04
    mode: str = "per_codebook_mean"


@dataclasses.dataclass(frozen=True)
class Cross:
    """Settings of cross-driven training (gap 11).

    Attributes:
      enabled: whether c and m come from different halves. False takes both from the same half (an ablation; it
        collapses in the paper).
      symmetric: whether training also rebuilds A from (content of B, motion of A). The paper only states A -> B.
      content_frames: the number of frames of A from which content is read in training; 0 is all, as in the paper (for
        inference see `Sampler`).
    """

    enabled: bool = True
    symmetric: bool = False
    content_frames: int = 0


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance (Tables A4, A5; gap 9).

    Attributes:
      drop: probability per clip of replacing the conditions by learned nulls in training.
      independent: whether c and m_hat are dropped independently rather than together. Not in paper.
      scale: w in D_null + w * (D_cond - D_null) at sampling.
    """

    drop: float = 0.1
    independent: bool = False
    scale: float = 1.5


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Settings of the diffusion process (gap 7).

    Attributes:
      kind: ``edm``, or ``ddpm_eps`` for noise prediction on a linear 1000-step schedule.
      sigma_data, p_mean, p_std: EDM's training parameters.
      sigma_min, sigma_max: ends of EDM's sampling schedule.
      output: how EDM's network becomes a denoiser, see `process.EDM`. Not in paper.
    """

    kind: str = "edm"
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    output: str = "edm"

    def process(self) -> process.Process:
        """Builds the process that these fields describe.

        Raises:
          ConfigError: unknown kind.
        """
        if self.kind == "edm":
            return process.EDM(
                self.sigma_data,
                self.p_mean,
                self.p_std,
                self.sigma_min,
                self.sigma_max,
                self.output,
            )
        if self.kind == "ddpm_eps":
            return process.DDPM()
        raise ConfigError(f"config.system.diffusion.kind={self.kind!r}: choose edm or ddpm_eps")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of sampling (Tables A4, A5).

    Attributes:
      steps: the number of noise levels.
      method: ``heun`` (2 * steps - 1 evaluations) or ``euler``.
      window: the number of frames in a window of motion encoding and denoising; all windows start from the same noise.
        0 takes the half-clip length seen in training. Not in paper.
      content_frames: content is read from this many first frames of the content clip; 0 is all (Table A2 tries 1, 5, 15
        and 20 at inference).
    """

    steps: int
    method: str = "heun"
    window: int = 0
    content_frames: int = 0


@dataclasses.dataclass(frozen=True)
class BCD(System, MotionTransfer, Describes):
    """Bitrate-controlled diffusion.

    Attributes:
      frames, size: the length of a training clip and its side in pixels; `frames` is even, the halves are A and B.
      codec: a codec of `codecs`, or a mapping of its fields.
      encoder, quantizer, denoiser: the networks, or mappings of their fields without those that other fields of this
        class determine.
      rate, sampler, cross, guidance, diffusion: see the classes of the same names.
      compute: ``float32`` or ``bfloat16``; parameters, quantiser, entropies, softmaxes, noise scalings and
        losses are float32 either way.
      remat: whether encoder and denoiser recompute their blocks in the backward pass.
      scan: whether the denoiser compiles one block for all.

    Raises:
      ConfigError: sizes that do not fit together.
    """

    frames: int
    size: int
    codec: codecs.PixelCodec | codecs.LatentCodec
    encoder: DisentanglingEncoder | Mapping[str, Any]
    quantizer: GroupedQuantizer | Mapping[str, Any]
    rate: Rate
    denoiser: VideoDiT | Mapping[str, Any]
    sampler: Sampler
    cross: Cross = Cross()
    guidance: Guidance = Guidance()
    diffusion: Diffusion = Diffusion()
    compute: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        codec = codecs.make(self.codec)
        height, channels = codec.latent_shape(self.size)
        common = {"remat": self.remat, "dtype": dtype(self.compute)}
        books = from_config(GroupedQuantizer, self.quantizer, "system.quantizer")
        width = books.books * books.dim
        encoder = from_config(
            DisentanglingEncoder, self.encoder, "system.encoder", motion_width=width, **common
        )
        sizes = {"height": height, "channels": channels, "temporal": True, "scan": self.scan}
        denoiser = from_config(VideoDiT, self.denoiser, "system.denoiser", **sizes, **common)
        built = {"codec": codec, "quantizer": books, "encoder": encoder, "denoiser": denoiser}
        for name, part in built.items():
            object.__setattr__(self, name, part)
        if self.frames < 2 or self.frames % 2:
            raise ConfigError(
                f"config.system.frames={self.frames}: two halves need an even number >= 2"
            )
        for name in ("cross", "sampler"):
            frames = getattr(self, name).content_frames
            if not 0 <= frames <= self.half:
                raise ConfigError(
                    f"config.system.{name}.content_frames={frames}: a half has only {self.half} frames"
                )
        if self.encoder.width % self.encoder.heads:
            raise ConfigError(
                f"config.system.encoder.width={self.encoder.width} must be divisible by "
                f"heads={self.encoder.heads}"
            )
        for field, value, known in (
            ("encoder.queries", self.encoder.queries, disentangle.QUERIES),
            ("encoder.frame_stem", self.encoder.frame_stem, disentangle.STEMS),
            ("quantizer.distance", self.quantizer.distance, quantizer.DISTANCES),
            ("rate.mode", self.rate.mode, bitrate.MODES),
            ("diffusion.output", self.diffusion.output, process.OUTPUTS),
            ("sampler.method", self.sampler.method, samplers.SAMPLERS),
        ):
            if value not in known:
                raise ConfigError(f"config.system.{field}={value!r}: choose {', '.join(known)}")
        try:
            self.denoiser.check(*self.encoder.content_shape)
        except ValueError as error:
            raise ConfigError(f"config.system.{error}") from error
        if self.encoder.queries == "patches" and (
            self.encoder.content_tokens != self.denoiser.tokens
        ):
            raise ConfigError(
                f"config.system.encoder.queries='patches' needs encoder.content_tokens = "
                f"{self.denoiser.tokens}, one per patch of the denoiser, got "
                f"{self.encoder.content_tokens}"
            )
        self.diffusion.process()

    # -- networks ---------------------------------------------------------------------------------

    @property
    def half(self) -> int:
        """T_h, the number of frames in one half."""
        return self.frames // 2

    @property
    def window(self) -> int:
        """The number of frames in a window of motion encoding and denoising."""
        return self.sampler.window or self.half

    @property
    def content_frames(self) -> int:
        """The number of frames from which content is read: as many as in training, or fewer if the sampler says so."""
        return self.sampler.content_frames or self.half

    @property
    def motion_width(self) -> int:
        """C_m = N * D, the width of the motion feature."""
        return self.encoder.motion_width

    @property
    def target_bits(self) -> float:
        """H*, the target in bits per frame."""
        return bitrate.bits_per_frame(self.rate.target)

    # -- the interface ----------------------------------------------------------------------------

    @property
    def players(self) -> tuple[Player, ...]:
        """The only player, ``model``; its temporal blocks start working at a later step."""
        return (Player("model", switches=(self.denoiser.temporal_from,)),)

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), or ``latents`` float16 (B, T, h, w, C) if
        latents are cached."""
        if self.codec.cached:
            height, channels = self.codec.latent_shape(self.size)
            shape = (batch, self.frames, height, height, channels)
            return {"latents": jax.ShapeDtypeStruct(shape, jnp.float16)}
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": {encoder, quantizer, denoiser, null}}``; temporal blocks exist from
        the start."""
        keys = jax.random.split(key, 5)
        height, channels = self.codec.latent_shape(self.size)
        z = jnp.zeros((1, self.half, height, height, channels))
        c = jnp.zeros((1, *self.encoder.content_shape))
        m = jnp.zeros((1, self.half, self.motion_width))
        time = jnp.zeros((1, self.half))
        return {
            "model": {
                "encoder": self.encoder.init(keys[0], z)["params"],
                "quantizer": self.quantizer.init(keys[1], m)["params"],
                "denoiser": self.denoiser.init(keys[2], z, time, c, m)["params"],
                "null": {
                    "content": 0.02 * jax.random.normal(keys[3], c.shape[1:]),
                    "motion": 0.02 * jax.random.normal(keys[4], (self.motion_width,)),
                },
            }
        }

    def consts_spec(self) -> dict[str, Const]:
        """Returns the codec's frozen network, if it has one."""
        return self.codec.consts()

    def fingerprints(self, consts: PyTree) -> dict[str, str]:
        """Returns the fingerprint of the codec's network, or of its fixed projection if it has no weights."""
        return self.codec.fingerprints(consts)

    def tokens(self, batch: int) -> int:
        """Returns the number of denoiser tokens in a batch: clips x rebuilt frames x patches."""
        rebuilt = self.half * (2 if self.cross.symmetric and self.cross.enabled else 1)
        return batch * rebuilt * self.denoiser.tokens

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluators of motion transfer, against the exact render (Heads) or by a classifier (Sprites), and
        of leakage between the codes."""
        return ("swap", "drivers", "reading", "sprites_transfer", "leakage")

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns L_d + lambda * L_rate on a batch of clips (see the module's docstring)."""
        params = vars.params["model"]
        q = self.quantizer
        code_key, noise_key, drop_key = jax.random.split(key, 3)
        z = self.codec.encode(vars.consts, batch["latents" if self.codec.cached else "video"])
        target, c, m = self._cross_drive(params, z)
        tau = temperature(step, q.tau_max, q.tau_min, q.tau_decay)
        code = self._quantize(params, m, tau, code_key)
        c, m_hat = self._drop_conditions(params, c, code.m_hat_btm, drop_key)

        def denoising_loss(temporal):
            return self._denoising_loss(params, target, c, m_hat, noise_key, temporal)

        denoising = when(
            begun(step, self.denoiser.temporal_from),
            lambda: denoising_loss(True),
            lambda: denoising_loss(False),
        )

        bits_n = bitrate.entropy_bits(jnp.mean(code.soft_btnj, axis=(0, 1)))
        rate = bitrate.rate_loss(bits_n, self.target_bits, self.rate.mode)
        hard_usage_nj = jnp.mean(jax.nn.one_hot(code.ids_btn, q.entries), axis=(0, 1))
        hard_bits_n = bitrate.entropy_bits(hard_usage_nj)
        metrics = {
            "denoising": denoising,
            "rate": rate,
            "bits_soft": jnp.sum(bits_n),
            "bits_hard": jnp.sum(hard_bits_n),
            "kbps_hard": bitrate.kbps(jnp.sum(hard_bits_n)),
            "book_bits_min": jnp.min(bits_n),
            "book_bits_max": jnp.max(bits_n),
            "dead_entries": jnp.sum(hard_usage_nj == 0),
            "tau": tau,
        }
        return denoising + self.rate.weight * rate, Out(metrics, vars.mutable)

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> PyTree:
        """Transfers motion: makes the content of one clip move like another clip.

        Args:
          vars: parameters (normally the averaged ones).
          batch: ``content`` uint8 (B, T_c, H, W, 3), any T_c; ``motion`` uint8 (B, T, H, W, 3); either may
            be latents from a cache instead, float16 (B, T, h, w, C).
          key: the random key of the initial noise, shared by all windows of a clip.
          steps, guidance: the number of steps and the scale of the guidance; None takes the config's.

        Returns:
          ``video`` float32 (B, T, H, W, 3) in [0, 1]; ``ids`` int32 (B, T, N), the motion codes; ``soft_usage``
          (B, N, J), each clip's mean soft assignment.
        """
        read = self.read(vars, batch)
        video = self.render(vars, read, key, steps, guidance)
        return {"video": video, "ids": read["ids"], "soft_usage": read["soft_usage"]}

    def read(self, vars: Vars, batch: PyTree) -> PyTree:
        """Reads the content of one clip and the motion codes of another, for `render`.

        Args:
          vars: parameters.
          batch: ``content`` and ``motion`` as in `sample`.

        Returns:
          ``content`` float32 (B, K, C_c); ``ids`` int32 (B, T, N); ``soft_usage`` float32 (B, N, J).
        """
        params = vars.params["model"]
        seen = batch["content"][:, : self.sampler.content_frames or None]
        c, _ = self._encode(params, self.codec.encode(vars.consts, seen))
        z = self.codec.encode(vars.consts, batch["motion"])
        _, m = self._encode(params, self._cut_windows(z))
        code = self._quantize(params, m)
        clips, frames = z.shape[:2]
        soft_btnj = _join_windows(code.soft_btnj, clips, frames)
        return {
            "content": c,
            "ids": _join_windows(code.ids_btn, clips, frames),
            "soft_usage": jnp.mean(soft_btnj, axis=1),
        }

    def read_codes(self, vars: Vars, batch: PyTree) -> dict[str, jax.Array]:
        """Returns ``content``, the content tokens one after another (B, K * C_c), and ``motion``, the quantised motion
        (B, T, N * D)."""
        read = self.read(vars, batch)
        params = {"params": vars.params["model"]["quantizer"]}
        m_hat = self.quantizer.apply(params, read["ids"], method="embed")
        return {"content": read["content"].reshape(len(m_hat), -1), "motion": m_hat}

    def render(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> jax.Array:
        """Generates frames from content and motion codes.

        Args:
          vars, key, steps, guidance: see `sample`.
          batch: ``content`` (B, K, C_c) and ``ids`` (B, T, N), from `read` or from a generator.

        Returns:
          float32 (B, T, H, W, 3) in [0, 1].
        """
        params = vars.params["model"]
        m_hat = self.quantizer.apply({"params": params["quantizer"]}, batch["ids"], method="embed")
        clips, frames = m_hat.shape[:2]
        m_hat = self._cut_windows(m_hat)
        count, window = m_hat.shape[0] // clips, m_hat.shape[1]
        height, channels = self.codec.latent_shape(self.size)
        noise = jax.random.normal(key, (clips, window, height, height, channels))
        latent = self._denoise_from(
            params,
            jnp.repeat(noise, count, axis=0),
            jnp.repeat(batch["content"], count, axis=0),
            m_hat,
            self.sampler.steps if steps is None else steps,
            self.guidance.scale if guidance is None else guidance,
        )
        return self.codec.decode(vars.consts, _join_windows(latent, clips, frames))

    def reconstruct(self, vars: Vars, clip: jax.Array) -> jax.Array:
        """Passes a clip through the codec alone: pixels or cached latents as in `sample` -> float32 (B, T, H, W, 3)."""
        return self.codec.decode(vars.consts, self.codec.encode(vars.consts, clip))

    # -- parts ------------------------------------------------------------------------------------

    def _cut_windows(self, x_bt: jax.Array) -> jax.Array:
        """Cuts clips into windows: (B, T, ...) -> (B * windows, window, ...); the last window is padded with the last
        frame."""
        clips, frames = x_bt.shape[:2]
        window = min(self.window, frames)
        count = -(-frames // window)
        padded = jnp.take(x_bt, jnp.minimum(jnp.arange(count * window), frames - 1), axis=1)
        return padded.reshape(clips * count, window, *x_bt.shape[2:])

    def _encode(self, params: PyTree, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.encoder.apply({"params": params["encoder"]}, z)

    def _quantize(self, params, m, tau=1.0, key=None):
        return self.quantizer.apply({"params": params["quantizer"]}, m, tau, key)

    def _cross_drive(self, params: PyTree, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (target latents, content, motion); each half is encoded separately, so that nothing leaks."""
        first, second = z[:, : self.half], z[:, self.half :]
        cut = self.cross.content_frames or self.half
        if not self.cross.enabled:
            c, m = self._encode(params, second)
            return second, c, m
        # The halves of a clip stay next to each other: concatenating all A with all B would move rows between devices.
        both = z.reshape(-1, self.half, *z.shape[2:])
        if cut == self.half:
            c, m = self._encode(params, both)
        elif self.cross.symmetric:
            c, _ = self._encode(params, both[:, :cut])
            _, m = self._encode(params, both)
        else:
            c, _ = self._encode(params, first[:, :cut])
            _, m = self._encode(params, second)
            return second, c, m
        if not self.cross.symmetric:
            return second, _halves(c)[:, 0], _halves(m)[:, 1]
        return _in_a_row(_halves(both)[:, ::-1]), c, _in_a_row(_halves(m)[:, ::-1])

    def _drop_conditions(self, params, c, m_hat, key):
        """Replaces conditions by the learned nulls with probability `guidance.drop` per clip."""
        keys = jax.random.split(key)
        drop_c = jax.random.bernoulli(keys[0], self.guidance.drop, (c.shape[0], 1, 1))
        drop_m = drop_c
        if self.guidance.independent:
            drop_m = jax.random.bernoulli(keys[1], self.guidance.drop, (c.shape[0], 1, 1))
        null = params["null"]
        return (
            jnp.where(drop_c, null["content"][None], c),
            jnp.where(drop_m, null["motion"][None, None], m_hat),
        )

    def _denoise(self, params, y, sigma_bt, c, m_hat, temporal=True):
        """Returns D(y; sigma | c, m_hat) with the process's preconditioning; sigma is (B, T).

        Temporal blocks that have not started to learn are the identity, so leaving them out only saves time.
        """
        scale = self.diffusion.process().scalings(sigma_bt)

        def wide(x_bt):
            return x_bt[:, :, None, None, None]

        raw = dataclasses.replace(self.denoiser, temporal=temporal).apply(
            {"params": params["denoiser"]}, wide(scale.c_in) * y, scale.time, c, m_hat
        )
        return wide(scale.c_skip) * y + wide(scale.c_out) * raw

    def _denoising_loss(self, params, z, c, m_hat, key, temporal=True):
        """Returns L_d, the mean of weight(sigma) * (D(z + sigma n) - z)^2."""
        diffusion = self.diffusion.process()
        sigma_key, noise_key = jax.random.split(key)
        # Not in paper: one noise level for all frames of a clip.
        sigma_b1 = diffusion.sample_sigma(sigma_key, (z.shape[0], 1))
        sigma_bt = jnp.broadcast_to(sigma_b1, z.shape[:2])
        wide = sigma_bt[:, :, None, None, None]
        y = z + wide * jax.random.normal(noise_key, z.shape)
        error = (self._denoise(params, y, sigma_bt, c, m_hat, temporal) - z) ** 2
        return jnp.mean(diffusion.weight(sigma_bt) * jnp.mean(error, axis=(2, 3, 4)))

    def _denoise_from(self, params, noise, c, m_hat, steps, scale):
        """Samples latents of the shape of `noise`, given content and motion, with the guidance scale `scale`."""
        diffusion = self.diffusion.process()
        null = jax.tree.map(
            lambda value, like: jnp.broadcast_to(value, like.shape),
            (params["null"]["content"][None], params["null"]["motion"][None, None]),
            (c, m_hat),
        )

        def denoise(x, sigma, condition):
            return self._denoise(params, x, jnp.broadcast_to(sigma, x.shape[:2]), *condition)

        sigmas = samplers.karras_sigmas(steps, diffusion.sigma_min, diffusion.sigma_max)
        return samplers.sample(
            guided(denoise, (c, m_hat), null, scale), noise, sigmas, self.sampler.method
        )


def _join_windows(x: jax.Array, clips: int, frames: int) -> jax.Array:
    """Joins windows to clips, the inverse of `BCD._cut_windows`; drops the padding."""
    return x.reshape(clips, -1, *x.shape[2:])[:, :frames]


def _in_a_row(halves: jax.Array) -> jax.Array:
    """Flattens (b, 2, ...) to (2 b, ...), both halves of a clip before those of the next."""
    return halves.reshape(-1, *halves.shape[2:])


def _halves(x: jax.Array) -> jax.Array:
    """Restores (b, 2, ...) from (2 b, ...), the inverse of `_in_a_row`."""
    return x.reshape(-1, 2, *x.shape[1:])
