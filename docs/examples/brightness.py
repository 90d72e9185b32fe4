"""A whole system: one linear map learns to foretell a clip's next frame's brightness from those before it."""

import dataclasses

import jax
import jax.numpy as jnp

from vidmotion.system import Describes, Out, System


@dataclasses.dataclass(frozen=True)
class Brightness(System, Describes):
    """Predicts mean brightness.

    Attributes:
      frames: of a clip; all but the last are read.
      size: of a frame, pixels.
    """

    frames: int = 8
    size: int = 16

    def input_spec(self, batch):
        """``video`` uint8 (B, T, size, size, 3)."""
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key, batch):
        """Weights of the frames that are read."""
        return {"model": {"weight": jax.random.normal(key, (self.frames - 1,))}}

    def tokens(self, batch):
        """Frames read."""
        return batch * (self.frames - 1)

    def evaluators(self):
        """Only the one beside this file."""
        return ("next_frame",)

    def loss(self, player, vars, batch, key, step, carry):
        """Mean square error, brightness in [0, 1]."""
        mean_bt = batch["video"].astype(jnp.float32).mean((2, 3, 4)) / 255.0
        guess_b = mean_bt[:, :-1] @ vars.params["model"]["weight"]
        return jnp.mean((guess_b - mean_bt[:, -1]) ** 2), Out({}, vars.mutable)
