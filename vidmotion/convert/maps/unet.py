"""Conversion tables of `models.unet` and `models.motion_attention`, from diffusers', X-NeMo's and AnimateDiff's UNets.

`RULES` is one table for all of them: where a network lacks a part, the keys of that part are ignored, or
its checkpoint has none. X-NeMo calls its motion cross-attention `motion_modules` and its temporal attention
`temporal_modules`; AnimateDiff calls its temporal attention `motion_modules` (`as_temporal`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidmotion import paths
from vidmotion.convert.engine import ConversionError, Ignore, Rule, layer, norm
from vidmotion.convert.maps.vae import res_block
from vidmotion.convert.transforms import conv2d, linear, pointwise

# Our names of the stages to theirs; the middle stage has no number.
_STAGES = {
    "down_{i}": "down_blocks.{i}",
    "mid": "mid_block",
    "up_{i}": "up_blocks.{i}",
}


def _attention(target: str, source: str) -> tuple[Rule, ...]:
    return (
        *((f"{target}/{n}/kernel", f"{source}.to_{n}.weight", linear) for n in "qkv"),
        *layer(f"{target}/out", f"{source}.to_out.0", linear),
    )


def _feed_forward(target: str, source: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{target}/in", f"{source}.net.0.proj", linear),
        *layer(f"{target}/out", f"{source}.net.2", linear),
    )


def _transformer(target: str, source: str) -> tuple[Rule, ...]:
    """Returns the rules of `models.unet.Transformer`, which has dense layers in place of the 1x1 convolutions."""
    block = f"{source}.transformer_blocks.0"
    return (
        *norm(f"{target}/norm", f"{source}.norm"),
        *layer(f"{target}/proj_in", f"{source}.proj_in", pointwise(2)),
        *norm(f"{target}/norm1", f"{block}.norm1"),
        *_attention(f"{target}/self", f"{block}.attn1"),
        *norm(f"{target}/norm2", f"{block}.norm2"),
        *_attention(f"{target}/cross", f"{block}.attn2"),
        *norm(f"{target}/norm3", f"{block}.norm3"),
        *_feed_forward(f"{target}/ff", f"{block}.ff"),
        *layer(f"{target}/proj_out", f"{source}.proj_out", pointwise(2)),
    )


def _module(target: str, source: str) -> tuple[Rule, ...]:
    """Returns the rules of a `MotionModule` or a `TemporalModule`."""
    source = f"{source}.temporal_transformer"
    block = f"{source}.transformer_blocks.0"
    return (
        *norm(f"{target}/norm", f"{source}.norm"),
        *layer(f"{target}/proj_in", f"{source}.proj_in", linear),
        *_attention(f"{target}/attn_{{k}}", f"{block}.attention_blocks.{{k}}"),
        *norm(f"{target}/norm_{{k}}", f"{block}.norms.{{k}}"),
        *_feed_forward(f"{target}/ff", f"{block}.ff"),
        *norm(f"{target}/norm_ff", f"{block}.ff_norm"),
        *layer(f"{target}/proj_out", f"{source}.proj_out", linear),
    )


def _stage(target: str, source: str) -> tuple[Rule, ...]:
    return (
        *res_block(f"{target}/res_{{j}}", f"{source}.resnets.{{j}}"),
        *_transformer(f"{target}/attn_{{j}}", f"{source}.attentions.{{j}}"),
        *_module(f"{target}/motion_{{j}}", f"{source}.motion_modules.{{j}}"),
        *_module(f"{target}/temporal_{{j}}", f"{source}.temporal_modules.{{j}}"),
        *layer(f"{target}/downsample/conv", f"{source}.downsamplers.0.conv", conv2d),
        *layer(f"{target}/upsample/conv", f"{source}.upsamplers.0.conv", conv2d),
    )


RULES: tuple[Rule | Ignore, ...] = (
    *layer("conv_in", "conv_in", conv2d),
    *layer("time_0", "time_embedding.linear_1", linear),
    *layer("time_1", "time_embedding.linear_2", linear),
    *(rule for ours, theirs in _STAGES.items() for rule in _stage(ours, theirs)),
    *norm("norm_out", "conv_norm_out"),
    *layer("conv_out", "conv_out", conv2d),
    Ignore("*.pos_encoder.pe", "a fixed position code, recomputed"),
)
# `ReferenceUNet`, from the file of a whole UNet.
REFERENCE = (
    *RULES,
    Ignore("conv_norm_out.*", "the reference network has no output layer"),
    Ignore("conv_out.*", "the reference network has no output layer"),
)
# The temporal modules of `DenoisingUNet` from AnimateDiff's file, which has nothing else.
ANIMATEDIFF = (
    *(
        rule
        for ours, theirs in _STAGES.items()
        for rule in _module(f"{ours}/temporal_{{j}}", f"{theirs}.motion_modules.{{j}}")
    ),
    Ignore("*.pos_encoder.pe", "a fixed position code, recomputed"),
)
# Paths of the parameters of the attention to a text, and of the norm before it.
TEXT = re.compile(r".*/attn_\d+/(norm2|cross)/.*")


def without_text(params: Mapping[str, Any]) -> dict[str, Any]:
    """Reduces the parameters of a UNet that attends to a text to those of one that does not (``context_width=0``)."""
    flat = paths.flatten(params)
    return paths.unflatten({path: leaf for path, leaf in flat.items() if not TEXT.fullmatch(path)})


def as_temporal(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the keys of a file of temporal modules to those that `RULES` reads, and drops the position codes.

    Accepts AnimateDiff's spelling, in which `motion_modules` are temporal, and X-NeMo's own. The widths
    tell the two apart: the projection to keys is square in a temporal attention, and is not in X-NeMo's
    motion cross-attention.
    """

    def name(key: str) -> str:
        head, dot, tail = key.partition(".motion_modules.")
        return f"{head}.temporal_modules.{tail}" if dot and key not in cross else key

    cross = _cross_attention_keys(source)
    return {name(key): x for key, x in source.items() if not key.endswith("pos_encoder.pe")}


