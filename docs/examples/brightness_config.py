"""Trains the system `brightness` on the embedded heads."""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict({"name": "brightness", "frames": 8, "size": 16})
    config.optimizer = ConfigDict({"model": {"rate": 1e-2}})
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 16, "frames": 8})
    config.data.train = ConfigDict({"clips": 64, "split": "train"})
    config.data.eval = ConfigDict({"clips": 8, "split": "eval"})
    config.batch_size = 8
    config.steps = 2 if variant == "debug" else 200
    return config
