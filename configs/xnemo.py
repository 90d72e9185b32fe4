r"""X-NeMo: section 4.1 of the paper (ICLR 2025) and appendix C; four stages, each a run started from the one before.

    python -m vidmotion.data.prepare portraits --src=DIR --out=data/portraits     # or hdtf, vfhq, nersemble
    for stage in 1 2 3 4; do
      python -m vidmotion.main --config=configs/xnemo.py:stage=$stage --workdir=runs/xnemo_$stage \
          --config.init_from=runs/xnemo_$((stage - 1)) --config.system.codec.weights=SVD_VAE.safetensors \
          --config.system.clip.weights=weights/clip_vision
    done

The following command makes runs/xnemo_0 from the UNet of sd-image-variations-diffusers, AnimateDiff's
mm_sd_v15_v2.ckpt and torchvision's ResNet-50 (without the last two, the temporal modules and E_app start at random):

    python -m vidmotion.convert xnemo --base=UNET.safetensors --temporal=MM.ckpt --appearance=RESNET.pth \
        --out=runs/xnemo_0

Stage 1 trains appearance (both UNets); stage 2 motion (with E_mot, the motion modules and the GAN head); stage 3 only
the temporal modules; stage 4 everything. Hardware in the paper: 8 A100. The paper's figures (Table 1): L1 .055, SSIM
.826, LPIPS .168 in self-reenactment; ID-SIM .787, AED/APD .039/3.42, EMO-SIM .65, FVD 152.8 across identities. The
authors published code for inference only. Values that the comments below mark "not in paper" are our choices; those
marked "released" are taken from the published code.

``stage=all`` trains everything at once from the base weights, for as many steps as the four stages have together (Table
3, simultaneous training). It can also fine-tune the released weights, which ``python -m vidmotion.convert xnemo
--src=DIR --out=weights/xnemo`` converts, on clips of your own:

    python -m vidmotion.main --config=configs/xnemo.py:stage=all --workdir=runs/xnemo_own --config.steps=2000 \
        --config.init_from=weights/xnemo --config.system.codec.weights=SVD_VAE.safetensors ...

Ablations of the paper as arguments (Table 2, section 4.4, appendix C): ``gan_head=off``; ``joint=off``: E_mot learns
from L_gan alone in stage 1 and is then frozen; ``rfm=0|75|95`` (%); ``augment=off``; ``cross_attention=off``: a
ControlNet adds a map computed from the motion; ``latent=128|1024``; ``motion_frames=16``: a temporal motion encoder
over clips of 16 frames, so that every stage that runs E_mot reads such clips.

`:demo` trains small networks on procedural heads of 64 px, in the latents of the shipped codec, on two CPU cores.
`:debug` is two steps.
"""

from ml_collections import ConfigDict

from configs import _shared

