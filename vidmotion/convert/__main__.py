"""Converts a published checkpoint into a folder of weights that this package reads, and back.

    python -m vidmotion.convert vidtwin --src=FILE.ckpt --out=DIR
    python -m vidmotion.convert vidtwin --src=DIR --out=FILE.safetensors --export
    python -m vidmotion.convert lpips_vgg --src=TRUNK.pth --heads=HEADS.pth --out=DIR
    python -m vidmotion.convert xnemo --src=FOLDER_OF_THE_FOUR_FILES [--base=SD_UNET.safetensors] --out=DIR
    python -m vidmotion.convert xnemo --base=SD_UNET.safetensors --out=DIR    # what training begins with
    python -m vidmotion.convert warpface --base=SD_UNET.safetensors --vae=SD_VAE.safetensors --out=DIR    # the same

With --export, --out may also be a folder; the file in it is then named after the network.
The sizes of the network are read from the checkpoint. Every key must be used, or be ignored for a
reason, which is printed; one message lists everything that does not fit. Exit codes: 0 done,
2 a file or an argument has to be corrected.
"""

import argparse
import collections
import dataclasses
import fnmatch
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidmotion import paths
from vidmotion.convert import engine, folder
from vidmotion.convert.maps import clip as clip_maps
from vidmotion.convert.maps import emonet as emonet_maps
from vidmotion.convert.maps import i3d as i3d_maps
from vidmotion.convert.maps import inception as inception_maps
from vidmotion.convert.maps import iresnet as iresnet_maps
from vidmotion.convert.maps import lpips as lpips_maps
from vidmotion.convert.maps import motion_encoder as motion_encoder_maps
from vidmotion.convert.maps import resnet as resnet_maps
from vidmotion.convert.maps import temporal_vae as temporal_vae_maps
from vidmotion.convert.maps import unet as unet_maps
from vidmotion.convert.maps import vae as vae_maps
from vidmotion.convert.maps import vgg as vgg_maps
from vidmotion.convert.maps import vidtwin as vidtwin_maps
from vidmotion.convert.maps import warpface as warpface_maps
from vidmotion.convert.maps import xnemo as xnemo_maps
from vidmotion.convert.read import read, write_safetensors
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED
from vidmotion.models import (
    motion_attention,
    motion_encoder,
    patchgan,
    resnet,
    spacetime,
    temporal_vae,
    unet,
    vae,
    vidtwin,
)
from vidmotion.models.features import clip, emonet, i3d, inception, iresnet, lpips, vgg

