"""What recipes share: arguments, defaults of the trunk, rules, data sets, and what is known of them.

An argument follows the file name: ``configs/sprites.py:demo``, ``configs/vidtwin.py:size=base,latent=2``. Every
config has ``:debug`` (two steps, in a test) and ``:demo`` (learns something visible in minutes on two CPU cores). The
four systems have ``:mini`` as well: the demo on Heads with a network of 6 MiB at most in float16, which is shipped
(``vidmotion weights``), trained for half an hour.
"""

import os

from ml_collections import ConfigDict

VARIANTS = ("demo", "debug")
SHIPPED = (*VARIANTS, "mini")
# What a demo on Heads evaluates: swaps against exact renders, with other drivers too, and as the shipped reader sees.
DRIVEN = ("swap", "drivers", "reading")
# Not in any paper: no decay on norms, biases, codebooks, queries, nulls and position tables.
DECAY = ((r".*/kernel", True), (r".*", False))
SHEETS = os.environ.get("VIDMOTION_SHEETS", "../shared/data/sprite_sheets")
# Mean and standard deviation of v / 256 over clips of each kind; videos: a dozen of talking heads.
PIXELS = {"heads": (0.639, 0.238), "sprites": (0.0903, 0.2222), "videos": (0.403, 0.218)}

# Stable Diffusion 1.5: `UNet` and the process.
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

# Their miniatures for heads of 64 px: the autoencoder of configs/heads_codec.py, 1.0 M parameters, and the UNet of
# configs/heads_foundation.py, 4.1 M, which is also that of X-NeMo's and WarpFace's `:demo`.
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
      variants: that the config has.
      known: for each key its allowed values, the default first.

    Returns:
      ``variant`` ("" or one of `variants`) and every known key.

    Raises:
      ValueError: anything that is not known; the message lists what is.
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
    """Fields every config has; a recipe overrides what its paper gives."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0
    config.batch_size = 0  # global, over all devices and processes
    config.accumulate = 1  # microbatches per update
    config.log_every = 100
    config.ema = ConfigDict({"decay": 0.0, "warmup": True})
    # -1: all devices that the other axes leave; fsdp is then at most so many
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = ((".*", "fsdp"),)  # split each large leaf's largest fitting dimension
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2, "keep_period": 0})
    config.init_from = ""  # workdir of another run whose parameters to start from
    config.init_rules = ((".*", True),)
    config.sample = ConfigDict({"every": 0, "rows": 0, "columns": 0, "fps": 8.0})
    config.evals = ConfigDict()  # evaluators by name, see `transfers` and docs/evaluation.md
    # Of --mode=plan: devices (0: compile nothing), chip, the sides of a TPU slice, which say how many devices there
    # are, whose compiler (chip or cpu), memory of a device (0: all the chip has), share of its peak that compute
    # reaches where the compiler does not tell, whether to look for the largest batch, whether to run the update and
    # weigh this process (one device), and a JSON file for the figures ("": none).
    config.plan = ConfigDict({"devices": 0, "chip": "h100", "topology": "", "compiler": "chip"})
    config.plan.update({"memory_gib": 0.0, "efficiency": 0.4})
    config.plan.update({"fit": True, "measure": False, "record": ""})
    # Prefetch counts batches made ahead; threads beat worker processes where work releases the GIL.
    config.data = ConfigDict({"threads": 2, "workers": 0, "prefetch": 4, "common": {}})
    return config


def protocol(**changes) -> ConfigDict:
    """The section of one of the papers' protocols, which runs only where it is asked for by name.

    A folder of prepared clips in the place of data.eval, frames of each (0: all) and the stride between them; clips
    (0: all), how many at a time, and batches from one saving of the accumulators to the next; frames drawn of a clip
    beyond `gap` seconds (0: all after the first); pixels at which clips are measured (0: as they are). Clips kept as
    pictures for other programs, and folder and head model of what these measured. Folders that `python -m
    vidmotion.convert` wrote; "": rows of that network say what they need.
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
    """Sections of the evaluators of a system that transfers motion.

    Args:
      config: to change.
      run: evaluators to run after training; the others wait to be asked for by name.
      pairs: clips to pair with others; 0: all.
      batch: clips at a time.
      probe_clips: clips that `leakage` reads, which draws as many as it is given; 0: all of the eval split.
      protocols: further fields of the papers' protocols.
    """
    each = {"every": -1, "batch": batch}
    config.evals.swap = ConfigDict({**each, "pairs": pairs})
    config.evals.drivers = ConfigDict({**each, "pairs": pairs, "split": "eval"})  # or train
    # The shipped reader of Heads of 64 px, or the workdir of a run of configs/heads_reader.py.
    config.evals.reading = ConfigDict({**each, "pairs": pairs, "reader": "heads_reader"})
    config.evals.leakage = ConfigDict({**each, "probe_clips": probe_clips})
    for name in ("self_reenactment", "cross_reenactment", "motion_transfer"):
        config.evals[name] = protocol(batch=batch, **protocols)
    evaluate(config, run)


