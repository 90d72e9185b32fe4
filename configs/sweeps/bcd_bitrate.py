"""BCD's ablations on heads at equal steps: four bitrates, no rate loss, no cross-driving.

    python launch/sweep.py bcd_bitrate --workdir=runs/bitrate            # --dry_run prints the commands

It follows the paper's ablations on LRS3 (2, 4, 6, 8 kbps; Table A3; without cross-driving), scaled to the 64 bits per
frame of the heads demo. The paper's ordering: without the rate loss is worse than the full model, and without
cross-driving is far worse than that.
"""

CONFIG = "configs/heads.py"
ARGUMENTS = {
    "300 bps": "demo,bitrate=300",
    "600 bps": "demo,bitrate=600",
    "1100 bps": "demo,bitrate=1100",
    "1500 bps": "demo,bitrate=1500",
    "no rate loss": "demo,rate_loss=off",
    "no cross-driving": "demo,cross=off",
}
OVERRIDES = {
    "steps": 600,
    "checkpoint.every": 0,
    "sample.rows": 2,
    "sample.columns": 4,
    "evals.leakage.every": 0,
    "evals.drivers.every": -1,
    "evals.reading.every": -1,
}
COLUMNS = (
    "psnr/swap",
    "ssim/swap",
    "psnr/copy_content",
    "psnr/copy_motion",
    "bits_per_frame/hard",
    "probe/identity_from_motion/linear/r2",
    "probe/identity_from_motion/mlp/accuracy",
    "probe/identity_from_motion/mlp/accuracy/chance",
    "probe/motion_from_content/linear/r2",
    "probe/motion_from_motion/linear/r2",
)
PLOT = {
    "x": ("bits_per_frame/hard", "motion code, bits per frame"),
    "panels": (
        ("swap against the true render, PSNR in dB", {"swap": "psnr/swap"}),
        (
            "identity read from the motion code, R^2",
            {
                "linear probe": "probe/identity_from_motion/linear/r2",
                "mlp probe": "probe/identity_from_motion/mlp/r2",
            },
        ),
        (
            "the same, accuracy of classes",
            {
                "mlp probe": "probe/identity_from_motion/mlp/accuracy",
                "chance": "probe/identity_from_motion/mlp/accuracy/chance",
            },
        ),
    ),
}
