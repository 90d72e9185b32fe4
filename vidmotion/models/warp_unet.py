"""WarpFace's two networks: a reference UNet cut short, and a denoising UNet with WarpCA inside.

WarpFace, section 3.3 and appendix (spec warpface.md, sections 5 and 6): Stable Diffusion's UNet without
its text cross-attention, whose place in the chosen blocks is taken by `WarpCA`; other chosen blocks
attend to the reference.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from vidmotion.models.unet import Make, UNet, block_names
from vidmotion.models.warpca import WarpCA

# Names of the sets of blocks in Table 4: which parts of the UNet they take in.
BLOCKS = {
    "none": (),
    "down": ("down",),
    "up": ("up",),
    "down+mid": ("down", "mid"),
    "mid+up": ("mid", "up"),
    "all": ("down", "mid", "up"),
}


def blocks_of(net: UNet, which: str) -> tuple[str, ...]:
    """The transformers that a set of Table 4 names, in order.

    Raises:
      ValueError: no such set.
    """
    if which not in BLOCKS:
        raise ValueError(f"blocks {which!r}: choose {', '.join(BLOCKS)}")
    return tuple(
        name for name in block_names(net) if name.split("/")[0].split("_")[0] in BLOCKS[which]
    )


class WarpUNet(UNet):
    """A `UNet` without context whose `condition` is a motion code for each frame, (b, f, m).

    Attributes:
      warpca: name of the set of blocks that have a `WarpCA`.
      warp: (name, value) pairs, arguments of `WarpCA` but heads and dtype, which are this network's.
    """

    context_width: int = 0
    warpca: str = "mid+up"
    warp: tuple[tuple[str, Any], ...] = ()

    def within(self, block: str) -> Make | None:
        """`WarpCA` in the chosen blocks."""
        if block not in blocks_of(self, self.warpca):
            return None
        return functools.partial(WarpCA, self.heads, dtype=self.dtype, **dict(self.warp))


def keep_blocks(banks: Mapping[str, jax.Array], net: UNet, which: str) -> dict[str, jax.Array]:
    """The banks that the blocks of a set of Table 4 read."""
    return {name: banks[name] for name in blocks_of(net, which)}
