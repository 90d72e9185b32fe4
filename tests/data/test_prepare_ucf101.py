"""Making a dataset of UCF101: its official lists and classes, and no group in both splits."""

import os

import av
import numpy as np
import pytest
from test_prepare_videos import CUTTING, numbered, numbers, run

from vidmotion.data.prepare import folders
from vidmotion.data.records import DatasetError, RecordSource
from vidmotion.data.videos import VideoSource

CLASSES = ("ApplyEyeMakeup", "YoYo")
TRAIN = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", "YoYo/v_YoYo_g09_c01", "YoYo/v_YoYo_g09_c02")
TEST = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", "YoYo/v_YoYo_g01_c01")


def write_avi(path, frames):
    """Writes a video as UCF101 is published: MPEG-4 part 2 in AVI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "2"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_lists(folder, train=TRAIN, test=TEST, fold=1, classes="1 ApplyEyeMakeup\r\n2 YoYo\r\n"):
    """Writes lists as UCF101 publishes them: with CR LF, and the number of the class after each training file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_bytes(classes.encode())
    numbered_names = [f"{name}.avi {1 + CLASSES.index(name.split('/')[0])}" for name in train]
    (folder / f"trainlist0{fold}.txt").write_bytes("\r\n".join([*numbered_names, ""]).encode())
    (folder / f"testlist0{fold}.txt").write_bytes("".join(f"{n}.avi\r\n" for n in test).encode())
    return folder


def sources(*names):
    return [folders.SourceFile(name, name, 1) for name in names]


def test_ucf101(tmp_path, capsys):
    source, out = tmp_path / "ucf", tmp_path / "out"
    for k, name in enumerate((*TRAIN, *TEST)):
        frames = [np.ascontiguousarray(numbered(20 * k + t, 64, 64)) for t in range(10)]
        write_avi(source / f"UCF-101/{name}.avi", frames)
    write_lists(source / "ucfTrainTestlist", fold=2)
    command = ("ucf101", f"--src={source}", f"--out={out}", "--fold=2", "--size=32")
    code, printed, error = run(capsys, *command, "--seconds=0.4")
    assert code == 0 and "ucf101, test 2, train 3" in printed, error
    train = VideoSource(out, "train", frames=4, random=True)
    test = VideoSource(out, "test", frames=4)
    assert train.classes == test.classes == CLASSES
    # Clips are in the order of file names; the class of each follows from its folder.
    assert [train.class_of(train[i]) for i in range(3)] == [0, 1, 1]
    element = test[1]
    assert element["label"] == 1 and element["label"].dtype == np.int32
    assert test.origin(1).endswith("YoYo/v_YoYo_g01_c01.avi")
    assert numbers(element["video"]) == [80 + 3, 80 + 4, 80 + 5, 80 + 6]
    window = train.transforms[0].random_map(train[0], np.random.default_rng(0))
    assert window["label"] == 0 and window["video"].shape == (4, 32, 32, 3)
    provenance = RecordSource(out, "test").provenance
    assert provenance["classes"] == list(CLASSES) and provenance["fold"] == 2
    assert "--fold=2" in provenance["command"]

    code, printed, _ = run(capsys, *command, "--seconds=0.4")
    assert code == 0 and "ucf101 is complete" in printed
    write_lists(source / "ucfTrainTestlist", TRAIN[:1] + TEST[1:], TRAIN[1:] + TEST[:1], fold=3)
    code, _, error = run(capsys, *command, "--seconds=0.4", "--fold=3")
    assert code == 2 and "holds another dataset" in error


def test_lists_that_are_not_ucf101s_are_refused(tmp_path):
    lists = write_lists(tmp_path / "good")
    classes, splits = folders.read_ucf101(lists, 1)
    assert classes == list(CLASSES)
    assert splits == {
        **{f"{name}.avi": "train" for name in TRAIN},
        **{f"{name}.avi": "test" for name in TEST},
    }
    with pytest.raises(DatasetError, match=r"trainlist02.txt.*name their folder with --lists"):
        folders.read_ucf101(lists, 2)
    shared = write_lists(tmp_path / "shared", test=(*TEST, "YoYo/v_YoYo_g09_c03"))
    with pytest.raises(DatasetError, match="group 09 of YoYo is in both train and test of fold 1"):
        folders.read_ucf101(shared, 1)
    unknown = write_lists(tmp_path / "unknown", test=("Chess/v_Chess_g01_c01",))
    with pytest.raises(DatasetError, match=r"'Chess/v_Chess_g01_c01.avi' is not <class>"):
        folders.read_ucf101(unknown, 1)
    unnumbered = write_lists(tmp_path / "unnumbered", classes="ApplyEyeMakeup\nYoYo\n")
    with pytest.raises(DatasetError, match=r"classInd\.txt: its lines must be numbered 1, 2, 3"):
        folders.read_ucf101(unnumbered, 1)


def test_missing_and_foreign_videos_are_named(tmp_path):
    classes, splits = folders.read_ucf101(write_lists(tmp_path), 1)
    # Converted videos: any suffix is accepted.
    every = [f"UCF-101/{name}.mp4" for name in (*TRAIN, *TEST)]
    found = folders.split_ucf101(sources(*every), classes, splits)
    assert [(file.split, file.label) for file in found] == [
        *[("train", 0), ("train", 1), ("train", 1)],
        *[("test", 0), ("test", 1)],
    ]
    with pytest.raises(
        DatasetError, match="2 videos of UCF101 are missing, such as ApplyEyeMakeup/"
    ):
        folders.split_ucf101(sources(*every[1:4]), classes, splits)
    with pytest.raises(
        DatasetError, match=r"1 videos of UCF101 are on no list, such as other/a\.mp4"
    ):
        folders.split_ucf101(sources(*every, "other/a.mp4"), classes, splits)


def test_other_folders_keep_their_digests():
    """A label is part of the digest of a dataset's inputs; the digest of files without a label is what it was
    before."""
    plain, labelled = sources("a/b.mp4"), [folders.SourceFile("a/b.mp4", "a/b.mp4", 1, label=0)]
    assert (
        folders.FolderJob(tuple(plain), CUTTING).inputs
        != folders.FolderJob(tuple(labelled), CUTTING).inputs
    )
