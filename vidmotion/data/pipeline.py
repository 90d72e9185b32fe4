"""From a random-access source to batches: where "the batch of step n" is a function of n alone.

The pipeline is a `grain.MapDataset`: source, shuffle (anew each epoch), repeat, transforms, batch.
It is sliced by process after batching, so the rows of global batch n are the same, in the same
order, for every number of processes, threads and workers: process p of P holds rows
[p * B / P, (p + 1) * B / P). The position of a run is therefore its step number; beside it
`Loader.state` keeps what the numbers refer to, so that changed data does not go unnoticed.

`clip_source.ClipSource` says what a source is.
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
    """Builds a source by name: a key of `SOURCES`, and the arguments of its class.

    Raises:
      ConfigError: an unknown kind, arguments that its class does not take, lacks or refuses, or a
        package that is not installed; the message lists what exists. And whatever the class raises
        about its data.
    """
    if kind not in SOURCES:
        raise ConfigError(f"no data source {kind!r}; there are {', '.join(SOURCES)}")
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
        if type(error) not in (ImportError, ValueError):  # it has a name of its own: DatasetError
            raise
        raise ConfigError(f"config.data ({kind}): {error}") from error


class TfdsSource(ClipSource):
    """A split of a TensorFlow dataset, read without TensorFlow (`file_format="array_record"`).

    The element is what the dataset's features give, a flat dict of numpy arrays; features that
    need TensorFlow to decode (Image, Video, Audio) are not supported; for videos there is
    `videos.TfdsVideoSource`. `vidmotion.data.tfds` writes the sources of this package so.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        """Opens a dataset that `download_and_prepare` has written.

        Raises:
          ImportError: the extra `tfds` is not installed.
          ValueError, FileNotFoundError: from tfds, where the dataset is not there as array_record.
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
        # Numbers come as Python's, which have no width.
        return {
            name: value
            if isinstance(value, np.ndarray)
            else np.asarray(value, features[name].np_dtype)
            for name, value in self._data[index].items()
        }


class Loader:
    """Batches of one source, by step number.

    `transforms` act on single elements, in order, before batching: a callable element -> element,
    or a `grain.transforms.RandomMap`, which also gets a numpy Generator that is a function of seed
    and position. Callables with settings should be frozen dataclasses: their repr is what
    `state` remembers.

    A loader is a context manager; `close` ends the iterators it gave out.
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
        """Describes the pipeline; nothing is read yet.

        Args:
          source: see the top of this file.
          batch_size: global, over all processes.
          seed: the seed of the order and of random transforms; at least 0.
          process_index, process_count: which rows of a global batch this process holds.
          transforms: see above.
          shuffle: a new order each epoch; otherwise the source's order, repeated.
          num_threads: threads that make batches ahead (0: made when asked for). Threads suit work
            that releases the GIL, as numpy, PyAV and record reading do.
          num_workers: processes that make batches instead, for work that holds the GIL. They are
            spawned: the main module must be importable and the source picklable.
          prefetch: local batches held ready, 1 to 16, by each worker process if there are any; at
            least one per thread is.

        Raises:
          ConfigError: an empty source, a batch size that the processes do not divide, a number out
            of range, or a transform whose settings cannot be told from its repr.
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
                "seed, num_threads and num_workers are at least 0 and prefetch is 1 to 16, got "
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
            # Without an end; grain's own endless number overflows in batches of one.
            return elements.repeat(_ENDLESS // len(source))

        # Indices that go the same way as the elements are their indices.
        order = endless(grain.MapDataset.range(len(source)))
        self._batches = self._batched(endless(grain.MapDataset.source(source)), order)

    def __len__(self):
        """Batches in one pass over the source, the last one perhaps padded (see `one_pass`)."""
        return -(-len(self.source) // self.batch_size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def fingerprint(self) -> str:
        """Hex text naming the data order: source content, seed, batch size, transforms."""
        return _hex(json.dumps(self.identity))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of a step (0, 1, ...): arrays (B / P, ...)."""
        return self._batches[step]

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches `batch(start_step)`, `batch(start_step + 1)`, ... without end, made ahead."""
        if self.batch_size > len(self.source):
            log.warning(
                "a batch of %d holds some of the %d elements of %r more than once",
                self.batch_size,
                len(self.source),
                self.source,
            )
        return self._run(self._batches[start_step:])

    def one_pass(self) -> Iterator[dict[str, np.ndarray]]:
        """Every element once, in the source's order, for evaluation: `len(self)` batches.

        Each batch has one entry more, `mask`: bool (B / P,), False on the rows that pad the last
        batch (they repeat the last element). Random transforms see the seed and the position.
        """
        padded = grain.MapDataset.range(len(self) * self.batch_size).seed(self._seed)
        elements = padded.map(_Clamped(self.source))
        order = padded.map(_Clamped(range(len(self.source))))
        return self._run(self._batched(elements, order, _Masked(len(self.source))))

    def state(self, step: int) -> dict:
        """The position before batch `step`, as JSON-able data to keep beside a checkpoint."""
        return {"step": int(step), **self.identity}

    def check(self, state: dict) -> int:
        """Takes up a position from `state`; the process count may have changed.

        Returns:
          The step to go on with.

        Raises:
          ConfigError: the state belongs to other data or another order; says what differs.
        """
        differing = [
            f"{key} was {state.get(key)!r} and is {value!r}"
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
        """Ends all iterators that this loader gave out, with their threads and processes."""
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
      wait_seconds: total time for which the consumer waited for a batch. Its growth over a span of
        wall-clock time is the share of that span lost to input.
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
        """Drops what was fetched ahead and ends the thread."""
        self._executor.shutdown(cancel_futures=True)
        self._pending.clear()

    def _fetch(self):
        return self._put(next(self._iterator))


def device_prefetch(iterator: Iterable, put: Callable, ahead: int = 2) -> DevicePrefetch:
    """Iterates over `put(batch)` for each batch, computed in a thread up to `ahead` batches early.

    Args:
      iterator: gives process-local numpy batches.
      put: batch -> device arrays, such as `jax.make_array_from_process_local_data` per leaf.
      ahead: batches on the devices beyond the one in use; at least 1.

    Returns:
      An iterator and context manager with `wait_seconds`. Errors of `iterator` and `put` come up at
      the batch they concern.
    """
    if ahead < 1:
        raise ValueError(f"ahead is at least 1, got {ahead}")
    return DevicePrefetch(iterator, put, ahead)


class _Clamped:
    """Index -> element; indices past the end give the last element."""

    def __init__(self, source):
        self._source = source

    def __call__(self, index):
        return self._source[min(index, len(self._source) - 1)]


class _Filled:
    """Step -> batch, its elements made ready together before they are read one by one."""

    def __init__(self, source, indices, batches):
        self._source, self._indices, self._batches = source, indices, batches

    def __call__(self, step):
        self._source.fill(self._indices[step].tolist())
        return self._batches[step]


class _Masked:
    """(index, element) -> element with `mask`, which is False past the end."""

    def __init__(self, length):
        self._length = length

    def __call__(self, index, element):
        if "mask" in element:
            raise ValueError("`mask` is the loader's own entry: rename that of the source")
        return {**element, "mask": np.bool_(index < self._length)}


def _transform_name(transform) -> str:
    name = getattr(transform, "__qualname__", None)
    name = f"{transform.__module__}.{name}" if name else repr(transform)
    if "<lambda>" in name or " at 0x" in name:
        raise ConfigError(
            f"transform {name} has no lasting name: use a named function or a frozen dataclass, "
            "whose repr shows its settings"
        )
    return name


def _allow_workers():
    """Grain's workers read absl flags, which nothing has parsed in tests, notebooks and demos."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _hex(*parts) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
