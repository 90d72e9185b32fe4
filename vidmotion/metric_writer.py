"""Reports the progress of a run: writes metric files, shows a progress line, and reads metrics one step late."""

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from vidmotion import files

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVENTS_DIR = "tensorboard"


def read_metrics(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl` in file order, skipping lines that a crash left incomplete.

    Each record holds "step" (int), "time" (Unix seconds) and the named values. A value that was not finite is one of
    the strings "nan", "inf" and "-inf", which `float()` converts back.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    with epath.Path(path).open("rb") as lines:
        for line in lines:
            record = _parse(line)
            if record is not None:
                yield record


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # incomplete: not JSON, or cut inside a character
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard event files (`tensorboard/`) under a work directory.

    A failing disk never stops a run: the first `OSError` is logged as a warning, the record that could not be written
    is lost, and every later call tries again. Mistakes of the caller do raise.

    Args:
        workdir: a local directory, made if absent.
        resume_step: the number of completed updates from which this run starts. Records of later steps, left by a
            run that was killed after its last checkpoint, are dropped from `metrics.jsonl` and marked as superseded
            for TensorBoard. None drops nothing and only appends.
        is_host0: whether this is the first process of the job; in the other processes every method does nothing.

    Raises:
        ValueError: `workdir` is a URL; both files need a local disk.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        is_host0: bool = True,
    ):
        if "://" in os.fspath(workdir):
            raise ValueError(f"metrics are written to a local directory, not to {workdir}")
        self._active = is_host0
        self._dir = Path(workdir)
        self._resume_step = resume_step
        self._warned = False
        self._lines = None
        self._events: EventsWriter | None = None
        self._guard(self._prepare)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers (Python, numpy or JAX scalars) at `step`, as one JSON line per call.

        Raises:
            ValueError: a value is named "step" or "time".
            TypeError: a value is not a scalar.
        """
        if self._active:
            numbers = {name: float(value) for name, value in values.items()}
            self._line(step, {name: _strict(value) for name, value in numbers.items()})
            self._summaries(step, "scalar", numbers)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Record pictures, each uint8 (H, W, 3), for TensorBoard.

        Raises:
            ValueError: an image has another dtype or shape.
        """
        if self._active:
            for name, image in images.items():
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                    raise ValueError(
                        f"image {name!r} must be uint8 (H, W, 3), got {image.dtype} {image.shape}"
                    )
            self._summaries(step, "image", images, dataformats="HWC")

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Record strings in `metrics.jsonl` and for TensorBoard, which shows them as Markdown.

        Raises:
            ValueError: a text is named "step" or "time".
        """
        if self._active:
            self._line(step, dict(texts))
            self._summaries(step, "text", texts)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._guard(lambda: self._events and self._events.flush())

    def close(self) -> None:
        """Flush and close both files; the writer must not be used afterwards."""
        self._guard(lambda: self._events and self._events.close())
        self._guard(lambda: self._lines and self._lines.close())
        self._active = False

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _guard(self, write: Callable[[], Any]) -> bool:
        """Run `write` and return whether it succeeded; the first `OSError` is logged and none is raised."""
        if not self._active:
            return False
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "metrics under %s could not be written (%s); the run goes on, but records may "
                    "be missing from here on",
                    self._dir,
                    error,
                )
            return False
        return True

    def _prepare(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        path = self._dir / METRICS_FILE
        if self._resume_step is not None and path.exists():
            _drop_after(path, self._resume_step)
        # Unbuffered: a line is one system call, so a killed run loses at most the line in flight.
        self._lines = open(path, "ab+", buffering=0)  # noqa: SIM115

    def _line(self, step: int, values: dict[str, Any]) -> None:
        if clash := {"step", "time"} & values.keys():
            raise ValueError(f"the name {min(clash)!r} is reserved for the record itself")
        record = {"step": int(step), "time": round(time.time(), 3), **values}
        data = json.dumps(record, allow_nan=False).encode() + b"\n"

        def write() -> None:
            if self._lines is None:
                self._prepare()
            # If a crash or a full disk cut the last line short, end it first, so that only that line is lost.
            payload = b"\n" + data if _is_torn(self._lines) else data
            if (written := self._lines.write(payload)) != len(payload):
                raise OSError(f"wrote {written} of {len(payload)} bytes to {METRICS_FILE}")

        self._guard(write)

    def _summaries(self, step: int, kind: str, values: Mapping[str, Any], **options) -> None:
        # Imported late: tensorboardX imports torch if it is installed, which takes seconds.
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        items = [getattr(summary, kind)(*item, **options) for item in values.items()]

        def write() -> None:
            if self._events is None:
                self._events = self._open_events()
            for item in items:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=item))

        if not self._guard(write):
            self._events = None  # an incomplete record hides all later ones, so start a new file

    def _open_events(self) -> "EventsWriter":
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # tensorboardX's SummaryWriter writes from a thread. On a full disk that thread dies, and its queue then
        # blocks the caller forever, so the underlying file writer is used directly.
        folder = self._dir / EVENTS_DIR
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX puts only seconds into the name; nanoseconds tell apart two writers opened in the same second.
        events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if self._resume_step is not None:
            start = SessionLog(status=SessionLog.START)
            events.write_event(
                Event(wall_time=time.time(), step=self._resume_step + 1, session_log=start)
            )
            self._resume_step = None  # only once: a later file must not discard this run's steps
        return events


def _strict(value: float) -> float | str:
    """Replace NaN and infinities, which JSON lacks, by "nan", "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)


def _is_torn(file: BinaryIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _drop_after(path: Path, step: int) -> None:
    """Drop the records of `path` after `step`; the new file is written under another name and then renamed."""
    dropped = 0
    with files.aside(path) as written, open(path, "rb") as lines, open(written, "wb") as kept:
        for line in lines:
            record = _parse(line)
            if record is None or record["step"] > step:
                dropped += 1
            else:
                kept.write(line.rstrip(b"\n") + b"\n")
        kept.flush()
        os.fsync(kept.fileno())
    if dropped:
        log.info("%s: dropped %d lines past step %d", path, dropped, step)


class Mirror:
    """A local folder that stands in for a workdir that is a URL; for a local workdir, the workdir itself.

    Metric files are appended to line by line, which object stores cannot do. They are therefore written to a
    temporary folder and copied to the workdir at each checkpoint and at the end.

    Args:
        workdir: the folder of the run.
        resume: names of files that the run appends to; those that the workdir has are fetched first.
        remote: whether to use a temporary folder; by default, if `workdir` is a URL.

    Attributes:
        local: the folder to write to.
    """

    def __init__(self, workdir: epath.Path, resume: Sequence[str], remote: bool | None = None):
        self._workdir = workdir
        self._scratch = None
        self.local = workdir
        if ("://" in str(workdir)) if remote is None else remote:
            self._scratch = tempfile.TemporaryDirectory(prefix="vidmotion-")
            self.local = Path(self._scratch.name)
            for name in resume:
                if (workdir / name).exists():
                    (self.local / name).write_bytes((workdir / name).read_bytes())

    def copy_out(self) -> None:
        """Copy every file of a temporary folder to the workdir; a failure is logged as a warning."""
        if self._scratch is None:
            return
        try:
            for file in sorted(path for path in self.local.rglob("*") if path.is_file()):
                target = self._workdir / str(file.relative_to(self.local))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        except OSError as error:
            log.warning("metrics could not be copied to %s: %s", self._workdir, error)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_) -> None:
        self.copy_out()
        if self._scratch is not None:
            self._scratch.cleanup()


class DeferredMetrics:
    """Holds metrics as device arrays and reads them `delay` steps later.

    Reading step n while step n + 1 already runs keeps the host from waiting for the device.
    """

    def __init__(self, delay: int = 1):
        self._delay = delay
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def push(
        self, step: int, metrics: Mapping[str, jax.Array]
    ) -> list[tuple[int, dict[str, float]]]:
        """Add the scalars of `step`, and return those pushed at least `delay` calls ago, oldest first.

        The arrays may be on the device and still being computed. In a job of several processes they must be
        replicated.

        Raises:
            TypeError: a metric that is to be returned is not a scalar.
        """
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._pending.append((step, metrics))
        ready = self._pending[: -self._delay] if self._delay else self._pending
        self._pending = self._pending[len(ready) :]
        return [_to_host(*item) for item in ready]

    def drain(self) -> list[tuple[int, dict[str, float]]]:
        """Wait for all pending metrics and return them, oldest first."""
        ready, self._pending = self._pending, []
        return [_to_host(*item) for item in ready]


def _to_host(step: int, metrics: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    return step, {name: float(np.asarray(value)) for name, value in metrics.items()}


class Progress:
    """Shows step, loss, steps per second and time left: a tqdm bar on a terminal, plain lines elsewhere.

    Args:
        total: the step at which the run ends.
        start: the number of steps completed before the run starts.
        stream: the stream to write to; None means standard error.
        every: the least number of seconds between two plain lines. The first and the last step always get a line.
        clock: a function that returns monotonic time in seconds; tests pass their own.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._every, self._clock = total, every, clock
        self._stream = sys.stderr if stream is None else stream
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, unit="step", file=self._stream, dynamic_ncols=True
            )
        self._seen: tuple[int, float | None] | None = None  # latest step and loss
        self._told: tuple[int, float] | None = None  # step and time of the latest line

    def update(self, step: int, loss: float | None = None) -> None:
        """Report that `step` updates are complete; `loss` is that of the latest, if known."""
        self._seen = (step, loss)
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif (
            self._told is None
            or step >= self._total
            or self._clock() - self._told[1] >= self._every
        ):
            self._tell()

    def close(self) -> None:
        """Close the bar, or print a line for the last step if it has none yet."""
        if self._bar is not None:
            self._bar.close()
        elif self._seen is not None and self._told[0] != self._seen[0]:
            self._tell()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _tell(self) -> None:
        (step, loss), now = self._seen, self._clock()
        parts = [f"step {step}/{self._total}"]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        # No rate on the first line: the time before it is compilation.
        if self._told is not None and now > self._told[1] and step > self._told[0]:
            rate = (step - self._told[0]) / (now - self._told[1])
            left = max(self._total - step, 0) / rate
            parts += [f"{rate:.3g} steps/s", f"ETA {tqdm.format_interval(left)}"]
        with contextlib.suppress(OSError):  # a log on a full disk must not end the run
            print("  ".join(parts), file=self._stream, flush=True)
        self._told = (step, now)
