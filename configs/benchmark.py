"""The four systems side by side: the same clips, similar parameter counts, equal compute, the same evaluations.

    python launch/sweep.py benchmark --workdir=runs/benchmark --arguments=minutes=40
    python -m vidmotion.main --config=configs/benchmark.py:system=warpface,clips=sprites --workdir=DIR

No paper compares these systems. Each config is the ``:demo`` of its system (VidTwin on Heads: the ``:mini``) with two
changes: its widths are chosen so that the networks used after training have 6 to 8.5 million parameters, and its number
of steps fits a budget of model FLOPs (forward, backward and update, without recomputation). Clips have 8 frames of 64
px. On Heads, at two frames a second, all four work on the latents of the shipped codec; Sprites have no codec, so that
all four work on pixels there. X-NeMo and WarpFace are trained on pairs of frames from these clips. X-NeMo has no GAN
head, with which its demo failed when it was last recorded (docs/gallery.md); ``system=xnemo_gan`` has it.
Discriminators and GAN heads are discarded after training: their FLOPs count, but their parameters do not.

``minutes=N`` is a budget of N times 3 TFLOP, which two CPU cores do in half a minute to a minute. ``hours=N`` is a
budget of N times 36 PFLOP, which is N hours of an accelerator at 10 TFLOP/s; networks as small as these do not run
faster than that.
"""

from ml_collections import ConfigDict

from configs import _shared, heads, vidtwin, warpface, xnemo

SYSTEMS = ("bcd", "vidtwin", "xnemo", "warpface")
CLIPS = ("heads", "sprites")
MINUTE, HOUR = 3e12, 36e15  # FLOPs
# GFLOP of a training step according to `--mode=plan`.
STEP = {
    "heads": {"bcd": 107.2, "vidtwin": 204.2, "xnemo": 70.5, "xnemo_gan": 95.0, "warpface": 88.4},
    "sprites": {"bcd": 75.7, "vidtwin": 48.8, "xnemo": 64.3, "xnemo_gan": 88.8, "warpface": 75.5},
}


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``system``, ``clips``, ``minutes`` or ``hours`` (whole numbers), ``demo`` (the default: five minutes),
    ``debug``."""
    argument, flops = _budget(argument)
    options = _shared.parse(argument, system=(*SYSTEMS, "xnemo_gan"), clips=CLIPS)
    debug = options.variant == "debug"
    make = {"bcd": _bcd, "vidtwin": _vidtwin, "warpface": _warpface}
    make |= dict.fromkeys(("xnemo", "xnemo_gan"), _xnemo)
    config = make[options.system]("debug" if debug else "demo", options)
    evaluators = ["swap", "drivers", "leakage"]
    if not debug:
        config.steps = max(1, round(flops / (1e9 * STEP[options.clips][options.system])))
        for player in config.optimizer.values():
            player.schedule = ConfigDict({"kind": "cosine", "warmup": 50})
        config.checkpoint.every = 500
        config.sample.update({"every": 0, "rows": 3, "columns": 4})
        if options.clips == "heads":
            config.data.common.update({"frames": 8, "fps": 2.0})
            config.data.train.clips = 8000
            evaluators.append("reading")
        _shared.transfers(config, pairs=64, batch=16, probe_clips=600)
        if options.system == "bcd":
            _shared.join_temporal_blocks(config, 0)  # so that all steps cost the same
        if options.system.startswith("xnemo"):
            xnemo.stagger(config)
        if options.system == "vidtwin" and "disc" in config.optimizer:
            config.system.gan.start = 3 * config.steps // 4
    _shared.evaluate(config, evaluators)
    return config


def _budget(argument: str) -> tuple[str, float]:
    """Split off the budget: return the other arguments, and the number of FLOPs."""
    flops, rest = 5 * MINUTE, []
    for item in filter(None, (argument or "").split(",")):
        key, _, text = item.partition("=")
        if key not in ("minutes", "hours"):
            rest.append(item)
            continue
        if not text.isdecimal() or not int(text):
            raise ValueError(f"config argument {item!r} must be a whole number, 1 or more")
        flops = int(text) * (MINUTE if key == "minutes" else HOUR)
    return ",".join(rest), flops


def _bcd(variant: str, options: ConfigDict) -> ConfigDict:
    config = heads.get_config(variant)
    if options.clips == "heads" and variant == "demo":
        config.system.denoiser.update({"width": 224, "mlp_dim": 896})
    if options.clips == "sprites":
        _on_sprites(config)
        if variant == "demo":
            config.system.codec = ConfigDict(_shared.pixels("sprites", patch=4))
            # Pixels predict each other better than latents do, so training needs higher noise levels.
            config.system.diffusion.update({"p_mean": 1.5, "sigma_max": 80.0})
    return config


def _vidtwin(variant: str, options: ConfigDict) -> ConfigDict:
    if variant == "debug":
        return vidtwin.get_config(f"debug,clips={options.clips}")
    if options.clips == "heads":
        config = vidtwin.get_config("mini")
        config.system.network.width = 288
        config.batch_size = 8
        return config
    config = vidtwin.get_config("demo,clips=sprites")
    config.system.network.update({"width": 288, "query_width": 64, "structure_width": 64})
    config.system.network.structure_channels = 32
    config.optimizer.model.rate = 2e-3
    return config


def _xnemo(variant: str, options: ConfigDict) -> ConfigDict:
    """Stage 2 without a stage 1: appearance and motion are learnt together from single frames."""
    gan_head = "on" if options.system == "xnemo_gan" else "off"
    config = xnemo.get_config(f"{variant},stage=2,gan_head={gan_head}")
    if variant == "demo":
        config.system.unet.channels = (48, 96)
    return _drawn(config, variant, options)


def _warpface(variant: str, options: ConfigDict) -> ConfigDict:
    return _drawn(warpface.get_config(variant), variant, options)


def _drawn(config: ConfigDict, variant: str, options: ConfigDict) -> ConfigDict:
    """Set the data; on Sprites, which have no codec, work in pixels, with 4x4 squares folded into channels."""
    if options.clips == "sprites":
        if variant == "demo":
            config.system.codec = ConfigDict(_shared.pixels("sprites", deviation=1.0, patch=4))
        pairs = {"kind": "sprite_portraits", "split": "train", "random": True}
        pairs["pair"] = config.data.train.pair
        _on_sprites(config).data.train = ConfigDict(pairs)
    return config


def _on_sprites(config: ConfigDict) -> ConfigDict:
    _shared.sprites(config)
    config.data.train.random = True
    return config