Shapes = Mapping[str, tuple[int, ...]]
Arguments = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that the command can convert.

    Attributes:
      rules: the conversion table of the network.
      arguments: function from (shapes of the checkpoint, values of `options`) to the arguments of the network's class.
      shapes: function from these arguments to the abstract parameter tree.
      options: numbers that no shape tells, as option name -> help text; the value of an option not given is None.
      constants: function from the arguments to the values that ignored keys must have if the checkpoint has them.
      files: checkpoint files beside --src that hold a part of the weights, as option name -> help text.
    """

    rules: engine.Rules
    arguments: Callable[[Shapes, Mapping[str, int | None]], Arguments]
    shapes: Callable[[Arguments], Mapping[str, Any]]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Callable[[Arguments], Mapping[str, np.ndarray]] = lambda arguments: {}
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _vidtwin_arguments(shapes: Shapes, options: Mapping[str, int | None]) -> Arguments:
    found = vidtwin_maps.sizes(shapes)
    known = {(s["width"], s["depth"]): s["heads"] for s in vidtwin.SIZES.values()}
    heads = options["heads"] or known.get((found["width"], found["depth"]))
    if heads is None:
        raise ValueError(
            f"width {found['width']} and depth {found['depth']} match none of the paper's sizes, "
            "and the shapes do not tell the number of attention heads: give it as --heads=N"
        )
    query_heads = options["query_heads"] or vidtwin.VidTwin.query_heads
    found |= {"heads": heads, "query_heads": query_heads}
    if vidtwin_maps.DISCRIMINATOR in shapes:
        found["discriminator_width"] = shapes[vidtwin_maps.DISCRIMINATOR][0]
    return found


def _vidtwin_net(arguments: Arguments) -> vidtwin.VidTwin:
    sizes = {name: size for name, size in arguments.items() if name != "discriminator_width"}
    try:
        return vidtwin.VidTwin(**sizes | {"patch": tuple(sizes["patch"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"these are not the arguments of a VidTwin: {error}") from error


def _vidtwin_shapes(arguments: Arguments) -> Mapping[str, Any]:
    net = _vidtwin_net(arguments)
    clip = jax.ShapeDtypeStruct((1, net.frames, net.size, net.size, 3), np.float32)
    params = jax.eval_shape(lambda x: net.init(jax.random.key(0), x), clip)["params"]
    if width := arguments.get("discriminator_width"):
        frame = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        disc = jax.eval_shape(
            lambda x: patchgan.PatchDiscriminator(width).init(jax.random.key(0), x, True), frame
        )
        params["loss"] = {"logvar": jax.ShapeDtypeStruct((), np.float32), "disc": disc}
    return params


def _vidtwin_constants(arguments: Arguments) -> Mapping[str, np.ndarray]:
    net = _vidtwin_net(arguments)
    frames, side, _ = net.grid
    spatial = spacetime.spatial_code(net.width, side)[None]
    temporal = spacetime.temporal_code(net.width, frames)[None]
    return {
        f"{half}.{name}": code
        for half in ("encoder", "decoder")
        for name, code in (("pos_embed", spatial), ("pos_embed_temporal", temporal))
    }


def _lpips(trunk: str, rules: engine.Rules) -> Network:
    def shapes(arguments: Arguments) -> Mapping[str, Any]:
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        try:
            net = lpips.LPIPS(**arguments)
        except TypeError as error:
            raise ValueError(f"these are not the arguments of an LPIPS: {error}") from error
        return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, x), image)["params"]

    return Network(
        rules=rules,
        arguments=lambda found, options: lpips_maps.arguments(trunk, found),
        shapes=shapes,
        constants=lambda arguments: lpips_maps.constants(lpips.SHIFT, lpips.SCALE),
        files={"heads": f"file of the heads, if --src has none: {lpips_maps.FILES[trunk].heads}"},
    )


def _motion_encoder_net(arguments: Arguments) -> motion_encoder.MotionEncoder:
    try:
        return motion_encoder.MotionEncoder(**arguments)
    except TypeError as error:
        raise ValueError(f"these are not the arguments of a MotionEncoder: {error}") from error


def _motion_encoder_shapes(arguments: Arguments) -> Mapping[str, Any]:
    net = _motion_encoder_net(arguments)
    crop, box = (
        jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, net.size, net.size, 3), (1, 3))
    )
    return jax.eval_shape(lambda x, r: net.init(jax.random.key(0), x, r), crop, box)


def _motion_encoder_constants(arguments: Arguments) -> Mapping[str, np.ndarray]:
    net = _motion_encoder_net(arguments)
    return {"pe": motion_encoder.token_code(net.token_width, net.tokens)[None]}


def _of_images(
    rules: engine.Rules,
    make: Callable[..., Any],
    arguments: Arguments,
    shape: tuple[int, ...] | None = None,
) -> Network:
    """Describes a network of published sizes that takes one image.

    The tree has all variables of the network, or its parameters alone if there are no other variables. The `shape` of
    the input need only be given where it is not (1, side, side, 3), the side being the network's `size`, or 64 pixels
    if it has none.
    """

    def shapes(given: Arguments) -> Mapping[str, Any]:
        tuples = {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
        try:
            net = make(**tuples)
        except TypeError as error:
            raise ValueError(
                f"these are not the arguments of a {make.__name__}: {error}"
            ) from error
        side = getattr(net, "size", 64)  # side of the pictures that it takes
        image = jax.ShapeDtypeStruct(shape or (1, side, side, 3), np.float32)
        variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x), image)
        return variables if len(variables) > 1 else variables["params"]

    return Network(rules=rules, arguments=lambda found, options: dict(arguments), shapes=shapes)


def _unet(
    rules: engine.Rules,
    make: type[unet.UNet],
    inputs: Callable[[unet.UNet], Sequence[Any]],
    text: int = 0,
) -> Network:
    """Describes a UNet of any size.

    Args:
      rules: the conversion table of the network.
      make: the class of the network.
      inputs: function from the network to the shapes of its inputs, for an 8 x 8 latent.
      text: width of the text that the network attends to if the file has no attention to a text; with 0 the network
        has none either.
    """

    def net(given: Arguments) -> unet.UNet:
        try:
            return make(**{key: tuple(x) if isinstance(x, list) else x for key, x in given.items()})
        except TypeError as error:
            raise ValueError(
                f"these are not the arguments of a {make.__name__}: {error}"
            ) from error

    def arguments(found: Shapes, options: Mapping[str, int | None]) -> Arguments:
        sizes = unet_maps.sizes(found)
        width = sizes["context_width"] or text
        return sizes | {"context_width": width, "heads": options["heads"] or make.heads}

    def shapes(given: Arguments) -> Mapping[str, Any]:
        arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs(net(given))]
        return jax.eval_shape(lambda *x: net(given).init(jax.random.key(0), *x), *arrays)["params"]

    def constants(given: Arguments) -> Mapping[str, np.ndarray]:
        widths = unet_maps.temporal_codes(net(given).channels, net(given).layers_per_block)
        frames = motion_attention.MAX_FRAMES
        return {key: motion_attention.frame_code(frames, c)[None] for key, c in widths.items()}

    return Network(
        rules=rules,
        arguments=arguments,
        shapes=shapes,
        options={"heads": "number of attention heads, which the file does not tell (default 8)"},
        constants=constants,
    )


def _unet_inputs(net: unet.UNet) -> list[tuple[int, ...]]:
    return [(1, 1, 8, 8, 4), (1,), (1, 1, net.context_width)]


def _animatediff_shapes(given: Arguments) -> Mapping[str, Any]:
    try:
        channels = tuple(given["channels"])
        net = motion_attention.DenoisingUNet(
            channels, (False,) * len(channels), given["layers_per_block"], context_width=0
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"these are not the arguments of a motion module: {error}") from error
    inputs = [(1, 1, 8, 8, 4), (1,), (1, 1, *motion_attention.MOTION)]
    x, time, tokens = (jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs)
    whole = jax.eval_shape(
        lambda *given: net.init(jax.random.key(0), *given), x, time, None, tokens
    )
    return paths.unflatten(
        {
            path: leaf
            for path, leaf in paths.flatten(whole["params"]).items()
            if "/temporal_" in path
        }
    )


def _sd_vae_shapes(given: Arguments) -> Mapping[str, Any]:
    try:
        # Any number of groups will do: no shape tells the right one, and no parameter's shape depends on it.
        net = vae.AutoencoderKL(tuple(given["channels"]), given["layers_per_block"], norm_groups=1)
    except (TypeError, KeyError) as error:
        raise ValueError(f"these are not the arguments of an AutoencoderKL: {error}") from error
    image = jax.ShapeDtypeStruct((1, net.factor, net.factor, 3), np.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x), image)["params"]


NETWORKS = {
    "sd_unet": _unet(unet_maps.RULES, unet.UNet, _unet_inputs),
    "xnemo_reference_unet": _unet(
        unet_maps.REFERENCE,
        unet.ReferenceUNet,
        lambda net: [(1, 8, 8, 4), (1, 1, net.context_width)],
        text=unet.SIZES["sd15"]["context_width"],
    ),
    "xnemo_denoising_unet": _unet(
        unet_maps.RULES,
        motion_attention.DenoisingUNet,
        lambda net: [*_unet_inputs(net), (1, 1, *motion_attention.MOTION)],
        text=unet.SIZES["sd15"]["context_width"],
    ),
    "animatediff": Network(
        rules=unet_maps.ANIMATEDIFF,
        arguments=lambda found, options: unet_maps.temporal_sizes(found),
        shapes=_animatediff_shapes,
    ),
    "sd_vae": Network(
        rules=vae_maps.DIFFUSERS,
        arguments=lambda found, options: vae_maps.sizes(found),
        shapes=_sd_vae_shapes,
    ),
    "svd_vae": _of_images(
        temporal_vae_maps.RULES, temporal_vae.TemporalAutoencoder, temporal_vae.SIZES["svd"]
    ),
    "clip_vision": _of_images(clip_maps.RULES, clip.ClipVision, clip.SIZES["vit_l14"]),
    "resnet50": _of_images(resnet_maps.RULES, resnet.ResNet, resnet.SIZES["resnet50"]),
    "fid_inception": _of_images(
        inception_maps.RULES,
        inception.InceptionV3,
        {},
        (1, inception.SIZE, inception.SIZE, 3),
    ),
    "i3d": _of_images(i3d_maps.RULES, i3d.I3D, {}, (1, i3d.LEAST_FRAMES, i3d.SIZE, i3d.SIZE, 3)),
    "arcface": dataclasses.replace(
        _of_images(iresnet_maps.RULES, iresnet.IResNet, {}),
        arguments=lambda found, options: iresnet_maps.arguments(found),
    ),
    "emonet": dataclasses.replace(
        _of_images(emonet_maps.RULES, emonet.EmoNet, {}),
        arguments=lambda found, options: emonet_maps.arguments(found),
    ),
    "vgg19": _of_images(vgg_maps.VGG19, vgg.VGGActivations, vgg.SIZES["vgg19"]),
    "vgg_face": _of_images(vgg_maps.VGG_FACE, vgg.VGGActivations, vgg.SIZES["vgg_face"]),
    "xnemo_motion_encoder": Network(
        rules=motion_encoder_maps.RULES,
        arguments=lambda found, options: motion_encoder_maps.arguments(found),
        shapes=_motion_encoder_shapes,
        constants=_motion_encoder_constants,
    ),
    "lpips_vgg": _lpips("vgg", lpips_maps.VGG),
    "lpips_alex": _lpips("alex", lpips_maps.ALEX),
    "vidtwin": Network(
        rules=vidtwin_maps.RULES,
        arguments=_vidtwin_arguments,
        shapes=_vidtwin_shapes,
        options={
            "heads": "number of attention heads of both transformers (default: the paper's for this width)",
            "query_heads": "number of attention heads of the Q-Former (default 8)",
        },
        constants=_vidtwin_constants,
    ),
}


# Output channels of the first layer, by which a file is recognised as having Stable Diffusion's own size.
FIRST = unet.SIZES["sd15"]["channels"][:1]


def bring_in(name: str, src: Path, out: Path, options: Mapping[str, int | Path | None]) -> str:
    """Converts a checkpoint file into a folder; returns what to tell the user.

    `options` has the values of the network's `options` and `files`.

    Raises:
      ConversionError: keys or shapes do not fit; the message names them all.
      ImportError: the file is a torch file, and torch is not installed.
      OSError: a file is absent or cannot be written.
      ValueError: the file is damaged or of another kind, or an option is missing.
    """
    network = NETWORKS[name]
    if out.is_file():
        raise ValueError(f"{out}: is a file; --out must be a folder")
    source = read(src, float32=True)
    for file in (options[file] for file in network.files if options[file]):
        source |= read(file, float32=True)
    arguments = network.arguments({key: x.shape for key, x in source.items()}, options)
    params = engine.convert(network.shapes(arguments), source, network.rules)
    wrong = [
        f"source {key}: differs from the values that the port computes"
        for key, want in network.constants(arguments).items()
        if key in source
        and (source[key].shape != want.shape or not np.allclose(source[key], want, atol=1e-5))
    ]
    if wrong:
        raise engine.ConversionError(wrong)
    folder.write(out, name, arguments, params)
    used = engine.export(params, network.rules)
    count = sum(leaf.size for leaf in paths.flatten(params).values())
    lines = [f"{out}: {name}, {count:,} parameters from {len(used)} keys; 0 missing"]
    for reason, number in _ignored(source.keys() - used.keys(), network.rules).items():
        lines.append(f"  ignored {number}: {reason}")
    return "\n".join(lines)


def bring_in_xnemo(src: Path | None, out: Path, options: Mapping[str, int | Path | None]) -> str:
    """Converts the released files into a folder with a folder for each network; returns what to tell the user.

    Without `src`, the folder holds what training begins with: both UNets from `options["base"]`, and, where these are
    given, the denoiser's temporal modules from `options["temporal"]`, AnimateDiff's file, and the trunk of E_app from
    `options["appearance"]`, ImageNet's ResNet-50. It holds no motion modules.

    Raises:
      As `bring_in`; one message lists what does not fit in any of the networks.
    """
    if out.is_file():
        raise ValueError(f"{out}: is a file; --out must be a folder")
    base = xnemo_maps.unwrapped(read(options["base"], float32=True)) if options.get("base") else {}
    names = dict(xnemo_maps.FILES)
    if src is not None and (extra := [p for p in ("temporal", "appearance") if options.get(p)]):
        raise ValueError(
            f"--{extra[0]}: the released files have all of X-NeMo; give this file only "
            "for training, with --base and without --src"
        )
    if src is None:
        if not base:
            raise ValueError("give --src, the folder of the released files, or --base, or both")
        names |= xnemo_maps.BEGINNINGS
        sources = {"reference": xnemo_maps.headless(base), "denoiser": base}
        for part in ("temporal", "appearance"):
            if options.get(part):
                sources[part] = xnemo_maps.unwrapped(read(options[part], float32=True))
    else:
        files, missing = xnemo_maps.find(src)
        if absent := [name for name in missing if "temporal" not in name]:
            raise ValueError(
                f"{src}: lacks {', '.join(absent)} (or .safetensors files of these names), which belong to "
                + xnemo_maps.PUBLISHED
            )
        sources = {
            part: xnemo_maps.unwrapped(read(path, float32=True)) for part, path in files.items()
        }
        sources["denoiser"] = xnemo_maps.denoising(
            base, sources["denoiser"], sources.pop("temporal", {})
        )
    parts = {part: (names[part], source) for part, source in sources.items()}
    return _bring_in_parts("xnemo", parts, out, options)


def bring_in_warpface(out: Path, options: Mapping[str, int | Path | None]) -> str:
    """Converts Stable Diffusion 1.5 into a folder with a folder for the UNet and one for the autoencoder; returns what
    to tell the user.

    Args:
      out: the folder to write.
      options: ``base`` is the file of the UNet; ``vae`` is the file of the autoencoder, or None.

    Raises:
      As `bring_in`; one message lists what does not fit in either of the networks.
    """
    if out.is_file():
        raise ValueError(f"{out}: is a file; --out must be a folder")
    parts = {"unet": ("sd_unet", read(options["base"], float32=True))}
    if options.get("vae"):
        parts["vae"] = "sd_vae", read(options["vae"], float32=True)
    try:
        said = _bring_in_parts("warpface", parts, out, options)
    except engine.ConversionError as error:
        raise ValueError(f"{error}\n{warpface_maps.WANTED}") from error
    codec = f" --config.system.codec.weights={out / 'vae'}" if "vae" in parts else ""
    return f"{said}\nTrain with --config=configs/warpface.py --config.init_from={out}{codec}"


def _bring_in_parts(
    whole: str,
    parts: Mapping[str, tuple[str, Mapping[str, np.ndarray]]],
    out: Path,
    options: Mapping[str, int | Path | None],
) -> str:
    """Writes the folder of a network that has several parts; returns what to tell the user.

    Args:
      whole: the name of the whole network.
      parts: name of a part -> (name of the part's network, its checkpoint).
      out: the folder to write.
      options: values of the networks' `options`.

    Raises:
      ConversionError: something does not fit in one of the networks; the message lists it all, and nothing is written.
    """
    lines, problems, converted = [], [], {}
    for part, (name, source) in parts.items():
        network, shapes = NETWORKS[name], {key: x.shape for key, x in source.items()}
        given = {**dict.fromkeys(network.options), **options}
        if shapes.get("conv_in.weight", ())[:1] == FIRST:
            wrong = unet_maps.other_texts(shapes, unet.SIZES["sd15"]["context_width"])
            problems += [f"{name}: {problem}" for problem in wrong]
        try:
            arguments = network.arguments(shapes, given)
            converted[part] = (
                name,
                arguments,
                engine.convert(network.shapes(arguments), source, network.rules),
            )
        except engine.ConversionError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise engine.ConversionError(problems)
    for part, (name, arguments, params) in converted.items():
        folder.write(out / part, name, arguments, params)
        count = sum(leaf.size for leaf in paths.flatten(params).values())
        used = len(engine.export(params, NETWORKS[name].rules))
        lines.append(f"{out / part}: {name}, {count:,} numbers from {used} keys; 0 missing")
    folder.join(out, whole, list(converted))
    return "\n".join(lines)


def bring_back(name: str, src: Path, out: Path) -> str:
    """Converts a folder into a checkpoint file with the keys that its authors use; returns what to tell the user.

    Raises:
      ConversionError: the parameters do not fit the table; the message names them all.
      OSError: a file is absent or cannot be written.
      ValueError: the folder holds another network or damaged files, or `out` does not end in ``.safetensors``.
    """
    network = NETWORKS[name]
    found, arguments, params = folder.load(src)
    if found != name:
        raise ValueError(f"{src}: holds the network {found}, not {name}")
    source = engine.export(params, network.rules)
    shapes = {key: x.shape for key, x in source.items()}
    engine.check(network.shapes(arguments), shapes, network.rules)
    if out.is_dir() or not out.suffix:
        out = out / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(out, source)
    return f"{out}: {name}, {len(source)} keys"


def _ignored(keys: set[str], rules: engine.Rules) -> dict[str, int]:
    """Counts the keys that each reason covers; a key that was used under its second spelling has no reason."""
    ignores = [rule for rule in rules if isinstance(rule, engine.Ignore)]
    reasons = (
        next((rule.reason for rule in ignores if fnmatch.fnmatchcase(key, rule.source)), None)
        for key in sorted(keys)
    )
    return collections.Counter(reason for reason in reasons if reason)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = vars(_parser().parse_args(argv))
    name, src, out = args.pop("network"), args.pop("src", None), args.pop("out")
    try:
        if args.pop("export", False):
            print(bring_back(name, src, out))
        elif name == "xnemo":
            print(bring_in_xnemo(src, out, args))
        elif name == "warpface":
            print(bring_in_warpface(out, args))
        else:
            print(bring_in(name, src, out, args))
    except (ImportError, OSError, ValueError) as error:
        where = "" if src is None or str(src) in str(error) else f"{src}: "
        print(f"error: {where}{error}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidmotion.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="network", required=True)
    for name, network in NETWORKS.items():
        kind = kinds.add_parser(name)
        kind.add_argument(
            "--src",
            type=Path,
            required=True,
            help="checkpoint file to read; with --export, the folder to read",
        )
        kind.add_argument(
            "--out",
            type=Path,
            required=True,
            help="folder to write; with --export, the .safetensors file to write, or its folder",
        )
        kind.add_argument(
            "--export", action="store_true", help="convert a folder back into a checkpoint file"
        )
        for option, text in network.options.items():
            kind.add_argument(f"--{option}", type=int, help=text)
        for file, text in network.files.items():
            kind.add_argument(f"--{file}", type=Path, help=text)
    whole = kinds.add_parser("xnemo", help="all networks of X-NeMo, for reenact --weights")
    whole.add_argument("--src", type=Path, help="folder of the released files")
    whole.add_argument("--out", type=Path, required=True, help="folder to write")
    whole.add_argument(
        "--base",
        type=Path,
        help="Stable Diffusion's UNet, required without --src or if the denoiser's file lacks these weights",
    )
    whole.add_argument(
        "--temporal",
        type=Path,
        help="only without --src: AnimateDiff's motion module, mm_sd_v15_v2.ckpt",
    )
    whole.add_argument(
        "--appearance", type=Path, help="only without --src: ImageNet's ResNet-50 of torchvision"
    )
    whole.add_argument("--heads", type=int, help="number of attention heads (default 8)")
    begins = kinds.add_parser(
        "warpface", help="Stable Diffusion 1.5, for config.init_from of configs/warpface.py"
    )
    begins.add_argument("--base", type=Path, required=True, help=warpface_maps.PUBLISHED["unet"])
    begins.add_argument("--vae", type=Path, help=warpface_maps.PUBLISHED["vae"])
    begins.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
