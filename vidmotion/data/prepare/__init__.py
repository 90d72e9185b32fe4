"""Builds dataset folders of `vidmotion.data.records` from files that people have on disk.

    python -m vidmotion.data.prepare sprites --sheets=DIR --out=DIR [--shards=N] [--force]
    python -m vidmotion.data.prepare videos --src=DIR --out=DIR --fps=25 --size=256 --seconds=4
    python -m vidmotion.data.prepare lrs3 --src=DIR --out=DIR
    python -m vidmotion.data.prepare hdtf|vfhq|hallo3|nersemble|mead|portraits --src=DIR --out=DIR
    python -m vidmotion.data.prepare ucf101 --src=DIR --out=DIR --fps=8 --size=224 --seconds=2
    python -m vidmotion.data.prepare latents --src=DATASET --weights=FILE --out=DIR

Several machines can share the cutting of a large set of videos. --part=I/N cuts every N-th file and writes no dataset;
the same command without --part writes it at the end (SLURM: --part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT).
--runner=NAME cuts with an Apache Beam pipeline (`vidmotion.data.prepare.beam`). All ways give the same dataset.

Each kind of data has its own subcommand (`videos --help` lists its options). A subcommand turns its arguments into a
`Plan`, which states what is written and from what; `write` does the rest for all of them.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vidmotion import lock
from vidmotion.data import faces, sprites
from vidmotion.data.prepare import beam, folders, portrait_sets
from vidmotion.data.prepare.cutting import Cutting
from vidmotion.data.records import INDEX, DatasetError, DatasetWriter, RecordSource, read_index
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError

OWN_SIZES = (64, 128, 256, 512)  # pixels: the sizes that configs/own.py has


@dataclasses.dataclass(frozen=True)
class Plan:
    """A dataset to be written.

    Attributes:
      name, version: stored in the index; the version changes whenever the meaning of the records does.
      inputs: hex digest of everything that the records are made from, settings included. Equal inputs, name and version
        mean equal datasets.
      licence: the licence of the data.
      records: () -> iterator of (split, record) in the order to be written; it shows its own progress.
      provenance: JSON-able mapping stored with the command, inputs and licence.
      finish: called once the dataset is complete, to print remarks and to clean up.
      share: (part, parts) -> message for the user; does a share of the work that `records` needs and writes no dataset.
        None if the work cannot be shared.
      clear: called if the dataset is complete already; removes what a killed process left behind.
    """

    name: str
    version: str
    inputs: str
    licence: str
    records: Callable[[], Iterator[tuple[str, Mapping]]]
    provenance: Mapping = dataclasses.field(default_factory=dict)
    finish: Callable[[], None] = lambda: None
    share: Callable[[int, int], str] | None = None
    clear: Callable[[], None] = lambda: None


def plan_sprites(args) -> Plan:
    """Plans the Sprites benchmark: `video` uint8 (8, 64, 64, 3), `action`, `attributes`, `character`."""
    sources = {split: sprites.SpritesSource(args.sheets, split) for split in sprites.SPLITS}

    def rendered():
        for split, source in sources.items():
            for index in range(len(source)):
                yield split, source[index]

    def finish():
        for split in sources:
            first = ", ".join(map(str, sprites.split_characters(split)[:5]))
            print(f"{split} characters begin with {first}")

    return Plan(
        name="sprites",
        version="1",
        inputs=sources["train"].fingerprint,
        licence="CC-BY-SA 3.0 and GPL 3 (sheets of github.com/YingzhenLi/Sprites)",
        records=lambda: progress(rendered(), sum(map(len, sources.values())), "records"),
        finish=finish,
    )


def plan_videos(args) -> Plan:
    """Plans a dataset from any folder of videos, as clips of equal length, frame rate and size."""
    files, ignored = folders.find_videos(args.src, pictures=True)
    boxes = args.boxes and faces.read_boxes(args.boxes)
    share = folders.TEST_SHARE if args.test_share is None else args.test_share
    if split := folders.split_by_folder(files):
        if args.test_share is not None:
            raise DatasetError(
                f"{args.src}: has the folders train and test, which are the splits; leave out --test_share"
            )
        files, share = split, 0.0
    dealing = {"test_share": share, "seed": args.seed}
    return _plan_folder("videos", "that of the videos", args, files, ignored, boxes, **dealing)


def plan_lrs3(args) -> Plan:
    """Plans LRS3-TED: `pretrain` and `trainval` form the train split; the speakers of `test` are in neither."""
    files, ignored = folders.find_videos(args.src)
    files = folders.split_lrs3(files)
    licence = "CC BY-NC-ND 4.0 (TED talks), see the LRS3-TED terms"
    return _plan_folder("lrs3", licence, args, files, ignored)


def plan_ucf101(args) -> Plan:
    """Plans UCF101 in one of its official splits; clips keep the `label` of their class."""
    files, ignored = folders.find_videos(args.src)
    lists = args.lists or args.src / folders.UCF101_LISTS
    classes, splits = folders.read_ucf101(lists, args.fold)
    files = folders.split_ucf101(files, classes, splits)
    licence = "that of the videos (YouTube), see the UCF101 page"
    plan = _plan_folder("ucf101", licence, args, files, ignored)
    return dataclasses.replace(plan, provenance={"classes": classes, "fold": args.fold})


def plan_portraits(args) -> Plan:
    """Plans a dataset from any folder of videos that each show one face: tubes about the face, with its boxes."""
    files, ignored = folders.find_videos(args.src, pictures=True)
    people = [dataclasses.replace(file, person=file.name) for file in files]
    return _plan_portraits("that of the videos", args, people, ignored)


def plan_hdtf(args) -> Plan:
    """Plans HDTF, downloaded and cut as its instructions say."""
    files, ignored = folders.find_videos(args.src)
    files = portrait_sets.split_hdtf(files, args.test_share, args.seed)
    return _plan_portraits("CC BY 4.0 (HDTF annotations)", args, files, ignored)


def plan_vfhq(args) -> Plan:
    """Plans VFHQ, from folders of pictures or from videos."""
    files, ignored = folders.find_videos(args.src, pictures=True)
    files = portrait_sets.split_vfhq(files, args.test_share, args.seed)
    return _plan_portraits("see the VFHQ terms", args, files, ignored)


def plan_hallo3(args) -> Plan:
    """Plans Hallo3's training videos."""
    files, ignored = folders.find_videos(args.src)
    files = portrait_sets.split_hallo3(files, args.test_share, args.seed)
    return _plan_portraits("CC BY-NC-ND 4.0 (Hallo3's training data)", args, files, ignored)


