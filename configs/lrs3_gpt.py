r"""BCD's motion generation: Table A6 of the supplement. GPT-2 on the codes of a trained BCD.

    python -m vidmotion.encode --workdir=runs/lrs3 --out=data/lrs3_codes --frames=50
    python -m vidmotion.main --config=configs/lrs3_gpt.py --workdir=runs/lrs3_gpt

Hardware in the paper: 8 H100, batch 32 on each. The paper gives no figures for generation. `:demo` is trained on the
codes of ``configs/heads.py:demo``, and the denoiser of that run renders the generated motion:

    python -m vidmotion.main --config=configs/heads.py:demo --workdir=runs/heads
    python -m vidmotion.encode --workdir=runs/heads --out=data/heads_codes --frames=32
    python -m vidmotion.main --config=configs/lrs3_gpt.py:demo --workdir=runs/heads_gpt \
        --config.evals.motion_generation.bcd=runs/heads
"""

from ml_collections import ConfigDict

from configs import _shared, heads, lrs3


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "motion_gpt",
            "codes": "data/lrs3_codes",
            "frames": 25,  # not in paper: the clips' 50 frames at 12.5 frames/s are 25 at double speed
            # Model: GPT-2
            "width": 1024,
            "layers": 12,
            "heads": 8,
            "max_positions": 128,  # not in paper; n frames need n positions, and only `frames` of them are trained
            "dropout": 0.1,  # not in paper
            "content_elements": 1,  # "the first sequence element"
            "compute": "bfloat16",  # not in paper
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": 1e-4,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.01,
                "decay": _shared.DECAY,
                "clip": 1.0,  # not in paper
                "schedule": {"kind": "constant", "warmup": 2000},  # not in paper
            }
        }
    )
    config.batch_size = 256  # 32 on each of 8 H100
    config.steps = 100_000  # not in paper: until the validation cross-entropy stops falling
    config.ema.decay = 0.9999  # not in paper
    config.data.kind = "codes"
    config.data.train = ConfigDict({"split": "train", "fast": 0.5})
    config.data.eval = ConfigDict({"split": "eval"})
    config.checkpoint.every = 5000
    config.evals.motion_generation = ConfigDict(
        {
            "every": 5000,
            "batch": 64,
            "bcd": "",  # workdir of the BCD that wrote the codes; it renders the generated motion
            "clips": 4,  # the number of clips to render
            "frames": 25,
            "temperature": 0.0,  # 0 is greedy, as in the paper
            "top_k": 0,
        }
    )
    bcd = lrs3.get_config()
    if variant:
        bcd = heads.get_config(variant)
        system = config.system
        system.codes = "data/heads_codes"
        system.width, system.layers, system.heads, system.frames = 128, 3, 4, 16
        system.compute, system.max_positions = "float32", 64
        config.optimizer.model.rate = 1e-3
        config.optimizer.model.schedule.warmup = 100
        config.batch_size, config.steps, config.log_every = 32, 1500, 100
        config.ema.decay = 0.99
        config.checkpoint.every = 500
        # With greedy decoding, as in the paper, heads hardly move after such a short training.
        config.evals.motion_generation.update({"every": 500, "frames": 32, "temperature": 1.0})
    if variant == "debug":
        system.width, system.layers, system.heads, system.frames = 16, 1, 2, 2
        _shared.two_steps(config)
        config.evals.motion_generation.update({"every": 0, "frames": 4, "clips": 1})
    config.system.books = bcd.system.quantizer.books
    config.system.entries = bcd.system.quantizer.entries
    config.system.dim = bcd.system.quantizer.dim
    config.system.post_linear = True
    config.system.content_tokens = bcd.system.encoder.content_tokens
    config.system.content_width = bcd.system.encoder.content_width
    config.data.common = ConfigDict(
        {"directory": config.system.get_ref("codes"), "frames": config.system.get_ref("frames")}
    )
    return config
