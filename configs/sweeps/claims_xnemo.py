"""Orderings that X-NeMo's paper claims, on heads at equal steps, with three seeds; the report is
docs/results/claims.md.

    python launch/sweep.py claims_xnemo --workdir=runs/claims_xnemo       # --dry_run prints the commands

For Table 2, the paper's text gives only directions, no figures. This sweep compares swaps with their exact renders, and
the shipped reader tells whose face they show and where it is.
"""

from configs.sweeps import SEEDS as SEEDS
from configs.sweeps import SWAP_COLUMNS, SWAP_OVERRIDES, SWAP_PANELS, Claim

CONFIG = "configs/xnemo.py"
ARGUMENTS = {
    "GAN head": "mini,gan_head=on",
    "no GAN head": "mini,gan_head=off",
    "no masking": "mini,gan_head=off,rfm=0",
    "masking of 75 %": "mini,gan_head=off,rfm=75",
    "no augmentation": "mini,gan_head=off,augment=off",
}
OVERRIDES = {"steps": 240, **SWAP_OVERRIDES}
COLUMNS = (*SWAP_COLUMNS, "read/motion/place")
PLOT = {
    "x": ("read/identity/classes", "identity classes kept, as the reader sees them"),
    "panels": SWAP_PANELS,
}
CLAIMS = (
    Claim(
        "With the GAN head, the motion is better",
        "Table 2, in words: AED, APD and EMO-SIM are worse without",
        "psnr/swap",
        "GAN head",
        "no GAN head",
    ),
    Claim(
        "With some of the reference's tokens masked, the motion is better",
        "Table 2, in words: EMO-SIM is lower without",
        "psnr/swap",
        "no GAN head",
        "no masking",
    ),
    Claim(
        "Masking 30 % is better than 75 %",
        "ablation of the ratio, in words",
        "psnr/swap",
        "no GAN head",
        "masking of 75 %",
    ),
    Claim(
        "With the driver augmented, more of the source's identity is kept",
        "Table 2, in words: ID-SIM is lower without",
        "read/identity/classes",
        "no GAN head",
        "no augmentation",
    ),
)
