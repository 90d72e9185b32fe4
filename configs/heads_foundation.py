"""A small image diffusion model of Heads, in the role of Stable Diffusion's UNet for X-NeMo and WarpFace.

    python -m vidmotion.main --config=configs/heads_foundation.py --workdir=runs/heads_foundation      # two CPU cores
    python -m vidmotion.main --config=configs/warpface.py:demo --workdir=runs/warpface \
        --config.init_from=runs/heads_foundation

It is not in any paper. The UNet has the sizes of the `:demo` of X-NeMo and WarpFace, and works in the latents of
configs/heads_codec.py. For pictures of your own, set ``config.data`` to a folder that ``python -m
vidmotion.data.prepare`` made, and ``config.system.codec`` to a codec that was trained on them.
"""

from ml_collections import ConfigDict

from configs import _shared

# For the two UNets of a recipe: both start from the parameters of this UNet, and the recipe's own modules start fresh.
INIT_RULES = (
    (r"model/(reference|denoiser)/((?!.*(motion|temporal|within)).*)", r"model/unet/\2"),
    (".*", False),
)


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo`` (the same as no argument), ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "image_diffusion",
            "size": 64,
            "frames": 2,
            "codec": _shared.heads_codec(deviation=1.0),
            "unet": _shared.HEADS_UNET,
            "diffusion": {"beta_start": 1e-4, "beta_end": 0.02, "schedule": "linear"},
            "prediction": "x0",
            "steps": 20,
            "compute": "float32",
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "kind": "muon",
                "rate": ((r".*/kernel", 2e-2), (r".*", 2e-3)),
                "betas": (0.9, 0.99),
                "eps": 1e-8,
                "weight_decay": 0.01,
                "decay": _shared.DECAY,
                "clip": 1.0,
                "schedule": {"kind": "cosine", "warmup": 50},
            }
        }
    )
    config.steps, config.log_every = 1000, 50
    config.ema.decay = 0.998
    _shared.head_pictures(config)
    config.checkpoint.every = 250
    config.evals.denoising = ConfigDict({"every": 0, "batch": 16})
    if variant == "debug":
        config.system.codec = ConfigDict(_shared.pixels("heads", deviation=1.0, patch=4))
        config.system.unet.update({"channels": (16, 16), "heads": 2, "norm_groups": 4})
        config.system.size = config.data.common.size = 16
        config.system.steps = 2
        config.batch_size, config.steps, config.log_every = 8, 2, 1
        config.data.train.clips, config.data.eval.clips = 16, 4
        config.checkpoint.every = 0
        config.evals.denoising.batch = 4
    return config
