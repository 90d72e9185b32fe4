"""A whole recipe: trains the system `brightness` on ramps and measures it after training.

    python -m vidmotion.main --config=docs/examples/ramps_config.py --workdir=runs/ramps

The next frame of a ramp is twice the last frame minus the one before it, so a trained model's error is little more than
the rounding of the pixels.
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict({"name": "brightness", "frames": 8, "size": 16})
    config.data.kind = "ramps"
    config.data.common = ConfigDict({"size": 16, "frames": 8})
    config.data.train = ConfigDict({"split": "train", "clips": 256})
    config.data.eval = ConfigDict({"split": "eval", "clips": 16})
    config.optimizer = ConfigDict({"model": {"rate": 3e-2}})  # not in paper: falls smoothly
    config.batch_size, config.steps = 64, 500
    config.evals.next_frame = ConfigDict({"every": 0, "batch": 16})  # 0: after training
    if variant == "debug":
        _shared.two_steps(config)
    return config
