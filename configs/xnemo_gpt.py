r"""X-NeMo's generation: motion tokens and GPT-2 over them (appendix E of the paper); `task` selects what is trained.

    python -m vidmotion.encode --workdir=runs/xnemo_4 --out=data/xnemo_motion --frames=512
    python -m vidmotion.main --config=configs/xnemo_gpt.py:task=tokenizer --workdir=runs/xnemo_tokenizer
    python -m vidmotion.encode --workdir=runs/xnemo_tokenizer --out=data/xnemo_tokens
    python -m vidmotion.main --config=configs/xnemo_gpt.py:task=outpaint --workdir=runs/xnemo_outpaint \
        --config.evals.token_generation.xnemo=runs/xnemo_4
    python -m vidmotion.reenact --workdir=runs/xnemo_4 --content=A.png --motion=B.mp4 --out=C.mp4 \
        --outpaint=runs/xnemo_outpaint --more=100

``task=emotion`` trains the same GPT-2 on the tokens of MEAD, whose clips are encoded with ``--frames=64`` and
``--config.data.common.directory=data/mead``. No code or weights of this part were published, and the paper gives no
figures. The sizes are the paper's (4096 entries of 8 numbers, a token every 4 frames, T = 128, GPT2-small); values that
the paper adopts from T2M-GPT (arXiv 2301.06052) are marked "T2M-GPT's".

`:demo` is trained on heads, with the X-NeMo of ``configs/xnemo.py:demo``: clips are encoded with ``--frames=64
--fps=25``. Heads have no emotions: a clip counts as sad, neutral or happy by its mean smile.
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``task``, ``demo``, ``debug``."""
    options = _shared.parse(argument, task=("tokenizer", "outpaint", "emotion"))
    config = _shared.trunk()
    config.data.train = ConfigDict({"split": "train"})
    config.data.eval = ConfigDict({"split": "eval"})
    config.checkpoint.every = 5000
    if options.task == "tokenizer":
        _tokenizer(config, options.variant)
    else:
        _generator(config, options.variant, options.task == "emotion")
    if options.variant == "debug":
        _shared.two_steps(config)
        for section in config.evals.values():
            section.update({"every": 0, "batch": 8, "clips": 1})
    return config


def _network(variant: str) -> dict:
    """Return the sizes of the tokenizer."""
    network = {
        "channels": 512,  # f_mot
        "entries": 4096,
        "dim": 8,
        "halvings": 2,  # a token every 4 frames
        "width": 512,  # T2M-GPT's, like the fields below
        "blocks": 3,
        "growth": 3,
        "decay": 0.99,
        "least": 1.0,
    }
    if variant == "demo":
        network |= {"channels": 64, "entries": 128, "width": 128, "blocks": 2}
    if variant == "debug":
        network |= {"channels": 8, "entries": 8, "dim": 2, "width": 8, "blocks": 1}
    return network


def _tokenizer(config: ConfigDict, variant: str) -> None:
    config.system = ConfigDict(
        {
            "name": "motion_tokenizer",
            "codes": "data/xnemo_motion",
            "frames": 128,
            "network": _network(variant),
            "velocity": 0.5,  # T2M-GPT's, which applies it to channels of the skeleton
            "commitment": 0.02,  # T2M-GPT's
            "compute": "float32",  # not in paper
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                # T2M-GPT's, except that its rate drops to 0.05 of this at once, after two thirds of the steps
                "rate": 2e-4,
                "betas": (0.9, 0.99),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "decay": _shared.DECAY,
                "clip": 0.0,
                "schedule": {"kind": "cosine", "warmup": 1000, "end": 0.05},
            }
        }
    )
    config.batch_size = 256
    config.steps = 300_000
    config.data.kind = "motion_codes"
    config.evals.motion_tokens = ConfigDict(
        {
            "every": 10_000,
            "batch": 64,
            "xnemo": "",  # workdir of the X-NeMo that wrote the codes; renders the motion that the tokens keep
            "clips": 4,  # the number of clips to show
        }
    )
    if variant:
        config.system.frames = 32
        config.optimizer.model.rate = 1e-3
        config.optimizer.model.schedule.warmup = 50
        config.batch_size, config.steps, config.log_every = 64, 1000, 100
        config.checkpoint.every, config.evals.motion_tokens.every = 500, 0
    if variant == "debug":
        config.system.frames = 8
    config.data.common = ConfigDict(
        {"directory": config.system.get_ref("codes"), "length": config.system.get_ref("frames")}
    )


def _generator(config: ConfigDict, variant: str, emotion: bool) -> None:
    config.system = ConfigDict(
        {
            "name": "token_gpt",
            "codes": "data/mead_tokens" if emotion else "data/xnemo_tokens",
            # T = 128 frames would be 32 tokens; not in paper: more for long clips, fewer for MEAD's sentences
            "length": 16 if emotion else 128,
            "tokenizer": _network(variant),
            # GPT2-small
            "width": 768,
            "layers": 12,
            "heads": 12,
            "max_positions": 130,  # not in paper: 128 tokens after the start token and the emotion
            "conditions": 22 if emotion else 0,  # MEAD has 7 emotions at 3 levels, and neutral
            "drop": 0.1,  # not in paper
            "keep": 0.5,  # T2M-GPT's
            "dropout": 0.1,  # not in paper
            # not in paper
            "sampler": {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "guidance": 1.0},
            "compute": "bfloat16",  # not in paper
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                # T2M-GPT's, except that its rate drops to 0.05 of this at once, after half of the steps
                "rate": 1e-4,
                "betas": (0.5, 0.99),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "decay": _shared.DECAY,
                "clip": 1.0,  # not in paper
                "schedule": {"kind": "cosine", "warmup": 1000, "end": 0.05},
            }
        }
    )
    config.batch_size = 128
    config.steps = 300_000
    config.data.kind = "motion_tokens"
    evaluator = config.evals.token_generation = ConfigDict(
        {
            "every": 10_000,
            "batch": 64,
            "xnemo": "",  # workdir of the X-NeMo that wrote the codes; renders the generated motion
            "clips": 4,  # the number of clips to show
            "prefix": 0 if emotion else 32,  # the number of tokens given
            "count": 32,  # the number of tokens to generate
        }
    )
    system = config.system
    if variant:
        system.codes = "data/xnemo_tokens"
        system.update({"width": 128, "layers": 3, "heads": 4, "max_positions": 34, "length": 16})
        system.update({"conditions": 3 if emotion else 0, "keep": 1.0, "compute": "float32"})
        system.sampler.update({"top_k": 0, "top_p": 1.0})
        config.optimizer.model.rate = 1e-3
        config.optimizer.model.betas = (0.9, 0.99)
        config.optimizer.model.schedule.warmup = 50
        config.batch_size, config.steps, config.log_every = 64, 600, 50
        config.checkpoint.every, evaluator.every = 200, 100
        evaluator.update({"prefix": 0 if emotion else 4, "count": 16 if emotion else 12})
    if variant == "debug":
        system.update({"width": 16, "layers": 1, "heads": 2, "length": 4})
        system.sampler.top_k = 4
        evaluator.update({"prefix": 0 if emotion else 2, "count": 3})
    config.data.common = ConfigDict(
        {"directory": config.system.get_ref("codes"), "length": config.system.get_ref("length")}
    )
