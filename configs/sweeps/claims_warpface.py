"""Orderings that WarpFace's paper claims, on heads at equal steps, with three seeds; the report is
docs/results/claims.md.

    python launch/sweep.py claims_warpface --workdir=runs/claims_warpface # --dry_run prints the commands

The paper's figures are CSIM, APD and AED of faces. This sweep compares swaps with their exact renders, and the shipped
reader tells whose face they show. The demo keeps only a thousandth of the paper's symmetry term; these runs have that
much of it or none.
"""

from configs.sweeps import SEEDS as SEEDS
from configs.sweeps import SWAP_COLUMNS, SWAP_OVERRIDES, SWAP_PANELS, Claim

CONFIG = "configs/warpface.py"
ARGUMENTS = {
    "full": "mini",
    "CA": "mini,inject=ca",
    "keypoints": "mini,motion=ip",
    "CA keypoints": "mini,motion=ip,inject=ca",
    "no symmetry": "mini",
}
CHANGES = {"no symmetry": {"system.loss_terms.symmetry": 0.0}}
OVERRIDES = {"steps": 300, **SWAP_OVERRIDES}
COLUMNS = (*SWAP_COLUMNS, "read/motion/place")
PLOT = {
    "x": ("psnr/self", "driven by itself, PSNR in dB"),
    "panels": SWAP_PANELS,
}
CLAIMS = (
    Claim(
        "WarpCA moves better than cross-attention alone",
        "Table 3, with vectors: APD 2.51 and 6.45",
        "psnr/swap",
        "full",
        "CA",
    ),
    Claim(
        "WarpCA moves better than cross-attention alone, of keypoints too",
        "Table 3, with keypoints: APD 4.09 and 6.84",
        "psnr/swap",
        "keypoints",
        "CA keypoints",
    ),
    Claim(
        "Vectors move better than keypoints",
        "Table 3, with WarpCA: APD 2.51 and 4.09",
        "psnr/swap",
        "full",
        "keypoints",
    ),
    Claim(
        "Vectors keep more of the source's identity than keypoints",
        "Table 3, with WarpCA: CSIM .79 and .72",
        "read/identity/classes",
        "full",
        "keypoints",
    ),
    Claim(
        "The symmetry term helps",
        "Table 5: APD 2.51 at lambda .1, 3.07 at .01",
        "psnr/swap",
        "full",
        "no symmetry",
    ),
    Claim(
        "Keypoints in plain cross-attention collapse: the driver's motion is not followed",
        "Figure 1",
        "psnr/true_over_wrong_driver",
        "full",
        "CA keypoints",
    ),
)
