"""Conversion table of `models.features.clip.ClipVision`, from transformers' `CLIPVisionModelWithProjection`.

The file of a whole CLIP will do: its text tower is left out.
"""

from collections.abc import Mapping

from vidmotion.convert.engine import ConversionError, Ignore, layer, norm
from vidmotion.convert.transforms import conv2d, embed, linear, same

HEAD_WIDTH = 64
_LAYER = "vision_model.encoder.layers.{i}"

RULES = (
    ("patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", conv2d),
    ("class_token", "vision_model.embeddings.class_embedding", same),
    ("position", "vision_model.embeddings.position_embedding.weight", embed),
    *norm("norm_in", "vision_model.pre_layrnorm"),
    *norm("layer_{i}/norm1", f"{_LAYER}.layer_norm1"),
    *layer("layer_{i}/q", f"{_LAYER}.self_attn.q_proj", linear),
    *layer("layer_{i}/k", f"{_LAYER}.self_attn.k_proj", linear),
    *layer("layer_{i}/v", f"{_LAYER}.self_attn.v_proj", linear),
    *layer("layer_{i}/out", f"{_LAYER}.self_attn.out_proj", linear),
    *norm("layer_{i}/norm2", f"{_LAYER}.layer_norm2"),
    *layer("layer_{i}/mlp_in", f"{_LAYER}.mlp.fc1", linear),
    *layer("layer_{i}/mlp_out", f"{_LAYER}.mlp.fc2", linear),
    *norm("norm_out", "vision_model.post_layernorm"),
    ("projection/kernel", "visual_projection.weight", linear),
    Ignore("vision_model.embeddings.position_ids", "the numbers 0 to 256"),
    Ignore("text_model.*", "the text tower"),
    Ignore("text_projection.weight", "the text tower"),
    Ignore("logit_scale", "the temperature used in training"),
)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Reads the attributes of `ClipVision` from the shapes of a checkpoint.

    No shape tells the number of heads, but they are 64 wide in every published CLIP.

    Raises:
      ConversionError: keys that the sizes are read from are absent; the message names them all.
    """
    keys = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "visual_projection.weight",
    )
    absent = [
        f"source {key}: missing; the sizes are read from it" for key in keys if key not in shapes
    ]
    if absent:
        raise ConversionError(absent)
    patch, position, mlp, projection = (shapes[key] for key in keys)
    layers = 0
    while f"vision_model.encoder.layers.{layers}.layer_norm1.weight" in shapes:
        layers += 1
    return {
        "width": patch[0],
        "layers": layers,
        "heads": patch[0] // HEAD_WIDTH,
        "mlp_dim": mlp[0],
        "patch": patch[2],
        "size": patch[2] * round((position[0] - 1) ** 0.5),
        "embedding": projection[0],
    }
