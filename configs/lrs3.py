r"""BCD on LRS3: Table A4 of the supplement.

    python -m vidmotion.data.prepare lrs3 --src=DIR --out=data/lrs3
    python -m vidmotion.data.prepare latents --src=data/lrs3 --weights=FILE --out=data/lrs3_latents
    python -m vidmotion.main --config=configs/lrs3.py --workdir=runs/lrs3 --config.system.codec.weights=FILE

FILE is the image autoencoder. The second command encodes each frame once (8 KB per frame), because encoding at each
step would be 91 % of the arithmetic. With ``latents=fresh``, training reads the folder that the first command wrote and
encodes at each step.

Hardware in the paper: 8 A100, batch 4 on each, 4 to 5 days: 30 epochs without temporal blocks, then 15 with them. Here,
one run does both stages: temperature, warm-up, moments and averages continue, and the temporal blocks join with moments
of their own, which are untouched until then. The paper's figures on cross-identity transfer: FID 86.0, CSIM 0.692,
shape error 0.41e-1, motion error 3.13e-2, cross error 3.67e-2 (Tables A2, A3).

Ablations of the paper as arguments: ``bitrate=2|4|6|8`` (kbps), and ``12`` or ``16`` with twice the codebooks (Figure
A2; 64 codebooks hold 8 kbps), ``rate_loss=off`` (Table A3), ``cross=off``. Table A2 limits the number of frames that
content is read from in motion transfer, so its four rows are evaluations of one run:

    python -m vidmotion.main --config=configs/lrs3.py:content_frames=5 --workdir=runs/lrs3 --mode=eval \
        --evals=motion_transfer ...

with ``content_frames=1|5|15|20``. `:demo` trains a small network on any prepared videos, with a codec that needs
neither weights nor a cache; `:debug` is two steps on procedural heads.
"""

from ml_collections import ConfigDict

from configs import _shared

