r"""Any of the four systems on any folder of clips, for example your own.

    python -m vidmotion.data.prepare videos --src=DIR --out=data/own --size=64
    python -m vidmotion.main --config=configs/own.py:system=bcd,size=64 --workdir=runs/own_bcd

``system=bcd|vidtwin|xnemo|warpface``; ``size=64|128|256|512`` is the size that the clips were prepared with. The folder
is ``--config.data.common.directory``. X-NeMo and WarpFace can also be trained on clips of another size, which are then
scaled, but evaluation refuses such clips. X-NeMo reads the boxes of faces that ``prepare portraits`` or ``--crop=tube``
found; in clips without boxes, the whole picture is taken as the face.

``weights=none`` (default): the networks of configs/benchmark.py for Sprites, wider for larger pictures, with X-NeMo's
GAN head, trained from scratch in pixels. ``weights=published``: the paper's own networks at that size, with the files
of docs/weights.md, which are expected in ``weights/``. X-NeMo and WarpFace start from Stable Diffusion's UNets, BCD
uses Stable Diffusion's autoencoder, and VidTwin uses LPIPS.

If clips are missing, too short or of another size, a message says so before the first step and gives the command that
helps. At the end, motion is transferred between the clips of the test split in a sheet of pictures, and each clip is
rebuilt from its first frame and its own motion (VidTwin: from its latents) and compared with copying the first frame.
If a single video left no test split, the clips are those of the training split. `:demo` is the default with 600 steps;
`:debug` is two steps of the smallest networks on a folder of clips of 16 px (BCD, VidTwin) or 32 px (the others).
"""

from ml_collections import ConfigDict

from configs import _shared, benchmark, lrs3, vidtwin, warpface, xnemo

FPS = 25.0  # the default of `prepare`
SIDES = {64: 4, 128: 4, 256: 8, 512: 16}  # of the squares of pixels that are folded into channels
WIDER = {64: 1, 128: 1, 256: 2, 512: 4}  # factors on the widths for 64 px
PLACES = 8  # rows, and columns, of BCD's content tokens and denoiser patches; as in the paper


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``system``, ``size``, ``weights``, ``demo``, ``debug``."""
    options = _shared.parse(
        argument,
        system=benchmark.SYSTEMS,
        size=(64, 128, 256, 512),
        weights=("none", "published"),
    )
    debug = options.variant == "debug"
    if options.weights == "published" and not debug:
        config = PUBLISHED[options.system](options.size)
    else:
        system = "xnemo_gan" if options.system == "xnemo" else options.system
        config = benchmark.get_config(f"{options.variant},system={system},clips=sprites")
        if not debug:
            _small(config, options.system, options.size)
    _clips(config, debug)
    if options.variant == "demo":
        config.steps = 600
    return config


def _small(config: ConfigDict, system: str, size: int) -> None:
    """Adapt the benchmark's networks to videos of `size` px, in pixels."""
    side, wider = SIDES[size], WIDER[size]
    config.batch_size, config.steps = 8, 50_000
    config.checkpoint.every = 500
    if system == "vidtwin":
        network = config.system.network
        network.size, network.width = size, wider * network.width
        if size == 512:
            network.patch = (1, 32, 32)  # a quarter as many tokens
        config.system.gan.start = 3 * config.steps // 4
        return
    config.system.size = size
    deviation = 0.5 if system == "bcd" else 1.0
    config.system.codec = ConfigDict(_shared.pixels("videos", deviation, side))
    if system == "bcd":
        denoiser = config.system.denoiser
        denoiser.patch = size // side // PLACES
        for name in ("width", "mlp_dim"):
            denoiser[name] *= wider
        return
    unet = config.system.unet
    unet.channels = tuple(wider * width for width in unet.channels)
    config.data.train.pair.size = size
    if system == "xnemo":
        gan = config.system.gan
        gan.update({"start": config.steps // 2, "pull_start": config.steps * 7 // 10})
        gan.adversarial_start = config.steps * 9 // 10


def _clips(config: ConfigDict, debug: bool) -> None:
    """Read the clips of a folder, in place of the procedural clips of the config."""
    name = config.system.name
    frames = 4 if debug else 8
    if name == "bcd":
        frames = config.system.frames
    if name == "vidtwin":
        frames = config.system.network.frames
    # Four seconds for BCD, whose halves must differ, and two for the others, as in the papers.
    decimate = 1 if debug else (100 if name == "bcd" else 50) // frames
    config.data.kind = "portraits" if "pair" in config.data.train else "videos"
    window = {"frames": frames, "decimate": decimate}
    train = {"split": "train", "random": True}
    if config.data.kind == "portraits":
        train["pair"] = config.data.train.pair
        if name == "xnemo":
            train["whole"] = True
    else:
        train.update(window)
    config.data.common = ConfigDict({"directory": "data/own"})
    config.data.train = ConfigDict(train)
    config.data.eval = ConfigDict({"kind": "videos", "split": "test,train", **window})
    config.sample.update({"every": 0, "rows": 2, "columns": 2 if debug else 3})
    config.sample.fps = FPS / decimate
    # VidTwin reads structure from a whole clip, not from one frame.
    protocol = "reconstruction" if name == "vidtwin" else "self_reenactment"
    _shared.evaluate(config, (protocol,))
    config.evals[protocol].batch = 4


def _bcd(size: int) -> ConfigDict:
    """Return the config of Table A4 at `size` px, with the same number of patches."""
    config = lrs3.get_config("latents=fresh")
    config.system.size = size
    config.system.denoiser.patch = size // 8 // PLACES
    config.system.codec.weights = "weights/sd_vae"
    return config


def _vidtwin(size: int) -> ConfigDict:
    """Return the base config of Table 1 at `size` px, with about as many patches and the same start of the GAN."""
    config = vidtwin.get_config()
    config.system.network.update({"size": size, "patch": (1, size // 16, size // 16)})
    config.system.perceptual.weights = "weights/lpips_vgg"
    return config


def _xnemo(size: int) -> ConfigDict:
    """Return stage 2, started from Stable Diffusion's UNets.

    Appearance and motion are learnt together, without temporal modules.
    """
    config = xnemo.get_config("stage=2")
    config.init_from = "weights/xnemo_base"
    config.init_rules = xnemo.FROM_BASE
    config.system.codec.weights = "weights/svd_vae"
    config.system.clip.weights = "weights/clip_vision"
    return _pairs(config, size)


def _warpface(size: int) -> ConfigDict:
    config = warpface.get_config()
    config.init_from = "weights/sd15"
    config.system.codec.weights = "weights/sd15/vae"
    return _pairs(config, size)


def _pairs(config: ConfigDict, size: int) -> ConfigDict:
    config.system.size = config.data.train.pair.size = size
    return config


PUBLISHED = {"bcd": _bcd, "vidtwin": _vidtwin, "xnemo": _xnemo, "warpface": _warpface}
