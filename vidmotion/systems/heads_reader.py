"""The reader of Heads, a system of its own: all motion and identity factors off single frames.

What faces are drawn from is known exactly, so labels are exact and endless. It is the miniature of what AED, APD
and CSIM ask of MediaPipe and ArcFace on photographs: whether a made clip moves as its driver and looks like its
source. Not in any paper.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidmotion.data import heads
from vidmotion.models.heads_reader import HeadsReaderNet
from vidmotion.system import Out, System, Vars, dtype

PyTree = Any
MOTION = tuple(factor.name for factor in heads.MOTION_FACTORS)
NUMBERS = tuple(f.name for f in heads.IDENTITY_FACTORS if f.kind == "continuous")
CLASSES = {f.name: f.values for f in heads.IDENTITY_FACTORS if f.kind == "discrete"}


@functools.cache
def motion_statistics() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 (14,) each, of the motion factors over 8,192 drawn frames."""
    rng = np.random.default_rng(0)
    # Four seconds apart, a head has forgotten how it was.
    drawn = np.concatenate([heads.sample_motion(rng, 32, fps=0.25) for _ in range(256)])
    return drawn.mean(axis=0), drawn.std(axis=0)


@dataclasses.dataclass(frozen=True)
class HeadsReader(System):
    """Regression of the standardised continuous factors, classification of the others.

    A factor counts only in frames where it has an effect on the picture (`heads.seen`).

    Attributes:
      frames, size: of a clip; each frame is read by itself.
      patch, width, blocks, narrow, hidden, groups: see `HeadsReaderNet`.
      identity_weight, class_weight: of the mean square error of the identity's numbers and of the mean
        cross-entropy of its classes; that of the motion counts 1.
      soften: half of the training frames are mixed with a blurred copy of themselves, up to this share.
      noise: largest standard deviation of white noise on training frames, pixels in [0, 1]. Both make a reader that
        bears what networks do to pictures.
      compute: ``float32`` or ``bfloat16``.
    """

    frames: int = 4
    size: int = 64
    patch: int = 4
    width: int = 64
    blocks: int = 2
    narrow: int = 32
    hidden: int = 256
    groups: int = 8
    identity_weight: float = 1.0
    class_weight: float = 1.0
    soften: float = 0.0
    noise: float = 0.0
    compute: str = "float32"

    @property
    def _net(self) -> HeadsReaderNet:
        return HeadsReaderNet(
            outputs=len(MOTION) + len(NUMBERS) + sum(CLASSES.values()),
            patch=self.patch,
            width=self.width,
            blocks=self.blocks,
            narrow=self.narrow,
            hidden=self.hidden,
            groups=self.groups,
            dtype=dtype(self.compute),
        )

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """``video`` uint8 (B, T, H, W, 3), ``motion`` float32 (B, T, 14), ``identity`` float32 (B, 83) as of
        `heads.identity_vector`, ``seen`` bool (B, T, 40) as of `heads.seen`."""
        factors = len(heads.MOTION_FACTORS) + len(heads.IDENTITY_FACTORS)
        return {
            "video": jax.ShapeDtypeStruct((batch, self.frames, self.size, self.size, 3), jnp.uint8),
            "motion": jax.ShapeDtypeStruct((batch, self.frames, len(MOTION)), jnp.float32),
            "identity": jax.ShapeDtypeStruct((batch, heads.IDENTITY_DIM), jnp.float32),
            "seen": jax.ShapeDtypeStruct((batch, self.frames, factors), jnp.bool_),
        }

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """``{"model": tree}``."""
        frames = jnp.zeros((1, self.size, self.size, 3))
        return {"model": self._net.init(key, frames)["params"]}

    def evaluators(self) -> tuple[str, ...]:
        """What it reads on held-out true renders."""
        return ("heads_reader",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Mean square error of the motion and weighted losses of the identity, over frames in which each is seen."""
        frames = _unit(batch["video"]).reshape(-1, self.size, self.size, 3)
        outputs = self._read(vars, self._worn(frames, key))
        wanted = self._targets(batch)
        seen = dict(zip(heads.FACTORS, jnp.moveaxis(batch["seen"].reshape(len(frames), -1), 1, 0)))

        def mean(name: str, values_n: jax.Array) -> jax.Array:
            counts = seen[name].astype(jnp.float32)
            return jnp.sum(counts * values_n) / jnp.maximum(jnp.sum(counts), 1.0)

        square = {
            name: mean(name, (outputs[name] - wanted[name]) ** 2) for name in MOTION + NUMBERS
        }
        entropy, right = {}, {}
        for name in CLASSES:
            cost = optax.softmax_cross_entropy_with_integer_labels(outputs[name], wanted[name])
            entropy[name] = mean(name, cost)
            right[name] = mean(name, jnp.argmax(outputs[name], axis=-1) == wanted[name])
        parts = {
            "motion": sum(square[name] for name in MOTION) / len(MOTION),
            "numbers": sum(square[name] for name in NUMBERS) / len(NUMBERS),
            "classes": sum(entropy.values()) / len(CLASSES),
        }
        loss = parts["motion"] + self.identity_weight * parts["numbers"]
        metrics = {f"error/{name}": value for name, value in parts.items()}
        metrics |= {f"square/{name}": value for name, value in square.items()}
        metrics |= {f"accuracy/{name}": value for name, value in right.items()}
        return loss + self.class_weight * parts["classes"], Out(metrics, vars.mutable)

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array) -> PyTree:
        """What it reads in each frame of ``video`` (B, T, H, W, 3), uint8 or float in [0, 1].

        Returns:
          by factor: float32 (B, T) in the factor's own unit, or probabilities (B, T, classes).
        """
        video = _unit(batch["video"])
        outputs = self._read(vars, video.reshape(-1, *video.shape[2:]))
        (mean, std), read = motion_statistics(), {}
        for k, name in enumerate(MOTION):
            read[name] = mean[k] + std[k] * outputs[name]
        for factor in heads.IDENTITY_FACTORS:
            value = outputs[factor.name]
            if factor.kind == "continuous":
                half = (factor.high - factor.low) / 2
                read[factor.name] = factor.low + half * (value / math.sqrt(3.0) + 1.0)
            else:
                read[factor.name] = jax.nn.softmax(value)
        return {n: v.reshape(*video.shape[:2], *v.shape[1:]) for n, v in read.items()}

    def _read(self, vars: Vars, frames: jax.Array) -> dict[str, jax.Array]:
        """By factor: standardised numbers (N,), or logits (N, classes), of float frames in [0, 1]."""
        values = self._net.apply({"params": vars.params["model"]}, 2.0 * frames - 1.0)
        numbers = MOTION + NUMBERS
        outputs, start = {name: values[:, k] for k, name in enumerate(numbers)}, len(numbers)
        for name, classes in CLASSES.items():
            outputs[name] = values[:, start : start + classes]
            start += classes
        return outputs

    def _targets(self, batch: PyTree) -> dict[str, jax.Array]:
        """By factor: standardised numbers (N,) or classes int (N,) of the batch's frames."""
        mean, std = motion_statistics()
        motion = (batch["motion"].reshape(-1, len(MOTION)) - mean[None]) / std[None]
        wanted = {name: motion[:, k] for k, name in enumerate(MOTION)}
        identity = jnp.repeat(batch["identity"], batch["motion"].shape[1], axis=0)
        for name in NUMBERS:  # uniform in [-1, 1]
            wanted[name] = math.sqrt(3.0) * identity[:, heads.IDENTITY_SLICES[name].start]
        for name in CLASSES:
            wanted[name] = jnp.argmax(identity[:, heads.IDENTITY_SLICES[name]], axis=-1)
        return wanted

    def _worn(self, frames: jax.Array, key: jax.Array) -> jax.Array:
        """Frames as networks leave them: blurred here and there, and grainy."""
        which, share, level, grain = jax.random.split(key, 4)
        each = (len(frames), 1, 1, 1)
        if self.soften:
            blurred = frames
            for axis in (1, 2):  # binomial, (1, 2, 1) / 4
                ahead, back = (jnp.roll(blurred, by, axis) for by in (1, -1))
                blurred = 0.5 * blurred + 0.25 * (ahead + back)
            mixed = self.soften * jax.random.uniform(share, each)
            mixed *= jax.random.bernoulli(which, 0.5, each)
            frames = frames + mixed * (blurred - frames)
        if self.noise:
            spread = self.noise * jax.random.uniform(level, each)
            frames = frames + spread * jax.random.normal(grain, frames.shape)
        return frames


def _unit(video: jax.Array) -> jax.Array:
    """uint8 0..255 -> float 0..1; floats pass."""
    return video.astype(jnp.float32) / 255.0 if video.dtype == jnp.uint8 else video
