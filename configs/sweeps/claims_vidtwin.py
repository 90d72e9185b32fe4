"""Orderings that VidTwin's paper claims, on heads at equal steps, with three seeds; the report is
docs/results/claims.md.

    python launch/sweep.py claims_vidtwin --workdir=runs/claims_vidtwin   # --dry_run prints the commands

As in the paper, a clip's structure is read from the clip itself, and its reconstruction is measured.
"""

from configs.sweeps import SEEDS as SEEDS
from configs.sweeps import Claim

CONFIG = "configs/vidtwin.py"
ARGUMENTS = {
    "full": "mini,structure=clip",
    "structure of a quarter": "mini,structure=clip",
    "dynamics of a quarter": "mini,structure=clip",
    "half the width": "mini,structure=clip",
    "one latent": "mini,structure=clip,ablation=a",
    "no Q-Former": "mini,structure=clip,ablation=c",
}
CHANGES = {
    "structure of a quarter": {"system.network.structure_channels": 4},
    "dynamics of a quarter": {"system.network.dynamics_channels": 4},
    "half the width": {"system.network.width": 88},
}
OVERRIDES = {
    "steps": 150,
    "checkpoint.every": 0,
    "sample.rows": 0,
    "evals.swap.every": -1,
    "evals.drivers.every": -1,
    "evals.reading.every": -1,
}
COLUMNS = ("psnr/reconstruction", "ssim/reconstruction", "psnr/mean_frame", "rate")
PLOT = {
    "x": ("rate", "numbers of both latents, per cent of the clip's"),
    "panels": (("reconstruction, PSNR in dB", {"rebuilt": "psnr/reconstruction"}),),
}
RATES = "Table 3 of the supplement: 30.04, 28.14 and 24.41 dB at .48, .20 and .11 %"
CLAIMS = (
    Claim(
        "A larger structure latent rebuilds better",
        RATES,
        "psnr/reconstruction",
        "full",
        "structure of a quarter",
    ),
    Claim(
        "A larger dynamics latent rebuilds better",
        RATES,
        "psnr/reconstruction",
        "full",
        "dynamics of a quarter",
    ),
    Claim(
        "A wider network rebuilds better",
        "Table 1 of the supplement: 26.13 dB base, 24.83 small",
        "psnr/reconstruction",
        "full",
        "half the width",
    ),
    Claim(
        "Two latents rebuild better than one of a similar rate",
        "Table 3 (a): 26.12 and 23.51 dB",
        "psnr/reconstruction",
        "full",
        "one latent",
    ),
    Claim(
        "A Q-Former rebuilds better than convolutions in its place",
        "Table 3 (c): 26.12 and 25.39 dB",
        "psnr/reconstruction",
        "full",
        "no Q-Former",
    ),
)
