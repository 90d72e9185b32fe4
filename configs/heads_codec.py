"""A small image autoencoder for Heads, in the role of Stable Diffusion's autoencoder in the papers' recipes.

    python -m vidmotion.main --config=configs/heads_codec.py --workdir=runs/heads_codec      # two CPU cores

The class is Stable Diffusion's (`models.vae.AutoencoderKL`), with a width that two CPU cores can train. A picture of
64 px becomes 16x16 positions of 4 numbers; every layer works on patches of 4x4 pixels. It is not in any paper.

The other recipes accept the workdir of such a run as ``config.system.codec.weights``. For pictures of your own, set
``config.data`` to a folder that ``python -m vidmotion.data.prepare`` made, and ``config.system.network`` to the sizes
that you want. The evaluator ``codec`` prints the mean and standard deviation of the latents, which a recipe needs in
its ``config.system.codec``.
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo`` (the same as no argument), ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "image_autoencoder",
            "size": 64,
            "frames": 2,
            "network": _shared.HEADS_AUTOENCODER,
            "loss_terms": {"l1": 0.0, "l2": 4.0, "kl": 1e-6, "perceptual": 1.0},
            "gan": {"weight": 0.0, "start": 0, "width": 32, "layers": 2},
            "lpips": "",
            "compute": "float32",
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "kind": "muon",
                "rate": ((".*kernel", 4e-2), (".*", 4e-3)),
                "betas": (0.9, 0.99),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "decay": _shared.DECAY,
                "clip": 1.0,
                "schedule": {"kind": "cosine", "warmup": 100},
            }
        }
    )
    config.steps, config.log_every = 5000, 100
    config.ema.decay = 0.998
    _shared.head_pictures(config)
    config.checkpoint.every = 500
    config.evals.codec = ConfigDict({"every": 0, "batch": 16})
    if variant == "debug":
        config.system.network.update({"channels": (8,), "norm_groups": 4})
        config.system.size = config.data.common.size = 16
        config.batch_size, config.steps, config.log_every = 8, 2, 1
        config.data.train.clips, config.data.eval.clips = 16, 4
        config.checkpoint.every = 0
        config.evals.codec.batch = 4
    return config
