"""Runs `python -m vidmotion.data.prepare`."""

import sys

from vidmotion.data.prepare import main


def plan_latents(args):
    """Plans a dataset of latents. The module is imported only here, because other kinds of data need no network."""
    from vidmotion import latents

    return latents.plan(args)


if __name__ == "__main__":
    sys.exit(main(plan_latents=plan_latents))
