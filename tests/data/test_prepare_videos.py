"""Making datasets of folders of videos, checked on small videos whose frames carry their own number."""

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidmotion import lock
from vidmotion.data import faces, prepare
from vidmotion.data.clips import encode_clip
from vidmotion.data.prepare import cutting, folders
from vidmotion.data.prepare.cutting import Cutting, Tally, cut_video
from vidmotion.data.records import RecordSource
from vidmotion.data.videos import VideoSource

SIDE = 64
BITS = 8
CUTTING = Cutting(25, SIDE, 0.4, 25, "centre", 2.0, "raw")


def numbered(number, height=SIDE, width=SIDE, low=96):
    """Returns a frame with the number in Gray code, a stripe per bit: successive frames differ in one stripe, which is
    too little to look like a cut."""
    bits = (number ^ number >> 1) >> np.arange(BITS) & 1
    stripes = np.repeat(bits, -(-height // BITS))[:height]
    return np.broadcast_to((low + 64 * stripes)[:, None, None], (height, width, 3)).astype(np.uint8)


def numbers(video, low=96):
    """Returns the numbers in clips (T, H, W, 3): the inverse of `numbered`."""
    stripes = video.reshape(len(video), BITS, -1).mean(-1) > low + 32
    binary = np.bitwise_xor.accumulate(stripes[:, ::-1], axis=1)[:, ::-1]
    return (binary << np.arange(BITS)).sum(1).tolist()


def write(path, frames, fps=25, times=None, sound=False):
    """Writes a video of frames (H, W, 3), of any size, at a rate or at `times` in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8", "threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        even = stream.height % 2 == stream.width % 2 == 0
        stream.pix_fmt = "yuv420p" if even else "yuv444p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            voice = container.add_stream("aac", rate=16000)
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            noise = np.random.default_rng(0).uniform(-1, 1, (1, 16000)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(voice.encode(samples))
            container.mux(voice.encode())
    return path


def clips_of(path, cutting=CUTTING, **options):
    tally = Tally()
    return list(cut_video(path, cutting, tally, **options)), tally


def run(capsys, *arguments):
    code = prepare.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def content(folder):
    """Returns the bytes of each shard of a dataset by name, leaving out the index and report, which may differ."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.array_record"))}


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fps, shown",
    [
        (25, list(range(50))),
        # Six frames become five: the fourth and fifth are nearest to one tick, and the later one is kept.
        (30, [k + 6 * n for n in range(10) for k in (0, 1, 2, 4, 5)]),
        (50, list(range(0, 100, 2))),
        (Fraction(25, 2), [k // 2 for k in range(50)]),
    ],
)
def test_other_frame_rates(tmp_path, fps, shown):
    count = max(shown) + 1
    path = write(tmp_path / "a.mp4", [numbered(k) for k in range(count)], fps)
    clips, tally = clips_of(path)
    assert numbers(np.concatenate([clip["video"] for clip in clips])) == shown
    assert tally == Tally(clips=5, frames=count, seconds=pytest.approx(2, abs=0.03))
    assert [clip["start"] for clip in clips] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])


def test_a_varying_frame_rate_keeps_its_speed(tmp_path):
    times = [0, 39, 81, 200, 205, 210, 321, 480, 520, 561, 600, 680, 720, 760]  # ms
    path = write(tmp_path / "a.mkv", [numbered(k) for k in range(len(times))], times=times)
    (clip, *_), _ = clips_of(path, CUTTING)
    # Ticks are at 0, 40, ..., 360 ms; 200, 205 and 210 are all nearest to the tick at 200, which takes the last one.
    assert numbers(clip["video"]) == [0, 1, 2, 2, 2, 5, 5, 5, 6, 6]


def test_a_still_of_more_than_a_second_is_a_gap(tmp_path):
    times = [40 * k + (k >= 12) * 1500 for k in range(24)]
    path = write(tmp_path / "a.mkv", [numbered(k) for k in range(24)], times=times)
    clips, tally = clips_of(path)
    assert [numbers(clip["video"]) for clip in clips] == [list(range(10)), list(range(12, 22))]
    assert (tally.cuts, tally.short) == (1, 2)


