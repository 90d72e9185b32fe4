"""Folders of video files -> the records of a dataset, in parallel and resumably.

Work goes file by file into `<out>/parts`: a file that is finished has its clips there and, written
last, a JSON of what became of it. An interrupted preparation goes on with the files that are not
finished (those that could not be read are tried again); which thread does a file and when has no
effect on the result, nor has which machine: several may share the work where all of them reach that folder (`share`,
`beam`). Once the dataset is complete, `parts` is removed; until then the clips take their room twice.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import safetensors.numpy

from vidmotion.data.prepare.cutting import Cutting, Tally, cut_video
from vidmotion.data.records import INDEX, DatasetError, writing
from vidmotion.files import aside, atomic_write
from vidmotion.media import MediaError
from vidmotion.video import FRAME_SUFFIXES

SUFFIXES = tuple(
    f".{kind}"
    for kind in (
        *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"),
    )
)
LEAST_PICTURES = 16  # numbered, of a folder that is a video
PARTS, REPORT, SETTINGS = "parts", "report.json", "settings.json"  # the last in the first
TEST_SHARE = 0.1
UCF101_LISTS = "ucfTrainTestlist"  # the folder of lists as it comes
UCF101_FILE = re.compile(r"(?P<video>(?P<class>\w+)/v_\w+_g(?P<group>\d+)_c\d+)\.avi")
LRS3 = {"pretrain": "train", "trainval": "train", "test": "test"}  # folder -> split


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A video file.

    Attributes:
      name: relative to the folder, with forward slashes.
      path: the path of the file.
      size: bytes.
      split: that it belongs to; "" where that is left to `FolderJob`.
      label: index of its class, which its clips keep as `label`; None where files have no class.
      level: how strong what the label says is, kept as `level`; None where that is not known.
      person: who is in it, kept as `person`; "" where that is not known.
    """

    name: str
    path: Path
    size: int
    split: str = ""
    label: int | None = None
    level: int | None = None
    person: str = ""

    @property
    def known(self) -> dict[str, int | str]:
        """Label, level and person, as far as they are known."""
        all_three = {"label": self.label, "level": self.level, "person": self.person}
        return {name: value for name, value in all_three.items() if value not in (None, "")}

    @property
    def labels(self) -> dict:
        """What is stored with each clip of this file."""
        kept = {k: v if isinstance(v, str) else np.int32(v) for k, v in self.known.items()}
        return {**kept, "source": self.name}


@dataclasses.dataclass(frozen=True)
class FolderJob:
    """Everything that decides what a folder of videos becomes.

    A file is known by its name and size: the digests do not read it.

    Attributes:
      files: in the order of their clips in the dataset.
      boxes: name -> crop box, for every file that is to be used; None where there is no box file.
      cutting: settings.
      ignored: number of files that are no videos, by suffix.
      test_share: the share of the files that give clips and have no split, at random, for "test" rather than
        "train"; at least one of several, unless 0, and not all of them, unless 1.
      seed: the seed of that choice.
    """

    files: tuple[SourceFile, ...]
    cutting: Cutting
    boxes: Mapping[str, np.ndarray] | None = None
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    test_share: float = 0.0
    seed: int = 0

    @functools.cached_property
    def settings(self) -> str:
        """Hex digest of what the clips of a file depend on besides the file."""
        boxes = self.boxes and {name: list(box) for name, box in sorted(self.boxes.items())}
        return _digest(json.dumps([dataclasses.asdict(self.cutting), boxes]))

    @functools.cached_property
    def inputs(self) -> str:
        """Hex digest of settings, files and splits."""
        files = [(file.name, file.size, file.split, *file.known.values()) for file in self.files]
        return _digest(json.dumps([self.settings, files, self.test_share, self.seed]))

    def splits(self, names: Iterable[str]) -> dict[str, str]:
        """Split of each of the files that give clips, by name; all of a file is in one."""
        given = {file.name: file.split for file in self.files}
        found = {name: given[name] or "train" for name in names}
        free = [name for name in found if not given[name]]
        if self.test_share == 1:
            found.update(dict.fromkeys(free, "test"))
        elif self.test_share and len(free) > 1:
            count = min(len(free) - 1, max(1, round(self.test_share * len(free))))
            ranked = sorted(free, key=lambda name: _digest(f"{self.seed}/{name}"))
            found.update(dict.fromkeys(ranked[:count], "test"))
        return found


