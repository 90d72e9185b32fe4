"""A network that reads all motion and identity factors of Heads from single frames, as a system of its own.

The factors from which the faces are drawn are known exactly, so there is no limit to the number of exact labels. The
reader does for Heads what MediaPipe and ArcFace do for photographs in the metrics AED, APD and CSIM: it tells whether
a generated clip moves like its driver and looks like its source. It is not in any paper.
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
from vidmotion.data.heads import cartoon
from vidmotion.models.heads_reader import HeadsReaderNet
from vidmotion.system import Out, System, Vars, dtype

PyTree = Any
MOTION = tuple(factor.name for factor in heads.MOTION_FACTORS)
_NUMBERS = tuple(f for f in heads.IDENTITY_FACTORS if f.kind == "continuous")
NUMBERS = tuple(f.name for f in _NUMBERS)
CLASSES = {f.name: f.values for f in heads.IDENTITY_FACTORS if f.kind == "discrete"}
REACH = 1.25  # distance from the middle of the crop to its edge, in head units
POSE = ("yaw", "pitch", "roll", "x", "y", "scale")  # the first entries of MOTION


@functools.cache
def _statistics() -> tuple[np.ndarray, np.ndarray]:
    """Returns the means and standard deviations of all continuous factors, float32 (29,) each.

    Those of `MOTION` come first and are measured over 8,192 random frames. Those of `NUMBERS` follow from their uniform
    distributions.
    """
    rng = np.random.default_rng(0)
    # Frames four seconds apart are practically independent.
    drawn = np.concatenate([heads.sample_motion(rng, 32, fps=0.25) for _ in range(256)])
    middle = [(f.low + f.high) / 2 for f in _NUMBERS]
    spread = [(f.high - f.low) / math.sqrt(12.0) for f in _NUMBERS]
    return (
        np.concatenate([drawn.mean(axis=0), middle]).astype(np.float32),
        np.concatenate([drawn.std(axis=0), spread]).astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class HeadsReader(System):
    """A reader that predicts the standardised continuous factors by regression and the others by classification.

    A factor counts only in frames where it has an effect on the picture (`heads.seen`).

    Attributes:
      frames, size: the length of a clip and its side in pixels; each frame is read by itself.
      crop: side in pixels of the crop around the face, a multiple of 2 `patch`.
      patch, widths, blocks, narrow, hidden, groups: see `HeadsReaderNet`.
      identity_weight, class_weight: the weights of the mean square error of the continuous identity factors and of the
        mean cross-entropy of the discrete ones; the mean square error of the motion has the weight 1.
      soften: the largest share of a blurred copy that is mixed into a training frame; half of the frames are blurred.
      noise: the largest standard deviation of the white noise on training frames, pixels in [0, 1]. `soften` and
        `noise` make the reader robust to the artefacts of generated pictures.
      compute: ``float32`` or ``bfloat16``.
    """

    frames: int = 4
    size: int = 64
    crop: int = 48
    patch: int = 4
    widths: tuple[int, int] = (48, 64)
    blocks: tuple[int, int] = (1, 2)
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
            pose=len(POSE),
            frame=functools.partial(_face_frame, self.crop),
            patch=self.patch,
            widths=self.widths,
            blocks=self.blocks,
            narrow=self.narrow,
            hidden=self.hidden,
            groups=self.groups,
            dtype=dtype(self.compute),
        )

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), ``motion`` float32 (B, T, 14), ``identity``
        float32 (B, 83) from `heads.identity_vector`, ``seen`` bool (B, T, 40) from `heads.seen`."""
        factors = len(heads.MOTION_FACTORS) + len(heads.IDENTITY_FACTORS)
        return {
            "video": jax.ShapeDtypeStruct((batch, self.frames, self.size, self.size, 3), jnp.uint8),
            "motion": jax.ShapeDtypeStruct((batch, self.frames, len(MOTION)), jnp.float32),
            "identity": jax.ShapeDtypeStruct((batch, heads.IDENTITY_DIM), jnp.float32),
            "seen": jax.ShapeDtypeStruct((batch, self.frames, factors), jnp.bool_),
        }

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        frames = jnp.zeros((1, self.size, self.size, 3))
        return {"model": self._net.init(key, frames)["params"]}

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures how well held-out renders are read."""
        return ("heads_reader",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the mean square error of the motion plus the weighted losses of the identity.

        Each factor counts only in the frames in which it is seen.
        """
        frames = _unit(batch["video"]).reshape(-1, self.size, self.size, 3)
        first, numbers, logits = self._read(vars, self._worn(frames, key))
        wanted, classes = _targets(batch)
        seen = batch["seen"].reshape(len(frames), -1).astype(jnp.float32)

        def mean(values_nf: jax.Array, names: tuple[str, ...]) -> jax.Array:
            """Averages over the frames in which each factor is seen, then over the factors."""
            counts_nf = seen[:, np.array([heads.FACTORS.index(name) for name in names])]
            return jnp.mean(
                jnp.sum(counts_nf * values_nf, axis=0) / jnp.maximum(jnp.sum(counts_nf, axis=0), 1)
            )

        square, split = (numbers - wanted) ** 2, len(MOTION)
        place = jnp.mean((first - wanted[:, : len(POSE)]) ** 2)
        crossed = [
            optax.softmax_cross_entropy_with_integer_labels(logits[name], classes[name])
            for name in CLASSES
        ]
        right = [jnp.argmax(logits[name], axis=-1) == classes[name] for name in CLASSES]
        motion = mean(square[:, :split], MOTION)
        identity = mean(square[:, split:], NUMBERS)
        entropy = mean(jnp.stack(crossed, axis=1), tuple(CLASSES))
        metrics = {
            "error/first_look": place,
            "error/motion": motion,
            "error/identity": identity,
            "error/classes": entropy,
            "accuracy": mean(jnp.stack(right, axis=1), tuple(CLASSES)),
        }
        loss = place + motion + self.identity_weight * identity + self.class_weight * entropy
        return loss, Out(metrics, vars.mutable)

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array) -> PyTree:
        """Reads all factors from each frame of ``video`` (B, T, H, W, 3), uint8 or float in [0, 1].

        Returns:
          ``{factor name: values}``: float32 (B, T) in the factor's own unit for a continuous factor, probabilities
          (B, T, classes) for a discrete one.
        """
        video = _unit(batch["video"])
        _, numbers, logits = self._read(vars, video.reshape(-1, *video.shape[2:]))
        mean, std = _statistics()
        numbers = mean[None] + std[None] * numbers
        read = {name: numbers[:, k] for k, name in enumerate(MOTION + NUMBERS)}
        read |= {name: jax.nn.softmax(values) for name, values in logits.items()}
        return {n: v.reshape(*video.shape[:2], *v.shape[1:]) for n, v in read.items()}

    def _read(
        self, vars: Vars, frames: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Runs the network on N float frames in [0, 1].

        Returns:
          The standardised pose from the first look (N, 6); the standardised continuous factors (N, 29), motion first;
          the logits (N, classes) of each discrete factor by name.
        """
        first, values = self._net.apply({"params": vars.params["model"]}, 2.0 * frames - 1.0)
        ends = np.cumsum([len(MOTION + NUMBERS), *CLASSES.values()])
        numbers, *logits = jnp.split(values, ends[:-1], axis=1)
        return first, numbers, dict(zip(CLASSES, logits))

    def _worn(self, frames: jax.Array, key: jax.Array) -> jax.Array:
        """Blurs some of the frames and adds noise, to imitate generated pictures."""
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


def _face_frame(crop: int, pose: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Places a square crop around the face; it turns, grows and moves with the face (see `cartoon.Head`).

    Args:
      crop: the side of the crop in pixels.
      pose: the standardised pose (N, 6).
      side: the side of the pictures in pixels.

    Returns:
      The columns and rows (N, crop, crop) of the crop's pixels, in pixels of the pictures.
    """
    mean, std = (values[: len(POSE)] for values in _statistics())
    factors = heads.MOTION_FACTORS[: len(POSE)]
    low, high = (
        np.array([getattr(f, end) for f in factors], np.float32) for end in ("low", "high")
    )
    pose = jnp.clip(mean[None] + std[None] * pose, low[None], high[None])
    yaw, pitch, roll, x, y, scale = (pose[:, k, None, None] for k in range(len(POSE)))
    unit = scale * (cartoon.HEAD * side)
    steps = ((jnp.arange(crop) + 0.5) / crop * 2 - 1) * REACH
    # The middle of the facial features lies on the front of the skull, a little below its centre, so turning the head
    # moves it.
    across = 0.7 * cartoon.DEPTH * jnp.sin(yaw) + steps[None, None, :]
    down = 0.12 + 0.7 * cartoon.DEPTH * jnp.sin(pitch) + steps[None, :, None] - cartoon.PIVOT
    sin, cos = jnp.sin(roll), jnp.cos(roll)
    columns = (x + cartoon.CENTRE[0]) * side + (across * cos - down * sin) * unit
    rows = (y + cartoon.CENTRE[1]) * side + (across * sin + down * cos + cartoon.PIVOT) * unit
    return columns - 0.5, rows - 0.5


def _targets(batch: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the correct answers for the N frames of a batch: the standardised continuous factors (N, 29), and the
    classes int (N,) of each discrete factor by name. See `HeadsReader._read`."""
    mean, std = _statistics()
    identity = jnp.repeat(batch["identity"], batch["motion"].shape[1], axis=0)
    motion = batch["motion"].reshape(len(identity), -1)
    low, high = (
        np.array([getattr(f, end) for f in _NUMBERS], np.float32) for end in ("low", "high")
    )
    places = np.array([heads.IDENTITY_SLICES[name].start for name in NUMBERS])
    numbers = low[None] + (high - low)[None] * (identity[:, places] + 1) / 2
    wanted = (jnp.concatenate([motion, numbers], axis=1) - mean[None]) / std[None]
    slices = {name: heads.IDENTITY_SLICES[name] for name in CLASSES}
    return wanted, {n: jnp.argmax(identity[:, part], axis=-1) for n, part in slices.items()}


def _unit(video: jax.Array) -> jax.Array:
    """Converts uint8 pixels 0..255 to floats 0..1; floats are returned as they are."""
    return video.astype(jnp.float32) / 255.0 if video.dtype == jnp.uint8 else video
