"""VidTwin's video generation: class-conditional diffusion of both latents (arXiv 2412.17726, 3.5, 4.4.3, D.3;
spec vidtwin.md, section 12). The authors published no code for it.

A clip is represented by one row that holds all numbers of its latents, structure first. Each channel is normalised to
mean 0 and standard deviation 1 with the statistics that are stored beside the latents. The network reads the row as two
kinds of tokens and predicts the clean row. The padding of the last patches is not part of the row: it is zero in the
network's input and dropped from its output, so it counts in no loss.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidmotion import paths
from vidmotion.data import encoded
from vidmotion.diffusion import guidance, samplers
from vidmotion.diffusion.process import DDPM
from vidmotion.errors import ConfigError
from vidmotion.models.latent_dit import LATENTS, LatentDiT, Patches
from vidmotion.system import Const, Describes, Out, System, Vars, dtype

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance.

    Attributes:
      drop: probability per clip of replacing the class by the null class in training.
      scale: w in D_null + w * (D_class - D_null) at sampling, where D is the predicted clean latents.
    """

    drop: float = 0.2
    scale: float = 5.0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of sampling by DDIM without noise.

    Attributes:
      steps: the number of evenly spaced times.
    """

    steps: int = 50


@dataclasses.dataclass(frozen=True)
class VidTwinDiT(System, Describes):
    """A `LatentDiT` that predicts the clean latents of a VidTwin run.

    Attributes:
      latents: the folder of latents that ``python -m vidmotion.encode`` wrote; its statistics are used frozen.
      structure: the shape of the structure latent, (n_q, h_S, w_S, d_S).
      dynamics: the shape of the dynamics latent, (f, w_D + h_D, d_D).
      structure_patch: how many queries, rows and columns of the structure form a token.
      dynamics_patch: 1, then how many rows and columns of the dynamics form a token.
      classes: the number of classes.
      class_width: the width of the class vector.
      width, layers, heads, mlp_ratio: the transformer's sizes.
      guidance, sampler, diffusion: see `Guidance`, `Sampler`, `process.DDPM`.
      compute: ``float32`` or ``bfloat16``.
      remat, scan: see `LatentDiT`.
    """

    latents: str
    structure: tuple[int, int, int, int]
    dynamics: tuple[int, int, int]
    classes: int
    width: int
    layers: int
    heads: int
    structure_patch: tuple[int, int, int] = (2, 2, 2)
    dynamics_patch: tuple[int, int, int] = (1, 2, 2)
    class_width: int = 256
    mlp_ratio: int = 4
    guidance: Guidance = Guidance()
    sampler: Sampler = Sampler()
    diffusion: DDPM = dataclasses.field(default=DDPM())
    compute: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        dtype(self.compute)
        for name, rank in (("structure", 4), ("dynamics", 3)):
            shape, patch = getattr(self, name), getattr(self, f"{name}_patch")
            if len(shape) != rank or len(patch) != 3 or min(*shape, *patch) < 1:
                raise ConfigError(
                    f"config.system.{name}={shape}, {name}_patch={patch}: they must be {rank} and 3 positive sizes"
                )
        if self.dynamics_patch[0] != 1:
            raise ConfigError(
                f"config.system.dynamics_patch={self.dynamics_patch}: dynamics is a video of one "
                "frame, so the first size must be 1"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"config.system.width={self.width} must be divisible by heads={self.heads}"
            )
        if self.classes < 1:
            raise ConfigError(f"config.system.classes={self.classes} must be at least 1")
        if not 0 <= self.guidance.drop < 1:
            raise ConfigError(
                f"config.system.guidance.drop={self.guidance.drop} must be at least 0 and below 1"
            )
        self._times(self.sampler.steps)

    @property
    def patches(self) -> tuple[Patches, Patches]:
        """Returns how structure and dynamics are cut into tokens."""
        return (
            Patches(self.structure, self.structure_patch),
            Patches((1, *self.dynamics), self.dynamics_patch),
        )

    @property
    def numbers(self) -> int:
        """The number of values in both latents of a clip together."""
        return sum(part.numbers for part in self.patches)

    @property
    def _net(self) -> LatentDiT:
        return LatentDiT(
            patches=self.patches,
            classes=self.classes,
            class_width=self.class_width,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dtype=dtype(self.compute),
            remat=self.remat,
            scan=self.scan,
        )

    # -- the interface ----------------------------------------------------------------------------

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``structure`` float32 (B, n_q, h_S, w_S, d_S), ``dynamics`` float32
        (B, f, w_D + h_D, d_D), ``label`` int32 (B,)."""
        return {
            "structure": jax.ShapeDtypeStruct((batch, *self.structure), jnp.float32),
            "dynamics": jax.ShapeDtypeStruct((batch, *self.dynamics), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        tokens = [jnp.zeros((1, part.tokens, part.width)) for part in self.patches]
        return {"model": self._net.init(key, tokens, jnp.zeros(1), jnp.zeros(1, int))["params"]}

    def consts_spec(self) -> dict[str, Const]:
        """Returns the frozen statistics ``{"statistics": {latent: {"mean", "std"}}}``, (C,) each."""
        return {"statistics": Const(self._shapes, self._load)}

    def _shapes(self) -> PyTree:
        channels = {"structure": self.structure[-1], "dynamics": self.dynamics[-1]}
        return {
            name: {part: jax.ShapeDtypeStruct((count,), jnp.float32) for part in ("mean", "std")}
            for name, count in channels.items()
        }

    def _load(self) -> PyTree:
        have = encoded.VidTwinLatentsSource.read_attached(self.latents)
        want = {path: leaf.shape for path, leaf in paths.flatten(self._shapes()).items()}
        found = {path: value.shape for path, value in have.items()}
        if want != found:
            raise ConfigError(
                f"config.system.latents={self.latents!r} comes from a VidTwin of another shape: its "
                f"statistics are {found}, but this config expects {want}"
            )
        names = encoded.VidTwinLatentsSource.read_provenance(self.latents)["classes"]
        if len(names) != self.classes:
            raise ConfigError(
                f"config.system.classes={self.classes}, but the latents {self.latents!r} have "
                f"{len(names)} classes ({', '.join(names[:4])}, ...)"
            )
        return paths.unflatten(have)

    def tokens(self, batch: int) -> int:
        """Returns the number of tokens of both latents in a batch."""
        return batch * sum(part.tokens for part in self.patches)

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that checks whether generated clips belong to their class."""
        return ("class_generation",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the mean of (x_0 - f(x_t, t, c))^2 over all numbers of both latents."""
        z_bn = self._row(vars.consts, batch)
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        time_b = jax.random.randint(time_key, z_bn.shape[:1], 0, self.diffusion.steps)
        noise_bn = jax.random.normal(noise_key, z_bn.shape)
        label_b = self._drop(drop_key, batch["label"])
        x_bn = self.diffusion.noised(z_bn, noise_bn, time_b)
        error_bn = jnp.square(self._predict(vars.params, x_bn, time_b, label_b) - z_bn)
        loss = jnp.mean(error_bn)
        parts = jnp.split(error_bn, [self.patches[0].numbers], axis=1)
        metrics = {f"mse/{name}": jnp.mean(part) for name, part in zip(LATENTS, parts)}
        return loss, Out(metrics, vars.mutable)

    def sample(
        self,
        vars: Vars,
        batch: PyTree,
        key: jax.Array,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> PyTree:
        """Generates latents of new clips of given classes, for a VidTwin to decode.

        Args:
          vars: parameters (normally the averaged ones).
          batch: ``label`` int32 (B,), 0 to `classes`; the label `classes` means "no class".
          key: the random key of the initial noise.
          steps, guidance_scale: the number of steps and the scale of the guidance; None takes the config's.

        Returns:
          ``structure`` and ``dynamics``, float32, shaped as in `input_spec`.

        Raises:
          ConfigError: `steps` is less than 1 or more than the schedule has.
        """
        label = batch["label"]
        null = jnp.full_like(label, self.classes)
        scale = self.guidance.scale if guidance_scale is None else guidance_scale

        def denoise(x_bn, time, label_b):
            return self._predict(vars.params, x_bn, jnp.broadcast_to(time, label_b.shape), label_b)

        x_bn = samplers.ddim(
            guidance.guided(denoise, label, null, scale),
            jax.random.normal(key, (len(label), self.numbers)),
            self._times(self.sampler.steps if steps is None else steps),
            self.diffusion.alpha_bar(),
            prediction="x0",
        )
        return self._latents(vars.consts, x_bn)

    # -- parts ------------------------------------------------------------------------------------

    def _times(self, steps: int):
        try:
            return samplers.leading_times(steps, self.diffusion.steps, offset=0)
        except ValueError as error:
            raise ConfigError(f"config.system.sampler.steps: {error}") from error

    def _drop(self, key: jax.Array, label_b: jax.Array) -> jax.Array:
        """Replaces each label by the null class with probability `guidance.drop`."""
        dropped = jax.random.bernoulli(key, self.guidance.drop, label_b.shape)
        return jnp.where(dropped, self.classes, label_b)

    def _predict(self, params, x_bn, time_b, label_b) -> jax.Array:
        """Predicts the clean row (B, numbers) from a noisy one."""
        rows = jnp.split(x_bn, [self.patches[0].numbers], axis=1)
        tokens = [part.split(row) for part, row in zip(self.patches, rows)]
        clean = self._net.apply({"params": params["model"]}, tokens, time_b, label_b)
        joined = [
            part.join(x).reshape(row.shape) for part, x, row in zip(self.patches, clean, rows)
        ]
        return jnp.concatenate(joined, axis=1)

    def _row(self, consts: Mapping[str, PyTree], batch: PyTree) -> jax.Array:
        """Turns latents into a normalised row (B, numbers)."""
        rows = []
        for name in LATENTS:
            x, s = batch[name], consts["statistics"][name]
            axes = (None,) * (x.ndim - 1)
            rows.append(((x - s["mean"][axes]) / s["std"][axes]).reshape(len(x), -1))
        return jnp.concatenate(rows, axis=1)

    def _latents(self, consts: Mapping[str, PyTree], x_bn: jax.Array) -> dict[str, jax.Array]:
        """Turns a row back into latents, the inverse of `_row`."""
        shapes = {"structure": self.structure, "dynamics": self.dynamics}
        rows = jnp.split(x_bn, [math.prod(self.structure)], axis=1)
        latents = {}
        for name, row in zip(LATENTS, rows):
            s, axes = consts["statistics"][name], (None,) * (len(shapes[name]))
            latents[name] = row.reshape(-1, *shapes[name]) * s["std"][axes] + s["mean"][axes]
        return latents
