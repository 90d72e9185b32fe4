"""Builds dataset folders of `vidmotion.data.records` from what people have on disk.

    python -m vidmotion.data.prepare sprites --sheets=DIR --out=DIR [--shards=N] [--force]

One subcommand per kind of data. Each turns its arguments into a `Plan`, what will be written and
from what; `write` does the rest for all of them.
"""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vidmotion.data import sprites
from vidmotion.data.records import INDEX, DatasetError, DatasetWriter, RecordSource, read_index


@dataclasses.dataclass(frozen=True)
class Plan:
    """A dataset to be written.

    Attributes:
      name, version: kept in the index; a new version where the records' meaning changes.
      inputs: hex text naming the content of everything the records are made from, settings
        included: equal inputs, name and version mean equal datasets.
      licence: of the data.
      total: number of records.
      records: () -> iterator of (split, record) in the order to be written.
      remarks: lines to print once it is done.
    """

    name: str
    version: str
    inputs: str
    licence: str
    total: int
    records: Callable[[], Iterator[tuple[str, Mapping]]]
    remarks: tuple[str, ...] = ()


def plan_sprites(args) -> Plan:
    """The Sprites benchmark: `video` uint8 (8, 64, 64, 3), `action`, `attributes`, `character`."""
    sources = {split: sprites.SpritesSource(args.sheets, split) for split in sprites.SPLITS}

    def records():
        for split, source in sources.items():
            for index in range(len(source)):
                yield split, source[index]

    remarks = []
    for split in sources:
        first = ", ".join(map(str, sprites.split_characters(split)[:5]))
        remarks.append(f"{split} characters begin with {first}")
    return Plan(
        name="sprites",
        version="1",
        inputs=sources["train"].fingerprint,
        licence="CC-BY-SA 3.0 and GPL 3 (sheets of github.com/YingzhenLi/Sprites)",
        total=sum(map(len, sources.values())),
        records=records,
        remarks=tuple(remarks),
    )


def write(plan: Plan, out: Path, *, shards: int, force: bool, command: str):
    """Writes the dataset of a plan, unless it is there already; prints what happens.

    Raises:
      DatasetError: `out` holds another dataset, or a damaged one, and not `force`.
    """
    if (out / INDEX).exists() and not force:
        index = read_index(out)
        found = (index["name"], index["version"], index["provenance"].get("inputs"))
        if found != (plan.name, plan.version, plan.inputs):
            raise DatasetError(
                f"{out}: holds another dataset ({found[0]}, version {found[1]}, made from other "
                "inputs or settings). Choose another --out, or replace it with --force."
            )
        counts = {split: len(RecordSource(out, split)) for split in index["splits"]}
        print(f"{out}: {plan.name} is complete ({_listing(counts)}); --force rebuilds it")
        return
    start = time.perf_counter()
    provenance = {"command": command, "inputs": plan.inputs, "licence": plan.licence}
    counts: dict[str, int] = {}
    with DatasetWriter(
        out,
        plan.name,
        version=plan.version,
        provenance=provenance,
        shards=shards,
        overwrite=force,
    ) as writer:
        for split, record in _progress(plan.records(), plan.total, plan.name):
            writer.write(split, record)
            counts[split] = counts.get(split, 0) + 1
    for remark in plan.remarks:
        print(remark)
    seconds = time.perf_counter() - start
    print(f"{out}: {plan.name}, {_listing(counts)}, written in {seconds:.1f} s")


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns its exit code: 0 done, 2 to be put right, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        write(
            args.plan(args),
            args.out,
            shards=args.shards,
            force=args.force,
            command=_command(args),
        )
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no dataset was written", file=sys.stderr)
        return 130
    return 0


def _parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, help="dataset folder to write")
    common.add_argument("--shards", type=_positive, default=4, help="files per split (default 4)")
    common.add_argument("--force", action="store_true", help="replace a dataset that is there")
    parser = argparse.ArgumentParser(prog="python -m vidmotion.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="kind", required=True)

    kind = kinds.add_parser("sprites", parents=[common], help="the Sprites benchmark, from sheets")
    kind.add_argument("--sheets", type=Path, required=True, help="folder of sprite sheets")
    kind.set_defaults(plan=plan_sprites)
    return parser


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def _command(args) -> str:
    """The command that builds this dataset again, from any folder, whatever is there by then."""
    values = {k: v for k, v in vars(args).items() if k not in ("kind", "plan", "force")}
    flags = [
        f"--{name}={value.resolve() if isinstance(value, Path) else value}"
        for name, value in values.items()
    ]
    return shlex.join(["python", "-m", "vidmotion.data.prepare", args.kind, *flags, "--force"])


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def _progress(items: Iterable, total: int, label: str) -> Iterator:
    """Passes items on; a bar where someone watches, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=" records")
        return
    step = max(1, total // 10)
    for done, item in enumerate(items, start=1):
        yield item
        if done % step == 0:
            print(f"{label}: {done:,} of {total:,} records", flush=True)


if __name__ == "__main__":
    sys.exit(main())
