"""Conversion table of `models.motion_encoder.MotionEncoder`, from X-NeMo's released motion encoder.

The target tree holds all variables: ``params/...`` and ``batch_stats/...``.
"""

from collections.abc import Mapping

from vidmotion.convert.engine import (
    ConversionError,
    Ignore,
    Rule,
    Rules,
    batch_norm,
    layer,
    norm,
)
from vidmotion.convert.transforms import Transform, conv2d, linear


def _weight(target: str, source: str, transform: Transform) -> Rule:
    return (f"params/{target}/kernel", f"{source}.weight", transform)


def _block(target: str, source: str) -> tuple[Rule, ...]:
    rules = []
    for i in (1, 2, 3):
        rules += batch_norm(f"{target}/norm{i}", f"{source}.bn{i}")
        rules.append(_weight(f"{target}/conv{i}", f"{source}.conv{i}", conv2d))
    rules += batch_norm(f"{target}/shortcut_norm", f"{source}.downsample.0")
    rules.append(_weight(f"{target}/shortcut", f"{source}.downsample.2", conv2d))
    return tuple(rules)


def _attention(target: str, source: str) -> tuple[Rule, ...]:
    inner = f"{source}.transformer_blocks.0"
    attention = f"{inner}.attention_blocks.0"
    return (
        *norm(f"params/{target}/norm", f"{source}.norm"),
        *layer(f"params/{target}/patches", f"{source}.pos_embed.proj", conv2d),
        *norm(f"params/{target}/attention_norm", f"{inner}.norms.0"),
        _weight(f"{target}/attention/q", f"{attention}.to_q", linear),
        _weight(f"{target}/attention/k", f"{attention}.to_k", linear),
        _weight(f"{target}/attention/v", f"{attention}.to_v", linear),
        *layer(f"params/{target}/attention/out", f"{attention}.to_out.0", linear),
        *norm(f"params/{target}/mlp_norm", f"{inner}.ff_norm"),
        *layer(f"params/{target}/mlp/in", f"{inner}.ff.net.0.proj", linear),
        *layer(f"params/{target}/mlp/out", f"{inner}.ff.net.2", linear),
        *layer(f"params/{target}/unpatch", f"{source}.proj_out", linear),
    )


RULES: Rules = (
    *layer("params/stem", "model.conv1", conv2d),
    *batch_norm("stem_norm", "model.bn1"),
    *_block("block_1", "model.conv2"),
    *_block("block_2", "model.conv3"),
    *_block("block_3", "model.conv4"),
    *_attention("attention_{i}", "model.att_{i}"),
    *_block("hourglass/upper_{i}", "model.m0.b1_{i}"),
    *_block("hourglass/lower_{i}", "model.m0.b2_{i}"),
    *_block("hourglass/after_{i}", "model.m0.b3_{i}"),
    *_block("hourglass/innermost", "model.m0.b2_plus_1"),
    *_block("top", "model.top_m_0"),
    *layer("params/last", "model.conv_last0", conv2d),
    *batch_norm("last_norm", "model.bn_end0"),
    *layer("params/landmark_map", "model.l0", conv2d),
    *batch_norm("landmark_norm", "model.bn5"),
    *layer("params/map", "model.conv6", conv2d),
    *layer("params/motion", "model.fc", linear),
    *layer("params/box_in", "bbox_proj.0", linear),
    *layer("params/box_out", "bbox_proj.3", linear),
    *layer("params/fusion", "final_proj", linear),
    Ignore("pe", "a fixed position code, recomputed"),
    Ignore("model.att_*.pos_embed.pos_embed", "a fixed position code, recomputed"),
    Ignore("*.num_batches_tracked", "counts updates; not needed with a fixed momentum"),
)


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Reads from the shapes of a checkpoint the one attribute of `MotionEncoder` that may differ from the released
    network: the length of the motion vector.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: the last layer is absent.
    """
    if len(shapes.get("model.fc.weight", ())) != 2:
        raise ConversionError(
            ["source model.fc.weight: absent; this is not a motion encoder's file"]
        )
    return {"latent": shapes["model.fc.weight"][0]}
