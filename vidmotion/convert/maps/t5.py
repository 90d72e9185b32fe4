"""Conversion table of `models.t5.T5Encoder`, from transformers' `T5EncoderModel` (T5 v1.0: ungated feed-forward)."""

from vidmotion.convert.engine import Ignore
from vidmotion.convert.transforms import embed, linear, same

_ATTENTION, _MLP = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"

TRANSFORMERS = (
    (
        "relative_bias/table",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        embed,
    ),
    ("layer_{i}/attention_norm/scale", f"{_ATTENTION}.layer_norm.weight", same),
    ("layer_{i}/attention/query/kernel", f"{_ATTENTION}.SelfAttention.q.weight", linear),
    ("layer_{i}/attention/key/kernel", f"{_ATTENTION}.SelfAttention.k.weight", linear),
    ("layer_{i}/attention/value/kernel", f"{_ATTENTION}.SelfAttention.v.weight", linear),
    ("layer_{i}/attention/out/kernel", f"{_ATTENTION}.SelfAttention.o.weight", linear),
    ("layer_{i}/mlp_norm/scale", f"{_MLP}.layer_norm.weight", same),
    ("layer_{i}/wi/kernel", f"{_MLP}.DenseReluDense.wi.weight", linear),
    ("layer_{i}/wo/kernel", f"{_MLP}.DenseReluDense.wo.weight", linear),
    ("final_norm/scale", "encoder.final_layer_norm.weight", same),
    Ignore("shared.weight", "the vocabulary: this encoder reads embeddings"),
    Ignore("encoder.embed_tokens.weight", "the vocabulary again, under its second name"),
)