def evaluate(config: ConfigDict, run: tuple) -> None:
    """Run these evaluators after training, and no others."""
    for name, section in config.evals.items():
        section.every = 0 if name in run else -1


def pixels(kind: str, deviation: float = 0.5, patch: int = 1) -> dict:
    """``config.system.codec`` without an autoencoder, for clips of ``heads``, ``sprites`` or ``videos``.

    Args:
      kind: a key of `PIXELS`.
      deviation: of what the network reads; continuous processes want 0.5, discrete ones 1.
      patch: side of the squares of pixels that are laid out as channels of one place.
    """
    mean, std = PIXELS[kind]
    codec = {"mean": mean, "std": std * 0.5 / deviation}
    return {**codec, "patch": patch} if patch > 1 else codec


def heads_codec(deviation: float = 0.5) -> dict:
    """``config.system.codec`` of the shipped autoencoder of heads (``python -m vidmotion.weights``).

    The evaluator ``codec`` found the mean and the deviation of its latents; `deviation` is as for `pixels`. It learnt
    from batches of four clips of four frames: its card has the config.
    """
    std = (5.744, 4.325, 3.804, 3.56)
    return {
        "network": HEADS_AUTOENCODER,
        "weights": "heads_codec",
        "mean": (-0.076, -0.209, 2.434, 1.591),
        "std": tuple(value * 0.5 / deviation for value in std),
    }


def heads(config: ConfigDict, frames: int, fps: float, clips: int, **train) -> None:
    """Read procedural heads of 64 px: `clips` of them to train on, 256 others to evaluate on."""
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 64, "frames": frames, "fps": fps, "seed": 0})
    config.data.train = ConfigDict({"split": "train", "clips": clips, **train})
    config.data.eval = ConfigDict({"split": "eval", "clips": 256})


def head_pictures(config: ConfigDict) -> None:
    """The pictures from which the codec and the foundation of heads learn: two frames of each clip, a second and a half
    apart."""
    heads(config, frames=2, fps=0.7, clips=20_000, cache=True)
    config.data.eval.clips = 128
    config.batch_size = 8  # clips


def sprites(config: ConfigDict) -> None:
    """Read the Sprites of the sheets in `SHEETS`."""
    config.data.kind = "sprites"
    config.data.common = ConfigDict({"sheets_dir": SHEETS})
    config.data.train = ConfigDict({"split": "train"})
    config.data.eval = ConfigDict({"split": "test"})


def join_temporal_blocks(config: ConfigDict, steps: int) -> None:
    """Let the temporal blocks of BCD's denoiser work after `steps` updates, and rest until then."""
    config.system.denoiser.temporal_from = steps
    config.optimizer.model.start = ((r".*/temporal_\d+/.*", steps), (".*", 0))


def two_steps(config: ConfigDict) -> None:
    """As short as a `:debug` run is."""
    config.batch_size, config.steps, config.log_every = 8, 2, 1
    config.checkpoint.every = 0