def plan_nersemble(args) -> Plan:
    """Plans NeRSemble, with the cameras of `--cameras`."""
    files, ignored = folders.find_videos(args.src)
    files = portrait_sets.split_nersemble(files, args.test_share, args.seed, args.cameras)
    return _plan_portraits("see the NeRSemble terms", args, files, ignored)


def plan_mead(args) -> Plan:
    """Plans MEAD, with the views of `--views`; clips keep `label`, the emotion, and `level`, its strength."""
    files, ignored = folders.find_videos(args.src)
    files = portrait_sets.split_mead(files, args.test_share, args.seed, args.views)
    plan = _plan_portraits("see the MEAD terms", args, files, ignored)
    return dataclasses.replace(plan, provenance={"classes": list(portrait_sets.MEAD_EMOTIONS)})


def _plan_portraits(licence, args, files, ignored) -> Plan:
    if args.kind == "portraits":
        files = portrait_sets.split_by_person(files, args.test_share, args.seed)
    return _plan_folder(args.kind, licence, args, files, ignored)


def _plan_folder(name, licence, args, files, ignored, boxes=None, **dealing) -> Plan:
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(Cutting)}
    if args.crop in ("face", "tube"):
        # This must be set before the detector is loaded. Files are cut in parallel already, and the detector's own
        # threads spin while they wait, which makes the work ten times slower when cores are scarce.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        faces.detector()  # fails now rather than later if it is not installed
    job = folders.FolderJob(tuple(files), Cutting(**settings), boxes, ignored, **dealing)
    jobs = args.jobs or _cores()
    run = folders.FolderRun(job, args.out, jobs=jobs, force=args.force, progress=progress)
    records = run.records
    if args.runner:
        records = functools.partial(_by_pipeline, run, job, args)
    return Plan(
        name=name,
        version="1",
        inputs=job.inputs,
        licence=licence,
        records=records,
        finish=run.finish,
        share=run.cut_share,
        clear=run.clear,
    )


