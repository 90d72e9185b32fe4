"""Turns a random-access source into batches, so that "the batch of step n" is a function of n alone.

The pipeline is a `grain.MapDataset`: source, shuffle (anew each epoch), repeat, transforms, batch. It is sliced by
process after batching, so the rows of global batch n are the same, in the same order, for every number of processes,
threads and workers: process p of P holds rows [p * B / P, (p + 1) * B / P). The position of a run is therefore its step
number. Beside it, `Loader.state` keeps the identity of the data, so that a change of the data is noticed.

`clip_source.ClipSource` defines a source.
"""

import hashlib
import importlib
import inspect
import json
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from vidmotion.data.clip_source import ClipSource, Fills
from vidmotion.errors import ConfigError

log = logging.getLogger(__name__)

SOURCES = {
    "codes": ("vidmotion.data.encoded", "CodesSource"),
    "head_portraits": ("vidmotion.data.portraits", "head_portraits"),
    "heads": ("vidmotion.data.heads", "HeadsSource"),
    "latents": ("vidmotion.data.videos", "LatentSource"),
    "motion_codes": ("vidmotion.data.encoded", "MotionCodesSource"),
    "motion_tokens": ("vidmotion.data.encoded", "MotionTokensSource"),
    "portraits": ("vidmotion.data.portraits", "PortraitSource"),
    "records": ("vidmotion.data.records", "RecordSource"),
    "sprite_portraits": ("vidmotion.data.portraits", "sprite_portraits"),
    "sprites": ("vidmotion.data.sprites", "SpritesSource"),
    "tfds": ("vidmotion.data.pipeline", "TfdsSource"),
    "tfds_videos": ("vidmotion.data.videos", "TfdsVideoSource"),
    "videos": ("vidmotion.data.videos", "VideoSource"),
    "vidtwin_latents": ("vidmotion.data.encoded", "VidTwinLatentsSource"),
}

_ENDLESS = 1 << 60


def make_source(kind: str, **kwargs):
    """Builds a source by name.

    Args:
      kind: a key of `SOURCES`.
      **kwargs: the arguments of the source's class.

    Raises:
      ConfigError: the kind is unknown (the message lists the known kinds); an argument is unknown, missing or rejected
        by the class; or a package is not installed. Other errors that the class raises about its data pass through.
    """
    if kind not in SOURCES:
        raise ConfigError(f"no data source {kind!r}; choose one of {', '.join(SOURCES)}")
    module, name = SOURCES[kind]
    source_class = getattr(importlib.import_module(module), name)
    signature = inspect.signature(source_class)
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"data source {kind!r}: {error}; it takes {signature}") from None
    try:
        return source_class(**kwargs)
    except (ImportError, ValueError) as error:
        if type(error) not in (ImportError, ValueError):  # a subclass, such as DatasetError
            raise
        raise ConfigError(f"config.data ({kind}): {error}") from error


class TfdsSource(ClipSource):
    """A split of a TensorFlow dataset, read without TensorFlow (`file_format="array_record"`).

    Elements are flat dicts of numpy arrays, as the dataset's features define them. Features that need TensorFlow for
    decoding (Image, Video, Audio) are not supported; for videos use `videos.TfdsVideoSource`. `vidmotion.data.tfds`
    writes the sources of this package in this format.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        """Opens a dataset that `download_and_prepare` has written.

        Raises:
          ImportError: the extra `tfds` is not installed.
          ValueError, FileNotFoundError: raised by tfds if the dataset does not exist as array_record.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(
                "the data source 'tfds' needs tensorflow-datasets: pip install 'vidmotion[tfds]'"
            ) from error
        self._data = tfds.data_source(name, split=split, data_dir=data_dir)
        info = self._data.dataset_info
        sizes = [(part.name, part.num_examples, part.num_bytes) for part in info.splits.values()]
        self.fingerprint = _hex(info.full_name, split, *sizes)

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        features = self._data.dataset_info.features
        # Scalars come as Python numbers, which have no dtype.
        return {
            name: value
            if isinstance(value, np.ndarray)
            else np.asarray(value, features[name].np_dtype)
            for name, value in self._data[index].items()
        }