EPOCH = 12_300  # steps at batch 32: 437 hours are about 393k four-second clips (our arithmetic)


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``bitrate``, ``rate_loss``, ``cross``, ``content_frames``, ``latents``; variants."""
    options = _shared.parse(
        argument,
        bitrate=(4, 2, 6, 8, 12, 16),
        rate_loss=("on", "off"),
        cross=("on", "off"),
        content_frames=("all", 1, 5, 15, 20),
        latents=("usual", "cached", "fresh"),
    )
    usual = "fresh" if options.variant else "cached"
    cached = (usual if options.latents == "usual" else options.latents) == "cached"
    seen = 0 if options.content_frames == "all" else options.content_frames
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "bcd",
            "frames": 50,  # 4 s at 25 frames/s, every second frame
            "size": 256,
            # "A pre-trained image VAE"; which one is not in paper. Latents of 32x32x4 fit Stable Diffusion's.
            "codec": {
                "network": "sd",
                "weights": "",  # diffusion_pytorch_model.safetensors of stabilityai/sd-vae-ft-mse
                # Mean and standard deviation per channel of the raw latents, as published with EDM2 for
                # ImageNet (not in paper). For sigma_data = 0.5 exactly, measure those of your own data.
                "mean": (5.81, 3.25, 0.12, -2.15),
                "std": (4.17, 4.62, 3.71, 3.28),
                "cached": cached,
                "compute": "bfloat16",  # not in paper
            },
            # Disentangle encoder: T5 encoder
            "encoder": {
                "layers": 12,
                "width": 512,
                "mlp_dim": 2048,
                "heads": 8,
                "content_tokens": 64,  # not in paper: one per patch
                "content_width": 512,  # not in paper: the hidden size
                "frame_stem": "linear",  # not in paper: the simplest map from a frame to a token
            },
            # Denoise decoder: DiT-B/4 on 32x32x4
            "denoiser": {
                "patch": 4,
                "width": 768,
                "mlp_dim": 3072,
                "layers": 12,
                "heads": 12,
                "temporal_blocks": (0, 2, 4, 6, 8, 10),
                "placement": "insert",  # not in paper: stage 1 needs 12 spatial blocks of its own
                "temporal_position": "rope",  # not in paper: works for any clip length
                "motion_inject": "adagn",  # Eq. 5
                "content_concat": "channel",  # "concatenated to the input z_t"; how is not in paper
                "groups": 32,  # not in paper
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
            },
            # window: not in paper; 25 frames, and all windows start from the same noise
            "sampler": {"method": "heun", "steps": 128, "window": 25, "content_frames": seen},
            # Bitrate-controlled vector quantization
            "quantizer": {
                "books": 64 if options.bitrate <= 8 else 128,
                "dim": 16,
                "entries": 32,
                "tau_max": 1.5,
                "tau_min": 0.1,
                "tau_decay": 0.9999972,
                "alpha": 0.0,  # not in paper: 5 * 16 / dim = 5, as in TF-Codec
                "distance": "sq_l2",  # not in paper: as in TF-Codec
                "learn_alpha": False,
                "hard": True,  # not in paper: as in TF-Codec
            },
            # 4 kbps at 25 frames/s are 160 bits per frame. The weight lambda is from notes on the main text.
            "rate": {
                "target": 1000.0 * options.bitrate,
                "weight": 0.04 if options.rate_loss == "on" else 0.0,
                "mode": "per_codebook_mean",
            },
            "cross": {
                "enabled": options.cross == "on",
                "symmetric": False,
                "content_frames": 0,
            },
            "compute": "bfloat16",  # not in paper
            "remat": False,
            "scan": False,
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": ((r"(denoiser|null)/.*", 2e-4), (r".*", 1e-4)),
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.01,
                "decay": _shared.DECAY,
                "clip": 1.0,  # not in paper
                "schedule": {"kind": "constant", "warmup": 1000},  # not in paper
            }
        }
    )
    config.batch_size = 32  # 4 on each of 8 A100
    _shared.join_temporal_blocks(config, 30 * EPOCH)
    config.steps = (30 + 15) * EPOCH
    config.ema.decay = 0.9999  # not in paper
    config.data.kind = "latents" if cached else "videos"
    config.data.common = ConfigDict({"directory": "data/lrs3", "frames": 50, "decimate": 2})
    config.data.train = ConfigDict({"split": "train", "random": True})
    config.data.eval = ConfigDict({"split": "test"})
    config.data.threads = 8
    config.checkpoint.every = 5000
    config.sample = ConfigDict({"every": 20_000, "rows": 3, "columns": 4, "fps": 12.5})
    _shared.transfers(config)
    if options.variant == "demo":
        _demo(config)
    if cached:
        config.data.common.directory += "_latents"
    if options.variant == "debug":
        _debug(config)
    return config


def _demo(config: ConfigDict) -> None:
    """Shrink the network, which works on latents of the weight-free patch codec, for prepared videos of 128 px."""
    system = config.system
    system.size, system.frames = 128, 16
    # The statistics of the patch codec's latents were measured on a dozen talking-head videos.
    system.codec.update(
        {"network": "patch", "mean": (-0.84, -1.7, -2.16, 0.0), "std": (3.6, 3.1, 3.1, 1.2)}
    )
    system.encoder.update(
        {"layers": 2, "width": 128, "heads": 4, "mlp_dim": 512, "content_width": 32}
    )
    system.denoiser.update(
        {"patch": 2, "width": 128, "layers": 4, "heads": 4, "mlp_dim": 512, "groups": 16}
    )
    system.denoiser.temporal_blocks = (0, 2)
    system.quantizer.update({"books": system.quantizer.books // 4, "tau_decay": 0.99})
    system.rate.target /= 4  # because there are a quarter of the codebooks
    system.sampler.update({"method": "euler", "steps": 16, "window": 8})
    system.sampler.content_frames = min(system.sampler.content_frames, 8)  # half a clip
    system.compute = system.codec.compute = "float32"
    config.optimizer.model.rate = ((".*", 1e-3),)
    config.optimizer.model.schedule.warmup = 50
    _shared.join_temporal_blocks(config, 400)
    config.batch_size, config.steps, config.log_every = 8, 600, 50
    config.ema.decay = 0.99
    config.data.common.update({"directory": "data/videos", "frames": 16})
    config.data.threads = 2
    config.checkpoint.every = 200
    config.sample.update({"every": 0, "rows": 2, "columns": 3})


def _debug(config: ConfigDict) -> None:
    """Make the run two steps on heads, of the smallest network that has every part."""
    _demo(config)
    system = config.system
    system.size, system.frames = 64, 4
    system.codec.cached = False  # heads are drawn afresh, not read from a cache
    system.encoder.update({"layers": 1, "width": 16, "heads": 2, "mlp_dim": 32, "content_width": 8})
    system.encoder.content_tokens = 16
    system.denoiser.update({"layers": 2, "width": 16, "heads": 2, "mlp_dim": 32, "groups": 4})
    system.denoiser.temporal_blocks = (0,)
    system.quantizer.update({"books": 2, "dim": 8, "entries": 8})
    system.rate.target *= 6 / 80  # 6 bits where the demo has 80
    system.sampler.update({"steps": 2, "window": 2})
    system.sampler.content_frames = min(system.sampler.content_frames, 2)
    _shared.join_temporal_blocks(config, 1)
    _shared.two_steps(config)
    config.data.kind = "heads"
    config.data.common = ConfigDict({"size": 64, "frames": 4, "fps": 12.5})
    config.data.train = ConfigDict({"split": "train", "clips": 16})
    config.data.eval = ConfigDict({"split": "eval", "clips": 8})
    config.sample.update({"every": 0, "rows": 1, "columns": 2})