def _by_pipeline(run: folders.FolderRun, job: folders.FolderJob, args):
    """Cuts the files with a Beam pipeline, then returns `FolderRun.records`."""
    run.open_parts()
    beam.cut(job, args.out, args.runner, shlex.split(args.beam))
    return run.records()


def write(plan: Plan, out: Path, *, shards: int, force: bool, command: str):
    """Writes the dataset of a plan unless it exists already, and prints what happens.

    Raises:
      DatasetError: `out` holds another dataset, or a damaged one, and `force` is not set.
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
        if (out / folders.PARTS).exists():
            # Skipped if another process is making a replacement of the dataset, or if the folder is read-only.
            with contextlib.suppress(ConfigError, OSError), lock.hold(out):
                plan.clear()
        return
    start = time.perf_counter()
    provenance = {
        **plan.provenance,
        "command": command,
        "inputs": plan.inputs,
        "licence": plan.licence,
    }
    counts: dict[str, int] = {}
    with DatasetWriter(
        out,
        plan.name,
        version=plan.version,
        provenance=provenance,
        shards=shards,
        overwrite=force,
    ) as writer:
        for split, record in plan.records():
            writer.write(split, record)
            counts[split] = counts.get(split, 0) + 1
    plan.finish()
    seconds = time.perf_counter() - start
    print(f"{out}: {plan.name}, {_listing(counts)}, written in {seconds:.1f} s")


def main(argv: list[str] | None = None, plan_latents: Callable[..., Plan] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 an error that the user can fix, 130 interrupted.

    Args:
      argv: the command-line arguments; None takes those of the process.
      plan_latents: makes the plan of the subcommand `latents`. It is passed in because it needs a network, which this
        module does not import; None leaves the subcommand out.
    """
    args = _parser(plan_latents).parse_args(argv)
    try:
        _check_out(args.out, getattr(args, "src", None))
        plan = args.plan(args)
        if part := getattr(args, "part", None):
            if args.force:
                raise ConfigError(
                    "--force discards what the other parts have done; leave out --force or --part"
                )
            print(plan.share(*part))
            return 0
        write(
            plan,
            args.out,
            shards=args.shards,
            force=args.force,
            command=_command(args),
        )
        if args.kind in ("videos", "portraits"):
            print(_how_to_train(args))
    except (ConfigError, DatasetError, ImportError, MediaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: the dataset is not complete; run the same command again", file=sys.stderr
        )
        return 130
    return 0


