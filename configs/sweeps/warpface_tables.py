"""WarpFace's ablations: every row of Tables 3 to 6, and the two baselines of Figure 1, on heads.

    python launch/sweep.py warpface_tables --workdir=runs/tables            # --dry_run prints the commands

The paper's figures are CSIM, APD and AED of faces; this sweep compares swaps with their exact renders. The demo's
motion encoder keeps the proportions between the rows: it has half the depth, a quarter of the width, and a sixteenth of
the vectors and dimensions. The values of `ROWS`, without ``demo``, are the config arguments at full size.
"""

CONFIG = "configs/warpface.py"
ROWS = {
    "full model": "",
    # Table 3; its first row is the collapse baseline of Figure 1
    "table 3 CA keypoints": "motion=ip,inject=ca",
    "table 3 CA vectors": "inject=ca",
    "table 3 WarpCA keypoints": "motion=ip",
    "table 3 no time modulation": "time_mod=off",
    "figure 1 intrinsic motion": "motion=none",
    **{f"table 4a reference {s}": f"msa={s}" for s in ("down", "up", "mid+up", "all")},
    **{f"table 4b WarpCA {s}": f"warpca={s}" for s in ("down", "up", "down+mid", "all")},
    **{f"table 4c {s}": f"codebook={s}" for s in ("8x64", "2x256", "1x512", "2x128", "8x128")},
    **{f"table 5 lambda {v}": f"lambda_sym={v}" for v in (0.01, 0.05, 0.2)},
    **{f"table 5 tau {v}": f"tau={v}" for v in (0.1, 0.25, 1.0)},
    **{f"table 5 eps {v}": f"eps={v}" for v in (0.5, 1.0, 3.0)},
    **{f"table 6 depth {v}": f"vit_depth={v}" for v in (4, 8, 10)},
    **{f"table 6 width {v}": f"vit_dim={v}" for v in (64, 128, 512)},
    **{f"table 6 basis size {v}": f"d_basis={v}" for v in (128, 512, 768)},
}
ARGUMENTS = {name: ",".join(filter(None, ("demo", row))) for name, row in ROWS.items()}
OVERRIDES = {"checkpoint.every": 0, "evals.drivers.every": -1, "evals.reading.every": -1}
COLUMNS = ("psnr/swap", "ssim/swap", "psnr/self", "psnr/copy_content", "psnr/copy_motion")
PLOT = {
    "x": ("psnr/self", "driven by itself, PSNR in dB"),
    "panels": (("swap against the true render, PSNR in dB", {"swap": "psnr/swap"}),),
}
