"""The classifier that judges the Sprites benchmark, as a system of its own (C-DSVAE protocol; BCD Table A1).

The weights of the judge in the papers are not public, so this system trains one. It minimises the summed cross-entropy
of five labels on real training clips and reaches an accuracy of about 100 % on real test clips.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidmotion.models.sprites_judge import SpritesJudgeNet
from vidmotion.system import Out, System, Vars, dtype, fresh_statistics

PyTree = Any
LABELS = (("action", 9), ("skin", 6), ("pants", 6), ("top", 6), ("hair", 6))


def labels_of(batch: PyTree) -> dict[str, jax.Array]:
    """Returns the five labels by name, (B,) int32 each, from ``action`` (B,) and ``attributes`` (B, 4)."""
    names = [name for name, _ in LABELS]
    columns = [batch["attributes"][:, i] for i in range(4)]
    return dict(zip(names, [batch["action"], *columns]))


@dataclasses.dataclass(frozen=True)
class SpritesJudge(System):
    """A classifier of Sprites clips.

    Attributes:
      frames, size: the length of a clip and its side in pixels.
      width, features, hidden, head: see `SpritesJudgeNet`.
      compute: ``float32`` or ``bfloat16``.
    """

    frames: int = 8
    size: int = 64
    width: int = 64
    features: int = 128
    hidden: int = 256
    head: int = 256
    compute: str = "float32"

    @property
    def _net(self) -> SpritesJudgeNet:
        return SpritesJudgeNet(
            heads=LABELS,
            width=self.width,
            features=self.features,
            hidden=self.hidden,
            head=self.head,
            dtype=dtype(self.compute),
        )

    def input_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Specifies a training batch: ``video`` uint8 (B, T, H, W, 3), ``action`` int32 (B,), ``attributes`` int32
        (B, 4)."""
        return {
            "video": jax.ShapeDtypeStruct((batch, self.frames, self.size, self.size, 3), jnp.uint8),
            "action": jax.ShapeDtypeStruct((batch,), jnp.int32),
            "attributes": jax.ShapeDtypeStruct((batch, 4), jnp.int32),
        }

    def _init(self, key: jax.Array) -> PyTree:
        video = jnp.zeros((1, self.frames, self.size, self.size, 3))
        return self._net.init(key, video, train=False)

    def init(self, key: jax.Array, batch: PyTree) -> PyTree:
        """Returns initial parameters ``{"model": tree}``."""
        return {"model": self._init(key)["params"]}

    def init_mutable(self) -> PyTree:
        """Returns the initial running means (0) and variances (1) of the batch norms."""
        shapes = jax.eval_shape(self._init, jax.random.key(0))["batch_stats"]
        return fresh_statistics(shapes)

    def evaluators(self) -> tuple[str, ...]:
        """Names the evaluator that measures accuracy on real test clips."""
        return ("sprites_judge",)

    def loss(
        self, player: str, vars: Vars, batch: PyTree, key: jax.Array, step: jax.Array, carry: PyTree
    ) -> tuple[jax.Array, Out]:
        """Returns the summed cross-entropy of the five labels."""
        logits, updated = self._net.apply(
            {"params": vars.params["model"], "batch_stats": vars.mutable},
            _unit(batch["video"]),
            train=True,
            mutable=["batch_stats"],
        )
        labels = labels_of(batch)
        losses = {
            name: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(value, labels[name]))
            for name, value in logits.items()
        }
        metrics = {
            f"accuracy/{name}": jnp.mean(jnp.argmax(value, axis=-1) == labels[name])
            for name, value in logits.items()
        }
        return sum(losses.values()), Out(metrics, updated["batch_stats"])

    def sample(self, vars: Vars, batch: PyTree, key: jax.Array) -> PyTree:
        """Returns the probabilities ``{label name: (B, classes)}`` for ``video``, uint8 or float in [0, 1]."""
        logits = self._net.apply(
            {"params": vars.params["model"], "batch_stats": vars.mutable},
            _unit(batch["video"]),
            train=False,
        )
        return {name: jax.nn.softmax(value) for name, value in logits.items()}


def _unit(video: jax.Array) -> jax.Array:
    """Converts uint8 pixels 0..255 to floats 0..1; floats are returned as they are."""
    return video.astype(jnp.float32) / 255.0 if video.dtype == jnp.uint8 else video