def _check_out(out: Path, src: Path | None) -> None:
    """Refuses an `out` that is a file or the folder of the videos."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={out} is a file; the dataset is a folder, so choose another name")
    if src is not None and out.resolve() == src.resolve():
        raise ConfigError(
            f"--out={out} is the folder of --src; choose another folder for the dataset, such as data/own"
        )


def _parser(plan_latents):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, help="dataset folder to write")
    common.add_argument("--shards", type=_positive, default=4, help="files per split (default 4)")
    common.add_argument(
        "--force", action="store_true", help="replace a dataset that --out already holds"
    )
    parser = argparse.ArgumentParser(prog="python -m vidmotion.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="kind", required=True)

    kind = kinds.add_parser(
        "sprites", parents=[common], help="the Sprites benchmark, from its sprite sheets"
    )
    kind.add_argument("--sheets", type=Path, required=True, help="folder of sprite sheets")
    kind.set_defaults(plan=plan_sprites)

    clips = _clip_flags(size=256, crop="centre")

    kind = kinds.add_parser("videos", parents=[common, clips], help="any folder of videos")
    kind.add_argument(
        "--boxes",
        type=Path,
        help="crop boxes in place of --crop: JSON {file: [x0, y0, x1, y1]}, or CSV with the header "
        "file,x0,y0,x1,y1; paths are relative to --src, boxes in pixels of the upright video",
    )
    kind.add_argument(
        "--test_share",
        type=_share,
        help="share of the files for the test split (default 0.1; 1 takes them all; if --src has the folders train "
        "and test, these are the splits)",
    )
    kind.add_argument(
        "--seed", type=int, default=0, help="seed for choosing the test files (default 0)"
    )
    kind.set_defaults(plan=plan_videos)

    kind = kinds.add_parser(
        "lrs3", parents=[common, clips], help="LRS3-TED, split by its own folders"
    )
    kind.set_defaults(plan=plan_lrs3)

    kind = kinds.add_parser(
        "ucf101", parents=[common, clips], help="UCF101, split by its own lists"
    )
    kind.add_argument(
        "--lists",
        type=Path,
        help=f"folder with classInd.txt and the split lists (default SRC/{folders.UCF101_LISTS})",
    )
    kind.add_argument(
        "--fold", type=int, choices=(1, 2, 3), default=1, help="official split (default 1)"
    )
    kind.set_defaults(plan=plan_ucf101)

    # X-NeMo, section 4: 25 frames/s, 512 px. Faces of less than 200 px are left out; that number is not in the paper
    # but is the default of the released crop function.
    portraits = _clip_flags(size=512, crop="tube", least=200)
    flag = portraits.add_argument
    default = folders.TEST_SHARE
    flag(
        "--test_share",
        type=_share_below_one,
        default=default,
        help=f"share of the people for the test split (default {default})",
    )
    flag("--seed", type=int, default=0, help="seed for choosing the test people (default 0)")
    for name, plan, what in (
        ("portraits", plan_portraits, "any folder of videos of one face each"),
        ("hdtf", plan_hdtf, "HDTF: <video>_<index>.mp4"),
        ("vfhq", plan_vfhq, "VFHQ: Clip+..., folders of pictures or videos"),
        ("hallo3", plan_hallo3, "Hallo3's training data: videos/<name>.mp4"),
        ("nersemble", plan_nersemble, "NeRSemble: <participant>/sequences/..."),
        ("mead", plan_mead, "MEAD: <actor>/video/<view>/<emotion>/level_<n>/..."),
    ):
        kind = kinds.add_parser(name, parents=[common, portraits], help=what)
        kind.set_defaults(plan=plan)
        if name == "nersemble":
            front = [portrait_sets.NERSEMBLE_FRONT]
            kind.add_argument(
                "--cameras",
                nargs="+",
                default=front,
                help=f"serial numbers of the cameras to take (default {front[0]})",
            )
        if name == "mead":
            kind.add_argument(
                "--views", nargs="+", default=["front"], help="views to take (default front)"
            )

    if plan_latents:
        kind = kinds.add_parser(
            "latents",
            parents=[common],
            help="latents of a dataset of videos, from an image autoencoder",
        )
        flag = kind.add_argument
        flag("--src", type=Path, required=True, help="dataset written by videos or lrs3")
        flag(
            "--network",
            default="sd",
            help="the autoencoder: sd (default), tiny or patch, as in config.system.codec",
        )
        flag("--weights", type=Path, help="file with its weights; patch has none")
        flag(
            "--batch",
            type=_positive,
            default=8,
            help="frames to encode at a time on each device (default 8)",
        )
        kind.set_defaults(plan=plan_latents)
    return parser


def _clip_flags(size: int, crop: str, least: int = 0):
    """Makes a parent parser with the options for cutting videos; the arguments are the defaults of their options."""
    clips = argparse.ArgumentParser(add_help=False)
    flag = clips.add_argument
    flag("--src", type=Path, required=True, help="folder of videos, at any depth")
    flag("--fps", type=_number(0, 1000), default=25.0, help="frames per second (default 25)")
    flag(
        "--size",
        type=_even,
        default=size,
        help="height and width in pixels, even: the size that the config takes, N for own:size=N, 224 for vidtwin, "
        f"256 for lrs3 and warpface, 512 for xnemo (default {size})",
    )
    flag(
        "--seconds",
        type=_number(0, 3600),
        default=4.0,
        help="length of a clip in seconds (default 4)",
    )
    flag(
        "--cut",
        type=_number(0, 256),
        default=25.0,
        help="mean absolute difference of two frames, of 255, above which the scene changes (default 25; 255: never)",
    )
    flag(
        "--crop",
        choices=("centre", "face", "tube"),
        default=crop,
        help="centre: the largest square; face: one square per clip about the face; clips without a face are left "
        "out and counted (needs the extra `face`); tube: one square per clip about all places where the face goes, and "
        f"its box in every frame (default {crop})",
    )
    flag(
        "--face_scale",
        type=_number(0, 100),
        default=2.0,
        help="ratio of the side of that square to the side of the face, eyebrows to chin (default 2)",
    )
    flag(
        "--least",
        type=int,
        default=least,
        help=f"tube: leave out faces smaller than this, in pixels of the video (default {least})",
    )
    flag(
        "--border",
        choices=("black", "shrink"),
        default="black",
        help="tube: where the square leaves the picture, fill it with black or shrink it (default black)",
    )
    flag("--codec", choices=("h264", "raw"), default="h264", help="how clips are stored")
    flag("--jobs", type=_positive, help="number of threads (default: one per core)")
    flag(
        "--part", type=_part, help="I/N: cut every N-th file from the I-th on, and write no dataset"
    )
    flag("--runner", help="cut in an Apache Beam pipeline: DirectRunner, DataflowRunner, ...")
    flag("--beam", default="", help="options of Beam and of that runner, in one string")
    return clips


def _positive(text):
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _part(text):
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got {text}")
    return int(part), int(parts)


def _even(text):
    number = _positive(text)
    if number % 2:
        raise argparse.ArgumentTypeError(f"must be even, for H.264, got {number}")
    return number


def _float(text):
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _number(low, high):
    def number(text):
        value = _float(text)
        if not low < value < high:
            raise argparse.ArgumentTypeError(
                f"must be more than {low:g} and less than {high:g}, got {text}"
            )
        return value

    return number


def _share(text):
    value = _float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _share_below_one(text):
    value = _float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be 0 or more and less than 1, got {text}")
    return value


def _cores() -> int:
    """Returns the number of cores that this process may use, or that the machine has if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _command(args) -> str:
    """Returns the command that rebuilds this dataset from any working directory, even if `out` holds one by then."""
    left_out = ("kind", "plan", "force", "part", "runner", "beam")  # none changes the dataset
    values = {k: v for k, v in vars(args).items() if k not in left_out and v is not None}
    flags = [
        f"--{name}={value.resolve() if isinstance(value, Path) else value}"
        for name, value in values.items()
        if not isinstance(value, list)
    ]
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
    return shlex.join(["python", "-m", "vidmotion.data.prepare", args.kind, *flags, "--force"])


def _how_to_train(args) -> str:
    """Returns a hint on how to train on one's own clips."""
    if args.size not in OWN_SIZES:
        sizes = ", ".join(map(str, OWN_SIZES))
        return f"configs/own.py trains on clips of {sizes} pixels: to use it, set --size to one of these"
    return (
        f"to train on it: vidmotion train --config=own:system=bcd,size={args.size} "
        f"--config.data.common.directory={args.out} --workdir=runs/own"
    )


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def progress(items: Iterable, total: int, unit: str) -> Iterator:
    """Passes items on and shows progress: a bar on a terminal, elsewhere a line for every tenth of the items."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=f" {unit}")
        return
    step = max(1, total // 10)
    for done, item in enumerate(items, start=1):
        yield item
        if done % step == 0:
            print(f"{done:,} of {total:,} {unit}", flush=True)
