"""The four systems side by side: the same clips, similar parameter counts, equal compute, the same evaluations.

    python launch/sweep.py benchmark --workdir=runs/benchmark --arguments=minutes=5
    python -m vidmotion.main --config=configs/benchmark.py:system=warpface,clips=sprites --workdir=DIR

No paper compares these systems. Each config is the ``:demo`` of its system with two changes: its widths are chosen so
that the networks used after training have 6 to 8 million parameters, and its number of steps fits a budget of model
FLOPs (forward, backward and update, without recomputation). Discriminators and GAN heads are discarded after training:
their FLOPs count, but their parameters do not. Clips have 8 frames of 64 px; X-NeMo and WarpFace are trained on pairs
of frames from these clips.

``minutes=N`` is a budget of N times 3 TFLOP, about N minutes on two CPU cores. ``hours=N`` is a budget of N times 36
PFLOP, which is N hours of an accelerator at 10 TFLOP/s; networks as small as these do not run faster than that.
"""

from ml_collections import ConfigDict

from configs import _shared, heads, vidtwin, warpface, xnemo

SYSTEMS = ("bcd", "vidtwin", "xnemo", "warpface")
MINUTE, HOUR = 3e12, 36e15  # FLOPs
# GFLOP of a training step according to `--mode=plan`; the same for both kinds of clips.
STEP = {"bcd": 88.9, "vidtwin": 48.8, "xnemo": 93.1, "warpface": 81.7}


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``system``, ``clips``, ``minutes`` or ``hours`` (whole numbers), ``demo`` (the default: five minutes),
    ``debug``."""
    argument, flops = _budget(argument)
    options = _shared.parse(argument, system=SYSTEMS, clips=("heads", "sprites"))
    debug = options.variant == "debug"
    make = {"bcd": _bcd, "vidtwin": _vidtwin, "xnemo": _xnemo, "warpface": _warpface}
    config = make[options.system]("debug" if debug else "demo", options.clips)
    if not debug:
        config.steps = max(1, round(flops / (1e9 * STEP[options.system])))
        for player in config.optimizer.values():
            player.schedule = ConfigDict({"kind": "cosine", "warmup": 50})
        config.checkpoint.every = 500
        config.sample.update({"every": 0, "rows": 3, "columns": 4})
        _shared.transfers(config, pairs=32, batch=16, probe_clips=600)
        if config.system.name == "vidtwin":
            config.system.gan.start = 3 * config.steps // 4
    _shared.evaluate(config, ("swap", "leakage"))
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


def _bcd(variant: str, clips: str) -> ConfigDict:
    config = heads.get_config(variant)
    if variant == "demo":
        _shared.join_temporal_blocks(config, 0)
        config.system.codec = ConfigDict(_shared.pixels(clips, patch=4))
        # Pixels predict each other better than latents do, so training needs higher noise levels.
        config.system.diffusion.update({"p_mean": 1.5, "sigma_max": 80.0})
    return _on_sprites(config) if clips == "sprites" else config


def _vidtwin(variant: str, clips: str) -> ConfigDict:
    if variant == "debug":
        return vidtwin.get_config(f"debug,clips={clips}")
    config = vidtwin.get_config("demo,clips=sprites")
    config.system.network.update({"width": 288, "query_width": 64, "structure_width": 64})
    config.system.network.structure_channels = 32
    config.optimizer.model.rate = 2e-3
    if clips == "heads":
        _shared.heads(config, frames=8, fps=6.0, clips=4000, cache=True)
    return config


def _xnemo(variant: str, clips: str) -> ConfigDict:
    """Stage 2 without a stage 1: appearance and motion are learnt together from single frames, with the GAN head."""
    config = xnemo.get_config(f"{variant},stage=2")
    if variant == "demo":
        config.system.unet.channels = (48, 96)
    return _drawn(config, variant, clips)


def _warpface(variant: str, clips: str) -> ConfigDict:
    return _drawn(warpface.get_config(variant), variant, clips)


def _drawn(config: ConfigDict, variant: str, clips: str) -> ConfigDict:
    """Set the data, and work in pixels, with 4x4 squares folded into channels, because Sprites have no codec."""
    if variant == "demo":
        config.system.codec = ConfigDict(_shared.pixels(clips, deviation=1.0, patch=4))
    if clips == "sprites":
        pairs = {"kind": "sprite_portraits", "split": "train", "random": True}
        pairs["pair"] = config.data.train.pair
        _on_sprites(config).data.train = ConfigDict(pairs)
    return config


def _on_sprites(config: ConfigDict) -> ConfigDict:
    _shared.sprites(config)
    config.data.train.random = True
    return config
