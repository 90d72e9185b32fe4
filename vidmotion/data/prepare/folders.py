"""Turns folders of video files into the records of a dataset, in parallel and resumably.

Files are cut one by one into `<out>/parts`. A finished file has its clips there, and a JSON file with its tally, which
is written last. An interrupted preparation continues with the unfinished files and tries unreadable files again. The
result does not depend on which thread or machine cuts a file, or when, so several machines can share the work if all of
them can reach that folder (`FolderRun.cut_share`, `beam`). `parts` is removed once the dataset is complete; until then
the clips take up their disk space twice.
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
LEAST_PICTURES = 16  # a folder with at least this many numbered pictures is a video
PARTS, REPORT, SETTINGS = "parts", "report.json", "settings.json"  # SETTINGS lies in PARTS
TEST_SHARE = 0.1
UCF101_LISTS = "ucfTrainTestlist"  # the folder of split lists, as UCF101's archive names it
UCF101_FILE = re.compile(r"(?P<video>(?P<class>\w+)/v_\w+_g(?P<group>\d+)_c\d+)\.avi")
LRS3 = {"pretrain": "train", "trainval": "train", "test": "test"}  # folder -> split


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A video file.

    Attributes:
      name: the file's name relative to the folder of videos, with forward slashes.
      path: the path of the file.
      size: the size of the file in bytes.
      split: the split that the file belongs to; "" leaves the choice to `FolderJob`.
      label: the index of the file's class, stored with its clips as `label`; None if files have no class.
      level: the strength of the emotion in `label`, stored with the clips as `level`; None if unknown.
      person: the person in the video, stored with the clips as `person`; "" if unknown.
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
        """Label, level and person by name, without those that are unknown."""
        all_three = {"label": self.label, "level": self.level, "person": self.person}
        return {name: value for name, value in all_three.items() if value not in (None, "")}

    @property
    def labels(self) -> dict:
        """The entries that every clip of this file is stored with: `known`, and `source`."""
        kept = {k: v if isinstance(v, str) else np.int32(v) for k, v in self.known.items()}
        return {**kept, "source": self.name}


@dataclasses.dataclass(frozen=True)
class FolderJob:
    """The files and settings that determine the dataset made from a folder of videos.

    Files are identified by name and size; the digests do not read their content.

    Attributes:
      files: the files, in the order of their clips in the dataset.
      boxes: the crop box of every file that is to be used, by file name; None if there is no box file.
      cutting: how clips are cut.
      ignored: the number of files that are not videos, by suffix.
      test_share: the share of the files that is dealt to "test" at random; the rest go to "train". Only files that give
        clips and have no split are dealt. Of several files at least one goes to "test", unless the share is 0, and at
        least one to "train", unless it is 1.
      seed: the seed of that random choice.
    """

    files: tuple[SourceFile, ...]
    cutting: Cutting
    boxes: Mapping[str, np.ndarray] | None = None
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    test_share: float = 0.0
    seed: int = 0

    @functools.cached_property
    def settings(self) -> str:
        """Hex digest of everything besides the file itself that its clips depend on."""
        boxes = self.boxes and {name: list(box) for name, box in sorted(self.boxes.items())}
        return _digest(json.dumps([dataclasses.asdict(self.cutting), boxes]))

    @functools.cached_property
    def inputs(self) -> str:
        """Hex digest of the settings, the files and how they are split."""
        files = [(file.name, file.size, file.split, *file.known.values()) for file in self.files]
        return _digest(json.dumps([self.settings, files, self.test_share, self.seed]))

    def splits(self, names: Iterable[str]) -> dict[str, str]:
        """Assigns each file to one split.

        Args:
          names: the names of the files that give clips.

        Returns:
          name -> split. All clips of a file are in the same split.
        """
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
    """Finds all videos below a folder, sorted by name. Hidden files are skipped; links to folders are followed.

    Args:
      folder: the folder to search.
      pictures: whether a folder of at least `LEAST_PICTURES` numbered pictures counts as a video, too.

    Returns:
      (files, others): the videos, their splits not yet set, and the number of other files by suffix, together with the
      number of folders that were not read.

    Raises:
      DatasetError: the folder does not exist, or there are no videos in it.
    """
    if folder.is_file():
        raise DatasetError(f"{folder}: is a file; --src must be the folder that holds it")
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of videos")
    files, others, seen = [], Counter(), set()

    def relative(path: Path) -> str:
        return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")

    def unreadable(_: OSError) -> None:
        others["folders that cannot be read"] += 1

    waiting = [folder]  # links come last, so that a folder is listed under its own name
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
    """Takes splits from the top-level folders `train` and `test`, and leaves out all other files.

    Returns:
      The files with their splits; None unless both folders have files.
    """
    found = [
        dataclasses.replace(file, split=split)
        for file in files
        for split in ("train", "test")
        if file.name.startswith(f"{split}/")
    ]
    return found if len({file.split for file in found}) == 2 else None


def split_lrs3(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Takes LRS3's splits from its folders <set>/<speaker>/<utterance>.mp4, where <set> is a key of `LRS3`.

    Raises:
      DatasetError: a file lies elsewhere, a split is missing, or a speaker is in both splits.
    """
    split, speakers = [], {"train": set(), "test": set()}
    for file in files:
        parts = file.name.split("/")
        if len(parts) != 3 or parts[0] not in LRS3:
            raise DatasetError(
                f"{file.path}: is not where LRS3 has its files: "
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
            f"{len(both)} speakers are in both train and test, such as {both[0]}: this is not LRS3's split"
        )
    return split


