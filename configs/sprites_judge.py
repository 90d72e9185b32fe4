"""The judge of the Sprites benchmark (BCD Table A1, after C-DSVAE), trained by us.

    python -m vidmotion.main --config=configs/sprites_judge.py --workdir=runs/judge

The weights of the judge in the papers are not public. The architecture is C-DSVAE's; the training is not in any paper.
Expected: 100 % on every attribute of the 2,664 real test clips. `:demo` has a quarter of the channels and reaches that
too; it is shipped as ``sprites_judge`` (docs/weights.md).
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "sprites_judge",
            "frames": 8,
            "size": 64,
            "width": 64,
            "features": 128,
            "hidden": 256,
            "head": 256,
            "compute": "float32",
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": 1e-3,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
                "schedule": {"kind": "cosine", "warmup": 50, "end": 0.0},
            }
        }
    )
    config.data.kind = "sprites"
    config.data.common = ConfigDict({"sheets_dir": _shared.SHEETS})
    config.data.train = ConfigDict({"split": "train"})
    config.data.eval = ConfigDict({"split": "test"})
    config.batch_size = 64
    config.steps = 2000
    config.evals.sprites_judge = ConfigDict({"every": 0})

    if variant == "demo":
        config.system.width, config.system.features = 16, 64
        config.system.hidden, config.system.head = 64, 64
        config.optimizer.model.rate = 3e-3
        config.batch_size, config.steps, config.log_every = 32, 300, 50
    if variant == "debug":
        config.system.width, config.system.features = 4, 8
        config.system.hidden, config.system.head = 8, 8
        config.batch_size, config.steps, config.log_every = 8, 2, 1
        config.evals.sprites_judge.every = -1
    return config