STEPS = {1: 30_000, 2: 100_000, 3: 10_000, 4: 10_000}  # not in paper; 1 and 3: AnimateAnyone's
LAST = r"(self|norm2|cross|norm3|ff|proj_out)"  # parts of the reference's last transformer whose output is never read
FUSION = r"motion/(box_in|box_out|fusion)/"  # the layers of E_mot after f_mot
# Stable Diffusion's UNet has none of the parameters in the first rule; another run of X-NeMo has all of them.
FROM_BASE = (
    (r"(head|disc|model/motion|model/denoiser/.*/(motion|temporal)_\d+)/.*", None),
    (".*", True),
)
# A ControlNet starts as a copy of the UNet that it controls, except its layers that read skips: their shapes differ
# from the UNet's, so they start fresh.
CONTROL_FROM_BASE = (
    (r"model/denoiser/control/((time_\d|mid|up_\d/(attn_\d|upsample))/.*)", r"model/denoiser/\1"),
    (r"model/denoiser/control/(up_\d/res_\d/(norm2|conv2|time)/.*)", r"model/denoiser/\1"),
    (r"model/denoiser/control/.*", None),
)


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``stage``, ``gan_head``, ``joint``, ``rfm``, ``augment``, ``cross_attention``, ``latent``,
    ``motion_frames``; variants."""
    options = _shared.parse(
        argument,
        _shared.SHIPPED,
        stage=(2, 1, 3, 4, "all"),
        gan_head=("on", "off"),
        joint=("on", "off"),
        rfm=(30, 0, 75, 95),
        augment=("on", "off"),
        cross_attention=("on", "off"),
        latent=(512, 128, 1024),
        motion_frames=(1, 16),
    )
    together = options.stage == "all"
    if together:
        with options.ignore_type():
            options.stage = 4
    stage, clips, joined = options.stage, _clips(options), options.motion_frames > 1
    length = options.motion_frames if joined else 24  # frames in a clip
    frames = length if clips else 1
    config = _shared.trunk()
    config.system = ConfigDict(
        {
            "name": "xnemo",
            "size": 512,
            # released: the autoencoder of Stable Video Diffusion, with Stable Diffusion's factor 0.18215 on latents
            "codec": {
                "network": "svd",
                "weights": "",  # diffusion_pytorch_model.safetensors, folder vae of ...-img2vid-xt
                "mean": (0.0,) * 4,
                "std": (0.5 / 0.18215,) * 4,
                "compute": "bfloat16",  # not in paper
            },
            "unet": {**_shared.STABLE_DIFFUSION_UNET, "context_width": 768},  # both UNets
            "clip": {"network": "vit_l14", "weights": ""},  # released, not in paper
            "motion": {"latent": options.latent, "size": 224},  # size: released
            "stage": {
                "frames": frames,
                # not in paper: modules that do not learn yet, and start at zero, are left out
                "skip": {1: ("motion", "temporal"), 2: ("temporal",)}.get(stage, ()),
                # 20 to 50 % in the paper; not in paper: none in stage 1, which has no motion to make up for it
                "masking": options.rfm / 100 if stage > 1 else 0.0,
                "encoder": _encoder_learns(options),
                "gan_frames": _gan_frames(options),
            },
            # Dual-head latent supervision (Eq. 7)
            "gan": {
                "enabled": options.gan_head == "on",
                "weight": 1.0,  # not in paper
                "appearance": {"features": 512},  # not in paper, beyond ResNet-50
                "generator": {"size": 256, "channels": 512, "area": 32_768},  # not in paper
                # not in paper: the discriminator of the latent pose descriptors, from which the terms' weights come
                "discriminator": {"width": 64, "most": 512, "blocks": 7},
                "terms": {"reconstruction": 1.0, "vgg": 3e-2, "face": 6e-3, "matching": 10.0},
                "vgg19": {"weights": ""},
                "vgg_face": {"weights": ""},
            },
            "guidance": {"drop": 0.1},  # not in paper
            # DDIM, 25 steps, scale 3.5. start, window and overlap: released.
            "sampler": {
                "preset": "paper",
                "steps": 0,
                "scale": 0.0,
                "start": "blur",
                "null": "both",
                "window": length,
                "overlap": 4,
            },
            # beta_end: released; Stable Diffusion's own is 0.012
            "diffusion": {**_shared.STABLE_DIFFUSION, "beta_end": 0.02},
            "prediction": "eps",
            "compute": "bfloat16",  # not in paper
            "remat": True,
        }
    )
    controlled = options.cross_attention == "off"
    if joined:
        config.system.motion.frames = options.motion_frames
    if controlled:
        config.system.modules = ConfigDict({"control_side": 8})  # side of the UNets' middle
    model = {
        "rate": ((".*", 1e-5),),
        "betas": (0.9, 0.999),  # not in paper, like the fields below except `trainable`
        "eps": 1e-8,
        "weight_decay": 0.01,
        "decay": _shared.DECAY,
        # Clipped separately: E_mot's gradient may be thirty times as long as the UNets', which it must not shorten.
        "clip": ((r"motion/.*", 1.0), (".*", 1.0)),
        "trainable": _trainable(options, levels=4, layers=2),
        "schedule": {"kind": "constant", "warmup": 0},
    }
    config.optimizer = ConfigDict({"model": model})
    if options.gan_head == "on":
        learns = ((".*", _gan_frames(options) > 0),)
        player = {"rate": 1e-4, "betas": (0.0, 0.99), "eps": 1e-8, "trainable": learns}  # PD-FGC's
        config.optimizer.update({"head": player, "disc": player})
    # 8 where E_mot reads clips: a batch smaller by a factor of 16 (appendix C) is 4, too few for the paper's 8 devices.
    config.batch_size = 16 if stage > 2 else 8 if clips else 64
    config.steps = sum(STEPS.values()) if together else STEPS[stage]
    if stage == 1 or together:
        config.init_rules = (*(CONTROL_FROM_BASE if controlled else ()), *FROM_BASE)
    config.mesh.fsdp = 8  # not in paper: splits the state of 30 GiB and more over eight devices
    config.data.kind = "portraits"
    config.data.common = ConfigDict({"directory": "data/portraits"})
    pair = {
        "frames": frames,
        "flip": 0.5,  # not in paper
        "augmented": options.augment == "on",
        "augment": {"size": 224},
        "size": 512,
    }
    if clips:
        pair["gap"] = None  # any frame of the clip can be the reference
    config.data.train = ConfigDict({"split": "train", "random": True, "pair": pair})
    config.data.eval = ConfigDict({"kind": "videos", "split": "test", "frames": 24})
    config.data.threads = 8
    config.checkpoint.every = 5000
    config.sample = ConfigDict({"every": 0, "rows": 2, "columns": 2, "fps": 25.0})
    _shared.transfers(config, batch=1, size=256)
    if options.variant:
        _demo(config, options)
    if options.variant == "mini":
        _mini(config)
    if options.variant == "debug":
        _debug(config, options)
    return config


def _clips(options: ConfigDict) -> bool:
    """Return whether the stage is trained on clips rather than on pairs of pictures."""
    runs_encoder = options.stage == 2 or _encoder_learns(options)
    return options.stage > 2 or (options.motion_frames > 1 and runs_encoder)


def _gan_frames(options: ConfigDict) -> int:
    """Return the number of frames of each example that the GAN head must reproduce."""
    learns = _encoder_learns(options) and options.gan_head == "on"
    return (4 if _clips(options) else 1) * learns  # 4 of 24: not in paper


def _encoder_learns(options: ConfigDict) -> bool:
    return options.stage == 1 if options.joint == "off" else options.stage in (2, 4)


def _trainable(options: ConfigDict, levels: int, layers: int) -> tuple:
    """Return rules that say which parameters of the player ``model`` learn.

    Args:
      options: the config's arguments.
      levels: the number of levels of the UNets.
      layers: the number of layers in each level.
    """
    stage = options.stage
    if stage == 3:
        return ((r"denoiser/.*/temporal_\d+/.*", True), (".*", False))
    rules = [(rf"reference/up_{levels - 1}/attn_{layers}/{LAST}/.*", False)]
    if stage == 1:
        rules.append((r"denoiser/.*/(motion|temporal)_\d+/.*", False))
        if options.cross_attention == "off":
            rules.append((r"denoiser/control/.*", False))
    if stage == 2:
        rules.append((r"denoiser/.*/temporal_\d+/.*", False))
    if options.joint == "off" or stage == 1:
        # In stage 1 nothing reads the motion tokens; later, the layers that make them learn while f_mot stays fixed.
        rules.append((FUSION + ".*", stage > 1))
        rules.append((r"motion/.*", _encoder_learns(options)))
    return (*rules, (".*", True))


def _demo(config: ConfigDict, options: ConfigDict) -> None:
    """Change the recipe to heads of 64 px, in latents of configs/heads_codec.py scaled to variance 1; clips have four
    frames."""
    config.mesh.fsdp = 1
    system, stage, clips = config.system, options.stage, _clips(options)
    system.size = 64
    system.codec = ConfigDict(_shared.heads_codec(deviation=1.0))
    system.unet = ConfigDict({**_shared.HEADS_UNET, "context_width": 0})
    # The motion modules start open, because f_rts is read from the first step on.
    opened = {"module_groups": 8, "motion_opened": True}
    system.modules = ConfigDict({**system.get("modules", {}), **opened})
    system.clip.network = "none"
    system.motion = ConfigDict(
        {
            "latent": options.latent // 8,
            "size": 64,
            "width": 16,
            "depth": 3,
            "attention_width": 64,
            "heads": 4,
            "groups": 16,
            "landmarks": 16,
            "tokens": 8,
            "dropout": 0.0,
            "closed": True,
        }
    )
    if options.motion_frames > 1:
        system.motion.frames = 4
    gan = system.gan
    gan.appearance = ConfigDict({"features": 64, "depths": (1, 1, 1, 1), "width": 16})
    gan.generator.update({"size": 64, "channels": 64, "area": 2048})
    gan.discriminator.update({"width": 16, "most": 64, "blocks": 5})
    system.stage.frames = 4 if clips else 1
    system.stage.gan_frames = min(system.stage.gan_frames, 2)
    system.guidance.drop = 0.0  # sampling does not guide
    system.sampler.update({"steps": 4, "scale": 1.0, "start": "noise", "window": 4, "overlap": 1})
    # Most noise levels hide the layout, because the layout is decided only at such levels. The network predicts x0,
    # because it is too narrow to predict the noise.
    system.prediction = "x0"
    system.diffusion.update({"beta_start": 1e-4, "beta_end": 0.2, "schedule": "linear"})
    system.compute, system.remat = "float32", False
    model = config.optimizer.model
    model.kind = "muon"
    # At the rate of the other networks, the ReLU behind E_mot's last map, which has one channel, soon dies, and f_mot
    # is then the same for all faces.
    model.rate = (
        (FUSION + "kernel", 2e-2),
        ("motion/.*/kernel", 2e-3),
        (".*/kernel", 2e-2),
        (".*", 1e-3),
    )
    model.trainable = _trainable(options, levels=2, layers=1)
    config.steps = 1200 if options.variant == "mini" else {1: 100, 2: 800, 3: 50, 4: 50}[stage]
    model.schedule = ConfigDict({"kind": "cosine", "warmup": min(50, config.steps // 5)})
    if options.gan_head == "on":
        config.optimizer.head.rate, config.optimizer.disc.rate = 1e-3, 2e-4
        if stage == 2:
            gan.clip = 0.1
    if stage == 2:
        stagger(config)
    config.ema.decay = 0.99
    config.batch_size = 8 if clips else 16
    config.log_every = 25
    config.checkpoint.every = 100
    pair = config.data.train.pair
    _shared.heads(config, frames=8, fps=6.0, clips=4000, cache=True)
    pair.update({"frames": system.stage.frames, "size": 64})
    # At 64 px, bends and stretches as wide as the recipe's would hide how the head is turned.
    pair.augment.update({"size": 64, "scale": 0.1, "nodes": (0, 0)})
    config.data.train.update({"kind": "head_portraits", "random": True, "pair": pair})
    if not clips:
        config.data.train.fps = 2.0  # frames that differ as much as a driver's and a portrait's
    config.data.threads = 2
    config.sample.update({"rows": 3, "columns": 4, "fps": 6.0})
    _shared.transfers(config, _shared.DRIVEN, pairs=32, batch=8, probe_clips=200)


def stagger(config: ConfigDict) -> None:
    """Set the steps at which the parts of a small stage 2 begin, as shares of ``config.steps``.

    f_rts alone places the head. E_mot waits until the denoiser does that, so that the gradient then asks for what is
    missing, pose and expression. If E_mot learns from the first step on, its vector is the same for all faces within
    300 steps: see docs/papers/xnemo.md. The GAN head follows, and last the discriminator.
    """
    steps, gan, model = config.steps, config.system.gan, config.optimizer.model
    model.start = ((FUSION + ".*", 0), (r"motion/.*", steps * 5 // 12), (".*", 0))
    if gan.enabled:
        gan.update({"start": steps // 2, "pull_start": steps * 7 // 10})
        gan.adversarial_start = steps * 9 // 10


def _mini(config: ConfigDict) -> None:
    """Narrow the demo of stage 2 to 3.1 M trained parameters."""
    config.system.unet.update({"channels": (40, 64), "norm_groups": 8})
    config.system.motion.attention_width = 48


def _debug(config: ConfigDict, options: ConfigDict) -> None:
    """Make the run two steps of the smallest networks that have every part, in pixels, with 4x4 squares folded into
    channels."""
    system, clips = config.system, _clips(options)
    system.size = 32
    system.codec = ConfigDict(_shared.pixels("heads", deviation=1.0, patch=4))
    system.unet.update({"channels": (32, 32), "attention": (False, True), "heads": 2})
    system.unet.update({"context_width": 4, "norm_groups": 8})
    system.motion.update({"latent": options.latent // 64, "size": 32, "depth": 1})
    system.motion.update({"attention_width": 16, "heads": 2, "landmarks": 4, "tokens": 2})
    system.motion.closed = False
    if options.motion_frames > 1:
        system.motion.frames = 2
    if options.cross_attention == "off":
        system.modules.control_side = 4
    gan = system.gan
    gan.appearance.update({"features": 8, "depths": (1,), "width": 8})
    gan.generator.update({"size": 16, "channels": 8, "area": 128})
    gan.discriminator.update({"width": 4, "most": 8, "blocks": 2})
    gan.update({"start": 0, "pull_start": 0, "adversarial_start": 0, "clip": 0.0})
    system.stage.frames = 2 if clips else 1
    system.sampler.update({"steps": 2, "window": 2, "overlap": 1})
    config.optimizer.model.trainable = _trainable(options, levels=2, layers=1)
    # Muon takes a long time to compile.
    config.optimizer.model.update({"kind": "adamw", "rate": ((".*", 1e-3),), "start": ((".*", 0),)})
    _shared.two_steps(config)
    config.data.common.update({"size": 32, "frames": 4})
    config.data.train.pair.update({"frames": system.stage.frames, "size": 32})
    config.data.train.pair.augment.size = 32
    config.data.train.clips, config.data.eval.clips = 16, 8
    config.sample.update({"rows": 1, "columns": 2})
    _shared.transfers(config, ("swap",), pairs=4, batch=4, probe_clips=40)