def read_ucf101(lists: Path, fold: int) -> tuple[list[str], dict[str, str]]:
    """Reads the classes of UCF101 and one of its three official splits.

    Args:
      lists: the folder with classInd.txt, trainlist0?.txt and testlist0?.txt.
      fold: which official split to read: 1, 2 or 3.

    Returns:
      (classes, splits): the names of the classes in the order of classInd.txt, and "train" or "test" for each file.
      Files are named as in the lists: <class>/v_<class>_g<group>_c<clip>.avi.

    Raises:
      DatasetError: a list is missing or malformed, or a group of videos (one person in one place) is in both splits.
    """

    def lines(name):
        try:
            return (lists / name).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{lists / name}: {error}. It is one of the lists in UCF101's TrainTestSplits-"
                "RecognitionTask.zip; name their folder with --lists"
            ) from error

    numbered = [line.split() for line in lines("classInd.txt") if line.strip()]
    if [entry[0] for entry in numbered] != [str(k + 1) for k in range(len(numbered))]:
        raise DatasetError(
            f"{lists / 'classInd.txt'}: its lines must be numbered 1, 2, 3, ..., each with a name"
        )
    classes = [entry[-1] for entry in numbered]
    splits, groups = {}, {}
    for split in ("train", "test"):
        name = f"{split}list{fold:02d}.txt"
        for line in filter(None, map(str.strip, lines(name))):
            file = line.split()[0]  # in train lists, the class's number follows the name
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
                    f"fold {fold}: this is not UCF101's split"
                )
            splits[file] = split
    return classes, splits


