"""The loader: the batch of a step is a function of the step alone, however it is made."""

import dataclasses
import itertools
import json
import time

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidmotion.data.pipeline import Loader, device_prefetch, make_source
from vidmotion.data.records import DatasetWriter


class Numbers:
    """A source of the numbers 0, 1, ..., length - 1."""

    def __init__(self, length=10, fingerprint="numbers"):
        self.length, self.fingerprint = length, fingerprint

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"x": np.int32(index)}


@dataclasses.dataclass(frozen=True)
class Jitter(grain.transforms.RandomMap):
    """Adds a random entry to each element, to check that augmentation repeats, too."""

    high: int = 10**6

    def random_map(self, element, rng):
        return {**element, "r": np.int32(rng.integers(self.high))}


def double(element):
    return {**element, "x": 2 * element["x"]}


def listed(batches):
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


def first(loader, count, start=0):
    return listed(itertools.islice(loader.iterate(start), count))


def test_each_epoch_visits_every_element_once_in_a_new_order():
    loader = Loader(Numbers(), batch_size=4, seed=1)
    stream = np.concatenate([loader.batch(n)["x"] for n in range(25)]).reshape(10, 10)
    np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(10), (10, 1)))
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 10
    assert first(loader, 3) != first(Loader(Numbers(), batch_size=4, seed=2), 3)


def test_unshuffled_repeats_the_source():
    loader = Loader(Numbers(3), batch_size=2, shuffle=False)
    assert first(loader, 3) == [{"x": [0, 1]}, {"x": [2, 0]}, {"x": [1, 2]}]


def test_a_batch_larger_than_the_source_is_said(caplog):
    for batch_size, said in ((4, 0), (5, 1)):
        caplog.clear()
        with Loader(Numbers(4), batch_size=batch_size) as loader:
            next(loader.iterate())
        assert caplog.text.count("elements of") == said


class Filled(Numbers):
    """A source that records what it was asked to fill, and refuses to read anything else."""

    def __init__(self, length=10):
        super().__init__(length)
        self.asked = []

    def fill(self, indices):
        self.asked.append(indices)

    def __getitem__(self, index):
        assert any(index in indices for indices in self.asked)
        return super().__getitem__(index)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("process", [0, 1])
def test_a_batch_is_made_ready_before_it_is_read(shuffle, process):
    options = {"batch_size": 4, "seed": 5, "shuffle": shuffle, "transforms": (Jitter(),)}
    options |= {"process_index": process, "process_count": 2}
    source = Filled()
    plain, loader = Loader(Numbers(), **options), Loader(source, **options)
    for step in (0, 7, 23):
        assert listed([loader.batch(step)]) == listed([plain.batch(step)])
        assert source.asked.pop() == plain.batch(step)["x"].tolist()
    assert first(loader, 5, start=2) == first(plain, 5, start=2)
    source.asked.clear()
    assert listed(loader.one_pass()) == listed(plain.one_pass())
    assert {len(indices) for indices in source.asked} == {2}


@pytest.mark.parametrize("count", [2, 4])
def test_global_batch_does_not_depend_on_the_process_count(count):
    options = {"batch_size": 8, "seed": 3, "transforms": (double, Jitter())}
    whole = Loader(Numbers(), **options)
    parts = [
        Loader(Numbers(), process_index=p, process_count=count, **options) for p in range(count)
    ]
    for n in (0, 1, 2, 17, 10**6):
        rows = [part.batch(n) for part in parts]
        assert {len(row["x"]) for row in rows} == {8 // count}
        for name, value in whole.batch(n).items():
            np.testing.assert_array_equal(np.concatenate([row[name] for row in rows]), value)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_iterating_from_a_step_is_random_access(threads):
    options = {"batch_size": 4, "seed": 5, "transforms": (Jitter(),), "num_threads": threads}
    with Loader(Numbers(), process_index=1, process_count=2, **options) as loader:
        expected = listed(loader.batch(n) for n in range(12))
        assert first(loader, 12) == expected
        assert first(loader, 5, start=7) == expected[7:]


@pytest.mark.slow
def test_worker_processes_change_nothing():
    options = {"batch_size": 4, "seed": 5, "transforms": (Jitter(),)}
    expected = first(Loader(Numbers(), **options), 12)
    with Loader(Numbers(), num_workers=2, **options) as loader:
        assert first(loader, 9, start=3) == expected[3:]


@pytest.mark.parametrize("count", [1, 2])
def test_one_pass_counts_each_element_once(count):
    loaders = [
        Loader(Numbers(), batch_size=4, process_index=p, process_count=count, transforms=(double,))
        for p in range(count)
    ]
    passes = [list(loader.one_pass()) for loader in loaders]
    assert {len(batches) for batches in passes} == {len(loaders[0])} == {3}
    for n in range(3):
        x, mask = (np.concatenate([p[n][name] for p in passes]) for name in ("x", "mask"))
        here = np.arange(4 * n, 4 * n + 4)
        np.testing.assert_array_equal(mask, here < 10, strict=True)
        np.testing.assert_array_equal(x, 2 * np.minimum(here, 9))


def test_one_pass_keeps_its_mask_when_transforms_drop_entries():
    loader = Loader(Numbers(3), batch_size=2, transforms=(only_y,))
    assert listed(loader.one_pass()) == [
        {"y": [0, 1], "mask": [True, True]},
        {"y": [2, 2], "mask": [True, False]},
    ]


def only_y(element):
    return {"y": element["x"]}


def test_state_goes_through_json_and_any_process_count():
    loader = Loader(Numbers(), batch_size=4, seed=1, transforms=(double, Jitter(7)))
    state = json.loads(json.dumps(loader.state(np.int64(41))))
    other = Loader(Numbers(), batch_size=4, seed=1, transforms=(double, Jitter(7)), process_count=2)
    assert other.check(state) == 41 and other.fingerprint == loader.fingerprint


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 2}, "seed was 1 and is now 2"),
        ({"batch_size": 8}, "batch_size was 4 and is now 8"),
        ({"shuffle": False}, "shuffle was True and is now False"),
        ({"source": Numbers(fingerprint="other")}, "source was 'numbers' and is now 'other'"),
        ({"transforms": (double, Jitter(8))}, r"Jitter\(high=7\).*Jitter\(high=8\)"),
    ],
)
def test_changed_data_is_refused(change, match):
    options = {"source": Numbers(), "batch_size": 4, "seed": 1, "transforms": (double, Jitter(7))}
    state = Loader(**options).state(3)
    changed = Loader(**{**options, **change})
    assert changed.fingerprint != Loader(**options).fingerprint
    with pytest.raises(ValueError, match=match):
        changed.check(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": Numbers(0)}, "no elements"),
        ({"batch_size": 6, "process_count": 4}, "multiple of the process count"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"prefetch": 500}, "prefetch=500"),
        ({"transforms": (lambda element: element,)}, "no stable name"),
    ],
)
def test_loader_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        Loader(**{"source": Numbers(), "batch_size": 4, **options})


