"""Files are whole or absent, whatever happens while they are written."""

import errno
import os

import pytest
from etils import epath

from vidmotion import files


@pytest.mark.parametrize("kind", [lambda path: path, epath.Path])
def test_a_file_holds_all_of_the_new_content_or_what_it_held_before(tmp_path, kind):
    path = kind(tmp_path / "new" / "a.json")
    files.atomic_write(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    files.atomic_write(path, b"\x00")
    with pytest.raises(ZeroDivisionError), files.aside(path) as written:
        written.write_text("half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"\x00"
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_an_error_without_a_file_names_the_file(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(OSError, match=r"No space left .*a\.bin"), files.aside(path):
        raise OSError(errno.ENOSPC, "full")
    assert not list(tmp_path.iterdir())


def test_two_processes_that_make_the_same_file_do_not_write_into_one(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    with files.aside(path) as mine:
        mine.write_bytes(b"mine")
        monkeypatch.setattr(files.os, "getpid", lambda: -1)
        with files.aside(path) as theirs:
            theirs.write_bytes(b"theirs")
        assert mine != theirs and mine.name.endswith(".tmp")
        assert (mine.read_bytes(), path.read_bytes()) == (b"mine", b"theirs")


def test_what_is_there_and_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    answers = {name: files.not_a_file(tmp_path / name) for name in ("pipe", "file", "none", ".")}
    assert answers == {"pipe": True, "file": False, "none": False, ".": True}


def test_sha256_is_that_of_the_standard(tmp_path):
    # FIPS 180-2, appendix B.1.
    files.atomic_write(tmp_path / "abc", "abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == expected
