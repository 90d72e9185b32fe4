"""Data sets of talking portraits: where each keeps its files, who is in them, and how they are split.

Each function takes the files below `--src` and returns those that belong to the set, with person, labels and split.
Only VFHQ publishes a split. For the other sets, people are dealt to train and test, so that nobody is in both.

HDTF (github.com/MRzzm/HDTF) publishes links, times and crops of YouTube videos. Its instructions name the cut clips
    <video>_<index>.mp4, with videos such as WDA_BarackObama, WRA_LamarAlexander0 and RD_Radio11. Scripts for it, such
    as github.com/universome/HDTF, write 512 px crops.
VFHQ (liangbinxie.github.io/projects/vfhq) names clips Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>. Each is a
    folder of numbered PNG files, or a video if someone has converted it. The test set of 50 clips comes separately, in
    folders whose names contain "test" or are "GT".
NeRSemble v2 (github.com/tobias-kirschstein/nersemble-data) has a video for each of 16 cameras:
    <participant>/sequences/<sequence>/images/cam_<serial>.mp4, at 73 frames/s.
Hallo3 (huggingface.co/datasets/fudan-generative-ai/hallo3_training_data) unpacks to videos/<name>.mp4, each with a
    caption beside it. It does not say who is in the videos, so each video counts as a separate person. Its wild scenes
    have no face to follow.
MEAD (github.com/uniBruce/Mead) has <actor>/video/<view>/<emotion>/level_<1..3>/<number>.mp4: eight emotions at three
    levels, except that neutral has level 1 only.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence

from vidmotion.data.prepare.folders import TEST_SHARE, SourceFile
from vidmotion.data.records import DatasetError

HDTF_FILE = re.compile(r"(?P<video>(?P<kind>RD|WDA|WRA)_?\w+?)_(?P<clip>\d+)\.\w+")
VFHQ_CLIP = re.compile(r"Clip\+(?P<video>.+)\+P(?P<person>\d+)\+C\d+\+F\d+-\d+(\.\w+)?")
VFHQ_DEGRADED = re.compile(r"blind|lr|lq|bicubic|bd|bi", re.IGNORECASE)
NERSEMBLE_FILE = re.compile(
    r"(?P<person>\d{3})/sequences/(?P<sequence>[^/]+)/(images/)?cam_(?P<camera>\d+)\.\w+"
)
NERSEMBLE_FRONT = "222200037"  # the camera in front of the face
NERSEMBLE_EMPTY = ("BACKGROUND",)  # sequences without a person
MEAD_FILE = re.compile(
    r"(?P<person>[MW]\d{3})/video/(?P<view>\w+)/(?P<emotion>\w+)/level_(?P<level>[123])/\d+\.\w+"
)
HALLO3_FILE = re.compile(r"(.*/)?videos/(?P<video>[^/]+)\.\w+")
MEAD_EMOTIONS = (
    *("angry", "contempt", "disgusted", "fear"),
    *("happy", "neutral", "sad", "surprised"),
)


def split_by_person(
    files: Iterable[SourceFile], share: float = TEST_SHARE, seed: int = 0
) -> list[SourceFile]:
    """Deals people to train and test, so that nobody is in both.

    A share of the people, at least one of several unless `share` is 0, goes to test. People are ranked by a hash of the
    seed and their name, as `FolderJob.splits` ranks files.
    """
    files = list(files)
    people = sorted({file.person for file in files})
    test = set()
    if share and len(people) > 1:
        count = min(len(people) - 1, max(1, round(share * len(people))))
        ranked = sorted(people, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        test = set(ranked[:count])
    return [
        dataclasses.replace(file, split="test" if file.person in test else "train")
        for file in files
    ]


def split_hdtf(
    files: Iterable[SourceFile], share: float = TEST_SHARE, seed: int = 0
) -> list[SourceFile]:
    """Selects HDTF's clips and splits them by person.

    A person is named by the video's name without its final number, which counts the videos of one politician. Each
    radio video (RD) counts as a separate person.

    Raises:
      DatasetError: no file is named like HDTF's clips.
    """
    found = []
    for file in files:
        match = HDTF_FILE.fullmatch(file.name.split("/")[-1])
        if match:
            video = match["video"]
            person = video if match["kind"] == "RD" else video.rstrip("0123456789")
            found.append(dataclasses.replace(file, person=person))
    _some(found, files, "<WDA|WRA|RD>_<name>_<index>.mp4 (HDTF)")
    return split_by_person(found, share, seed)


def split_vfhq(
    files: Iterable[SourceFile], share: float = TEST_SHARE, seed: int = 0
) -> list[SourceFile]:
    """Selects and splits VFHQ's clips, which are videos or folders of pictures.

    The clips of VFHQ's own test set form the test split. If it is missing, the source videos of the clips are dealt to
    train and test instead.

    Raises:
      DatasetError: no file is named like VFHQ's clips.
    """
    found = []
    for file in files:
        *parents, name = file.name.split("/")
        match = VFHQ_CLIP.fullmatch(name)
        if not match or any(VFHQ_DEGRADED.fullmatch(part) for part in parents):
            continue  # the test set also holds low-quality inputs
        test = any("test" in part.lower() or part == "GT" for part in parents)
        person = f"{match['video']}+P{match['person']}"
        split = "test" if test else "train"
        found.append(dataclasses.replace(file, person=person, split=split))
    _some(found, files, "Clip+<id>+P<n>+C<n>+F<n>-<n> (VFHQ)")
    if len({file.split for file in found}) == 2:
        return found
    videos = [dataclasses.replace(file, person=file.person.rpartition("+P")[0]) for file in found]
    dealt = split_by_person(videos, share, seed)
    return [
        dataclasses.replace(file, split=other.split)
        for file, other in zip(found, dealt, strict=True)
    ]


def split_hallo3(
    files: Iterable[SourceFile], share: float = TEST_SHARE, seed: int = 0
) -> list[SourceFile]:
    """Selects and splits Hallo3's training videos; each counts as a separate person.

    Raises:
      DatasetError: no file lies in a folder named `videos`.
    """
    found = []
    for file in files:
        if match := HALLO3_FILE.fullmatch(file.name):
            found.append(dataclasses.replace(file, person=match["video"]))
    _some(found, files, "videos/<name>.mp4 (Hallo3)")
    return split_by_person(found, share, seed)


def split_nersemble(
    files: Iterable[SourceFile],
    share: float = TEST_SHARE,
    seed: int = 0,
    cameras: Sequence[str] = (NERSEMBLE_FRONT,),
) -> list[SourceFile]:
    """Selects NeRSemble's videos from the given cameras and splits them by person.

    Sequences without a person are left out.

    Raises:
      DatasetError: no file lies where NeRSemble keeps the videos of these cameras.
    """
    found = []
    for file in files:
        match = NERSEMBLE_FILE.search(file.name)
        if match and match["camera"] in cameras and match["sequence"] not in NERSEMBLE_EMPTY:
            found.append(dataclasses.replace(file, person=match["person"]))
    where = f"<participant>/sequences/<sequence>/images/cam_<{'|'.join(cameras)}>.mp4 (NeRSemble)"
    _some(found, files, where)
    return split_by_person(found, share, seed)


def split_mead(
    files: Iterable[SourceFile],
    share: float = TEST_SHARE,
    seed: int = 0,
    views: Sequence[str] = ("front",),
) -> list[SourceFile]:
    """Selects MEAD's videos from the given views and splits them by person.

    `label` becomes the index of the emotion in `MEAD_EMOTIONS`, and `level` its strength, 1 to 3.

    Raises:
      DatasetError: no file lies where MEAD keeps the videos of these views, or an emotion is not one of MEAD's.
    """
    found = []
    for file in files:
        match = MEAD_FILE.search(file.name)
        if not match or match["view"] not in views:
            continue
        if match["emotion"] not in MEAD_EMOTIONS:
            raise DatasetError(
                f"{file.path}: {match['emotion']!r} is not an emotion of MEAD: {', '.join(MEAD_EMOTIONS)}"
            )
        label, level = MEAD_EMOTIONS.index(match["emotion"]), int(match["level"])
        found.append(dataclasses.replace(file, person=match["person"], label=label, level=level))
    where = f"<actor>/video/<{'|'.join(views)}>/<emotion>/level_<1..3>/<number>.mp4 (MEAD)"
    _some(found, files, where)
    return split_by_person(found, share, seed)


def _some(found, files, where):
    if not found:
        example = next((file.name for file in files), "none")
        raise DatasetError(
            f"no file below --src is named {where}; one of the files there is {example}"
        )
