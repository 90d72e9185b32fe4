"""BCD on Sprites: Table A5 of the supplement.

    python -m vidmotion.data.prepare sprites --sheets=DIR --out=DIR        # optional: renders on the fly too
    python -m vidmotion.main --config=configs/sprites.py --workdir=runs/sprites

The sheets are public (README, section Data); their folder is `data.common.sheets_dir`, which is taken from the
environment variable VIDMOTION_SHEETS by default. The paper does not state its hardware for Sprites. The paper's figure
(Table A1): 100.00 % on action, skin, pants, top and hair. The judge that reads them off the swaps is shipped; it was
trained by configs/sprites_judge.py. `:demo` takes about fifteen minutes on two CPU cores; `:debug` is two steps.
"""

from ml_collections import ConfigDict

from configs import _shared


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``demo``, ``debug``."""
    variant = _shared.parse(argument).variant
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "bcd",
            "frames": 8,
            "size": 64,
            "codec": _shared.pixels("sprites"),  # pixels, no VAE
            # Disentangle encoder: T5 encoder
            "encoder": {
                "layers": 12,
                "width": 384,
                "mlp_dim": 1536,
                "heads": 6,
                "content_tokens": 64,  # not in paper: one per patch
                "content_width": 384,  # not in paper: the hidden size
                "queries": "learned",
                "frame_stem": "linear",  # not in paper: the simplest map from a frame to a token
            },
            # Denoise decoder: DiT-S/8 on 64x64x3
            "denoiser": {
                "patch": 8,
                "width": 384,
                "mlp_dim": 1536,
                "layers": 12,
                "heads": 6,
                "temporal_blocks": (0, 2, 4, 6, 8, 10),
                "placement": "insert",  # not in paper: stage 1 needs 12 spatial blocks of its own
                "temporal_from": 0,  # not in paper: one stage
                "temporal_position": "rope",  # not in paper: works for any clip length
                "motion_inject": "adagn",  # Eq. 5
                "content_concat": "channel",  # "concatenated to the input z_t"; how is not in paper
                "groups": 32,  # not in paper
                "gate_start": 0.0,  # adaLN-Zero
            },
            "guidance": {"drop": 0.1, "scale": 1.5, "independent": False},
            # EDM; not in paper: that training is in EDM's form too, with the constants of Karras et al.
            "diffusion": {
                "kind": "edm",
                "sigma_data": 0.5,
                "p_mean": -1.2,
                "p_std": 1.2,
                "sigma_min": 0.002,
                "sigma_max": 80.0,
                "output": "edm",
            },
            # window: not in paper; 0 is half a clip, as in training. content_frames: 0 is all (Table A2 varies it on
            # LRS3).
            "sampler": {"method": "heun", "steps": 50, "window": 0, "content_frames": 0},
            # Bitrate-controlled vector quantization
            "quantizer": {
                "books": 1,
                "dim": 384,
                "entries": 64,
                "tau_max": 2.0,
                "tau_min": 0.5,
                # The paper's 0.9999972 reaches tau_min after 495k steps. The run length is not in the paper, so
                # this decay reaches tau_min at the last of 200k steps.
                "tau_decay": (0.5 / 2.0) ** (1 / 200_000),
                "alpha": 0.0,  # not in paper: 5 * 16 / dim, see models.quantizer.default_alpha
                "distance": "sq_l2",  # not in paper: as in TF-Codec
                "learn_alpha": False,
                "hard": True,  # not in paper: as in TF-Codec
            },
            # 150 bps at 25 frames/s = 6 bits per frame = log2(64). The weight lambda is from notes on the main text.
            "rate": {"target": 150.0, "weight": 0.04, "mode": "per_codebook_mean"},
            # symmetric: not in paper; gives twice the targets from each clip that is encoded
            "cross": {"enabled": True, "symmetric": True, "content_frames": 0},
            "compute": "bfloat16",  # not in paper
            "remat": False,
            "scan": False,
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": 5e-5,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.01,
                "decay": _shared.DECAY,
                "clip": 1.0,  # not in paper
                "schedule": {"kind": "constant", "warmup": 1000},  # not in paper
            }
        }
    )
    config.batch_size = 128
    config.steps = 200_000  # not in paper
    config.ema.decay = 0.9999  # not in paper
    _shared.sprites(config)
    # random: not in paper; the actions are loops, and the fixed second half of a clip does not show all poses
    config.data.train.random = True
    config.checkpoint.every = 5000
    config.sample = ConfigDict({"every": 20_000, "rows": 4, "columns": 6, "fps": 8.0})
    _shared.transfers(config, batch=64)
    # pairs: 0 is all test clips. judge: the shipped one, or the workdir of a run of configs/sprites_judge.py.
    config.evals.sprites_transfer = ConfigDict(
        {"every": 0, "pairs": 0, "batch": 64, "judge": "sprites_judge"}
    )
    if variant == "demo":
        _demo(config)
    if variant == "debug":
        _debug(config)
    return config


def _demo(config: ConfigDict) -> None:
    """Shrink the recipe so that it learns on two CPU cores; every departure from Table A5 serves that purpose.

    Patches of 16 px shorten the sequence. There is one content token, from which each patch gets its own part
    concatenated to it. All gates are open from the start. Three codebooks of 8 entries (a target of 7 out of 9 bits)
    are in use within tens of steps, whereas one codebook of 64 entries takes thousands. The network predicts the clean
    picture instead of EDM's mixture of picture and noise, mostly at noise levels that hide the pose. It is not used
    below sigma_min, because it is too narrow for the 768 values of fine noise in a patch.
    """
    system = config.system
    system.encoder.update({"layers": 2, "width": 192, "heads": 4, "mlp_dim": 768})
    system.encoder.update({"content_tokens": 1, "content_width": 64})
    system.denoiser.update({"patch": 16, "width": 256, "layers": 3, "heads": 4, "mlp_dim": 1024})
    system.denoiser.update({"temporal_blocks": (0,), "content_concat": "patch"})
    system.denoiser.update({"gate_start": 1.0, "groups": 16})
    system.quantizer.update({"books": 3, "dim": 32, "entries": 8, "alpha": 1.0})
    system.quantizer.update({"learn_alpha": True, "tau_decay": 0.998})
    system.rate.target = 175.0
    system.diffusion.update({"p_mean": 1.5, "p_std": 1.4, "sigma_min": 0.2, "output": "x0"})
    system.guidance.update({"drop": 0.0, "scale": 1.0})
    system.sampler.update({"method": "euler", "steps": 4, "window": 0})
    system.compute = "float32"
    model = config.optimizer.model
    model.kind = "muon"
    with config.ignore_type():
        model.rate = ((r".*/kernel", 2e-2), (".*", 2e-3))
    model.schedule = ConfigDict({"kind": "cosine", "warmup": 20, "end": 0.02})
    config.batch_size, config.steps, config.log_every = 16, 900, 50
    config.ema.decay = 0.99
    config.checkpoint.every = 300
    config.sample.every = 0
    _evaluate(config, 512, 32)


def _debug(config: ConfigDict) -> None:
    """Make the run two steps of the smallest network that has every part."""
    system = config.system
    system.encoder.update({"layers": 1, "width": 16, "heads": 2, "mlp_dim": 32, "content_width": 8})
    system.denoiser.update(
        {"layers": 2, "width": 16, "heads": 2, "mlp_dim": 32, "temporal_blocks": (0,), "groups": 4}
    )
    system.quantizer.update({"dim": 16, "entries": 8})
    system.sampler.update({"method": "euler", "steps": 2})
    system.compute = "float32"
    _shared.two_steps(config)
    config.sample.update({"every": 0, "rows": 1, "columns": 2})
    _evaluate(config, 4, 4)
    config.evals.sprites_transfer.judge = ""


def _evaluate(config: ConfigDict, pairs: int, batch: int) -> None:
    _shared.transfers(config, ("sprites_transfer",), pairs, batch)
    config.evals.sprites_transfer.update({"pairs": pairs, "batch": batch})
