"""A small image autoencoder for Heads: what Stable Diffusion's autoencoder is to the papers' recipes.

    python -m vidmotion.main --config=configs/heads_codec.py --workdir=runs/heads_codec      # two CPU cores

The class is Stable Diffusion's (`models.vae.AutoencoderKL`), at a width that two CPU cores can train: 64 px become
16x16 places of 4 numbers, every layer works on patches of 4x4 pixels. It is not in any paper. A run's workdir is what
``config.system.codec.weights`` of the other recipes takes. For pictures of your own, set ``config.data`` to a folder
that ``python -m vidmotion.data.prepare`` made, and ``config.system.network`` to the sizes that you want; the evaluator
``codec`` prints the latents' mean and standard deviation, which a recipe's ``config.system.codec`` wants to know.
"""

from ml_collections import ConfigDict

from configs import common, sprites

# `AutoencoderKL`: 1.0 M parameters
NETWORK = {"channels": (96,), "layers_per_block": 0, "norm_groups": 8, "patch": 4}

# The trained autoencoder as ``config.system.codec`` of a recipe. Mean and deviation of its latents are those that the
# evaluator ``codec`` found; its latents then have the deviation 0.5. The one that is shipped learnt from batches of
# four clips of four frames: its card has the config.
CODEC = {
    "network": NETWORK,
    "weights": "heads_codec",  # shipped: `python -m vidmotion.weights`
    "mean": (-0.076, -0.209, 2.434, 1.591),
    "std": (5.744, 4.325, 3.804, 3.56),
}


def unit_variance() -> dict:
    """`CODEC` with latents of the deviation 1, as discrete processes want them."""
    return {**CODEC, "std": tuple(value / 2 for value in CODEC["std"])}


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo`` (the same as none), ``debug``."""
    variant = common.parse(argument).variant
    config = common.trunk()
    config.system = ConfigDict(
        {
            "name": "image_autoencoder",
            "size": 64,
            "frames": 2,
            "network": NETWORK,
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
                "decay": sprites.DECAY,
                "clip": 1.0,
                "schedule": {"kind": "cosine", "warmup": 100},
            }
        }
    )
    config.batch_size = 8  # clips of two frames a second and a half apart
    config.steps, config.log_every = 5000, 100
    config.ema.decay = 0.998
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 64, "frames": 2, "fps": 0.7, "seed": 0})
    config.data.train = ConfigDict({"split": "train", "clips": 20_000, "cache": True})
    config.data.eval = ConfigDict({"split": "eval", "clips": 128})
    config.checkpoint.every = 500
    config.eval.update({"run": ("codec",), "batch": 16})
    if variant == "debug":
        config.system.network.update({"channels": (8,), "norm_groups": 4})
        config.system.size = config.data.common.size = 16
        config.batch_size, config.steps, config.log_every = 8, 2, 1
        config.data.train.clips, config.data.eval.clips = 16, 4
        config.checkpoint.every = 0
        config.eval.batch = 4
    return config
