"""BCD on Heads, the procedural talking heads that this package draws: no files needed.

    python -m vidmotion.main --config=configs/heads.py --workdir=runs/heads
    python -m vidmotion.main --config=configs/heads.py:demo --workdir=runs/heads_demo      # two CPU cores
    python -m vidmotion.main --config=configs/heads.py:mini --workdir=runs/heads_mini      # narrower: what is shipped

Not in any paper: this is the Sprites recipe (Table A5) with more bits, because a head has 14 continuous motion factors,
whereas a sprite has 63 poses. The renderer can draw the true picture of (identity A, motion B), so the PSNR and SSIM of
a swap are exact measurements; the baseline to beat is copying either clip.
"""

from ml_collections import ConfigDict

from configs import _shared, sprites


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``bitrate`` (bits/s; 0: the variant's own), ``rate_loss``, ``cross``; variants."""
    options = _shared.parse(
        argument,
        _shared.SHIPPED,
        bitrate=(0, 300, 600, 1100, 1500),
        rate_loss=("on", "off"),
        cross=("on", "off"),
    )
    variant = options.variant
    config = sprites.get_config("demo" if variant == "mini" else variant)
    system = config.system
    system.codec.update(_shared.pixels("heads"))
    system.frames = 16
    system.sampler.window = 0  # the half-clip length
    system.quantizer.update({"books": 8, "dim": 16, "entries": 32, "alpha": 0.0})
    system.rate.target = 600.0  # 24 of 40 bits per frame
    _shared.heads(config, frames=16, fps=12.5, clips=20_000)
    config.sample.fps = 12.5
    del config.evals["sprites_transfer"]
    _shared.transfers(config, ("swap",), pairs=256, batch=64, probe_clips=2000)
    if variant in ("demo", "mini"):
        _demo(config)
    if variant == "mini":
        _mini(config)
    if variant == "debug":
        system.frames, system.size = 4, 16
        system.denoiser.patch = 2
        system.quantizer.update({"books": 2, "dim": 8, "entries": 8})
        system.rate.target = 100.0
        config.data.common.update({"size": 16, "frames": 4})
        config.data.train.clips, config.data.eval.clips = 16, 4
        _shared.transfers(config, ("swap",), pairs=4, batch=4, probe_clips=40)
    system.rate.target = float(options.bitrate) or system.rate.target
    system.rate.weight *= options.rate_loss == "on"
    system.cross.enabled = options.cross == "on"
    return config


def _demo(config: ConfigDict) -> None:
    """Change the Sprites demo into the demo on Heads.

    The network works on the latents of the small codec, in 8x8 patches, and the motion code has many more bits. Content
    is one token per patch, which starts from that patch of the source, so that a face not seen in training can be
    copied rather than recalled. Most noise levels are high enough to hide the layout. At two frames a second, the
    halves of a clip differ as much as two clips do, so motion cannot be guessed from content.
    """
    system = config.system
    system.codec = ConfigDict(_shared.heads_codec())
    system.frames = 8
    system.encoder.update({"content_tokens": 64, "queries": "patches"})
    system.denoiser.update({"patch": 2, "width": 192, "mlp_dim": 768, "layers": 3, "groups": 16})
    system.denoiser.temporal_blocks = (1,)
    system.quantizer.update({"books": 16, "dim": 16, "entries": 16, "alpha": 1.0})
    system.rate.target = 1100.0  # 44 of 64 bits per frame
    system.diffusion.update({"p_mean": 0.5, "p_std": 1.4, "sigma_min": 0.05, "sigma_max": 40.0})
    system.sampler.steps = 8
    config.data.common.update({"frames": 8, "fps": 2.0})
    config.data.train.update({"clips": 4000, "cache": True})
    config.sample.fps = 2.0
    _shared.transfers(config, _shared.DRIVEN, pairs=64, batch=16, probe_clips=2000)
    config.optimizer.model.schedule.warmup = 30
    config.batch_size, config.steps = 8, 1200
    # The last third of the steps, as in the paper on LRS3.
    _shared.join_temporal_blocks(config, 800)


def _mini(config: ConfigDict) -> None:
    """Narrow the demo to 3.0 M parameters."""
    system = config.system
    system.encoder.mlp_dim = 576
    system.denoiser.update({"width": 128, "mlp_dim": 512})
    config.data.train.clips = 8000
    config.steps = 1500
    _shared.join_temporal_blocks(config, 1000)
