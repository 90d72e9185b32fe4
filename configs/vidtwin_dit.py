r"""VidTwin's generation: class-conditional latent diffusion on UCF-101 (arXiv 2412.17726, 3.5, 4.4.3, D.3).

    python -m vidmotion.data.prepare ucf101 --src=DIR --out=data/ucf101 --fps=8 --size=224 --seconds=2
    python -m vidmotion.encode --workdir=runs/vidtwin --out=data/ucf101_latents \
        --config.data.common.directory=data/ucf101
    python -m vidmotion.main --config=configs/vidtwin_dit.py --workdir=runs/vidtwin_dit \
        --config.evals.class_generation.autoencoder=runs/vidtwin

``runs/vidtwin`` is a trained run of ``configs/vidtwin.py``. Hardware in the paper: 8 A100 of 40 GB. The paper's figure:
gFVD 193; it gives neither the number of clips nor the reference set. One command measures gFVD against the test split,
in the convention ``config.evals.generation.fvd``. It needs the folder of I3D's weights that ``python -m
vidmotion.convert i3d`` writes:

    python -m vidmotion.main --config=configs/vidtwin_dit.py --workdir=runs/vidtwin_dit --mode=eval \
        --config.evals.class_generation.autoencoder=runs/vidtwin --evals=generation \
        --config.evals.generation.weights.i3d=weights/i3d

No code was published, so most of the values are our choices, marked "not in paper". The network has 493,439,296
parameters with latent setting 1.

`:demo` generates the nine actions of Sprites in the latents of a small VidTwin. The shipped judge says how many clips
are of the right class (chance: 11 %):

    python -m vidmotion.main --config=configs/vidtwin.py:demo,clips=sprites --workdir=runs/sprites_twin
    python -m vidmotion.encode --workdir=runs/sprites_twin --out=data/sprites_latents
    python -m vidmotion.main --config=configs/vidtwin_dit.py:demo --workdir=runs/sprites_dit \
        --config.evals.class_generation.autoencoder=runs/sprites_twin
"""

from ml_collections import ConfigDict

from configs import _shared, vidtwin


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``latent`` (the autoencoder's setting), ``demo``, ``debug``."""
    options = _shared.parse(argument, latent=tuple(vidtwin.LATENTS))
    variant = options.variant
    config = _shared.trunk()
    structure, dynamics = _shapes(options)
    config.system = ConfigDict(
        {
            "name": "vidtwin_dit",
            "latents": "data/ucf101_latents",
            "structure": structure,
            "dynamics": dynamics,
            # not in paper: with d_S = 4, both patches make tokens of 32 numbers (128 and 56 tokens); 2 is the patch
            # size in C.2 of the supplement
            "structure_patch": (2, 2, 2),
            "dynamics_patch": (1, 2, 2),
            "classes": 101,
            "class_width": 256,
            "width": 1152,
            "layers": 18,
            "heads": 16,  # not in paper: as DiT-XL, which has this width
            "mlp_ratio": 4,  # not in paper: as DiT
            "guidance": {"drop": 0.2, "scale": 5.0},
            "sampler": {"steps": 50},  # DDIM
            # The network predicts x_0. The ends of the schedule are not in paper: those of Ho et al. 2020.
            "diffusion": {"steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
            "compute": "bfloat16",  # not in paper
            "remat": False,
            "scan": False,
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": 1e-4,  # not in paper: as DiT
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "decay": _shared.DECAY,
                "clip": 1.0,  # not in paper
                # The paper says only "Lambda"; we take linear warmup, then a constant rate.
                "schedule": {"kind": "constant", "warmup": 10_000},
            }
        }
    )
    config.batch_size = 256  # not in paper
    config.steps = 400_000  # not in paper
    config.ema.decay = 0.9999  # not in paper: as DiT
    config.data.kind = "vidtwin_latents"
    config.data.common = ConfigDict({"directory": config.system.get_ref("latents")})
    config.data.train = ConfigDict({"split": "train"})
    config.data.eval = ConfigDict({"split": "eval"})
    config.checkpoint.every = 5000
    config.sample.fps = 8.0  # frames per second of the clips that the evaluation shows
    config.evals.class_generation = ConfigDict(
        {
            "every": 0,
            "batch": 32,
            "per_class": 20,  # not in paper: about 2,048 in all
            "autoencoder": "",  # workdir of the VidTwin that wrote the latents; it decodes the generated latents
            "judge": "",  # for classes of Sprites: the shipped judge, or the workdir of one
        }
    )
    same = config.evals.class_generation
    fields = ("batch", "per_class", "autoencoder", "judge")
    config.evals.generation = _shared.protocol(**{name: same.get_ref(name) for name in fields})
    if variant == "demo":
        _demo(config)
    if variant == "debug":
        _debug(config)
    return config


def _shapes(options: ConfigDict) -> tuple:
    """Return the latent shapes (n_q, h_S, w_S, d_S) and (f, w_D + h_D, d_D) of the VidTwin that wrote the latents."""
    chosen = [options.variant, f"latent={options.latent}"]
    if options.variant == "demo":
        chosen.append("clips=sprites")
    network = vidtwin.get_config(",".join(chosen)).system.network

    def side(blocks):
        patches = -(-network.size // network.patch[1])
        for _ in range(blocks):
            patches = -(-patches // 2)
        return patches

    h, p = side(network.structure_blocks), side(network.dynamics_blocks)
    frames = -(-network.frames // network.patch[0])
    structure = network.queries, h, h, network.structure_channels
    return structure, (frames, 2 * p, network.dynamics_channels)


def _demo(config: ConfigDict) -> None:
    """Shrink the network for nine classes of Sprites, 8 frames of 64 px, in the latents of a small VidTwin.

    There are 4 tokens of 64 numbers and 8 of 32. Guidance is weaker than the paper's, so that the looks vary more.
    """
    system = config.system
    system.latents = "data/sprites_latents"
    system.classes = 9
    system.update({"width": 96, "layers": 3, "heads": 4, "compute": "float32"})
    system.guidance.scale = 2.0
    config.optimizer.model.rate = 1e-3
    config.optimizer.model.schedule.warmup = 50
    config.batch_size, config.steps, config.log_every = 64, 600, 50
    config.ema.decay = 0.99
    config.checkpoint.every = 200
    config.evals.class_generation.update({"per_class": 20, "judge": "sprites_judge"})


def _debug(config: ConfigDict) -> None:
    """Make the run two steps of the smallest network, on latents of heads of 16 px, with hair styles as classes."""
    system = config.system
    system.latents = "data/heads_latents"
    system.classes = 8
    system.update({"class_width": 8, "width": 16, "layers": 1, "heads": 2, "compute": "float32"})
    system.sampler.steps = 2
    _shared.two_steps(config)
    config.evals.class_generation.update({"batch": 8, "per_class": 1})