def find_videos(folder: Path, pictures: bool = False) -> tuple[list[SourceFile], dict[str, int]]:
    """All videos below a folder, sorted by name; hidden ones do not count, links to folders are followed.

    Args:
      folder: where.
      pictures: whether a folder of at least `LEAST_PICTURES` numbered pictures is a video, too.

    Returns:
      (files without splits, number of other files by suffix, and of folders that are not read).

    Raises:
      DatasetError: no such folder, or no videos in it.
    """
    if folder.is_file():
        raise DatasetError(f"{folder}: a file; --src is the folder in which it lies")
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of videos")
    files, others, seen = [], Counter(), set()

    def relative(path: Path) -> str:
        return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")

    def unreadable(_: OSError) -> None:
        others["folders that cannot be read"] += 1

    waiting = [folder]  # links come last, so that a folder goes by its own name
    while waiting:
        top = waiting.pop(0)
        for parent, folders, names in os.walk(top, onerror=unreadable):
            if Path(parent).resolve() in seen:
                folders.clear()
                others["links to folders that are in it already"] += 1
                continue
            seen.add(Path(parent).resolve())
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [path for path in (Path(parent, n) for n in folders) if path.is_symlink()]
            paths = [Path(parent, name) for name in names if not name.startswith(".")]
            numbered = [
                path
                for path in paths
                if path.suffix.lower() in FRAME_SUFFIXES and path.stem.isdecimal()
            ]
            if pictures and len(numbered) >= LEAST_PICTURES:
                size = sum(path.stat().st_size for path in numbered)
                files.append(SourceFile(relative(Path(parent)), Path(parent), size))
                paths = [path for path in paths if path not in set(numbered)]
            for path in paths:
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    files.append(SourceFile(relative(path), path, path.stat().st_size))
                else:
                    others[path.suffix.lower()] += 1
    if not files:
        raise DatasetError(f"{folder}: no video files in it or below ({' '.join(SUFFIXES)})")
    return sorted(files, key=lambda file: file.name), dict(sorted(others.items()))


def split_by_folder(files: Iterable[SourceFile]) -> list[SourceFile] | None:
    """Splits by the top folders `train` and `test`, leaving out other files; None without both."""
    found = [
        dataclasses.replace(file, split=split)
        for file in files
        for split in ("train", "test")
        if file.name.startswith(f"{split}/")
    ]
    return found if len({file.split for file in found}) == 2 else None


