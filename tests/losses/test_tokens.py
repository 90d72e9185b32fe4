"""The motion tokenizer's objective against torch."""

import numpy as np
import pytest

from vidmotion.losses.tokens import tokenizer_loss


def test_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y = (2 * rng.normal(size=(2, 6, 3)).astype(np.float32) for _ in range(2))
    loss, terms = tokenizer_loss(x, y, 0.7)
    smooth = torch.nn.SmoothL1Loss()
    tx, ty = torch.tensor(x), torch.tensor(y)
    motion = float(smooth(tx, ty))
    velocity = float(smooth(tx[:, 1:] - tx[:, :-1], ty[:, 1:] - ty[:, :-1]))
    got = {name: float(value) for name, value in terms.items()}
    assert got == pytest.approx(dict(reconstruction=motion, velocity=velocity, commitment=0.7))
    assert loss == pytest.approx(motion + 0.5 * velocity + 0.02 * 0.7)