@pytest.mark.parametrize("height, width", [(71, 97), (97, 71), (65, 65), (48, 130)])
def test_odd_sizes_and_the_centre(tmp_path, height, width):
    path = write(tmp_path / "a.mp4", [numbered(k, height, width) for k in range(10)])
    ((clip),), _ = clips_of(path)
    side = min(height, width)
    x, y = (width - side) / 2, (height - side) / 2
    np.testing.assert_array_equal(clip["box"], np.float32([x, y, x + side, y + side]))
    assert clip["video"].shape == (10, SIDE, SIDE, 3)
    if height <= width:
        assert numbers(clip["video"]) == list(range(10))


def test_a_phones_video_is_turned_upright_before_the_crop(tmp_path):
    # As stored, lying on its side: left third black, right two thirds with a white lower half.
    lying = np.zeros((40, 60, 3), np.uint8)
    lying[20:, 20:] = 255
    data = bytearray(write(tmp_path / "a.mp4", [lying] * 10).read_bytes())
    at = data.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2: turn by 90 degrees clockwise to show
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    ((clip),), _ = clips_of(tmp_path / "b.mp4", box=np.array([0, 0, 20, 60.0]))
    np.testing.assert_array_equal(clip["box"], [0, 10, 40, 50])  # of an upright picture of 40 x 60
    upright = np.zeros((60, 40), np.uint8)
    upright[20:, :20] = 255
    expected = upright[10:50].repeat(8, 0).repeat(8, 1)[::5, ::5]
    assert np.abs(clip["video"][5, ..., 0].astype(int) - expected).mean() < 12


def test_boxes_are_cropped_and_scaled(tmp_path):
    frame = np.zeros((80, 120, 3), np.uint8)
    frame[20:50, 60:90] = 200
    path = write(tmp_path / "a.mp4", [frame] * 10)
    ((clip),), _ = clips_of(path, box=np.array([60, 20, 90, 50.0]))
    assert abs(clip["video"][:, 8:-8, 8:-8].astype(int) - 200).max() <= 6
    # A box that is not square becomes square about its middle; one that lies partly outside is moved inside.
    ((clip),), _ = clips_of(path, box=np.array([110, -10, 120, 20.0]))
    np.testing.assert_array_equal(clip["box"], [90, 0, 120, 30])


def test_scenes_are_cut(tmp_path):
    scenes = [numbered(k, low=96) for k in range(13)] + [numbered(k, low=0) for k in range(27)]
    path = write(tmp_path / "a.mp4", scenes)
    clips, tally = clips_of(path)
    assert [numbers(clips[0]["video"])] == [list(range(10))]
    assert [numbers(clip["video"], 0) for clip in clips[1:]] == [
        list(range(10)),
        list(range(10, 20)),
    ]
    assert [clip["start"] for clip in clips] == pytest.approx([0, 13 / 25, 23 / 25])
    assert (tally.cuts, tally.short) == (1, 2)
    careless = Cutting(25, SIDE, 0.4, 255, "centre", 2.0, "raw")
    assert len(clips_of(path, careless)[0]) == 4


def test_pixels_that_are_not_square(tmp_path):
    frames = [numbered(k) for k in range(10)]
    path = tmp_path / "a.mp4"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = SIDE
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    ((clip),), _ = clips_of(path)
    np.testing.assert_array_equal(clip["box"], [32, 0, 96, 64])  # of a picture of 128 x 64


def test_faces(tmp_path):
    data = pytest.importorskip("skimage.data")
    portrait = data.astronaut()  # 512 x 512; the face is about (173, 65) to (273, 165)
    path = write(tmp_path / "a.mp4", [portrait] * 10)
    cutting = Cutting(25, SIDE, 0.4, 25, "face", 2.0, "raw")
    ((clip),), _ = clips_of(path, cutting)
    x0, y0, x1, y1 = clip["box"]
    assert 120 < x1 - x0 < 300 and x1 - x0 == pytest.approx(y1 - y0)
    assert abs((x0 + x1) / 2 - 223) < 25 and abs((y0 + y1) / 2 - 115) < 35
    clips, tally = clips_of(write(tmp_path / "b.mp4", [numbered(0)] * 10), cutting)
    assert not clips and tally.faceless == 1


