"""Lists the networks that this package ships, or makes one of a finished run.

python -m vidmotion.weights
python -m vidmotion.weights --workdir=runs/heads_codec --name=heads_codec --out=DIR
"""

import argparse
import sys
from pathlib import Path

from vidmotion import weights
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 a run that cannot be made one."""
    parser = argparse.ArgumentParser(
        prog="python -m vidmotion.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", help="a finished run")
    parser.add_argument("--name", help="of the network to be made of it")
    parser.add_argument("--out", type=Path, default=weights.FOLDER, help="folder to write into")
    args = parser.parse_args(arguments)
    if bool(args.workdir) != bool(args.name):
        parser.error("--workdir and --name go together")
    if args.workdir:
        try:
            file = weights.ship(args.workdir, args.name, args.out)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_REFUSED
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
        return EXIT_DONE
    for name in weights.names():
        card = weights.card(name)
        size = (weights.FOLDER / f"{name}.safetensors").stat().st_size / 1e6
        print(f"{name}: {size:.2f} MB, {card['steps_done']} steps at commit {card['commit'][:12]}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
