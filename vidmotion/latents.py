"""Makes a cache of latents: encodes each frame of a dataset of videos once with a frozen image autoencoder.

    python -m vidmotion.data.prepare latents --src=DATASET --weights=FILE --out=DIR

A record is that of its clip, with `latents` float16 (T, H/8, W/8, C) in place of the pictures: the posterior means as
the autoencoder gives them. They are not normalised; the training config sets mean and std. Rounding to float16 changes
a value by at most 2^-11 of it: by at most 0.004 for values within +-16, while Stable Diffusion's latents have a
standard deviation of 4.

Clips are written block by block into `<out>/parts`, and an interrupted preparation continues after its last block.
Once the dataset is complete, `parts` is removed; until then the latents take twice their space. The provenance keeps a
fingerprint of the weights, which training compares with that of its own weights.
"""

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from vidmotion import files, sharding, startup
from vidmotion.data.pipeline import Loader
from vidmotion.data.prepare import Plan, progress
from vidmotion.data.records import DatasetError, RecordSource, read_index
from vidmotion.data.videos import VideoSource, Window
from vidmotion.systems import codecs

BLOCK = 64  # clips per file in `parts`: 50 MB at 100 frames of 256 pixels
PARTS = "parts"


def plan(args) -> Plan:
    """Plan the dataset that the arguments `src`, `network`, `weights`, `batch` and `out` describe.

    Raises:
      DatasetError: `src` holds no clips.
      ConfigError: there is no such network, its weights are missing or do not fit, or it does not take clips of this
        size.
    """
    startup.set_up_devices()
    startup.one_process()
    index = read_index(args.src)
    sources = {split: VideoSource(args.src, split) for split in index["splits"]}
    # Mean 0 and standard deviation 1, because the config that trains on the latents normalises them.
    plain = {"mean": (0.0,) * codecs.CHANNELS, "std": (1.0,) * codecs.CHANNELS}
    codec = codecs.LatentCodec(args.network, **plain, weights=str(args.weights or ""))
    for source in sources.values():
        codec.latent_shape(source[0]["video"].shape[1])
    loaded = {name: const.load() for name, const in codec.consts().items()}
    networks = codec.fingerprints(loaded)
    clips = {split: source.fingerprint for split, source in sources.items()}
    inputs = hashlib.sha256(json.dumps([clips, args.network, networks]).encode()).hexdigest()
    job = Job(args.src, tuple(sources), _encoder(codec, loaded, args.batch), args.out, inputs)
    return Plan(
        name="latents",
        version="1",
        inputs=inputs,
        licence=index["provenance"].get("licence", "that of the videos"),
        records=lambda: progress(job.records(), sum(map(len, sources.values())), "clips"),
        provenance={
            "network": args.network,
            "weights": args.weights.name if args.weights else "",
            "networks": networks,
            "clips": clips,
        },
        finish=job.finish,
    )


class Job:
    """Makes the records of a cache, in the order of the clips; finished blocks are read, not made again."""

    def __init__(self, src: Path, splits: tuple[str, ...], encode: Callable, out: Path, key: str):
        """Set up the job without touching any file.

        Args:
          src: the dataset of clips.
          splits: the splits of the dataset to encode.
          encode: turns a clip, uint8 (T, H, W, 3), into float16 latents.
          out: the cache's folder.
          key: a hex digest of everything on which the latents depend; blocks with another key are not used.
        """
        self._src, self._splits, self._encode = src, splits, encode
        self._parts, self._folder = out / PARTS, out / PARTS / key[:32]
        self._frames, self._seconds = 0, 0.0

    def records(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield (split, record) for all clips.

        Raises:
          DatasetError: a clip is damaged, or the network gives numbers that float16 cannot hold.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for split in self._splits:
            source = RecordSource(self._src, split)
            count = -(-len(source) // BLOCK)
            paths = [self._folder / f"{split}-{k:06d}.safetensors" for k in range(count)]
            done = len(list(itertools.takewhile(Path.exists, paths)))
            for path in paths[:done]:
                yield from ((split, record) for record in _read(path))
            with Loader(source, batch_size=1, transforms=(whole_clip,), shuffle=False) as loader:
                clips = loader.iterate(done * BLOCK)
                for k, path in enumerate(paths[done:], start=done):
                    size = min(BLOCK, len(source) - k * BLOCK)
                    records = [self._record(clip) for clip in itertools.islice(clips, size)]
                    _write(path, records)
                    yield from ((split, record) for record in records)

    def finish(self):
        """Remove `parts` and print the speed, once the dataset is complete."""
        shutil.rmtree(self._parts)
        if self._frames:
            rate = self._frames / self._seconds
            print(f"{self._frames:,} frames in {self._seconds:.1f} s: {rate:.1f} frames/s")

    def _record(self, batch):
        begin = time.perf_counter()
        record = {name: np.asarray(value[0]) for name, value in batch.items()}
        video = record.pop("video")
        latents = self._encode(video)
        if not np.isfinite(latents).all():
            raise DatasetError(
                f"{self._src}: the latents of a clip of {bytes(record['source']).decode()} are not finite in "
                "float16: check that the weights are those of an image autoencoder"
            )
        self._frames += len(video)
        self._seconds += time.perf_counter() - begin
        return {**record, "latents": latents}


def whole_clip(record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace the stored clip of a record by all of its frames, decoded, as `video`."""
    kept = {name: value for name, value in record.items() if name not in ("clip", "video")}
    return {**kept, "video": Window(random=False).random_map(record, None)["video"]}


def _encoder(codec: codecs.LatentCodec, consts, batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """Make the encoder: uint8 (T, H, W, 3) -> float16 (T, H/8, W/8, C), `batch` frames at a time on each device."""
    mesh = sharding.make_mesh({"data": -1})
    consts = jax.device_put(consts, sharding.replicated(mesh))
    rows = batch * sharding.batch_shards(mesh)

    @jax.jit
    def encode(consts, frames_bhwc):
        return codec.posterior_mean(consts, frames_bhwc[:, None])[:, 0].astype(np.float16)

    def encode_clip(video):
        # The last frame fills up the last batch, so that all batches have the same shape.
        padded = video[np.minimum(np.arange(-(-len(video) // rows) * rows), len(video) - 1)]
        pieces = np.split(padded, len(padded) // rows)
        made = [encode(consts, jax.device_put(piece, sharding.batch(mesh))) for piece in pieces]
        return np.concatenate(jax.device_get(made))[: len(video)]

    return encode_clip


def _write(path: Path, records: list[dict[str, np.ndarray]]):
    arrays = {
        f"{i}/{name}": value for i, each in enumerate(records) for name, value in each.items()
    }
    files.atomic_write(path, safetensors.numpy.save(arrays))


def _read(path: Path) -> Iterator[dict[str, np.ndarray]]:
    records: dict[int, dict[str, np.ndarray]] = {}
    for key, value in safetensors.numpy.load_file(path).items():
        number, name = key.split("/")
        records.setdefault(int(number), {})[name] = value
    return (records[i] for i in range(len(records)))
