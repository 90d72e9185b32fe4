"""Sweeps for launch/sweep.py, and the form of a paper's claim that the runs of a sweep test."""

from typing import NamedTuple


class Claim(NamedTuple):
    """One ordering that a paper claims, tested by two kinds of runs of a sweep at equal budgets.

    Attributes:
      says: the claim, in a sentence.
      source: where the paper has it, and with which figures.
      metric: the metric of the run records that tests it; larger is better.
      better: the name, among the sweep's ``ARGUMENTS``, of the runs that should have more of it.
      worse: the name of the runs that should have less.
    """

    says: str
    source: str
    metric: str
    better: str
    worse: str


# What the sweeps share whose claims are tested by swaps of heads.
SEEDS = (0, 1, 2)
SWAP_OVERRIDES = {"checkpoint.every": 0, "sample.rows": 2, "sample.columns": 4}
SWAP_COLUMNS = (
    "psnr/swap",
    "psnr/wrong_driver",
    "psnr/copy_content",
    "psnr/copy_motion",
    "read/identity/classes",
)
SWAP_PANELS = (("swap against the true render, PSNR in dB", {"swap": "psnr/swap"}),)
