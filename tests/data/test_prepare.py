"""The command line that builds datasets, on fake sheets of one colour each."""

import shlex

import numpy as np
import pytest
from PIL import Image

from vidmotion.data import prepare, sprites
from vidmotion.data.records import DatasetError, RecordSource, read_index


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheets")
    for layer, count in (("body", 6), ("bottomwear", 6), ("topwear", 6), ("hair", 6), ("shoes", 2)):
        (folder / layer).mkdir()
        for v in range(count):
            colour = (40 * v, 255 - 40 * v, len(layer), 100)
            Image.new("RGBA", (832, 1344), colour).save(folder / layer / f"{v}.png")
    return folder


@pytest.fixture
def few_clips(monkeypatch):
    """Keeps every 500th clip, for tests that are not about the pictures."""
    clips_of = sprites.clips_of
    monkeypatch.setattr(
        sprites, "clips_of", lambda split: tuple(column[::500] for column in clips_of(split))
    )


def run(capsys, *arguments):
    code = prepare.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_sprites_whole(sheets, tmp_path, capsys):
    out = tmp_path / "sprites"
    code, printed, _ = run(capsys, "sprites", f"--sheets={sheets}", f"--out={out}", "--shards=2")
    assert code == 0
    assert "train 9,000, test 2,664" in printed and " s\n" in printed
    assert "1116, 1135, 17, 469, 1293" in printed and "884, 1285, 252, 297, 947" in printed
    for split, count in (("train", 9000), ("test", 2664)):
        written, rendered = RecordSource(out, split), sprites.SpritesSource(sheets, split)
        assert len(written) == count
        for k in (0, 1, count // 2, count - 1):
            assert written[k].keys() == rendered[k].keys()
            for name, value in rendered[k].items():
                np.testing.assert_array_equal(written[k][name], np.asarray(value), strict=True)
        written.verify()


def test_again_is_complete_and_other_data_is_refused(few_clips, sheets, tmp_path, capsys):
    arguments = ["sprites", f"--sheets={sheets}", f"--out={tmp_path}"]
    assert run(capsys, *arguments)[0] == 0
    before = (tmp_path / "dataset.json").stat().st_mtime_ns
    code, printed, _ = run(capsys, *arguments)
    assert code == 0 and "is complete (train 18, test 6)" in printed
    assert (tmp_path / "dataset.json").stat().st_mtime_ns == before

    plan = prepare.Plan("other", "1", "ab", "none", lambda: iter([("train", {"x": [1]})]))
    options = {"shards": 1, "command": "make other"}
    with pytest.raises(DatasetError, match=r"another dataset.*sprites, version 1.*--force"):
        prepare.write(plan, tmp_path, force=False, **options)
    prepare.write(plan, tmp_path, force=True, **options)
    assert read_index(tmp_path)["name"] == "other"
    code, _, error = run(capsys, *arguments)
    assert code == 2 and "another dataset (other" in error


def test_the_command_in_an_error_mends_it(few_clips, sheets, tmp_path, capsys):
    out = tmp_path / "a folder"
    assert run(capsys, "sprites", f"--sheets={sheets}", f"--out={out}", "--shards=3")[0] == 0
    shard = out / "test-00001-of-00003.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, _, error = run(capsys, "sprites", f"--sheets={sheets}", f"--out={out}")
    assert code == 2 and str(shard) in error
    command = shlex.split(error.split("Rebuild it with: ")[1])
    assert command[:3] == ["python", "-m", "vidmotion.data.prepare"]
    assert run(capsys, *command[3:])[0] == 0
    RecordSource(out, "test").verify()


def test_errors_are_messages_with_code_2(sheets, tmp_path, capsys):
    code, _, error = run(capsys, "sprites", "--sheets=/nowhere", f"--out={tmp_path / 'out'}")
    assert code == 2 and error.startswith("error: /nowhere: no such folder")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    code, _, error = run(capsys, "sprites", f"--sheets={sheets}", f"--out={tmp_path / 'file'}")
    assert code == 2 and "file" in error
    for arguments in (["videos"], ["sprites"], ["sprites", "--sheets=a", "--out=b", "--shards=0"]):
        with pytest.raises(SystemExit) as exit_:
            prepare.main(arguments)
        assert exit_.value.code == 2


def test_interrupted_leaves_nothing(sheets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sprites.Sheets, "render", interrupt)
    code, _, error = run(capsys, "sprites", f"--sheets={sheets}", f"--out={tmp_path}")
    assert code == 130 and "interrupted" in error
    assert not any(tmp_path.iterdir())


def interrupt(*_):
    raise KeyboardInterrupt
