"""WarpFace's two networks: a reference UNet cut short, and a denoising UNet with WarpCA inside.

WarpFace, section 3.3 and appendix (spec warpface.md, sections 5 and 6): both are Stable Diffusion's UNet without its
text cross-attention. In one set of blocks of the denoising UNet, `WarpCA` takes the place of that attention; the blocks
of another set attend to the reference.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from vidmotion.models.unet import Make, UNet, block_names
from vidmotion.models.warpca import WarpCA

# The sets of blocks in Table 4: the name of each, and the parts of the UNet that it contains.
BLOCKS = {
    "none": (),
    "down": ("down",),
    "up": ("up",),
    "down+mid": ("down", "mid"),
    "mid+up": ("mid", "up"),
    "all": ("down", "mid", "up"),
}


def blocks_of(net: UNet, which: str) -> tuple[str, ...]:
    """Returns the names of the transformers in a set of Table 4, in the order in which they run.

    Raises:
      ValueError: if there is no such set.
    """
    if which not in BLOCKS:
        raise ValueError(f"blocks {which!r}: choose one of {', '.join(BLOCKS)}")
    return tuple(
        name for name in block_names(net) if name.split("/")[0].split("_")[0] in BLOCKS[which]
    )


class WarpUNet(UNet):
    """WarpFace's denoising network: a `UNet` without context whose `condition` is a motion code per frame, (b, f, m).

    Attributes:
      warpca: the name of the set of blocks that have a `WarpCA`.
      warp: the arguments of `WarpCA` as (name, value) pairs, without heads and dtype, which are this network's own.
    """

    context_width: int = 0
    warpca: str = "mid+up"
    warp: tuple[tuple[str, Any], ...] = ()

    def within(self, block: str) -> Make | None:
        """Returns what makes the block's `WarpCA`, or None if the block has none."""
        if block not in blocks_of(self, self.warpca):
            return None
        return functools.partial(WarpCA, self.heads, dtype=self.dtype, **dict(self.warp))


def keep_blocks(banks: Mapping[str, jax.Array], net: UNet, which: str) -> dict[str, jax.Array]:
    """Returns the banks of only those blocks that are in a set of Table 4."""
    return {name: banks[name] for name in blocks_of(net, which)}
