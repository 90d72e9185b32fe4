"""Files that are whole or absent: they are written beside their final name and then renamed.

Paths are `pathlib.Path`, or `etils.epath.Path` where a file may lie in a bucket.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it is renamed to `path` at the end of the block, or removed after an error.

    The folder is made where there is none. The file at `path` is left alone until the new one is complete.

    Raises:
      OSError: from within the block; it names `path` where the library that raised it named no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        yield written
        written.replace(path)
    except OSError as error:  # a full disk, which libraries report without the file
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    finally:
        written.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes, so that `path` holds all of it or what it held before.

    Raises:
      OSError: as of `aside`.
    """
    with aside(path) as written:
        written.write_bytes(content.encode() if isinstance(content, str) else content)


def not_a_file(path: str | os.PathLike) -> bool:
    """Whether something other than a file lies at `path`: a folder, or a pipe, whose reader would wait for ever."""
    return os.path.exists(path) and not os.path.isfile(path)


def sha256(path: Path) -> str:
    """Hex sha256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Hex sha256 of a file, or of the names and contents of all files below a folder, in the order of their names."""
    if not path.is_dir():
        return sha256(path)
    total = hashlib.sha256()
    below = [path]
    found = {}
    for folder in below:
        for item in folder.iterdir():
            if item.is_dir():
                below.append(item)
            else:
                found[os.fspath(item)[len(os.fspath(path)) :]] = item
    for name, item in sorted(found.items()):
        total.update(f"{name} {sha256(item)}\n".encode())
    return total.hexdigest()
