"""Orderings that BCD's paper claims, on heads at equal steps, with three seeds; the report is
docs/results/claims.md.

    python launch/sweep.py claims_bcd --workdir=runs/claims_bcd           # --dry_run prints the commands

The paper measures faces of LRS3 with head models; this sweep compares swaps with their exact renders.
"""

from configs.sweeps import SEEDS as SEEDS
from configs.sweeps import SWAP_COLUMNS, SWAP_OVERRIDES, SWAP_PANELS, Claim

CONFIG = "configs/heads.py"
ARGUMENTS = {
    "full": "mini",
    "300 bps": "mini,bitrate=300",
    "1500 bps": "mini,bitrate=1500",
    "no rate loss": "mini,rate_loss=off",
    "no cross-driving": "mini,cross=off",
}
OVERRIDES = {"steps": 300, "data.train.clips": 2400, **SWAP_OVERRIDES}
COLUMNS = (*SWAP_COLUMNS, "bits_per_frame/hard")
PLOT = {
    "x": ("bits_per_frame/hard", "motion code, bits per frame"),
    "panels": SWAP_PANELS,
}
CLAIMS = (
    Claim(
        "Without cross-driving, a swap is far worse",
        "main text: cross error 40.4 without, 3.67 with",
        "psnr/swap",
        "full",
        "no cross-driving",
    ),
    Claim(
        "Without the rate loss, a swap is worse",
        "Table A3: cross error 6.21 without, 3.67 with",
        "psnr/swap",
        "full",
        "no rate loss",
    ),
    Claim(
        "Without cross-driving, it is worse than without the rate loss",
        "Table A3 and main text: 40.4 and 6.21",
        "psnr/swap",
        "no rate loss",
        "no cross-driving",
    ),
    Claim(
        "Without the rate loss, more of the driver's identity gets through",
        "main text: the bitrate is held so that content does not pass",
        "read/identity/classes",
        "full",
        "no rate loss",
    ),
    Claim(
        "Too few bits cost motion",
        "main text: cross error 5.68 at half the bits of 3.67",
        "psnr/swap",
        "full",
        "300 bps",
    ),
    Claim(
        "More bits than needed cost identity",
        "main text: CSIM .66 at 8 kbps, .69 at 4 kbps",
        "read/identity/classes",
        "full",
        "1500 bps",
    ),
)
