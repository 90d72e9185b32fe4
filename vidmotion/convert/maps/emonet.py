"""Conversion table of `models.features.emonet.EmoNet`, from the public `emonet_8.pth` or `emonet_5.pth`.

The target tree holds all variables: ``params/...`` and ``batch_stats/...``. Keys of the public files may
begin with ``module.``.
"""

from collections.abc import Mapping

from vidmotion.convert.engine import ConversionError, Ignore, Rule, Rules, batch_norm, layer
from vidmotion.convert.transforms import conv2d, linear

PUBLISHED = "emonet_8.pth (folder pretrained of github.com/face-analysis/emonet; non-commercial)"


def _block(target: str, source: str) -> tuple[Rule, ...]:
    rules = []
    for i in (1, 2, 3):
        rules += batch_norm(f"{target}/norm{i}", f"{source}.bn{i}")
        rules.append((f"params/{target}/conv{i}/kernel", f"{source}.conv{i}.weight", conv2d))
    rules += batch_norm(f"{target}/shortcut_norm", f"{source}.downsample.0")
    rules.append((f"params/{target}/shortcut/kernel", f"{source}.downsample.2.weight", conv2d))
    return tuple(rules)


_RULES: tuple[Rule, ...] = (
    *layer("params/conv1", "conv1", conv2d),
    *batch_norm("bn1", "bn1"),
    *(rule for i in (2, 3, 4) for rule in _block(f"conv{i}", f"conv{i}")),
    *_block("m{m}/upper_{i}", "m{m}.b1_{i}"),
    *_block("m{m}/lower_{i}", "m{m}.b2_{i}"),
    *_block("m{m}/after_{i}", "m{m}.b3_{i}"),
    *_block("m{m}/innermost", "m{m}.b2_plus_1"),
    *_block("top_m_{m}", "top_m_{m}"),
    *layer("params/conv_last{m}", "conv_last{m}", conv2d),
    *batch_norm("bn_end{m}", "bn_end{m}"),
    *layer("params/l{m}", "l{m}", conv2d),
    *layer("params/bl0", "bl0", conv2d),
    *layer("params/al0", "al0", conv2d),
    *layer("params/conv1x1_input_emo_2", "conv1x1_input_emo_2", conv2d),
    # The odd places are the poolings between the blocks.
    *(rule for i in range(4) for rule in _block(f"emo_net_2_{i}", f"emo_net_2.{2 * i}")),
    *layer("params/emo_fc_in", "emo_fc_2.0", linear),
    *batch_norm("emo_fc_norm", "emo_fc_2.1"),
    *layer("params/emo_fc_out", "emo_fc_2.3", linear),
)

RULES: Rules = (
    *(
        (target, (key, f"module.{key}"), change)
        for target, source, change in _RULES
        for key in ((source,) if isinstance(source, str) else source)
    ),
    Ignore("*num_batches_tracked", "counts updates; the statistics are fixed"),
)


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Reads the attributes of `EmoNet` from the shapes of a checkpoint: its classes, width and heat maps.

    Args:
      shapes: checkpoint keys to shapes.

    Raises:
      ConversionError: this is not the file of an EmoNet; the message says which file is.
    """

    def rows(key: str) -> int:
        return (*shapes.get(key, shapes.get(f"module.{key}", ())), 0)[0]

    out, width, landmarks = rows("emo_fc_2.3.bias"), rows("conv1.bias"), rows("l1.bias")
    if out < 3 or not width or not landmarks:
        raise ConversionError([f"not the file of an EmoNet: give --src={PUBLISHED}"])
    return {"expressions": out - 2, "width": width, "landmarks": landmarks}
