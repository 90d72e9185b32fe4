"""Conversion table of `models.vidtwin.VidTwin`, from the released checkpoint; the sizes are read from its shapes.

If the checkpoint has what its training needs to continue, the tree holds that under ``loss``: ``logvar``, the
log-variance of the likelihood, and ``disc``, all variables of the discriminator.
"""

from collections.abc import Mapping
from typing import Any

from vidmotion.convert.engine import ConversionError, Ignore, Rule, layer, norm, prefixed
from vidmotion.convert.maps import patchgan
from vidmotion.convert.transforms import (
    Transform,
    conv2d,
    conv3d,
    linear,
    pointwise,
    same,
    stack,
)

MAX_BLOCKS = 3  # most halvings of either latent: from 14 patches to 7, 4 or 2


def _trunk(half: str) -> tuple[Rule, ...]:
    """Returns the rules of a transformer's blocks, both one by one and stacked as `nn.scan` holds them."""

    def blocks(target: str, wrap) -> tuple[Rule, ...]:
        source = f"{half}.blocks.{{i}}"
        linears = (
            ("spatial/qkv", "attn.qkv"),
            ("spatial/out", "attn.proj"),
            ("temporal/qkv", "attn_temp.qkv"),
            ("temporal/out", "attn_temp.proj"),
            ("mlp_in", "mlp.fc1"),
            ("mlp_out", "mlp.fc2"),
        )
        rules = [(f"{target}/modulation", f"{source}.scale_shift_table", wrap(same))]
        for ours, theirs in linears:
            rules += layer(f"{target}/{ours}", f"{source}.{theirs}", wrap(linear))
        return tuple(rules)

    def stacked(transform: Transform) -> Transform:
        return stack("i", transform)

    path = f"{half}/trunk"
    return (*blocks(f"{path}/block_{{i}}", lambda t: t), *blocks(f"{path}/blocks", stacked))


def _qformer(target: str, source: str) -> tuple[Rule, ...]:
    ours, theirs = f"{target}/layer_{{i}}", f"{source}.qformer.encoder.layer.{{i}}"
    rules = [
        (f"{target}/queries", f"{source}.query_embeds", same),
        *norm(f"{target}/norm", f"{source}.qformer.layernorm"),
    ]
    for name, key in (("self", "attention"), ("cross", "crossattention")):
        for part in ("query", "key", "value"):
            rules += layer(f"{ours}/{name}/{part}", f"{theirs}.{key}.attention.{part}", linear)
        rules += layer(f"{ours}/{name}/out", f"{theirs}.{key}.output.dense", linear)
        rules += norm(f"{ours}/{name}_norm", f"{theirs}.{key}.output.LayerNorm")
    rules += layer(f"{ours}/mlp_in", f"{theirs}.intermediate_query.dense", linear)
    rules += layer(f"{ours}/mlp_out", f"{theirs}.output_query.dense", linear)
    rules += norm(f"{ours}/mlp_norm", f"{theirs}.output_query.LayerNorm")
    return tuple(rules)


def _numbered(target: str, source: str, step: int) -> tuple[Rule, ...]:
    """Returns the rules of convolutions whose number i stands at place step * i, among activations and upsamplings."""
    return tuple(
        rule
        for i in range(MAX_BLOCKS)
        for rule in layer(f"{target}_{i}", f"{source}.{step * i}", conv2d)
    )


