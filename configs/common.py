"""What all configs share: arguments, trunk defaults, and the two shrunken shapes.

An argument follows the file name: ``configs/sprites.py:demo``, ``configs/vidtwin.py:size=base,latent=2``. Every
config has ``:debug`` (two steps, in a test) and ``:demo`` (learns something visible in minutes on two CPU cores).
"""

from ml_collections import ConfigDict

VARIANTS = ("", "demo", "debug")
# What a demo on Heads evaluates: swaps against exact renders, with other drivers too, and as the shipped reader sees.
DRIVEN = ("swap", "drivers", "reading")


def parse(argument: str | None, **known: tuple) -> ConfigDict:
    """Read a config argument.

    Args:
      argument: comma-separated ``key=value`` pairs and at most one of ``demo`` and ``debug``.
      known: for each key its allowed values, the default first.

    Returns:
      ``variant`` ("", "demo" or "debug") and every known key.

    Raises:
      ValueError: anything that is not known; the message lists what is.
    """
    parsed = {"variant": "", **{key: values[0] for key, values in known.items()}}
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = item.partition("=")
        if not equals and key in VARIANTS and not parsed["variant"]:
            parsed["variant"] = key
            continue
        choices = {str(value): value for value in known.get(key, ())}
        if text not in choices:
            options = [f"{key}={'|'.join(map(str, values))}" for key, values in known.items()]
            raise ValueError(
                f"config argument {item!r}: choose from demo, debug"
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
    # -1: all devices that the other axes leave
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = ((".*", "fsdp"),)  # split each large leaf's largest fitting dimension
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2, "keep_period": 0})
    config.init_from = ""  # workdir of another run whose parameters to start from
    config.init_rules = ((".*", True),)
    config.sample = ConfigDict({"every": 0, "rows": 0, "columns": 0, "fps": 8.0})
    config.eval = ConfigDict({"every": 0, "run": (), "protocol": ""})  # a protocol before `run`
    # Of protocols (docs/evaluation.md): a folder of prepared clips in the place of data.eval, frames of each (0: all),
    # every how-manieth; clips (0: all), so many at a time, batches from one saving of the accumulators to the next;
    # frames drawn of a clip beyond `gap` seconds (0: all after the first).
    config.eval.update({"data": "", "frames": 0, "decimate": 1})
    config.eval.update({"clips": 0, "batch": 8, "save_every": 20, "targets": 0, "gap": 0.2})
    # Clips kept as pictures for other programs, and folder and head model of what these measured.
    config.eval.update({"keep_clips": False, "measured": "", "head_model": ""})
    config.eval.update({"fid": "pytorch_fid", "fvd": "styleganv_np"})
    # Folders that `python -m vidmotion.convert` wrote; "": rows of that network say what they need.
    config.eval.weights = ConfigDict(
        dict.fromkeys(("fid_inception", "i3d", "arcface", "emonet", "lpips_alex", "lpips_vgg"), "")
    )
    # The shipped reader of Heads of 64 px, or the workdir of a run of configs/heads_reader.py.
    config.eval.weights.heads_reader = "heads_reader"
    config.eval.drivers = ConfigDict({"split": "eval"})  # whose clips it takes: eval or train
    # Of --mode=plan: simulated devices (0: compile nothing), chip, its memory (0: all of it), share of its peak that
    # compute reaches, whether to look for the largest batch, whether to run the update and weigh this process (one
    # device), and a JSON file for the figures ("": none).
    config.plan = ConfigDict({"devices": 0, "chip": "h100", "memory_gib": 0.0, "efficiency": 0.4})
    config.plan.update({"fit": True, "measure": False, "record": ""})
    # Prefetch counts batches made ahead; threads beat worker processes where work releases the GIL.
    config.data = ConfigDict({"threads": 2, "workers": 0, "prefetch": 4, "common": {}})
    return config