def _cross_attention_keys(source: Mapping[str, np.ndarray]) -> set[str]:
    """Returns all keys under those `motion_modules.N` that hold a cross-attention."""
    wide = {
        key.split(".temporal_transformer.")[0]
        for key, x in source.items()
        if ".motion_modules." in key and key.endswith(".to_k.weight") and x.shape[0] != x.shape[1]
    }
    return {key for key in source if key.split(".temporal_transformer.")[0] in wide}


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the attributes of `models.unet.UNet` from the shapes of a checkpoint: all but the number of heads and
    the number of groups in the norms.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: there is no first layer.
    """
    if "down_blocks.0.resnets.0.conv1.weight" not in shapes:
        raise ConversionError(
            ["source down_blocks.0.resnets.0.conv1.weight: missing, so this is not a UNet's file"]
        )
    channels = []
    while (key := f"down_blocks.{len(channels)}.resnets.0.conv1.weight") in shapes:
        channels.append(shapes[key][0])
    layers = 0
    while f"down_blocks.0.resnets.{layers}.conv1.weight" in shapes:
        layers += 1
    attention = [
        f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(len(channels))
    ]
    texts = [shape for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight")]
    return {
        "channels": channels,
        "attention": attention,
        "layers_per_block": layers,
        "context_width": texts[0][-1] if texts else 0,
        "head": "conv_out.weight" in shapes,
    }


def temporal_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads `channels` and `layers_per_block` of the UNet that AnimateDiff's modules belong to from the shapes of its
    file.

    Raises:
      ConversionError: there is no first module.
    """

    def width(i: int, j: int) -> int:
        key = f"down_blocks.{i}.motion_modules.{j}.temporal_transformer.norm.weight"
        return shapes.get(key, (0,))[0]

    if not width(0, 0):
        raise ConversionError(
            [
                "source down_blocks.0.motion_modules.0.temporal_transformer.norm.weight: missing, so this is not "
                "AnimateDiff's motion module"
            ]
        )
    channels = [c for c in (width(i, 0) for i in range(8)) if c]
    return {"channels": channels, "layers_per_block": sum(width(0, j) > 0 for j in range(8))}


def other_texts(shapes: Mapping[str, tuple[int, ...]], width: int) -> list[str]:
    """Returns a line for every layer that reads a text of another width, as the layers of Stable Diffusion 2 do.

    Args:
      shapes: checkpoint keys to shapes.
      width: the expected width of the text.
    """
    reads = (".attn2.to_k.weight", ".attn2.to_v.weight")
    return [
        f"source {key}: reads text embeddings of width {shape[-1]}, expected {width}"
        for key, shape in shapes.items()
        if key.endswith(reads) and shape[-1] != width
    ]


def temporal_codes(channels: Sequence[int], layers: int) -> dict[str, int]:
    """Returns the keys of the position codes in a checkpoint with temporal modules, and their widths.

    Args:
      channels: the number of channels at each resolution.
      layers: the number of layers per resolution on the way down; there is one more on the way up.
    """
    stages = [("mid_block", channels[-1], 1)]
    stages += [(f"down_blocks.{i}", c, layers) for i, c in enumerate(channels)]
    stages += [(f"up_blocks.{i}", c, layers + 1) for i, c in enumerate(reversed(channels))]
    return {
        f"{stage}.temporal_modules.{j}.temporal_transformer.transformer_blocks.0"
        f".attention_blocks.{k}.pos_encoder.pe": width
        for stage, width, count in stages
        for j in range(count)
        for k in range(2)
    }
