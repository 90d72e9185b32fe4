"""BCD on Heads, the procedural talking heads embedded in this package: no files needed.

    python -m vidmotion.main --config=configs/heads.py --workdir=runs/heads
    python -m vidmotion.main --config=configs/heads.py:demo --workdir=runs/heads_demo      # two CPU cores

Not in any paper: the Sprites recipe (Table A5) at more bits, since a head has 14 continuous motion factors where a
sprite has 63 poses. The renderer knows the true picture of (identity A, motion B), so the swap's PSNR and SSIM are
measurements; copying either clip is the baseline that must be beaten.
"""

from ml_collections import ConfigDict

from configs import common, sprites


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``bitrate`` (bits/s, 0 the variant's own), ``rate_loss``, ``cross``, ``demo``, ``debug``."""
    options = common.parse(
        argument, bitrate=(0, 150, 300, 450, 600), rate_loss=("on", "off"), cross=("on", "off")
    )
    variant = options.variant
    config = sprites.get_config(variant)
    system = config.system
    system.codec.update({"mean": 0.639, "std": 0.238})  # of v / 256 over rendered heads
    system.frames = 16
    system.sampler.window = 0  # the half-clip length
    system.quantizer.update({"books": 8, "dim": 16, "entries": 32, "alpha": 0.0})
    system.rate.target = 600.0  # 24 of 40 bits per frame
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 64, "frames": 16, "fps": 12.5, "seed": 0})
    config.data.train = ConfigDict({"split": "train", "clips": 20_000})
    config.data.eval = ConfigDict({"split": "eval", "clips": 256})
    config.sample.fps = 12.5
    # probe_clips: of `leakage`, which draws as many as it is given
    config.eval.update({"every": 0, "run": ("swap",), "pairs": 256, "batch": 64})
    config.eval.probe_clips = 2000
    if variant == "demo":
        _demo(config)
    if variant == "debug":
        system.frames, system.size = 4, 16
        system.denoiser.patch = 2
        system.quantizer.update({"books": 2, "dim": 8, "entries": 8})
        system.rate.target = 100.0
        config.data.common.update({"size": 16, "frames": 4})
        config.data.train.clips, config.data.eval.clips = 16, 4
        config.eval.update({"pairs": 4, "batch": 4, "probe_clips": 40})
    system.rate.target = float(options.bitrate) or system.rate.target
    system.rate.weight *= options.rate_loss == "on"
    system.cross.enabled = options.cross == "on"
    return config


def _demo(config: ConfigDict) -> None:
    """On top of the Sprites demo: shorter clips of fewer heads, kept in memory once drawn."""
    system = config.system
    system.frames = 8
    system.quantizer.update({"books": 8, "dim": 16, "entries": 8, "alpha": 0.7})
    system.rate.target = 500.0  # 20 of 24 bits per frame
    # Fine features are beyond this network: all effort goes to where sampling starts.
    system.diffusion.update({"p_mean": 2.8, "p_std": 0.8, "sigma_min": 8.0})
    # Six frames a second: the two halves of a clip differ enough for motion to be worth its bits.
    config.data.common.update({"frames": 8, "fps": 6.0})
    config.data.train.update({"clips": 4000, "cache": True})
    config.sample.fps = 6.0
    config.steps = 1500
