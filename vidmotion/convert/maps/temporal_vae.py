"""Conversion table of `models.temporal_vae.TemporalAutoencoder`, from diffusers' `AutoencoderKLTemporalDecoder`."""

from vidmotion.convert.engine import Rule, layer, norm
from vidmotion.convert.maps.vae import DIFFUSERS_ENCODER, attention, res_block
from vidmotion.convert.transforms import conv2d, conv3d, same


def _res_block(target: str, source: str) -> tuple[Rule, ...]:
    frames = f"{source}.temporal_res_block"
    return (
        *res_block(f"{target}/spatial", f"{source}.spatial_res_block"),
        *norm(f"{target}/norm{{k}}", f"{frames}.norm{{k}}"),
        *layer(f"{target}/frames{{k}}", f"{frames}.conv{{k}}", conv3d),
        (f"{target}/mix", f"{source}.time_mixer.mix_factor", same),
    )


RULES = (
    *DIFFUSERS_ENCODER,
    *layer("decoder/conv_in", "decoder.conv_in", conv2d),
    *_res_block("decoder/mid/res_{j}", "decoder.mid_block.resnets.{j}"),
    *attention("decoder/mid/attn", "decoder.mid_block.attentions.0"),
    *_res_block("decoder/up_{i}/res_{j}", "decoder.up_blocks.{i}.resnets.{j}"),
    *layer("decoder/up_{i}/upsample/conv", "decoder.up_blocks.{i}.upsamplers.0.conv", conv2d),
    *norm("decoder/norm_out", "decoder.conv_norm_out"),
    *layer("decoder/conv_out", "decoder.conv_out", conv2d),
    *layer("decoder/frames_out", "decoder.time_conv_out", conv3d),
)
