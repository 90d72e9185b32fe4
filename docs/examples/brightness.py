"""A whole system: one linear map learns to predict the brightness of a clip's last frame from the frames before it."""

import dataclasses

import jax
import jax.numpy as jnp

from vidmotion.system import Describes, Out, System


@dataclasses.dataclass(frozen=True)
class Brightness(System, Describes):
    """Predicts the mean brightness of the last frame.

    Attributes:
      frames: the number of frames in a clip; all but the last are read.
      size: the side of a frame, in pixels.
    """

    frames: int = 8
    size: int = 16

    def input_spec(self, batch):
        """Returns the shapes of a batch: ``video`` uint8 (B, T, size, size, 3)."""
        shape = (batch, self.frames, self.size, self.size, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key, batch):
        """Draws a weight for each frame that is read."""
        return {"model": {"weight": jax.random.normal(key, (self.frames - 1,))}}

    def tokens(self, batch):
        """Returns the number of frames that are read."""
        return batch * (self.frames - 1)

    def evaluators(self):
        """Names the one evaluator, next_frame.py beside this file."""
        return ("next_frame",)

    def loss(self, player, vars, batch, key, step, carry):
        """Returns the mean square error of the brightness, which is in [0, 1]."""
        mean_bt = batch["video"].astype(jnp.float32).mean((2, 3, 4)) / 255.0
        guess_b = mean_bt[:, :-1] @ vars.params["model"]["weight"]
        return jnp.mean((guess_b - mean_bt[:, -1]) ** 2), Out({}, vars.mutable)
