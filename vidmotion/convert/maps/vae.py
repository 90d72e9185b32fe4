"""`models.vae.AutoencoderKL` from Stable Diffusion's, in the spelling of diffusers or CompVis."""

from collections.abc import Mapping
from typing import Any

from vidmotion.convert.engine import ConversionError, Ignore, Names, Rule, layer, norm
from vidmotion.convert.transforms import Transform, conv2d, linear, pointwise


def res_block(target: str, source: str, shortcut: str = "conv_shortcut") -> tuple[Rule, ...]:
    """Rules of `models.blocks.ResBlock`; `shortcut` is the source's name of the 1x1 convolution."""
    return (
        *norm(f"{target}/norm1", f"{source}.norm1"),
        *layer(f"{target}/conv1", f"{source}.conv1", conv2d),
        *layer(f"{target}/time", f"{source}.time_emb_proj", linear),
        *norm(f"{target}/norm2", f"{source}.norm2"),
        *layer(f"{target}/conv2", f"{source}.conv2", conv2d),
        *layer(f"{target}/shortcut", f"{source}.{shortcut}", conv2d),
    )


def attention(
    target: str, source_norm: str, q: Names, k: Names, v: Names, out: Names, transform: Transform
) -> tuple[Rule, ...]:
    """Rules of `models.blocks.Attention2D` from the five layers' source names."""
    return (
        *norm(f"{target}/norm", source_norm),
        *layer(f"{target}/q", q, transform),
        *layer(f"{target}/k", k, transform),
        *layer(f"{target}/v", v, transform),
        *layer(f"{target}/out", out, transform),
    )


def _diffusers_half(half: str, levels: str, sampler: str) -> tuple[Rule, ...]:
    attn = f"{half}.mid_block.attentions.0"
    level = f"{half}/{levels}_{{i}}", f"{half}.{levels}_blocks.{{i}}"
    return (
        *layer(f"{half}/conv_in", f"{half}.conv_in", conv2d),
        *res_block(f"{level[0]}/res_{{j}}", f"{level[1]}.resnets.{{j}}"),
        *layer(f"{level[0]}/{sampler}/conv", f"{level[1]}.{sampler}rs.0.conv", conv2d),
        *res_block(f"{half}/mid/res_{{j}}", f"{half}.mid_block.resnets.{{j}}"),
        *attention(
            f"{half}/mid/attn",
            f"{attn}.group_norm",
            q=(f"{attn}.to_q", f"{attn}.query"),
            k=(f"{attn}.to_k", f"{attn}.key"),
            v=(f"{attn}.to_v", f"{attn}.value"),
            out=(f"{attn}.to_out.0", f"{attn}.proj_attn"),
            transform=linear,
        ),
        *norm(f"{half}/norm_out", f"{half}.conv_norm_out"),
        *layer(f"{half}/conv_out", f"{half}.conv_out", conv2d),
    )


# The encoder with its 1x1 convolution is also that of Stable Video Diffusion.
DIFFUSERS_ENCODER = (
    *_diffusers_half("encoder", "down", "downsample"),
    *layer("quant", "quant_conv", conv2d),
)
DIFFUSERS = (
    *DIFFUSERS_ENCODER,
    *layer("post_quant", "post_quant_conv", conv2d),
    *_diffusers_half("decoder", "up", "upsample"),
)


def compvis(levels: int = 4) -> tuple[Rule | Ignore, ...]:
    """Table for the original latent-diffusion layout, whose decoder counts its `levels` from the
    highest.

    In a whole Stable Diffusion checkpoint the keys begin with ``first_stage_model.``: see
    `engine.prefixed`.
    """
    rules: list[Rule | Ignore] = [
        *layer("quant", "quant_conv", conv2d),
        *layer("post_quant", "post_quant_conv", conv2d),
        *res_block("encoder/down_{i}/res_{j}", "encoder.down.{i}.block.{j}", "nin_shortcut"),
        *layer("encoder/down_{i}/downsample/conv", "encoder.down.{i}.downsample.conv", conv2d),
        Ignore("loss.*", "discriminator and perceptual network of its training"),
        Ignore("model_ema.*", "bookkeeping of its training"),
    ]
    for i in range(levels):
        target, source = f"decoder/up_{i}", f"decoder.up.{levels - 1 - i}"
        rules += res_block(f"{target}/res_{{j}}", f"{source}.block.{{j}}", "nin_shortcut")
        rules += layer(f"{target}/upsample/conv", f"{source}.upsample.conv", conv2d)
    for half in ("encoder", "decoder"):
        attn = f"{half}.mid.attn_1"
        rules += layer(f"{half}/conv_in", f"{half}.conv_in", conv2d)
        rules += res_block(f"{half}/mid/res_0", f"{half}.mid.block_1", "nin_shortcut")
        rules += res_block(f"{half}/mid/res_1", f"{half}.mid.block_2", "nin_shortcut")
        rules += attention(
            f"{half}/mid/attn",
            f"{attn}.norm",
            q=f"{attn}.q",
            k=f"{attn}.k",
            v=f"{attn}.v",
            out=f"{attn}.proj_out",
            transform=pointwise(2),
        )
        rules += norm(f"{half}/norm_out", f"{half}.norm_out")
        rules += layer(f"{half}/conv_out", f"{half}.conv_out", conv2d)
    return tuple(rules)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Attributes of `models.vae.AutoencoderKL` that the shapes of a checkpoint in the spelling of diffusers tell: all
    but the groups of the norms.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: there is no first layer.
    """
    first = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    if first.format(0, 0) not in shapes:
        raise ConversionError(
            [f"source {first.format(0, 0)}: not there, so this is not an autoencoder's file"]
        )
    channels, layers = [], 0
    while (key := first.format(len(channels), 0)) in shapes:
        channels.append(shapes[key][0])
    while first.format(0, layers) in shapes:
        layers += 1
    return {"channels": channels, "layers_per_block": layers}
