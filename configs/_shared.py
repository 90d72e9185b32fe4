"""The parts that all recipes share: config arguments, default fields, rules, data sets and their statistics.

An argument follows the file name: ``configs/sprites.py:demo``, ``configs/vidtwin.py:size=base,latent=2``. Every
config has the variants ``:debug`` (two steps, for a test) and ``:demo`` (learns something visible in minutes on two CPU
cores). The four systems also have ``:mini``: the demo on Heads with a network of at most 6 MiB in float16, trained for
half an hour. The package ships these networks (``vidmotion weights``).
"""

import os

from ml_collections import ConfigDict

VARIANTS = ("demo", "debug")
SHIPPED = (*VARIANTS, "mini")
# The evaluators of a demo on Heads. They compare swaps with their exact renders, also with wrong drivers, and score
# them by the shipped reader.
DRIVEN = ("swap", "drivers", "reading")
# Not in any paper: norms, biases, codebooks, queries, null embeddings and position tables do not decay.
DECAY = ((r".*/kernel", True), (r".*", False))
SHEETS = os.environ.get("VIDMOTION_SHEETS", "../shared/data/sprite_sheets")
# Mean and standard deviation of v / 256, where v is a pixel value, over clips of each kind. For videos they were
# measured on a dozen talking-head videos.
PIXELS = {"heads": (0.639, 0.238), "sprites": (0.0903, 0.2222), "videos": (0.403, 0.218)}

# Stable Diffusion 1.5: the sizes of its UNet, and its diffusion process.
STABLE_DIFFUSION_UNET = {
    "channels": (320, 640, 1280, 1280),
    "attention": (True, True, True, False),
    "layers_per_block": 2,
    "heads": 8,
    "norm_groups": 32,
}
STABLE_DIFFUSION = {
    "steps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "schedule": "scaled_linear",
}

# Miniatures of Stable Diffusion's networks for heads of 64 px: the autoencoder of configs/heads_codec.py (1.0 M
# parameters) and the UNet of configs/heads_foundation.py (4.1 M), which the `:demo` of X-NeMo and WarpFace also use.
HEADS_AUTOENCODER = {"channels": (96,), "layers_per_block": 0, "norm_groups": 8, "patch": 4}
HEADS_UNET = {
    "channels": (64, 128),
    "attention": (True, True),
    "layers_per_block": 1,
    "heads": 4,
    "norm_groups": 16,
    "places": True,
}


def parse(argument: str | None, variants: tuple[str, ...] = VARIANTS, **known: tuple) -> ConfigDict:
    """Read a config argument.

    Args:
      argument: comma-separated ``key=value`` pairs and at most one of `variants`.
      variants: the variants that the config has.
      known: the allowed values of each key, with the default first.

    Returns:
      A value for ``variant`` ("" or one of `variants`) and for every known key.

    Raises:
      ValueError: the argument has an unknown key, value or variant; the message lists the known ones.
    """
    parsed = {"variant": "", **{key: values[0] for key, values in known.items()}}
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = item.partition("=")
        if not equals and key in variants and not parsed["variant"]:
            parsed["variant"] = key
            continue
        choices = {str(value): value for value in known.get(key, ())}
        if text not in choices:
            options = [f"{key}={'|'.join(map(str, values))}" for key, values in known.items()]
            raise ValueError(
                f"config argument {item!r}: choose from {', '.join(variants)}"
                + "".join(f", {option}" for option in options)
            )
        parsed[key] = choices[text]
    return ConfigDict(parsed)