RULES = (
    *layer("encoder/patch_embed", "encoder.x_embedder.proj", conv3d),
    *_trunk("encoder"),
    *_qformer("structure_encoder/qformer", "temporal_qformer"),
    *layer("structure_encoder/conv_in", "conv_in", conv2d),
    *_numbered("structure_encoder/down", "content_downsample_blocks", 2),
    *layer("structure_encoder/moments", "bottle_down", conv2d),
    *_numbered("dynamics_encoder/down", "downsample_motion_module", 2),
    *layer("dynamics_encoder/moments", "motion_head", conv2d),
    *layer("structure_decoder/conv_in", "bottle_up.0", conv2d),
    *_numbered("structure_decoder/up", "content_upsample_blocks", 3),
    *layer("structure_decoder/conv_out", "conv_out", conv2d),
    *layer("structure_decoder/widen", "cont_emb.0", linear),
    *layer("structure_decoder/mix", "cont_emb.2", pointwise(1)),
    *layer("dynamics_decoder/dense_0", "motion_emb.0", linear),
    *layer("dynamics_decoder/dense_1", "motion_emb.2", linear),
    *layer("dynamics_decoder/stretch_0", "up_motion.0", linear),
    *layer("dynamics_decoder/stretch_1", "up_motion.2", linear),
    *_trunk("decoder"),
    ("decoder/modulation", "decoder.final_layer.scale_shift_table", same),
    *layer("decoder/out", "decoder.final_layer.linear", linear),
    ("loss/logvar", "loss.logvar", same),
    *prefixed(patchgan.RULES, target="loss/disc/"),
    Ignore("encoder.pos_embed", "a fixed position code, recomputed"),
    Ignore("encoder.pos_embed_temporal", "a fixed position code, recomputed"),
    Ignore("decoder.pos_embed", "a fixed position code, recomputed"),
    Ignore("decoder.pos_embed_temporal", "a fixed position code, recomputed"),
    Ignore("encoder.final_layer.scale_shift_table", "the encoder does not use a final layer"),
    Ignore("encoder.final_layer.linear.weight", "the encoder does not use a final layer"),
    Ignore("encoder.final_layer.linear.bias", "the encoder does not use a final layer"),
    Ignore("decoder.x_embedder.proj.weight", "the decoder embeds no video"),
    Ignore("decoder.x_embedder.proj.bias", "the decoder embeds no video"),
    Ignore("loss.*", "perceptual network used in training; `lpips_vgg` is converted from it"),
)
DISCRIMINATOR = "loss.discriminator.main.0.weight"  # only where the discriminator is kept


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the attributes of `VidTwin` from the shapes of a checkpoint: all but the two numbers of heads.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: keys that the sizes are read from are absent or have another rank; the message names them all.
    """
    ranks = {
        "encoder.x_embedder.proj.weight": 5,
        "cont_emb.0.weight": 2,
        "cont_emb.2.weight": 3,
        "conv_in.weight": 4,
        "bottle_up.0.weight": 4,
        "motion_emb.0.weight": 2,
        "up_motion.2.weight": 2,
        "temporal_qformer.qformer.encoder.layer.0.intermediate_query.dense.weight": 2,
    }
    wrong = [
        f"source {key}: expected an array with {rank} axes, "
        + (f"got shape {tuple(shapes[key])}" if key in shapes else "but there is no such key")
        for key, rank in ranks.items()
        if len(shapes.get(key, ())) != rank
    ]
    if wrong:
        raise ConversionError(wrong)
    embed, widen, mix, first, up, dynamics, stretch, mlp = (shapes[key] for key in ranks)
    patch = tuple(embed[2:])
    return {
        "width": embed[0],
        "depth": _count(shapes, "encoder.blocks.{}.scale_shift_table"),
        "queries": mix[1],
        "structure_channels": up[1],
        "structure_blocks": _count(shapes, "content_downsample_blocks.{}.weight", step=2),
        "dynamics_channels": dynamics[1],
        "dynamics_blocks": _count(shapes, "downsample_motion_module.{}.weight", step=2),
        "frames": mix[0] * patch[0],
        "size": stretch[0] * patch[1],
        "patch": patch,
        "query_width": widen[1],
        "query_layers": _count(
            shapes, "temporal_qformer.qformer.encoder.layer.{}.output_query.dense.weight"
        ),
        "query_mlp": mlp[0],
        "structure_width": first[0],
    }


def _count(shapes: Mapping[str, tuple[int, ...]], key: str, step: int = 1) -> int:
    """Counts the keys that are numbered 0, step, 2 * step, ... without a gap."""
    count = 0
    while key.format(step * count) in shapes:
        count += 1
    return count
