r"""WarpFace: self-supervised face reenactment by warping inside cross-attention (tables of the paper's appendix).

    python -m vidmotion.data.prepare videos --src=DIR --out=data/faces --fps=25 --size=256 --seconds=10   # or hdtf, ...
    python -m vidmotion.convert warpface --base=UNET.safetensors --vae=VAE.safetensors --out=weights/sd15
    python -m vidmotion.main --config=configs/warpface.py --workdir=runs/warpface \
        --config.init_from=weights/sd15 --config.system.codec.weights=weights/sd15/vae

UNET and VAE are those of Stable Diffusion 1.5, from which the paper starts: unet/diffusion_pytorch_model.safetensors
and vae/diffusion_pytorch_model.safetensors of stable-diffusion-v1-5/stable-diffusion-v1-5 on Hugging Face. Without
``init_from``, both UNets are trained from scratch, for which the paper's learning rate and number of steps are too
small.

Hardware in the paper: 4 GPUs, batch 18 on each, 50,000 steps on HDTF, VFHQ and Hallo3. The paper's figures on 100
videos: self-reenactment CSIM .79, APD 2.51, AED 5.58, LPIPS .21, FID 9.6; across identities CSIM .65 (Table 2).

Ablations of Tables 3 to 6 as arguments: ``motion=vector|ip|none``, ``inject=warpca|ca``, ``time_mod=on|off``,
``msa`` and ``warpca`` (sets of blocks), ``codebook=4x128|8x64|2x256|1x512|2x128|8x128``, ``lambda_sym``, ``tau``,
``eps``, ``vit_depth``, ``vit_dim``, ``d_basis``. `:demo` is a small network on procedural heads, in the latents of the
shipped codec.
"""

from ml_collections import ConfigDict

from configs import _shared

SETS = ("down", "up", "down+mid", "mid+up", "all")


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: those in the module's docstring; variants."""
    options = _shared.parse(
        argument,
        _shared.SHIPPED,
        motion=("vector", "ip", "none"),
        inject=("warpca", "ca"),
        time_mod=("on", "off"),
        msa=("down+mid", *(s for s in SETS if s != "down+mid")),
        warpca=("mid+up", *(s for s in SETS if s != "mid+up")),
        codebook=("4x128", "8x64", "2x256", "1x512", "2x128", "8x128"),
        lambda_sym=(0.1, 0.01, 0.05, 0.2),
        tau=(0.5, 0.1, 0.25, 1.0),
        eps=(2.0, 0.5, 1.0, 3.0),
        vit_depth=(6, 4, 8, 10),
        vit_dim=(256, 64, 128, 512),
        d_basis=(256, 128, 512, 768),
    )
    groups, basis = (int(part) for part in options.codebook.split("x"))
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "warpface",
            "size": 256,
            # Stable Diffusion 1.5's own autoencoder, scaled by 0.18215 = 0.5 / std
            "codec": {
                "network": "sd",
                "weights": "",  # vae/diffusion_pytorch_model.safetensors, or the folder converted from it
                "mean": (0.0, 0.0, 0.0, 0.0),
                "std": (2.745, 2.745, 2.745, 2.745),
                "compute": "bfloat16",  # not in paper
            },
            "unet": _shared.STABLE_DIFFUSION_UNET,
            "reference": options.msa,
            # MGME
            "motion": {
                "kind": options.motion,
                "patch": 2,  # not in paper
                "depth": options.vit_depth,
                "width": options.vit_dim,
                "groups": groups,
                "basis": basis,
                "size": options.d_basis,
                "hidden": 256,  # not in paper
                "wide": "tight_frame",  # not in paper: 512 orthonormal vectors do not fit 256 dimensions
                "transfer": "difference",
                # not in paper: those of the first-order motion model
                "keypoints": {"points": 15, "blocks": 5, "width": 32, "shrink": 4},
                "equivariance": 1.0,  # not in paper
            },
            "inject": {
                "blocks": options.warpca,
                "mode": options.inject,
                "tokens": "chunk",  # not in paper, and neither is the width: X-NeMo's
                "token_width": 16,
                "flow_input": "attn_plus_query",  # not in paper
                "time_modulation": options.time_mod == "on",
                "fusion": "add",
                "flow_range": 1.0,
                "flow_start": 0.0,  # not in paper
                "occlusion_bias": -2.0,  # not in paper
            },
            "loss_terms": {
                "symmetry": options.lambda_sym,
                "detach": False,
                "tau": options.tau,
                "epsilon": options.eps,
                "symmetry_on": "source",
            },
            # drop and null are not in paper
            "guidance": {"drop": 0.1, "scale": 2.5, "null": "both"},
            # not in paper: Stable Diffusion 1.5's
            "diffusion": _shared.STABLE_DIFFUSION,
            "prediction": "eps",
            "steps": 40,  # DDIM
            "compute": "bfloat16",  # not in paper
            "remat": False,
        }
    )
    config.optimizer = ConfigDict(
        {
            "model": {
                "rate": ((".*", 2e-5),),
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.01,  # not in paper
                "decay": ((r".*/codebook", 0.0), *_shared.DECAY),
                "clip": 1.0,  # not in paper
                "schedule": {"kind": "constant", "warmup": 500},  # not in paper
            }
        }
    )
    # Stable Diffusion has neither a motion encoder nor the modules in `within`; another run of WarpFace has both.
    config.init_rules = ((r"model/(motion|denoiser/.*/within)/.*", None), (".*", True))
    config.batch_size = 72  # 18 on each of 4 GPUs
    config.steps = 50_000
    # not in paper: two UNets and their moments, 20 GB, are split over eight devices
    config.mesh.fsdp = 8
    config.data.kind = "portraits"
    config.data.common = ConfigDict({"directory": "data/faces"})
    pair = {"recipe": "pcavs", "gap": 0.2, "flip": 0.0, "size": 256}
    config.data.train = ConfigDict({"split": "train", "random": True, "pair": pair})
    # Two seconds, so that there are 20 targets more than 0.2 s after the first frame, as in Table 2.
    config.data.eval = ConfigDict({"kind": "videos", "split": "test", "frames": 50})
    config.data.threads = 16
    config.checkpoint.every = 2500
    config.sample = ConfigDict({"every": 10_000, "rows": 3, "columns": 4, "fps": 25.0})
    # Analyses for --mode=sample: noises, canonical, subspace, vector, curves and collapse are in
    # `evaluation.warpface_analysis`, comparison and failures in `evaluation.sheets`.
    config.sample.update({"analyses": (), "clips": 64})
    config.sample.vectors = ()  # (group, vector), counted from 1; empty: each group's vector that varies most
    _shared.transfers(config)
    for name in ("self_reenactment", "cross_reenactment"):
        config.evals[name].targets = 20
    if options.variant:
        _demo(config)
    if options.variant == "mini":
        _mini(config)
    if options.variant == "debug":
        _debug(config)
    return config