def trunk() -> ConfigDict:
    """Return the fields that every config has, with their defaults; a recipe overrides those that its paper gives."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0
    config.batch_size = 0  # global, over all devices and processes
    config.accumulate = 1  # microbatches per update
    config.log_every = 100
    config.ema = ConfigDict({"decay": 0.0, "warmup": True})
    # -1 takes all devices that the other axes leave. If fsdp exceeds the number of devices, it is then reduced to it.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    # Each large leaf is split along its largest dimension that fits.
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2, "keep_period": 0})
    config.init_from = ""  # workdir of another run, whose parameters this run starts from
    config.init_rules = ((".*", True),)
    config.sample = ConfigDict({"every": 0, "rows": 0, "columns": 0, "fps": 8.0})
    config.evals = ConfigDict()  # evaluators by name, see `transfers` and docs/evaluation.md
    # Options of --mode=plan. devices: the number of devices (0: compile nothing). chip: the kind of device. topology:
    # the sides of a TPU slice, which determine the number of devices. compiler: the chip's own, or cpu. memory_gib: the
    # memory of a device (0: all that the chip has). efficiency: the share of its peak that compute is assumed to reach
    # if the compiler gives no estimate. fit: whether to look for the largest batch. measure: whether to run the update
    # and measure this process's memory (one device only). record: a JSON file for the figures ("": none).
    config.plan = ConfigDict({"devices": 0, "chip": "h100", "topology": "", "compiler": "chip"})
    config.plan.update({"memory_gib": 0.0, "efficiency": 0.4})
    config.plan.update({"fit": True, "measure": False, "record": ""})
    # prefetch: the number of batches made ahead. Threads are faster than worker processes where the work releases the
    # GIL.
    config.data = ConfigDict({"threads": 2, "workers": 0, "prefetch": 4, "common": {}})
    return config


def protocol(**changes) -> ConfigDict:
    """Return the config section of a paper's evaluation protocol, which runs only if it is asked for by name.

    `vidmotion.evaluation.protocols.PaperProtocol` describes the fields. Where ``weights`` has "" for a network, the
    rows of that network say what they need.

    Args:
      changes: fields whose values differ from the defaults below.
    """
    networks = ("fid_inception", "i3d", "arcface", "emonet", "lpips_alex", "lpips_vgg")
    fields = {"every": -1, "data": "", "frames": 0, "decimate": 1, "clips": 0, "batch": 8}
    fields |= {"save_every": 20, "targets": 0, "gap": 0.2, "size": 0}
    fields |= {"keep_clips": False, "measured": "", "head_model": ""}
    fields |= {"fid": "pytorch_fid", "fvd": "styleganv_np", "weights": dict.fromkeys(networks, "")}
    return ConfigDict({**fields, **changes})


def transfers(
    config: ConfigDict,
    run: tuple = (),
    pairs: int = 0,
    batch: int = 8,
    probe_clips: int = 0,
    **protocols,
) -> None:
    """Add the config sections of the evaluators of a system that transfers motion.

    Args:
      config: the config to change.
      run: the evaluators to run after training; the others run only if they are asked for by name.
      pairs: the number of clips to pair with others; 0: all.
      batch: the number of clips at a time.
      probe_clips: the number of clips that `leakage` reads; a procedural source can draw any number. 0: all of the eval
        split.
      protocols: further fields of the papers' protocols.
    """
    each = {"every": -1, "batch": batch}
    config.evals.swap = ConfigDict({**each, "pairs": pairs})
    config.evals.drivers = ConfigDict({**each, "pairs": pairs, "split": "eval"})  # or train
    # reader: the shipped reader of Heads of 64 px, or the workdir of a run of configs/heads_reader.py
    config.evals.reading = ConfigDict({**each, "pairs": pairs, "reader": "heads_reader"})
    config.evals.leakage = ConfigDict({**each, "probe_clips": probe_clips})
    for name in ("self_reenactment", "cross_reenactment", "motion_transfer"):
        config.evals[name] = protocol(batch=batch, **protocols)
    evaluate(config, run)


def evaluate(config: ConfigDict, run: tuple) -> None:
    """Make the evaluators in `run`, and no others, run after training."""
    for name, section in config.evals.items():
        section.every = 0 if name in run else -1


def pixels(kind: str, deviation: float = 0.5, patch: int = 1) -> dict:
    """Return a ``config.system.codec`` without an autoencoder, for clips of ``heads``, ``sprites`` or ``videos``.

    Args:
      kind: a key of `PIXELS`.
      deviation: the standard deviation of the network's input: 0.5 for continuous diffusion processes, 1 for discrete
        ones.
      patch: the side of the squares of pixels that are folded into channels of one position.
    """
    mean, std = PIXELS[kind]
    codec = {"mean": mean, "std": std * 0.5 / deviation}
    return {**codec, "patch": patch} if patch > 1 else codec


def heads_codec(deviation: float = 0.5) -> dict:
    """Return the ``config.system.codec`` for the shipped autoencoder of heads (``python -m vidmotion.weights``).

    The mean and standard deviation of its latents were measured by the evaluator ``codec``. The autoencoder was trained
    on batches of four clips of four frames; its card has the config.

    Args:
      deviation: as for `pixels`.
    """
    std = (5.744, 4.325, 3.804, 3.56)
    return {
        "network": HEADS_AUTOENCODER,
        "weights": "heads_codec",
        "mean": (-0.076, -0.209, 2.434, 1.591),
        "std": tuple(value * 0.5 / deviation for value in std),
    }


def heads(config: ConfigDict, frames: int, fps: float, clips: int, **train) -> None:
    """Make the data procedural heads of 64 px: `clips` clips to train on and 256 others to evaluate on.

    Args:
      config: the config to change.
      frames: the number of frames in a clip.
      fps: the frames per second of a clip.
      clips: the number of training clips.
      train: further fields of ``config.data.train``.
    """
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 64, "frames": frames, "fps": fps, "seed": 0})
    config.data.train = ConfigDict({"split": "train", "clips": clips, **train})
    config.data.eval = ConfigDict({"split": "eval", "clips": 256})


def head_pictures(config: ConfigDict) -> None:
    """Make the data the pictures that the codec and the foundation of heads are trained on: two frames of each clip,
    about a second and a half apart."""
    heads(config, frames=2, fps=0.7, clips=20_000, cache=True)
    config.data.eval.clips = 128
    config.batch_size = 8  # clips


def sprites(config: ConfigDict) -> None:
    """Make the data the Sprites drawn from the sheets in `SHEETS`."""
    config.data.kind = "sprites"
    config.data.common = ConfigDict({"sheets_dir": SHEETS})
    config.data.train = ConfigDict({"split": "train"})
    config.data.eval = ConfigDict({"split": "test"})


def join_temporal_blocks(config: ConfigDict, steps: int) -> None:
    """Switch on the temporal blocks of BCD's denoiser, and their training, after `steps` updates."""
    config.system.denoiser.temporal_from = steps
    config.optimizer.model.start = ((r".*/temporal_\d+/.*", steps), (".*", 0))


def two_steps(config: ConfigDict) -> None:
    """Make the run as short as a `:debug` run: two steps with a batch of 8 and no checkpoints in between."""
    config.batch_size, config.steps, config.log_every = 8, 2, 1
    config.checkpoint.every = 0
