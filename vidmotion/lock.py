"""Lets only one process at a time write in a folder: by a lock on a file system, by a lease in a bucket.

The lock is the kernel's, so it disappears with its process, however that ends; the content of the lock file serves
only error messages. A bucket has no locks. There the owner keeps renewing a lease, and a process that finds a lease
watches whether it is renewed.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from vidmotion.errors import ConfigError

log = logging.getLogger(__name__)

LOCK = ".lock"
LEASE = "lease.json"
LEASE_SECONDS = 60.0  # a lease that is not renewed for this long has run out
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[str] = set()  # locked files; a POSIX lock lets its own process lock the file again


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
    """Hold `folder` while the block runs, so that this is the only process that writes in it.

    Args:
      folder: the path or URL of the folder, made if absent.

    Raises:
      ConfigError: another process holds the folder (the message gives its pid, its host and since when), or the
        folder of a URL cannot be written.
    """
    held = _lease(epath.Path(folder)) if "://" in str(folder) else _lock(Path(folder))
    with held:
        yield


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if str(path) in _held:
        raise _in_use(folder, _owner())
    try:
        file = _locked(path)
    except BlockingIOError:
        raise _in_use(folder, _read(epath.Path(path)) or {}) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        log.warning(
            "%s: this file system does not support locks (%s); make sure that no other process writes there",
            folder,
            error.strerror,
        )
        yield
        return
    _held.add(str(path))
    with file:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its text
            file.truncate(0)
            file.write(json.dumps(_owner()).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            _held.discard(str(path))


def _locked(path: Path):
    """Open and lock the file at `path`; raises BlockingIOError if another process holds the lock."""
    while True:
        file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may have removed the file between opening and locking, so that the lock is on a file
            # without a name. Compare by stat: to open the file again and close it would release the lock.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError from error
            raise
        file.close()


@contextlib.contextmanager
def _lease(folder: epath.Path, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Hold `folder` by a lease file that is rewritten every third of `seconds`.

    The clocks of two machines are never compared: a process that finds a lease watches it for `seconds` on its own
    clock.
    """
    path = folder / LEASE
    mine = {**_owner(), "token": uuid.uuid4().hex, "renewed": 0}
    try:
        if (there := _read(path)) is not None:
            _watch(folder, path, there, seconds)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine))
    except ConfigError:
        raise
    except Exception as error:  # several libraries are involved, each with its own errors
        raise ConfigError(f"cannot write {path}, which reserves the folder: {error}") from error
    time.sleep(seconds / 30)  # if two processes come at once, the later writer gets the lease
    if (there := _read(path) or {}).get("token") != mine["token"]:
        raise _in_use(folder, there)
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, mine, seconds / 3, done), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        if (_read(path) or {}).get("token") == mine["token"]:
            path.unlink(missing_ok=True)


def _watch(folder: epath.Path, path: epath.Path, there: dict, seconds: float) -> None:
    """Return once the lease `there` has run out; raises `ConfigError` if it is renewed."""
    log.info(
        "%s is leased by %s: watching for %.0f s to see whether the lease is renewed",
        folder,
        _name(there),
        seconds,
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(seconds / 30)
        now = _read(path)
        if now is None:
            return
        if now != there:
            raise _in_use(folder, now)


def _renew(path: epath.Path, mine: dict, every: float, done: threading.Event) -> None:
    while not done.wait(every):
        try:
            there = _read(path)
            if there is not None and there.get("token") != mine["token"]:
                log.error(
                    "the lease of %s was taken over by %s; this process stops", path, _name(there)
                )
                os.kill(os.getpid(), signal.SIGTERM)
                return
            mine["renewed"] += 1
            path.write_text(json.dumps(mine))
        except Exception as error:  # of any library involved; the next renewal may succeed
            log.warning("the lease %s could not be renewed: %s", path, error)


def _owner() -> dict[str, str | int]:
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _read(path: epath.Path) -> dict | None:
    """Read what an owner wrote at `path`; None if there is no file, {} if it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(owner: dict) -> str:
    if "pid" not in owner:
        return "another process"
    return f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"


def _in_use(folder: str | os.PathLike, owner: dict) -> ConfigError:
    return ConfigError(
        f"{folder} is in use by {_name(owner)}: wait until it ends, stop it, or choose another folder"
    )
