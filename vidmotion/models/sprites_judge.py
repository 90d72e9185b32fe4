"""The Sprites judge: a per-frame CNN, a bidirectional LSTM and five classification heads (C-DSVAE).

Shape suffixes: b batch, t frames, f features; bthwc is a video.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class SpritesJudgeNet(nn.Module):
    """Reads a clip of 64x64 frames and names its action and its four attributes.

    Each frame passes four 4x4 stride-2 convolutions (1, 2, 4, 8 times `width`; batch norm, leaky ReLU 0.2), a valid
    4x4 convolution to `features`, batch norm, tanh. A BiLSTM reads the frames; the clip's feature is its forward
    output at the last frame concatenated with its backward output at the first. There is one two-layer head per label.

    Attributes:
      heads: the labels, ``((name, classes), ...)``.
      width: the channels of the first convolution; 64 in the original.
      features: the length of a frame's feature; 128 in the original.
      hidden: the hidden size of the LSTM in each direction; 256 in the original.
      head: the hidden size of the heads; 256 in the original.
      dtype: the dtype of the computation; the logits are float32.
    """

    heads: tuple[tuple[str, int], ...]
    width: int = 64
    features: int = 128
    hidden: int = 256
    head: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, video_bthwc: jax.Array, train: bool) -> dict[str, jax.Array]:
        """(B, T, 64, 64, 3) in [0, 1] -> ``{name: logits (B, classes)}``; with `train`, norms use batch statistics."""
        batch, frames = video_bthwc.shape[:2]
        x = video_bthwc.reshape(batch * frames, *video_bthwc.shape[2:]).astype(self.dtype)

        def norm(x, name):
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=name,
            )(x)

        for i in range(4):
            x = nn.Conv(
                self.width * 2**i, (4, 4), (2, 2), padding=1, dtype=self.dtype, name=f"conv_{i}"
            )(x)
            x = nn.leaky_relu(norm(x, f"norm_{i}"), 0.2)
        x = nn.Conv(self.features, (4, 4), padding="VALID", dtype=self.dtype, name="conv_4")(x)
        x_btf = jnp.tanh(norm(x, "norm_4")).reshape(batch, frames, self.features)

        def last(reverse, name):
            cell = nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype, name=name)
            return nn.RNN(cell, reverse=reverse)(x_btf)[:, -1]

        x_bf = jnp.concatenate([last(False, "forward"), last(True, "backward")], axis=-1)
        logits = {}
        for name, classes in self.heads:
            h = nn.relu(nn.Dense(self.head, dtype=self.dtype, name=f"{name}_in")(x_bf))
            h = nn.Dense(classes, dtype=self.dtype, name=f"{name}_out")(h)
            logits[name] = h.astype(jnp.float32)
        return logits