def split_lrs3(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Splits of LRS3 from its folders <set>/<speaker>/<utterance>.mp4, the sets those of `LRS3`.

    Raises:
      DatasetError: a file lies elsewhere, a split is missing, or a speaker is in both.
    """
    split, speakers = [], {"train": set(), "test": set()}
    for file in files:
        parts = file.name.split("/")
        if len(parts) != 3 or parts[0] not in LRS3:
            raise DatasetError(
                f"{file.path}: not where LRS3 has its files: "
                f"{{{','.join(LRS3)}}}/<speaker>/<utterance>.mp4 below --src"
            )
        split.append(dataclasses.replace(file, split=LRS3[parts[0]]))
        speakers[LRS3[parts[0]]].add(parts[1])
    for name, found in speakers.items():
        if not found:
            folders = " or ".join(folder for folder in LRS3 if LRS3[folder] == name)
            raise DatasetError(f"no videos for {name}: LRS3 has them in the folder {folders}")
    if both := sorted(speakers["train"] & speakers["test"]):
        raise DatasetError(
            f"{len(both)} speakers are in both train and test, {both[0]} for one: not LRS3's split"
        )
    return split


def read_ucf101(lists: Path, fold: int) -> tuple[list[str], dict[str, str]]:
    """Classes of UCF101 and one of its three official splits.

    Args:
      lists: folder with classInd.txt, trainlist0?.txt and testlist0?.txt.
      fold: 1, 2 or 3.

    Returns:
      (names of the classes in the order of classInd.txt, file -> "train" or "test"), files as the lists
      name them: <class>/v_<class>_g<group>_c<clip>.avi.

    Raises:
      DatasetError: a list is missing or is not of this form, or a group of videos, which shows one
        person in one place, is in both splits.
    """

    def lines(name):
        try:
            return (lists / name).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{lists / name}: {error}. It is one of the lists of UCF101, TrainTestSplits-"
                "RecognitionTask.zip; say with --lists where they lie"
            ) from error

    numbered = [line.split() for line in lines("classInd.txt") if line.strip()]
    if [entry[0] for entry in numbered] != [str(k + 1) for k in range(len(numbered))]:
        raise DatasetError(f"{lists / 'classInd.txt'}: not lines of 1, 2, 3, ... and a name each")
    classes = [entry[-1] for entry in numbered]
    splits, groups = {}, {}
    for split in ("train", "test"):
        name = f"{split}list{fold:02d}.txt"
        for line in filter(None, map(str.strip, lines(name))):
            file = line.split()[0]  # train lists have the class's number behind it
            match = UCF101_FILE.fullmatch(file)
            if not match or match["class"] not in classes:
                raise DatasetError(
                    f"{lists / name}: {file!r} is not <class>/v_<class>_g<group>_c<clip>.avi with a "
                    "class of classInd.txt"
                )
            group = match["class"], match["group"]
            if groups.setdefault(group, split) != split:
                raise DatasetError(
                    f"{lists}: group {match['group']} of {match['class']} is in both train and test of "
                    f"fold {fold}: not UCF101's split"
                )
            splits[file] = split
    return classes, splits


def split_ucf101(
    files: Iterable[SourceFile], classes: list[str], splits: Mapping[str, str]
) -> list[SourceFile]:
    """Split and label of every file of UCF101, from `read_ucf101`.

    A file is found by the last two parts of its name, so the folder of videos may lie deeper; its
    suffix does not count.

    Raises:
      DatasetError: a listed file is missing, or there is one that is not listed.
    """
    wanted = {UCF101_FILE.fullmatch(name)["video"]: split for name, split in splits.items()}
    found, strangers = [], []
    for file in files:
        video = "/".join(file.name.split("/")[-2:]).rpartition(".")[0]
        if video not in wanted:
            strangers.append(file.name)
            continue
        label = classes.index(video.split("/")[0])
        found.append(dataclasses.replace(file, split=wanted.pop(video), label=label))
    for names, what in ((sorted(wanted), "are missing"), (strangers, "are on no list")):
        if names:
            raise DatasetError(f"{len(names)} videos of UCF101 {what}, {names[0]} for one")
    return found


class FolderRun:
    """Carries a `FolderJob` out in `<out>/parts`.

    Attributes:
      summary: what is in report.json, once `records` is exhausted.
    """

    def __init__(self, job: FolderJob, out: Path, *, jobs: int, force: bool, progress: Callable):
        """Describes the run; nothing is touched yet.

        Args:
          job: what to do.
          out: the dataset's folder.
          jobs: threads that decode and encode.
          force: discard an unfinished preparation with other settings.
          progress: (iterator, total, label) -> iterator, to be watched.
        """
        self._job, self._jobs, self._force, self._progress = job, jobs, force, progress
        self._out, self._parts = out, out / PARTS
        self._failed: dict[str, str] = {}
        self._done: dict[str, dict] = {}
        self._frames, self._seconds = 0, 0.0
        self._stop = threading.Event()

    def records(self) -> Iterator[tuple[str, Mapping]]:
        """(split, record) of all clips in order, the files done first; then writes the report.

        Raises:
          DatasetError: unfinished work with other settings in `out`, or not a single clip.
        """
        self.open_parts()
        self._cut_files(self._job.files)
        counts = Counter()
        splits = self._job.splits(name for name, tally in self._done.items() if tally["clips"])
        for file in (file for file in self._job.files if file.name in splits):
            for record in self._read_part(file):
                counts[splits[file.name]] += 1
                yield splits[file.name], {**record, **file.labels}
        self.summary = {
            "clips": dict(counts),
            "files": len(self._job.files),
            "unreadable": self._failed,
            "without clips": {
                name: f"{tally['seconds']:.2f} s, {tally['cuts']} cuts: {tally['short']} pieces too "
                f"short, {tally['faceless']} without a face, {tally['small']} with one too small"
                for name, tally in self._done.items()
                if not tally["clips"]
            },
            "ignored by suffix": dict(self._job.ignored),
            "settings": dataclasses.asdict(self._job.cutting),
            "per file": self._done,
        }
        _write_json(self._out / REPORT, self.summary)
        if not counts:
            self._print_failures()
            raise DatasetError(
                f"no clip came of {len(self._job.files)} files: {self._why_none()}. Of each file: {self._out / REPORT}"
            )

    def cut_share(self, part: int, parts: int) -> str:
        """Do every `parts`-th file, from the one of number `part` (from 1) on, and leave the dataset to others.

        Returns:
          what to tell the user.

        Raises:
          DatasetError: as `records`, or the dataset is there.
        """
        if (self._out / INDEX).exists():
            raise DatasetError(f"{self._out}: holds a dataset already, all parts of which are done")
        self.open_parts()
        files = self._job.files[part - 1 :: parts]
        self._cut_files(files)
        return (
            f"{self._parts}: part {part} of {parts} is done, {len(self._done):,} of its {len(files):,} files; the "
            "same command without --part writes the dataset, once all parts are done"
        )

    def cut(self, file: SourceFile) -> None:
        """Make the part of one file, if it is not there; for workers of a pipeline, who each have a run of their own.
        What cannot be read is left to be told by `records`."""
        if not self._part(file, ".json").exists():
            self._cut_file(file, 1)

    def finish(self):
        """After the dataset is complete: prints what happened and removes `parts`."""
        self._discard()
        tallies, seconds = self._done.values(), self._job.cutting.seconds
        total = Counter()
        for tally in tallies:
            total.update(tally)
        print(
            f"{len(tallies):,} files, {total['seconds']:,.0f} s of video: {total['clips']:,} clips "
            f"of {seconds:g} s; left out {total['short']:,} pieces that are shorter, "
            f"{total['faceless']:,} without a face and {total['small']:,} with one too small; "
            f"{total['cuts']:,} cuts"
        )
        if total["lost"]:
            names = [name for name, tally in self._done.items() if tally.get("lost")]
            shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            print(f"{total['lost']:,} frames of {len(names):,} files cannot be decoded: {shown}")
        if self._frames:
            rate = self._frames / self._seconds
            print(f"{self._frames:,} frames in {self._seconds:.1f} s: {rate:.0f} frames/s")
        if self._job.ignored:
            kinds = (f"{n:,} {kind or 'without suffix'}" for kind, n in self._job.ignored.items())
            print(f"passed over, no videos: {', '.join(kinds)}")
        self._print_failures()

    def clear(self):
        """Removes what a process left that was killed when the dataset was complete and `parts` not yet removed."""
        there = _read_json(self._parts / SETTINGS)
        if there == self._job.settings or (self._parts.is_dir() and not any(self._parts.iterdir())):
            self._discard()

    def _discard(self):
        """Removes `parts`, its settings last, so that a killed process leaves what `clear` knows."""
        mark = self._parts / SETTINGS
        for path in self._parts.iterdir():
            if path != mark:
                path.unlink()
        mark.unlink(missing_ok=True)
        self._parts.rmdir()

    def open_parts(self):
        """The folder of the parts, begun or gone on with. Raises: DatasetError as `records`."""
        mark = self._parts / SETTINGS
        there = _read_json(mark)
        if mark.exists() and there != self._job.settings:
            if there is not None and not self._force:
                raise DatasetError(
                    f"{self._out}: holds an unfinished preparation with other settings. Run its "
                    "command again to finish it, or discard it with --force."
                )
            shutil.rmtree(self._parts)
        self._parts.mkdir(parents=True, exist_ok=True)
        _write_json(mark, self._job.settings)

    def _cut_files(self, files: Iterable[SourceFile]):
        todo = []
        for file in files:
            outcome = _read_json(self._part(file, ".json"))
            if outcome is not None and self._is_whole(file, outcome):
                self._done[file.name] = outcome
            else:
                todo.append(file)
        if self._done:
            print(f"{len(self._done):,} files are finished, {len(todo):,} to go", flush=True)
        start = time.perf_counter()
        # Threads suit the work: decoding, scaling and encoding all leave the interpreter free.
        workers = min(self._jobs, len(todo)) or 1
        with ThreadPoolExecutor(workers) as pool:
            futures = {
                pool.submit(self._cut_file, file, max(1, self._jobs // workers)): file
                for file in todo
            }
            try:
                for future in self._progress(as_completed(futures), len(futures), "files"):
                    name, outcome = futures[future].name, future.result()
                    if isinstance(outcome, str):
                        self._failed[name] = outcome
                    else:
                        self._done[name] = outcome
                        self._frames += outcome["frames"]
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        self._seconds = time.perf_counter() - start
        order = [file.name for file in files]
        self._failed = {name: self._failed[name] for name in order if name in self._failed}
        self._done = {name: self._done[name] for name in order if name in self._done}

    def _cut_file(self, file: SourceFile, threads: int) -> dict | str:
        """Makes the part of a file. Returns its tally, or why it cannot be read."""
        from array_record.python.array_record_module import ArrayRecordWriter

        boxes, tally = self._job.boxes, Tally()
        if boxes is not None and file.name not in boxes:
            return "no box for it in the box file"
        box = boxes and boxes[file.name]
        options = {"box": box, "threads": threads, "check": self._check}
        try:
            with aside(self._part(file, ".array_record")) as part:
                writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
                try:
                    for record in cut_video(file.path, self._job.cutting, tally, **options):
                        arrays = {name: np.asarray(value) for name, value in record.items()}
                        with writing(part):
                            writer.write(safetensors.numpy.save(arrays))
                finally:
                    with writing(part):
                        writer.close()
        except MediaError as error:
            return str(error)
        _write_json(self._part(file, ".json"), dataclasses.asdict(tally))
        return dataclasses.asdict(tally)

    def _check(self):
        if self._stop.is_set():
            raise _StoppedError

    def _read_part(self, file):
        with self._reader(file) as reader:
            for row in range(self._done[file.name]["clips"]):
                yield safetensors.numpy.load(reader.read([row])[0])

    def _is_whole(self, file: SourceFile, outcome: Mapping) -> bool:
        """Whether the clips of a finished file are there: a machine that stops at once may lose what it wrote last."""
        try:
            with self._reader(file) as reader:
                return reader.num_records() == outcome["clips"]
        except (RuntimeError, KeyError, TypeError):
            return False

    @contextlib.contextmanager
    def _reader(self, file: SourceFile):
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(
            str(self._part(file, ".array_record")),
            options="readahead_buffer_size:0,max_parallelism:0",
        )
        try:
            yield reader
        finally:
            reader.close()

    def _part(self, file: SourceFile, suffix: str) -> Path:
        return self._parts / (_digest(f"{file.name}/{file.size}")[:32] + suffix)

    def _why_none(self) -> str:
        """What became of all that was read, and the option that would take it in."""
        total, cutting = Counter(), self._job.cutting
        for tally in self._done.values():
            total.update({name: tally[name] for name in ("short", "faceless", "small")})
        why = []
        if self._failed:
            why.append(f"{len(self._failed)} cannot be read")
        if total["faceless"]:
            why.append(
                f"no face was found in {total['faceless']} pieces (--crop=centre looks for none)"
            )
        if total["small"]:
            why.append(
                f"the face of {total['small']} pieces has less than --least={cutting.least} pixels"
            )
        if total["short"] and len(why) == bool(self._failed):  # else these are what others left
            why.append(
                f"all {total['short']} pieces between cuts are shorter than --seconds={cutting.seconds:g}, which can "
                "be less"
            )
        return "; ".join(why)

    def _print_failures(self, most: int = 20):
        for kind in ("unreadable", "without clips"):
            files = self.summary[kind]
            if files:
                print(f"{kind}, {len(files):,} files (all are in {REPORT}):")
            for name in list(files)[:most]:
                print(f"  {name}: {files[name]}")


class _StoppedError(Exception):
    """Ends a thread's work on a file; never seen, for the interruption itself is what is raised."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path):
    """What `_write_json` wrote; None where that is not there or is torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _write_json(path: Path, value):
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
