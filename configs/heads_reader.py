"""The reader of Heads: estimates all factors that a face was drawn from in single frames of rendered heads.

    python -m vidmotion.main --config=configs/heads_reader.py --workdir=runs/heads_reader

Not in any paper: it is a small counterpart of AED, APD and CSIM. In a run on Heads, the evaluator ``reading`` uses it
to score whether the generated clips move like their drivers and look like their sources. A trained reader is shipped;
to use your own, name its workdir in ``config.evals.reading.reader`` of the run on Heads. Training takes about twenty
minutes on two CPU cores; `:demo` takes a tenth of that.
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "heads_reader",
            "frames": 4,
            "size": 64,
            "crop": 48,
            "patch": 4,
            "widths": (48, 64),
            "blocks": (1, 2),
            "narrow": 32,
            "hidden": 256,
            "groups": 8,
            "identity_weight": 1.0,
            "class_weight": 1.0,
            "soften": 0.5,
            "noise": 0.02,
            "compute": "float32",
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "kind": "muon",
                "rate": ((".*kernel", 2e-2), (".*", 2e-3)),
                "betas": (0.9, 0.99),
                "eps": 1e-8,
                "clip": 1.0,
                "schedule": {"kind": "cosine", "warmup": 50, "end": 0.0},
            }
        }
    )
    config.ema = ConfigDict({"decay": 0.995, "warmup": True})
    config.data.kind = "heads"
    # The four frames of a clip, a second apart, show four poses, so the cache holds many heads in many poses.
    config.data.common = ConfigDict({"size": 64, "frames": 4, "fps": 1.0, "seed": 0})
    config.data.train = ConfigDict({"split": "train", "clips": 16_000, "cache": True})
    config.data.eval = ConfigDict({"split": "eval", "clips": 512})
    config.batch_size, config.steps = 16, 3000  # clips: 64 frames
    config.checkpoint.every = 250
    config.evals.heads_reader = ConfigDict({"every": 0})

    if variant == "demo":
        config.steps = 300
        config.data.train.clips = 4000
    if variant == "debug":
        config.system.update({"size": 16, "frames": 2, "crop": 8, "widths": (8, 8), "hidden": 8})
        config.system.blocks = (1, 1)
        config.data.common.update({"size": 16, "frames": 2})
        config.data.train.clips, config.data.eval.clips = 8, 4
        config.batch_size, config.steps, config.log_every = 8, 2, 1
    return config