class Loader:
    """Makes batches from one source, by step number.

    `transforms` act on single elements, in order, before batching. Each is a callable element -> element or a
    `grain.transforms.RandomMap`, which also gets a numpy Generator that is a function of seed and position. Callables
    with settings should be frozen dataclasses, because `state` stores their repr.

    A loader is a context manager; `close` ends the iterators that it has returned.
    """

    def __init__(
        self,
        source,
        *,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        transforms: Sequence[Callable | grain.transforms.RandomMap] = (),
        shuffle: bool = True,
        num_threads: int = 2,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        """Sets up the pipeline without reading any data.

        Args:
          source: the source of the elements, see `clip_source.ClipSource`.
          batch_size: the size of a global batch, over all processes.
          seed: the seed of the order and of random transforms; at least 0.
          process_index: the index of this process.
          process_count: the number of processes; each holds its own rows of a global batch.
          transforms: the transforms of elements, see above.
          shuffle: whether each epoch has a new order; otherwise the source's order is repeated.
          num_threads: the number of threads that make batches ahead of time; 0 makes them on demand. Threads suit work
            that releases the GIL, as numpy, PyAV and record reading do.
          num_workers: the number of processes that make batches instead, for work that holds the GIL. They are spawned,
            so the main module must be importable and the source picklable.
          prefetch: the number of local batches held ready, 1 to 16, per worker process if there are any. At least one
            per thread is held.

        Raises:
          ConfigError: the source is empty, the batch size is not a multiple of the number of processes, a number is out
            of range, or a transform's settings do not show in its repr.
        """
        if not len(source):
            raise ConfigError(f"{source!r} has no elements")
        if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
            raise ConfigError(
                f"a batch of {batch_size} cannot be dealt to process {process_index} of "
                f"{process_count}: the size must be a positive multiple of the process count"
            )
        if seed < 0 or num_threads < 0 or num_workers < 0 or not 1 <= prefetch <= 16:
            raise ConfigError(
                "seed, num_threads and num_workers must be at least 0, and prefetch 1 to 16; got "
                f"{seed=}, {num_threads=}, {num_workers=}, {prefetch=}"
            )
        self.source, self.batch_size = source, batch_size
        self.local_batch_size = batch_size // process_count
        self._process = slice(process_index, None, process_count)
        self._seed, self._transforms = seed, tuple(transforms)
        self._threads, self._workers, self._prefetch = num_threads, num_workers, prefetch
        self._open = weakref.WeakSet()
        self.identity = {
            "source": source.fingerprint,
            "elements": len(source),
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": shuffle,
            "transforms": [_transform_name(t) for t in self._transforms],
        }

        def endless(elements):
            elements = elements.seed(seed)
            if shuffle:
                elements = elements.shuffle()
            # Practically endless; the number that grain itself uses for endless overflows in batches of one.
            return elements.repeat(_ENDLESS // len(source))

        # Indices that pass through the same pipeline as the elements stay the indices of those elements.
        order = endless(grain.MapDataset.range(len(source)))
        self._batches = self._batched(endless(grain.MapDataset.source(source)), order)

    def __len__(self):
        """The number of batches in one pass over the source; the last may be padded (see `one_pass`)."""
        return -(-len(self.source) // self.batch_size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that determines the batches: source content, seed, batch size, order, transforms."""
        return _hex(json.dumps(self.identity))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of the batch of a step (0, 1, ...): arrays (B / P, ...)."""
        return self._batches[step]

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Iterates over `batch(start_step)`, `batch(start_step + 1)`, ... without end, made ahead of time."""
        if self.batch_size > len(self.source):
            log.warning(
                "a batch of %d holds some of the %d elements of %r more than once",
                self.batch_size,
                len(self.source),
                self.source,
            )
        return self._run(self._batches[start_step:])

    def one_pass(self) -> Iterator[dict[str, np.ndarray]]:
        """Iterates over every element once, in the source's order, for evaluation: `len(self)` batches.

        Each batch has an additional entry `mask`, bool (B / P,), which is False for the rows that pad the last batch
        (copies of the last element). Random transforms depend on the seed and the position.
        """
        padded = grain.MapDataset.range(len(self) * self.batch_size).seed(self._seed)
        elements = padded.map(_Clamped(self.source))
        order = padded.map(_Clamped(range(len(self.source))))
        return self._run(self._batched(elements, order, _Masked(len(self.source))))

    def state(self, step: int) -> dict:
        """Returns the position before batch `step`, as JSON-able data to keep beside a checkpoint."""
        return {"step": int(step), **self.identity}

    def check(self, state: dict) -> int:
        """Checks that a position from `state` belongs to this loader's data; the process count may differ.

        Returns:
          The step to continue with.

        Raises:
          ConfigError: the state belongs to other data or another order; the message says what differs.
        """
        differing = [
            f"{key} was {state.get(key)!r} and is now {value!r}"
            for key, value in self.identity.items()
            if state.get(key) != value
        ]
        if differing:
            raise ConfigError(
                "the data of this run is not what its checkpoint was trained on: "
                + "; ".join(differing)
                + ". Restore the earlier setting, or start a new workdir with init_from."
            )
        return state["step"]

    def close(self):
        """Ends all iterators that this loader has returned, with their threads and processes."""
        for iterator in list(self._open):
            iterator.close()

    def _batched(self, elements, order, mask=None):
        for transform in self._transforms:
            if isinstance(transform, grain.transforms.RandomMap):
                elements = elements.random_map(transform)
            else:
                elements = elements.map(transform)
        if mask is not None:
            elements = elements.map_with_index(mask)
        batches = elements.batch(self.local_batch_size)[self._process]
        if not isinstance(self.source, Fills):
            return batches
        indices = order.batch(self.local_batch_size)[self._process]
        return grain.MapDataset.range(len(batches)).map(_Filled(self.source, indices, batches))

    def _run(self, batches):
        ahead = max(self._prefetch, self._threads) if self._threads else 0
        options = grain.ReadOptions(self._threads, ahead)
        if self._workers:
            _allow_workers()
            workers = grain.MultiprocessingOptions(self._workers, self._prefetch)
            batches = batches.to_iter_dataset(options).mp_prefetch(workers)
        else:
            batches = batches.to_iter_dataset(options)
        iterator = iter(batches)
        self._open.add(iterator)
        return iterator


class DevicePrefetch:
    """Puts batches on the devices ahead of the step that uses them; made by `device_prefetch`.

    Attributes:
      wait_seconds: the total time for which the consumer has waited for batches. Its growth during a span of wall-clock
        time is the part of that span lost to input.
    """

    def __init__(self, iterator, put, ahead):
        self._iterator, self._put = iter(iterator), put
        self.wait_seconds = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device-prefetch")
        self._pending = deque(self._executor.submit(self._fetch) for _ in range(ahead))

    def __iter__(self):
        return self

    def __next__(self):
        if not self._pending:
            raise StopIteration
        start = time.perf_counter()
        try:
            batch = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - start
        self._pending.append(self._executor.submit(self._fetch))
        return batch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Drops the batches fetched ahead and ends the thread."""
        self._executor.shutdown(cancel_futures=True)
        self._pending.clear()

    def _fetch(self):
        return self._put(next(self._iterator))


def device_prefetch(iterator: Iterable, put: Callable, ahead: int = 2) -> DevicePrefetch:
    """Iterates over `put(batch)` for each batch, computed in a thread up to `ahead` batches early.

    Args:
      iterator: an iterator of process-local numpy batches.
      put: batch -> device arrays, such as `jax.make_array_from_process_local_data` per leaf.
      ahead: the number of batches on the devices beyond the one in use; at least 1.

    Returns:
      An iterator and context manager with `wait_seconds`. Errors of `iterator` and `put` are raised at the batch that
      they concern.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1, got {ahead}")
    return DevicePrefetch(iterator, put, ahead)


class _Clamped:
    """Maps an index to an element; indices past the end give the last element."""

    def __init__(self, source):
        self._source = source

    def __call__(self, index):
        return self._source[min(index, len(self._source) - 1)]


class _Filled:
    """Maps a step to a batch, after the source has prepared the batch's elements together (`Fills`)."""

    def __init__(self, source, indices, batches):
        self._source, self._indices, self._batches = source, indices, batches

    def __call__(self, step):
        self._source.fill(self._indices[step].tolist())
        return self._batches[step]


class _Masked:
    """Adds to an element the entry `mask`, which is False for indices past the end."""

    def __init__(self, length):
        self._length = length

    def __call__(self, index, element):
        if "mask" in element:
            raise ValueError(
                "the loader adds an entry `mask` itself: rename the entry of the source"
            )
        return {**element, "mask": np.bool_(index < self._length)}


def _transform_name(transform) -> str:
    name = getattr(transform, "__qualname__", None)
    name = f"{transform.__module__}.{name}" if name else repr(transform)
    if "<lambda>" in name or " at 0x" in name:
        raise ConfigError(
            f"transform {name} has no stable name: use a named function or a frozen dataclass, "
            "whose repr shows its settings"
        )
    return name


def _allow_workers():
    """Marks absl flags as parsed: Grain's workers read them, and tests, notebooks and demos never parse them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _hex(*parts) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
