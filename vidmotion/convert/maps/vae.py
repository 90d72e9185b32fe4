"""Conversion table of `models.vae.AutoencoderKL`, from Stable Diffusion's autoencoder with the keys of diffusers."""

from collections.abc import Mapping
from typing import Any

from vidmotion.convert.engine import ConversionError, Rule, layer, norm
from vidmotion.convert.transforms import conv2d, linear


def res_block(target: str, source: str) -> tuple[Rule, ...]:
    """Returns the rules of `models.blocks.ResBlock`."""
    return (
        *norm(f"{target}/norm1", f"{source}.norm1"),
        *layer(f"{target}/conv1", f"{source}.conv1", conv2d),
        *layer(f"{target}/time", f"{source}.time_emb_proj", linear),
        *norm(f"{target}/norm2", f"{source}.norm2"),
        *layer(f"{target}/conv2", f"{source}.conv2", conv2d),
        *layer(f"{target}/shortcut", f"{source}.conv_shortcut", conv2d),
    )


def attention(target: str, source: str) -> tuple[Rule, ...]:
    """Returns the rules of `models.blocks.Attention2D`, whose layers have other names in older files."""
    names = {"q": ("to_q", "query"), "k": ("to_k", "key"), "v": ("to_v", "value")}
    names["out"] = ("to_out.0", "proj_attn")
    rules = norm(f"{target}/norm", f"{source}.group_norm")
    for ours, theirs in names.items():
        rules += layer(f"{target}/{ours}", tuple(f"{source}.{name}" for name in theirs), linear)
    return rules


def _diffusers_half(half: str, levels: str, sampler: str) -> tuple[Rule, ...]:
    level = f"{half}/{levels}_{{i}}", f"{half}.{levels}_blocks.{{i}}"
    return (
        *layer(f"{half}/conv_in", f"{half}.conv_in", conv2d),
        *res_block(f"{level[0]}/res_{{j}}", f"{level[1]}.resnets.{{j}}"),
        *layer(f"{level[0]}/{sampler}/conv", f"{level[1]}.{sampler}rs.0.conv", conv2d),
        *res_block(f"{half}/mid/res_{{j}}", f"{half}.mid_block.resnets.{{j}}"),
        *attention(f"{half}/mid/attn", f"{half}.mid_block.attentions.0"),
        *norm(f"{half}/norm_out", f"{half}.conv_norm_out"),
        *layer(f"{half}/conv_out", f"{half}.conv_out", conv2d),
    )


# Stable Video Diffusion has the same encoder, with its 1x1 convolution.
DIFFUSERS_ENCODER = (
    *_diffusers_half("encoder", "down", "downsample"),
    *layer("quant", "quant_conv", conv2d),
)
DIFFUSERS = (
    *DIFFUSERS_ENCODER,
    *layer("post_quant", "post_quant_conv", conv2d),
    *_diffusers_half("decoder", "up", "upsample"),
)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the attributes of `models.vae.AutoencoderKL` from the shapes of a checkpoint with the keys of diffusers:
    all but the number of groups in the norms.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: there is no first layer.
    """
    first = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    if first.format(0, 0) not in shapes:
        raise ConversionError(
            [f"source {first.format(0, 0)}: missing, so this is not an autoencoder's file"]
        )
    channels, layers = [], 0
    while (key := first.format(len(channels), 0)) in shapes:
        channels.append(shapes[key][0])
    while first.format(0, layers) in shapes:
        layers += 1
    return {"channels": channels, "layers_per_block": layers}
