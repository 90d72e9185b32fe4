"""`python -m vidmotion.data.prepare`."""

import sys

from vidmotion.data.prepare import main


def plan_latents(args):
    """Loaded when asked for: the other kinds of data know no network."""
    from vidmotion import latents

    return latents.plan(args)


if __name__ == "__main__":
    sys.exit(main(plan_latents=plan_latents))
