"""Sets of portraits: which file shows whom, how people are split, and tubes about faces."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidmotion.data import faces, prepare
from vidmotion.data.clips import decode_clip
from vidmotion.data.portraits import PortraitSource
from vidmotion.data.prepare import cutting, folders, portrait_sets
from vidmotion.data.prepare.cutting import Cutting, Tally, cut_video
from vidmotion.data.prepare.folders import SourceFile
from vidmotion.data.records import DatasetError, RecordSource
from vidmotion.media import MediaError
from vidmotion.video import read_frames

HEIGHT, WIDTH, FACE = 96, 160, 24
TUBE = Cutting(25, 64, 0.8, 25, "tube", 2.0, "raw")


def files(*names):
    return [SourceFile(name, Path(name), 1) for name in names]


def people(found):
    return {file.name: file.person for file in found}


def square_face(picture):
    """Stands in for the detector: finds the bright square of `frames`."""
    rows, columns = (np.flatnonzero((picture.mean(-1) > 128).any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 4))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], float)


def frames(count=20, start=40, step=2, top=30, hidden=()):
    """Returns a film of a bright square that moves right on a dark background."""
    film = np.full((count, HEIGHT, WIDTH, 3), 30, np.uint8)
    for k in range(count):
        if k not in hidden:
            film[k, top : top + FACE, start + step * k : start + step * k + FACE] = 220
    return film


def write(path, pictures, fps=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv444p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(faces, "find_faces", square_face)
    monkeypatch.setattr(faces, "detector", lambda: None)


def tube(path, settings=TUBE):
    tally = Tally()
    return list(cut_video(path, settings, tally)), tally


def test_a_tube_is_about_all_places_and_boxes_lie_in_it(tmp_path, seen):
    (record,), _ = tube(write(tmp_path / "a.mp4", frames()))
    # The face is looked for in frames 0, 5, 10, 15 and 19, and its place is interpolated in between. Each of the
    # positions 40, 50, 60, 70, 78 becomes the median of up to five of them: at the ends, of the nearest three.
    left = np.array([50, 55, 60, 65, 70])
    # 44 wide; the tube is twice that, about its centre.
    union = (left[0], 30, left[-1] + FACE, 30 + FACE)
    centre = (union[0] + union[2]) / 2, 30 + FACE / 2
    region = [centre[0] - 44, max(0, centre[1] - 44), centre[0] + 44, centre[1] + 44]
    region[3] = region[1] + 88
    np.testing.assert_allclose(record["box"], region, atol=1.5)
    scale = 64 / (record["box"][2] - record["box"][0])
    side = record["boxes"][:, 2:] - record["boxes"][:, :2]
    np.testing.assert_allclose(side, FACE * scale, atol=1.5)
    looked = np.zeros(20, bool)
    looked[[0, 5, 10, 15, 19]] = True
    np.testing.assert_array_equal(record["seen"], looked)
    # The box of a frame covers the bright square of the stored picture, up to the error of the median.
    x0, y0, x1, y1 = record["boxes"][10].round().astype(int)
    assert record["video"][10, y0 + 2 : y1 - 2, x0 + 3 : x1 - 3].min() > 150
    assert record["boxes"].dtype == np.float32 and record["boxes"].shape == (20, 4)


@pytest.mark.parametrize("border", ["black", "shrink"])
def test_a_tube_that_leaves_the_picture(tmp_path, seen, border):
    path = write(tmp_path / "a.mp4", frames(step=4, start=8))
    settings = Cutting(25, 64, 0.8, 25, "tube", 2.0, "raw", border=border)
    (record,), _ = tube(path, settings)
    x0, y0, x1, y1 = record["box"]
    assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-3)
    if border == "shrink":
        assert x0 >= 0 and y0 >= 0 and x1 <= WIDTH and y1 <= HEIGHT and y1 - y0 == HEIGHT
        # The video's own dark background.
        assert np.abs(record["video"][:, :4].astype(int) - 30).max() < 6
    else:
        assert y1 - y0 > HEIGHT and y0 < 0 < HEIGHT < y1
        # Black above the picture.
        assert record["video"][0, 0].max() < 15 < record["video"][0, 32].min()


def test_clips_without_a_face_or_with_a_small_one_are_counted(tmp_path, seen):
    gone = write(tmp_path / "gone.mp4", frames(hidden=range(3, 20)))
    records, tally = tube(gone)
    assert (len(records), tally.faceless, tally.small) == (0, 1, 0)
    some = write(tmp_path / "some.mp4", frames(hidden=(5, 6, 15)))
    (record,), tally = tube(some)
    assert record["seen"].sum() == 3 and np.isfinite(record["boxes"]).all()
    records, tally = tube(some, Cutting(25, 64, 0.8, 25, "tube", 2.0, "raw", least=FACE + 3))
    assert (len(records), tally.faceless, tally.small) == (0, 0, 1)


def test_a_folder_of_pictures_is_a_video(tmp_path):
    folder = tmp_path / "Clip+a%b+P0+C0+F3-22"
    folder.mkdir()
    for k, picture in enumerate(frames()):
        Image.fromarray(picture).save(folder / f"{k + 3:08d}.png")
    found = folders.find_videos(tmp_path, pictures=True)[0]
    assert [(f.name, f.path) for f in found] == [(folder.name, folder)]
    reformatter = cutting.VideoReformatter()
    read = list(read_frames(folder))
    assert [start * 25 for start, *_ in read] == list(range(20))
    for (*_, picture), true in zip(read, frames()):
        np.testing.assert_array_equal(picture.render(reformatter), true)
    (folder / "00000010.png").unlink()
    with pytest.raises(MediaError, match="19 pictures numbered 3 to 22: some are missing"):
        list(read_frames(folder))


def test_hdtf():
    names = [
        *("RD_Radio11_0.mp4", "RD_Radio11_1.mp4", "RD_Radio12_0.mp4"),
        *("x/WDA_BarackObama_000.mp4", "WRA_LamarAlexander0_000.mp4", "WRA_LamarAlexander1_3.mp4"),
    ]
    found = portrait_sets.split_hdtf(files(*names, "readme_0.mp4"), 0.25)
    assert people(found) == dict(
        zip(
            names,
            [
                *("RD_Radio11", "RD_Radio11", "RD_Radio12"),
                *("WDA_BarackObama", "WRA_LamarAlexander", "WRA_LamarAlexander"),
            ],
        )
    )
    splits = {}
    for file in found:
        splits.setdefault(file.person, set()).add(file.split)
    assert all(len(s) == 1 for s in splits.values())
    assert sorted(s for (s,) in splits.values()) == ["test", "train", "train", "train"]
    with pytest.raises(
        DatasetError, match=r"<index>\.mp4 \(HDTF\); one of the files there is other.mp4"
    ):
        portrait_sets.split_hdtf(files("other.mp4"))


def test_people_are_dealt_by_name_and_seed_alone():
    many = [SourceFile(f"{k}.mp4", Path("x"), 1, person=f"p{k // 2}") for k in range(40)]
    first = {f.person: f.split for f in portrait_sets.split_by_person(many, 0.2, 1)}
    assert sum(split == "test" for split in first.values()) == 4
    again = {f.person: f.split for f in portrait_sets.split_by_person(many[::-1][1:], 0.2, 1)}
    assert again == first
    other = {f.person: f.split for f in portrait_sets.split_by_person(many, 0.2, 2)}
    assert other != first
    assert {f.split for f in portrait_sets.split_by_person(many, 0.0)} == {"train"}
    assert {f.split for f in portrait_sets.split_by_person(many[:2], 0.5)} == {"train"}


def test_vfhq():
    clips = [f"Clip+abc_-1+P{p}+C{c}+F{100 * c}-{100 * c + 99}" for p, c in ((0, 0), (1, 1))]
    clips.append("Clip+x+y+P0+C0+F0-99")
    found = portrait_sets.split_vfhq(files(*clips, "VFHQ-Test/notes"), 0.5)
    assert people(found) == dict(zip(clips, ["abc_-1+P0", "abc_-1+P1", "x+y+P0"]))
    split = {file.name: file.split for file in found}
    # People of one video stay in one split.
    assert split[clips[0]] == split[clips[1]] != split[clips[2]]
    test = ["VFHQ-Test/GT/a/" + clips[2], "VFHQ-Test/Blind/" + clips[2], clips[0]]
    found = portrait_sets.split_vfhq(files(*test))
    assert [(f.name, f.split) for f in found] == [(test[0], "test"), (test[2], "train")]


def test_nersemble():
    base = "017/sequences/EXP-1-head/images/cam_{}.mp4"
    names = [base.format("222200037"), base.format("220700191")]
    names += ["030/sequences/BACKGROUND/images/cam_222200037.mp4"]
    names += ["030/sequences/EMO-1-shout+laugh/images/cam_222200037.mp4", "030/notes.mp4"]
    found = portrait_sets.split_nersemble(files(*names), 0.5)
    assert people(found) == {names[0]: "017", names[3]: "030"}
    assert sorted(file.split for file in found) == ["test", "train"]
    found = portrait_sets.split_nersemble(files(*names), 0.5, 0, ["220700191"])
    assert people(found) == {names[1]: "017"}


def test_hallo3_has_a_person_in_each_video():
    names = ["part1/videos/0001.mp4", "part1/videos/a b.mp4", "videos/0003.mp4", "other/0004.mp4"]
    found = portrait_sets.split_hallo3(files(*names), 0.4)
    assert people(found) == {names[0]: "0001", names[1]: "a b", names[2]: "0003"}
    assert sorted(file.split for file in found) == ["test", "train", "train"]
    with pytest.raises(
        DatasetError,
        match=r"is named videos/<name>.mp4 \(Hallo3\); one of the files there is a.mp4",
    ):
        portrait_sets.split_hallo3(files("a.mp4"))


def test_mead_keeps_emotion_and_level():
    names = [
        "M003/video/front/angry/level_2/001.mp4",
        "M003/video/front/neutral/level_1/030.mp4",
        "W009/video/front/surprised/level_3/002.mp4",
        "W009/video/left_30/happy/level_3/002.mp4",
    ]
    found = portrait_sets.split_mead(files(*names), 0.5)
    assert [(f.person, f.label, f.level) for f in found] == [
        ("M003", 0, 2),
        ("M003", 5, 1),
        ("W009", 7, 3),
    ]
    assert len(portrait_sets.split_mead(files(*names), 0.5, 0, ["front", "left_30"])) == 4
    with pytest.raises(DatasetError, match="'bored' is not an emotion of MEAD: angry"):
        portrait_sets.split_mead(files("M003/video/front/bored/level_1/001.mp4"))


def run(*arguments):
    return prepare.main([str(a) for a in arguments])


def test_mead_from_files_to_pairs(tmp_path, seen, capsys):
    src, out = tmp_path / "mead", tmp_path / "out"
    for person, emotion, level in (("M003", "happy", 2), ("W009", "sad", 1), ("W011", "sad", 3)):
        write(src / person / "video/front" / emotion / f"level_{level}/001.mp4", frames(30), 30)
    command = ("mead", f"--src={src}", f"--out={out}", "--size=64", "--seconds=0.8", "--least=0")
    assert run(*command, "--views", "front", "top", "--test_share=0.4", "--jobs=2") == 0
    assert "train 2, test 1" in capsys.readouterr().out
    found = {}
    for split in ("train", "test"):
        source = RecordSource(out, split)
        for k in range(len(source)):
            record = source[k]
            person = record["person"].tobytes().decode()
            found[person] = int(record["label"]), int(record["level"])
            assert record["boxes"].shape == (20, 4) and record["length"] == 20
            assert decode_clip(record["clip"], range(1)).shape == (1, 64, 64, 3)
    assert found == {"M003": (4, 2), "W009": (6, 1), "W011": (6, 3)}
    assert source.provenance["classes"] == list(portrait_sets.MEAD_EMOTIONS)
    assert "--views front top" in source.provenance["command"]
    pairs = PortraitSource(out, pair={"frames": 2, "augment": {"size": 32}})
    assert pairs[0]["driving"].shape == (2, 32, 32, 3)
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["crop"] == "tube"
    assert run(*command, "--views", "front", "top", "--test_share=0.4") == 0  # already complete
    assert run(*command, "--face_scale=3") == 2 and "another dataset" in capsys.readouterr().err


def test_portraits_of_any_folder_are_dealt_by_file(tmp_path, seen, capsys):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.mp4", frames())
    command = ("portraits", f"--src={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--size=64")
    assert run(*command, "--seconds=0.8", "--least=0") == 0
    assert "portraits, " in capsys.readouterr().out
    splits = [RecordSource(tmp_path / "out", split)[0]["person"] for split in ("train", "test")]
    assert sorted(person.tobytes().decode() for person in splits) == ["a.mp4", "b.mp4"]