def split_ucf101(
    files: Iterable[SourceFile], classes: list[str], splits: Mapping[str, str]
) -> list[SourceFile]:
    """Sets the split and label of every file of UCF101, using the classes and splits of `read_ucf101`.

    Files are matched by the last two parts of their name, so the videos may lie deeper in the folder. The suffix is
    ignored.

    Raises:
      DatasetError: a listed file is missing, or a file is not listed.
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
            raise DatasetError(f"{len(names)} videos of UCF101 {what}, such as {names[0]}")
    return found


class FolderRun:
    """Carries out a `FolderJob` in `<out>/parts`.

    Attributes:
      summary: the content of report.json; set once `records` is exhausted.
    """

    def __init__(self, job: FolderJob, out: Path, *, jobs: int, force: bool, progress: Callable):
        """Sets up the run without touching any files.

        Args:
          job: the files to cut, and how.
          out: the dataset's folder.
          jobs: the number of threads that decode and encode.
          force: whether to discard an unfinished preparation that has other settings.
          progress: (iterator, total, label) -> iterator that also shows progress.
        """
        self._job, self._jobs, self._force, self._progress = job, jobs, force, progress
        self._out, self._parts = out, out / PARTS
        self._failed: dict[str, str] = {}
        self._done: dict[str, dict] = {}
        self._frames, self._seconds = 0, 0.0
        self._stop = threading.Event()

    def records(self) -> Iterator[tuple[str, Mapping]]:
        """Cuts the remaining files, yields (split, record) of all clips in order, then writes the report.

        Raises:
          DatasetError: `out` holds unfinished work with other settings, or there is not a single clip.
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
                f"no clip came from {len(self._job.files)} files: {self._why_none()}. "
                f"See {self._out / REPORT} for each file"
            )

    def cut_share(self, part: int, parts: int) -> str:
        """Cuts every `parts`-th file, starting at file number `part` (counted from 1), and writes no dataset.

        Returns:
          A message for the user.

        Raises:
          DatasetError: as in `records`, or the dataset is complete already.
        """
        if (self._out / INDEX).exists():
            raise DatasetError(
                f"{self._out}: holds a complete dataset already, so all parts are done"
            )
        self.open_parts()
        files = self._job.files[part - 1 :: parts]
        self._cut_files(files)
        return (
            f"{self._parts}: part {part} of {parts} is done, {len(self._done):,} of its {len(files):,} files; once "
            "all parts are done, the same command without --part writes the dataset"
        )

    def cut(self, file: SourceFile) -> None:
        """Makes the part of one file unless it exists. Meant for pipeline workers, each of which has its own run.

        Files that cannot be read are not reported; `records` reports them.
        """
        if not self._part(file, ".json").exists():
            self._cut_file(file, 1)

    def finish(self):
        """Prints a summary and removes `parts`; call it once the dataset is complete."""
        self._discard()
        tallies, seconds = self._done.values(), self._job.cutting.seconds
        total = Counter()
        for tally in tallies:
            total.update(tally)
        print(
            f"{len(tallies):,} files, {total['seconds']:,.0f} s of video: {total['clips']:,} clips "
            f"of {seconds:g} s; left out {total['short']:,} shorter pieces, "
            f"{total['faceless']:,} without a face and {total['small']:,} with one too small; "
            f"{total['cuts']:,} cuts"
        )
        if total["lost"]:
            names = [name for name, tally in self._done.items() if tally.get("lost")]
            shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            print(f"{total['lost']:,} frames of {len(names):,} files could not be decoded: {shown}")
        if self._frames:
            rate = self._frames / self._seconds
            print(f"{self._frames:,} frames in {self._seconds:.1f} s: {rate:.0f} frames/s")
        if self._job.ignored:
            kinds = (f"{n:,} {kind or 'without suffix'}" for kind, n in self._job.ignored.items())
            print(f"skipped, not videos: {', '.join(kinds)}")
        self._print_failures()

    def clear(self):
        """Removes `parts` if a process completed the dataset but was killed before it could remove them."""
        there = _read_json(self._parts / SETTINGS)
        if there == self._job.settings or (self._parts.is_dir() and not any(self._parts.iterdir())):
            self._discard()

    def _discard(self):
        """Removes `parts`, with its settings last, so that `clear` recognises what a killed process leaves behind."""
        mark = self._parts / SETTINGS
        for path in self._parts.iterdir():
            if path != mark:
                path.unlink()
        mark.unlink(missing_ok=True)
        self._parts.rmdir()

    def open_parts(self):
        """Opens the folder of the parts, or creates it. Raises: DatasetError as in `records`."""
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
            print(f"{len(self._done):,} files are finished, {len(todo):,} remain", flush=True)
        start = time.perf_counter()
        # Threads suit this work: decoding, scaling and encoding all release the GIL.
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
        """Makes the part of a file. Returns its tally, or the reason why it cannot be read."""
        from array_record.python.array_record_module import ArrayRecordWriter

        boxes, tally = self._job.boxes, Tally()
        if boxes is not None and file.name not in boxes:
            return "the box file has no box for this file"
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
        """Whether all clips of a finished file are on disk: a machine that crashes may lose its latest writes."""
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
        """Explains why the files gave no clips, and names the options that would change that."""
        total, cutting = Counter(), self._job.cutting
        for tally in self._done.values():
            total.update({name: tally[name] for name in ("short", "faceless", "small")})
        why = []
        if self._failed:
            why.append(f"{len(self._failed)} cannot be read")
        if total["faceless"]:
            why.append(
                f"no face was found in {total['faceless']} pieces (--crop=centre does not look for one)"
            )
        if total["small"]:
            why.append(
                f"the face in {total['small']} pieces is smaller than --least={cutting.least} pixels"
            )
        if total["short"] and len(why) == bool(self._failed):  # otherwise remainders of scenes
            why.append(
                f"all {total['short']} pieces between cuts are shorter than --seconds={cutting.seconds:g}; choose "
                "a smaller value"
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
    """Ends a thread's work on a file. Callers never see it, because the interruption itself is raised."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path):
    """Reads a file that `_write_json` wrote; None if it does not exist or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _write_json(path: Path, value):
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
