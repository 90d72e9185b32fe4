"""Writes files that are whole or absent: they get a temporary name beside their final one and are then renamed.

Paths are `pathlib.Path`, or `etils.epath.Path` for files that may be in a bucket.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LEFTOVERS = ".*-[0-9]*.tmp"  # a glob pattern for the files that `aside` leaves behind if its process is killed


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` at the end of the block, or removed on error.

    The folder is made if absent. The file at `path` is left alone until the new one is complete.

    Raises:
      OSError: raised within the block; it names `path` if the library that raised it named no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        yield written
        written.replace(path)
    except OSError as error:  # such as for a full disk, which libraries report without a file name
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    finally:
        written.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes, so that `path` holds either all of it or its previous content.

    Raises:
      OSError: as for `aside`.
    """
    with aside(path) as written:
        written.write_bytes(content.encode() if isinstance(content, str) else content)


def not_a_file(path: str | os.PathLike) -> bool:
    """Tell whether `path` is something other than a file: a folder, or a pipe, whose reader would wait forever."""
    return os.path.exists(path) and not os.path.isfile(path)


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Return the hex sha256 of a file, or of the sorted names and the contents of all files below a folder."""
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