def test_a_face_box_is_the_median_and_half_the_pictures_are_enough(monkeypatch):
    found = iter([[0, 0, 10, 10], None, [4, 2, 12, 10], [90, 90, 99, 99], None])
    monkeypatch.setattr(faces, "_largest_face", lambda _: next(found))
    np.testing.assert_array_equal(faces.face_box([None] * 5), [4, 2, 12, 10])
    found = iter([[0, 0, 10, 10], None, None])
    assert faces.face_box([None] * 3) is None
    np.testing.assert_array_equal(faces.square((4, 2, 12, 10), 100, 50, 2), [0, 0, 16, 16])
    np.testing.assert_array_equal(faces.square((4, 2, 12, 10), 12, 14, 2), [0, 0, 12, 12])


# --- a folder -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Returns a folder of good and bad files of many kinds; `BAD` says why a file cannot be read, `EMPTY` names those
    that are too short for a clip."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [numbered(k) for k in range(25)]
    write(folder / "sound.mp4", frames, sound=True)
    write(folder / "a b/ü 日本.mp4", frames)
    write(folder / "deep/er/clip.MKV", frames, 30)
    write(folder / "deep/one.mp4", frames[:1])
    write(folder / "deep/short.mp4", frames[:9])
    whole = write(folder / "cut.mp4", [numbered(k) for k in range(60)]).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    # The index comes first, as on the web, so the file can be opened although its end is missing.
    with av.open(os.fspath(folder / "half.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height = stream.width = SIDE
        for k in range(60):
            noise = np.random.default_rng(k).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode())
    data = (folder / "half.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(data[: len(data) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no video.\n" * 50)
    with av.open(os.fspath(folder / "only sound.mp4"), "w") as out:
        voice = out.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        samples.sample_rate = 16000
        out.mux(voice.encode(samples))
        out.mux(voice.encode())
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    (folder / "notes.txt").touch()
    (folder / ".hidden.mp4").touch()
    return folder


GOOD = {"sound.mp4": 2, "a b/ü 日本.mp4": 2, "deep/er/clip.MKV": 2}
EMPTY = {"deep/one.mp4", "deep/short.mp4"}
BAD = {
    "cut.mp4": "damaged (Invalid data",
    "half.mp4": "cut short after",
    "empty.mp4": "Invalid data",
    "text.mp4": "Invalid data",
    "only sound.mp4": "no video stream",
}


def arguments(src, out, *more):
    return ["videos", f"--src={src}", f"--out={out}", "--size=64", "--seconds=0.4", *more]


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """Returns the folder prepared with one thread, and what the command printed."""
    out = tmp_path_factory.mktemp("out") / "dataset"
    command = [sys.executable, "-m", "vidmotion.data.prepare", *arguments(videos, out, "--jobs=1")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return out, done.stdout


def test_everything_readable_is_there_and_the_rest_is_reported(videos, prepared):
    out, printed = prepared
    counts = {}
    for split in ("train", "test"):
        source = VideoSource(out, split)
        for k in range(len(source)):
            counts[source.origin(k)] = counts.get(source.origin(k), 0) + 1
            video, start = source[k]["video"], source[k]["start"]
            if source.origin(k) != "deep/er/clip.MKV":
                assert numbers(video) == list(range(round(start * 25), round(start * 25) + 10))
        RecordSource(out, split).verify()
    assert counts == GOOD
    report = json.loads((out / "report.json").read_text())
    assert report["unreadable"].keys() == BAD.keys()
    for name, reason in BAD.items():
        assert reason in report["unreadable"][name] and f"  {name}: " in printed
        assert str(videos) not in report["unreadable"][name]
    assert report["without clips"].keys() == EMPTY
    assert report["ignored by suffix"] == {".png": 1, ".txt": 1}
    assert sum(report["clips"].values()) == sum(GOOD.values())
    assert "frames/s" in printed and "6 clips of 0.4 s" in printed
    assert not (out / "parts").exists()


def test_clips_have_no_sound(prepared):
    for record in (RecordSource(prepared[0], split)[0] for split in ("train", "test")):
        assert record["clip"].tobytes().count(b"trak") == 1


@pytest.mark.parametrize("jobs", [2, 4])
def test_parallel_is_serial(videos, prepared, tmp_path, capsys, jobs):
    assert run(capsys, *arguments(videos, tmp_path, f"--jobs={jobs}"))[0] == 0
    assert content(tmp_path) == content(prepared[0])


def test_parts_done_by_several_jobs_give_the_dataset_of_one(videos, prepared, tmp_path, capsys):
    out = tmp_path / "shared"
    for part in (3, 1, 2):
        code, printed, _ = run(capsys, *arguments(videos, out, f"--part={part}/3"))
        assert code == 0 and f"part {part} of 3 is done" in printed
        assert not (out / "dataset.json").exists()
    finished = {path.name: path.read_bytes() for path in (out / "parts").glob("*.array_record")}
    assert len(finished) == len(GOOD) + len(EMPTY)
    code, printed, _ = run(capsys, *arguments(videos, out))
    # Files that could not be read are tried again.
    assert code == 0 and f"{len(finished)} files are finished, {len(BAD)} remain" in printed
    assert content(out) == content(prepared[0])
    assert not (out / "parts").exists()
    code, _, error = run(capsys, *arguments(videos, out, "--part=1/3"))
    assert code == 2 and "so all parts are done" in error
    code, _, error = run(capsys, *arguments(videos, tmp_path / "b", "--part=1/3", "--force"))
    assert code == 2 and "--force discards" in error
    for wrong in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(SystemExit):
            prepare.main(arguments(videos, tmp_path / "b", f"--part={wrong}"))


def test_a_pipeline_gives_the_dataset_of_one_process(videos, prepared, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    code, printed, error = run(capsys, *arguments(videos, tmp_path, "--runner=DirectRunner"))
    assert code == 0, error
    good = len(GOOD) + len(EMPTY)
    assert f"{good} files are finished, {len(BAD)} remain" in printed
    assert content(tmp_path) == content(prepared[0])


def test_a_pipeline_without_beam_says_what_to_install(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    code, _, error = run(capsys, *arguments(videos, tmp_path, "--runner=DirectRunner"))
    assert code == 2 and "pip install 'vidmotion[beam]'" in error


def test_bytes_do_not_depend_on_what_else_is_encoded_at_the_time():
    """Encodes sizes with partial macroblocks and changing light in one, two and four threads at once."""
    k, y, x = np.mgrid[:12, :100, :100]
    light = 0.5 + 0.5 * np.abs(np.cos(k / 4))
    bright = ((7 * (x // 4 + 2 * k) * (y // 4 + k)) % 256) * light
    clips = [np.repeat((bright // step)[..., None], 3, -1).astype(np.uint8) for step in (1, 2, 3)]
    found = set()
    for jobs in (1, 2, 4):
        with ThreadPoolExecutor(jobs) as pool:
            coded = list(pool.map(lambda n: encode_clip(clips[n % 3], 25), range(24)))
        found |= {(n % 3, data) for n, data in enumerate(coded)}
    assert len(found) == 3
    assert b"mbtree=0" in coded[0]  # x264 writes its settings into the stream


def test_again_is_complete_and_other_settings_are_refused(videos, prepared, capsys):
    out, before = prepared[0], content(prepared[0])
    code, printed, _ = run(capsys, *arguments(videos, out))
    assert code == 0 and "is complete" in printed
    for change in ("--fps=10", "--test_share=0", "--seed=1000", "--cut=3", "--codec=raw"):
        code, _, error = run(capsys, *arguments(videos, out, change))
        assert code == 2 and "--force" in error
    assert content(out) == before


def test_force_and_the_command_of_the_index(videos, prepared, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(prepared[0], out)
    assert run(capsys, *arguments(videos, out, "--codec=raw", "--force"))[0] == 0
    index = json.loads((out / "dataset.json").read_text())
    assert index["features"]["video"] == {"dtype": "uint8", "shape": [10, 64, 64, 3]}
    for split in ("train", "test"):
        pixels, coded = VideoSource(out, split)[0], VideoSource(prepared[0], split)[0]
        assert np.abs(pixels["video"].astype(int) - coded["video"]).mean() < 3
    before = content(out)
    command = shlex.split(index["provenance"]["command"])
    assert command[:3] == ["python", "-m", "vidmotion.data.prepare"]
    assert run(capsys, *command[3:])[0] == 0
    assert content(out) == before


def test_interrupted_goes_on_and_ends_the_same(videos, prepared, tmp_path, capsys, monkeypatch):
    cut, started = folders.cut_video, []

    def interrupted(path, *rest, **options):
        if len(started) == 5:
            raise KeyboardInterrupt
        started.append(path)
        return cut(path, *rest, **options)

    monkeypatch.setattr(folders, "cut_video", interrupted)
    code, _, error = run(capsys, *arguments(videos, tmp_path, "--jobs=1"))
    assert code == 130 and "run the same command again" in error
    assert not (tmp_path / "dataset.json").exists()
    code, _, error = run(capsys, *arguments(videos, tmp_path, "--fps=10"))
    assert code == 2 and "unfinished preparation with other settings" in error

    finished = {path.stem for path in (tmp_path / "parts").glob("*.json")} - {"settings"}
    assert finished
    again = []
    monkeypatch.setattr(folders, "cut_video", lambda p, *a, **k: again.append(p) or cut(p, *a, **k))
    code, printed, _ = run(capsys, *arguments(videos, tmp_path, "--jobs=2"))
    assert code == 0 and f"{len(finished)} files are finished" in printed
    assert len(again) == len(GOOD) + len(EMPTY) + len(BAD) - len(finished)
    assert content(tmp_path) == content(prepared[0])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_goes_on_and_ends_the_same(videos, prepared, tmp_path, capsys, how):
    slow = (
        "import signal, sys, time\n"
        # A job started in the background inherits an ignored SIGINT; one that a person starts in a terminal does not.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vidmotion.data.prepare import folders, main\n"
        "cut = folders.cut_video\n"
        "def slowly(path, *rest, check, **options):\n"
        "    return cut(path, *rest, check=lambda: (time.sleep(0.02), check()), **options)\n"
        "folders.cut_video = slowly\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", slow, *arguments(videos, tmp_path, "--jobs=1")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("parts/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(how)
    _, error = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in error
    assert not (tmp_path / "dataset.json").exists()
    code, printed, _ = run(capsys, *arguments(videos, tmp_path, "--jobs=2"))
    assert code == 0 and "finished" in printed
    assert content(tmp_path) == content(prepared[0])


def test_no_clip_at_all_is_an_error(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    code, _, error = run(capsys, *arguments(tmp_path / "src", tmp_path / "out"))
    assert code == 2 and "no video files" in error
    (tmp_path / "src/a.mp4").write_text("text")
    code, printed, error = run(capsys, *arguments(tmp_path / "src", tmp_path / "out"))
    assert (
        code == 2
        and "no clip came from 1 files" in error
        and "a.mp4: not a readable video" in printed
    )
    assert not (tmp_path / "out/dataset.json").exists()
    code, _, error = run(capsys, *arguments(tmp_path / "gone", tmp_path / "out"))
    assert code == 2 and "no such folder" in error


@pytest.mark.parametrize("wrong", ["--size=63", "--fps=0", "--seconds=-1", "--test_share=1.5"])
def test_wrong_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(SystemExit) as exit_:
        prepare.main(arguments(tmp_path, tmp_path / "out", wrong))
    assert exit_.value.code == 2


# --- splits and boxes -----------------------------------------------------------------------------


def files(*names):
    return [folders.SourceFile(name, None, 1) for name in names]


def job(names, **options):
    return folders.FolderJob(tuple(files(*names)), CUTTING, **options)


def test_random_splits():
    names = [f"{k}.mp4" for k in range(40)]

    def tests(names, share, seed=0):
        splits = job(names, test_share=share, seed=seed).splits(names)
        assert splits.keys() == set(names)
        return {name for name, split in splits.items() if split == "test"}

    assert len(tests(names, 0.25)) == 10 and tests(names, 0.25) != tests(names, 0.25, seed=1)
    assert tests(names, 0.25) == tests(names[::-1], 0.25) > tests(names, 0.2)
    assert len(tests(names, 1e-6)) == 1 and len(tests(names, 0.999)) == 39
    assert not tests(names, 0) and not tests(names[:1], 0.5)
    assert tests(names, 1) == set(names) and tests(names[:1], 1) == set(names[:1])
    # Only files that give clips are split.
    assert sorted(job(names, test_share=0.5).splits(names[:2]).values()) == ["test", "train"]


def test_folders_train_and_test_are_the_splits(tmp_path, capsys):
    named = files("extra.mp4", "test/a.mp4", "train/b/c.mp4", "train/d.mp4")
    found = folders.split_by_folder(named)
    assert [file.split for file in found] == ["test", "train", "train"]
    assert folders.split_by_folder(named[1:2]) is None
    for name in ("test/a.mp4", "train/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    code, _, error = run(capsys, *arguments(tmp_path, tmp_path / "out", "--test_share=0.5"))
    assert code == 2 and "leave out --test_share" in error


def test_lrs3(tmp_path, capsys):
    frames = [numbered(k, 56, 56) for k in range(25)]
    for name in ("pretrain/s1/0001", "trainval/s1/50001", "trainval/s2/50001", "test/s3/00001"):
        write(tmp_path / f"lrs3/{name}.mp4", frames)
    source = tmp_path / "lrs3"
    out = tmp_path / "out"
    code, printed, _ = run(
        capsys, "lrs3", f"--src={source}", f"--out={out}", "--size=32", "--seconds=1"
    )
    assert code == 0 and "lrs3, train 3, test 1" in printed
    assert VideoSource(out, "test").origin(0) == "test/s3/00001.mp4"
    assert VideoSource(out, "train", frames=12, decimate=2)[0]["video"].shape == (12, 32, 32, 3)


def test_what_is_not_lrs3_is_refused():
    good = ("pretrain/s1/1.mp4", "test/s2/1.mp4")
    for names, message in (
        (("val/s1/1.mp4", *good), "not where LRS3"),
        (good[:1], "no videos for test"),
        (good[1:], "pretrain or trainval"),
        ((*good, "trainval/s2/9.mp4"), "such as s2"),
    ):
        with pytest.raises(folders.DatasetError, match=message):
            folders.split_lrs3([folders.SourceFile(name, name, 1) for name in names])


def test_box_files(videos, tmp_path, capsys):
    boxes = {"sound.mp4": [0, 0, 32, 32], "a b/ü 日本.mp4": [16, 16.5, 48, 48.5]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    rows = [f'"{name}",{",".join(map(str, box))}' for name, box in boxes.items()]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x0,y0,x1,y1", *rows]), encoding="utf-8")
    outs = [tmp_path / "json", tmp_path / "csv"]
    for out in outs:
        flag = f"--boxes={tmp_path / 'boxes'}.{out.name}"
        assert run(capsys, *arguments(videos, out, flag, "--test_share=0"))[0] == 0
    assert content(outs[0]) == content(outs[1])
    source = RecordSource(outs[0], "train")
    found = {source[k]["source"].tobytes().decode(): source[k]["box"].tolist() for k in range(4)}
    assert found == boxes
    report = json.loads((outs[0] / "report.json").read_text())
    assert report["unreadable"]["deep/er/clip.MKV"] == "the box file has no box for this file"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "[1]", "not a box file"),
        ("a.json", "{", "not a box file"),
        ("a.csv", "name,x\na,1", "not a box file"),
        ("a.csv", "file,x0,y0,x1,y1\na.mp4,1,2,3", r"a\.mp4: .* does not have x0"),
        ("a.json", '{"a.mp4": [0, 0, 0, 5]}', "x0 < x1"),
    ],
)
def test_wrong_box_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(folders.DatasetError, match=message):
        faces.read_boxes(tmp_path / name)


def test_what_a_lost_machine_tore_is_made_again(videos, prepared, tmp_path, capsys, monkeypatch):
    """After a power cut, a file can have its name but lack its content: an empty outcome, a shard of zeros, a missing
    shard."""
    cut, started = folders.cut_video, []

    def interrupted(path, *rest, **options):
        if len(started) == 6:
            raise KeyboardInterrupt
        started.append(path)
        return cut(path, *rest, **options)

    monkeypatch.setattr(folders, "cut_video", interrupted)
    assert run(capsys, *arguments(videos, tmp_path, "--jobs=1"))[0] == 130
    monkeypatch.undo()
    outcomes = [p for p in (tmp_path / "parts").glob("*.json") if p.stem != "settings"]
    outcomes[0].write_bytes(b"")
    outcomes[1].with_suffix(".array_record").write_bytes(bytes(100))
    outcomes[2].with_suffix(".array_record").unlink()
    code, printed, _ = run(capsys, *arguments(videos, tmp_path, "--jobs=1"))
    assert code == 0 and f"{len(outcomes) - 3} files are finished" in printed
    assert content(tmp_path) == content(prepared[0])


def test_what_a_killed_process_could_not_remove_is_removed_by_the_next(
    videos, prepared, tmp_path, capsys, monkeypatch
):
    def killed(self):
        raise KeyboardInterrupt

    for name in ("finish", "_discard"):
        with monkeypatch.context() as patched:
            patched.setattr(folders.FolderRun, name, killed)
            assert run(capsys, *arguments(videos, tmp_path, "--jobs=1", "--force"))[0] == 130
        assert (tmp_path / "dataset.json").exists() and (tmp_path / "parts").exists()
        # Another process may be making the dataset that will replace this one.
        with lock.hold(tmp_path):
            assert run(capsys, *arguments(videos, tmp_path))[0] == 0
            assert (tmp_path / "parts").exists()
        code, printed, _ = run(capsys, *arguments(videos, tmp_path))
        assert code == 0 and "videos is complete" in printed
        assert not (tmp_path / "parts").exists()
    assert content(tmp_path) == content(prepared[0])


def test_a_few_lost_frames_are_counted(tmp_path, capsys, monkeypatch):
    write(tmp_path / "src/a.mp4", [numbered(k) for k in range(10)])
    read = cutting.read_frames

    def losing(path, threads, missed):
        yield from read(path, threads)
        missed(2)

    monkeypatch.setattr(cutting, "read_frames", losing)
    out = tmp_path / "out"
    code, printed, _ = run(capsys, *arguments(tmp_path / "src", out, "--test_share=0"))
    assert code == 0 and "2 frames of 1 files could not be decoded: a.mp4" in printed
    assert json.loads((out / "report.json").read_text())["per file"]["a.mp4"]["lost"] == 2


# --- folders as people have them ------------------------------------------------------------------


def test_gifs_folders_of_pictures_and_links_are_read_once(tmp_path, capsys):
    src = tmp_path / "src"
    write(src / "a.mp4", [numbered(k) for k in range(10)])
    images = [Image.fromarray(numbered(k)) for k in range(20)]
    images[0].save(src / "moving.gif", save_all=True, append_images=images[1:], duration=40)
    for k, image in enumerate(images):
        for name in ("frames", "gap"):
            (src / name).mkdir(exist_ok=True)
            image.save(src / name / f"{k:07d}.png")
    (src / "gap/0000004.png").unlink()
    other = tmp_path / "elsewhere"
    write(other / "b.mp4", [numbered(k) for k in range(10)])
    (src / "link").symlink_to(other)
    (src / "again").symlink_to(src / "frames")
    (src / "up").symlink_to(tmp_path)
    (src / "notes.txt").touch()
    out = tmp_path / "out"
    code, printed, _ = run(capsys, *arguments(src, out, "--test_share=0", "--codec=raw"))
    assert code == 0
    source = VideoSource(out, "train")
    found = [source.origin(k) for k in range(len(source))]
    assert found == ["a.mp4", "frames", "frames", "link/b.mp4", "moving.gif", "moving.gif"]
    assert numbers(source[1]["video"]) == list(range(10))
    assert "gap: 19 pictures numbered 0 to 19: some are missing" in printed
    assert "skipped, not videos: 1 .txt" in printed
    assert "links to folders that are in it already" in printed


def test_a_full_disk_is_one_sentence(tmp_path):
    src = tmp_path / "src"
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    write(src / "a.mp4", [noise] * 20)
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from vidmotion.data.prepare import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", limited, *arguments(src, tmp_path / "out", "--codec=raw")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    assert not (tmp_path / "out/dataset.json").exists()
