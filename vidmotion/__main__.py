"""Runs every command of the project: ``vidmotion <command> ...``, or ``python -m vidmotion <command> ...``.

    vidmotion demo
    vidmotion train --config=heads:demo --workdir=runs/heads
    vidmotion reenact --workdir=runs/heads --content=A.png --motion=B.mp4 --out=C.mp4

Each command takes the flags of its module, and ends with that module's exit code.
"""

import runpy
import sys

from vidmotion import startup
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED

# {command: (its module, its description, flags that are added to it)}
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "demo": ("vidmotion.demo", "show the shipped networks at work, without training", ()),
    "train": ("vidmotion.main", "train a config, or resume its workdir", ("--mode=train",)),
    "eval": ("vidmotion.main", "evaluate the newest checkpoint of a workdir", ("--mode=eval",)),
    "sample": ("vidmotion.main", "draw pictures from the newest checkpoint", ("--mode=sample",)),
    "plan": ("vidmotion.main", "forecast memory and time of a training", ("--mode=plan",)),
    "bench": ("vidmotion.bench", "time the update of a config on the devices here", ()),
    "prepare": ("vidmotion.data.prepare", "make a dataset from videos, pictures or sheets", ()),
    "convert": (
        "vidmotion.convert",
        "convert published weights to this package's format, or back",
        (),
    ),
    "encode": (
        "vidmotion.encode",
        "store the codes or latents of a dataset from a trained run",
        (),
    ),
    "reenact": ("vidmotion.reenact", "animate a picture with the motion of a video", ()),
    "export": ("vidmotion.export", "export a trained run as StableHLO with a loader", ()),
    "studio": ("vidmotion.studio", "open a page for your runs in the browser", ()),
    "weights": ("vidmotion.weights", "list the shipped networks, or make one from a run", ()),
    "resources": ("vidmotion.evaluation.resources", "count what VidTwin's latents cost", ()),
}


def usage() -> str:
    """Return the usage text, with one line per command."""
    lines = [f"  {name:<10} {what}" for name, (_, what, _) in COMMANDS.items()]
    return "\n".join(["usage: vidmotion COMMAND [flags]; COMMAND --help lists its flags", *lines])


def main() -> None:
    """Run the command that the command line names, and end the process."""
    name, *rest = sys.argv[1:] or [""]
    if name in ("help", "-h", "--help"):
        print(usage())
        sys.exit(EXIT_DONE)
    if name not in COMMANDS:
        near = startup.nearest(name, COMMANDS)
        print(f"{name!r} is not a command{near}\n{usage()}" if name else usage(), file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    module, _, flags = COMMANDS[name]
    sys.argv[1:] = [*rest, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