def _demo(config: ConfigDict) -> None:
    """Change the recipe to heads of 64 px in the latents of the shipped codec, with the UNet of
    configs/heads_foundation.py."""
    config.mesh.fsdp = 1
    system = config.system
    system.size = 64
    system.codec = ConfigDict(_shared.heads_codec(deviation=1.0))
    system.unet.update(_shared.HEADS_UNET)
    motion = system.motion  # scaled, not set, so that the ablations keep their proportions
    motion.update(
        {"depth": motion.depth // 2, "width": motion.width // 4, "hidden": 64, "patch": 1}
    )
    motion.update({"basis": motion.basis // 16, "size": motion.size // 16})
    system.motion.keypoints.update({"points": 8, "blocks": 3, "width": 16, "shrink": 2})
    system.inject.token_width = 16 if system.motion.kind == "ip" else 8
    # The layout is decided only at noise levels that hide it, so three draws in four have such a level.
    system.diffusion.update({"beta_start": 1e-4, "beta_end": 0.2, "schedule": "linear"})
    system.update({"prediction": "x0", "steps": 4, "compute": "float32", "remat": False})
    system.guidance.update({"drop": 0.0, "scale": 1.0})
    # In such short runs the symmetry term makes all codes the same, even detached, through the layers that both outputs
    # share (`systems.warpface.Loss`); a thousandth of it is left.
    system.loss_terms.update({"symmetry": 1e-3 * system.loss_terms.symmetry, "detach": True})
    system.inject.update({"flow_range": 0.3, "flow_start": 0.1, "occlusion_bias": 0.0})
    model = config.optimizer.model
    model.kind = "muon"
    # With the learning rates of the other layers, the flow's tanh saturates for good within a hundred steps, and then
    # the occlusion mask closes.
    flow = r".*/within/((flow|occlusion)_(in|out)|time/.*)/"
    model.rate = ((flow + "kernel", 5e-4), (flow + "bias", 1e-4), (r".*/within/.*kernel", 4e-3))
    model.rate += ((".*/kernel", 2e-2), (".*", 1e-3))
    model.schedule.update({"kind": "cosine", "warmup": 50})
    config.batch_size, config.steps, config.log_every = 16, 900, 25
    config.ema.decay = 0.99
    pair = config.data.train.pair
    _shared.heads(config, frames=8, fps=2.0, clips=4000, cache=True)
    config.data.kind = "head_portraits"
    config.data.train.update({"random": True, "pair": pair})
    # The recipe's distortions are for faces of 256 px. The demo changes only colours, separately in each frame.
    plain = {"stretch": (0, 0), "keystone": (0, 0), "frame": (0, 0), "blur": (1,), "sharpen": 0.0}
    pair.update({"size": None, "gap": 0.0, "shared": False, "augment": plain})
    config.data.eval.kind = "heads"
    config.data.threads = 2
    config.checkpoint.every = 100
    config.sample.update({"every": 0, "fps": 6.0})
    _shared.transfers(config, _shared.DRIVEN, pairs=64, batch=16, probe_clips=1000)


def _mini(config: ConfigDict) -> None:
    """Narrow the demo to 2.9 M parameters."""
    config.system.unet.channels = (48, 80)
    config.steps = 1200


def _debug(config: ConfigDict) -> None:
    """Make the run two steps of the smallest network that has every part, in pixels, with 4x4 squares folded into
    channels."""
    system = config.system
    system.size = 32
    system.codec = ConfigDict(_shared.pixels("heads", deviation=1.0, patch=4))
    system.unet.update({"channels": (16, 16), "heads": 2, "norm_groups": 4})
    system.motion.update({"depth": 1, "width": 16, "hidden": 8, "groups": 2, "basis": 4, "size": 8})
    system.motion.keypoints.update({"points": 2, "blocks": 2, "width": 4})
    system.steps = 2
    # Muon takes a long time to compile.
    config.optimizer.model.update({"kind": "adamw", "rate": ((".*", 1e-3),)})
    _shared.two_steps(config)
    config.data.common.update({"size": 32, "frames": 4})
    config.data.train.clips, config.data.eval.clips = 16, 8
    config.sample.update({"rows": 1, "columns": 2})
    _shared.transfers(config, ("swap",), pairs=4, batch=4, probe_clips=16)
