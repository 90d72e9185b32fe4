"""All systems of `configs/benchmark.py` on heads and on Sprites; the report is docs/results/benchmark.md.

python launch/sweep.py benchmark --workdir=runs/benchmark --arguments=minutes=40
"""

CONFIG = "configs/benchmark.py"
ARGUMENTS = {
    f"{system} {clips}": f"system={system},clips={clips}"
    for clips in ("heads", "sprites")
    for system in ("bcd", "vidtwin", "xnemo", "warpface")
}
OVERRIDES = {}
COLUMNS = (
    "psnr/self",
    "psnr/swap",
    "ssim/swap",
    "sharpness/swap",
    "psnr/wrong_driver",
    "psnr/mean_picture",
    "psnr/copy_content",
    "psnr/copy_motion",
    "numbers_per_frame/motion",
    "probe/identity_from_motion/mlp/accuracy",
    "probe/identity_from_motion/mlp/accuracy/chance",
)
PLOT = {
    "x": ("numbers_per_frame/motion", "motion code, numbers per frame"),
    "panels": (
        ("swap against the true render, PSNR in dB", {"swap": "psnr/swap"}),
        (
            "identity read from the motion code, accuracy",
            {
                "mlp probe": "probe/identity_from_motion/mlp/accuracy",
                "linear probe": "probe/identity_from_motion/linear/accuracy",
                "chance": "probe/identity_from_motion/mlp/accuracy/chance",
            },
        ),
    ),
}