def test_errors_of_a_transform_come_up():
    loader = Loader(Numbers(), batch_size=2, transforms=(fail,))
    with pytest.raises(ZeroDivisionError):
        next(loader.iterate())


def fail(element):
    return {"x": 1 // 0}


def test_make_source(tmp_path):
    with DatasetWriter(tmp_path, "d") as writer:
        writer.write("train", {"x": np.arange(3)})
    assert len(make_source("records", directory=tmp_path, split="train")) == 1
    with pytest.raises(
        ValueError,
        match=r"no data source 'record'; choose one of codes, .*heads, latents, .*records",
    ):
        make_source("record")
    with pytest.raises(ValueError, match=r"missing.*'directory'; it takes \(directory, split"):
        make_source("records", split="train")
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'size'; it takes"):
        make_source("records", directory=tmp_path, size=64)


def test_records_through_the_loader(tmp_path):
    with DatasetWriter(tmp_path, "d", shards=3) as writer:
        for k in range(10):
            writer.write("train", {"x": np.int32(k)})
    source = make_source("records", directory=tmp_path)
    with Loader(source, batch_size=4, seed=9, num_threads=3) as loader:
        assert first(loader, 20) == first(Loader(Numbers(), batch_size=4, seed=9), 20)


def test_tfds_source(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyNumbers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"x": np.int32})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": ((k, {"x": k}) for k in range(6))}

        def _generate_examples(self):
            raise NotImplementedError

    TinyNumbers(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    sources = [
        make_source("tfds", name="tiny_numbers", split=split, data_dir=str(tmp_path))
        for split in ("train", "train[:50%]")
    ]
    assert [len(source) for source in sources] == [6, 3]
    assert sorted(int(sources[0][k]["x"]) for k in range(6)) == list(range(6))
    assert sources[0].fingerprint != sources[1].fingerprint


def test_device_prefetch_shards_in_order():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(batch):
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    with Loader(Numbers(), batch_size=8, seed=2) as loader:
        expected = first(loader, 6)
        with device_prefetch(loader.iterate(), put) as batches:
            found = list(itertools.islice(batches, 6))
    assert all(batch["x"].sharding == sharding for batch in found)
    assert listed(found) == expected


def test_device_prefetch_runs_ahead_and_counts_only_waiting():
    def slow(count):
        for k in range(count):
            time.sleep(0.05)
            yield k

    eager = device_prefetch(slow(4), lambda k: -k)
    assert list(eager) == [0, -1, -2, -3] and list(eager) == []
    assert eager.wait_seconds > 0.1
    taken = []
    with device_prefetch(iter(range(100)), taken.append, ahead=3) as batches:
        next(batches)
        time.sleep(0.3)
        assert len(taken) == 4
        waited = batches.wait_seconds
        next(batches)
        assert batches.wait_seconds - waited < 0.1


def test_device_prefetch_passes_errors_on():
    def put(batch):
        return 1 // batch

    batches = device_prefetch(iter([1, 0, 1]), put)
    assert next(batches) == 1
    with pytest.raises(ZeroDivisionError):
        next(batches)
    with pytest.raises(ValueError, match="ahead"):
        device_prefetch([], put, ahead=0)
