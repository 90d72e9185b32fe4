"""Read a dataset once through a trained run and keep what it makes of each clip: what a generator learns from.

    python -m vidmotion.encode --workdir=RUN --out=DIR [--frames=T] [--config.system.codec.weights=FILE]

Both splits of the run's data are read. Of a BCD, content and motion codes are kept: of `--frames` frames of each clip
(default: the run's own clip length) at the rate at which they are stored, and once more with every second frame left
out (supplement A.2). Motion is encoded in the same windows as in sampling, content from as many frames as in training.
Of a VidTwin, the means of structure and dynamics and the clip's class. Where weights or data lie elsewhere than in
training, --config.<field>=<value> says so.
"""

import argparse
import logging
import shlex
import sys

import jax
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from vidmotion import paths, startup
from vidmotion.data import codes, vidtwin_latents
from vidmotion.data.records import DatasetWriter
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.transfer import clip_of
from vidmotion.run import Run, open_run
from vidmotion.system import fingerprint

log = logging.getLogger("vidmotion.encode")


def encode(
    run: Run, out: str, frames: int = 0, batch: int = 32, force: bool = False, command: str = ""
) -> dict[str, int]:
    """Write the dataset `out`, whole or not at all.

    Args:
      run: a trained run whose system is in `KINDS`.
      out: folder, see `vidmotion.data.codes` and `vidmotion.data.vidtwin_latents`.
      frames: per clip; 0 is the run's own length.
      batch: clips at a time.
      force: replace a dataset that is there.
      command: kept in the dataset, as what writes it again.

    Returns:
      Number of clips per split.

    Raises:
      ConfigError, CheckpointError, DatasetError: see their messages; `out` is then as it was.
    """
    if run.config.system.name not in KINDS:
        raise ConfigError(
            f"{run.workdir} holds a {run.config.system.name}, which has no motion codes or latents to "
            f"keep; there are those of {' and '.join(KINDS)}"
        )
    kind = KINDS[run.config.system.name]
    sources = {split: kind.source(run, split, frames) for split in ("train", "eval")}
    reader = kind(run, run.trained_vars(), sources)
    provenance = {
        **reader.provenance,
        "command": command or f"python -m vidmotion.encode --workdir={run.workdir} --out={out}",
        "workdir": run.workdir.name,
        "system": run.config.system.to_dict(),
        "data": {split: source.fingerprint for split, source in sources.items()},
    }
    rows = run.rows(batch)
    with DatasetWriter(out, kind.dataset, provenance=provenance, overwrite=force) as writer:
        for split, source in sources.items():
            for start in tqdm(range(0, len(source), rows), desc=split, disable=None):
                picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
                elements = [source[int(i)] for i in picked]
                for record in reader.records(split, elements, min(rows, len(source) - start)):
                    writer.write(split, record)
        for name, arrays in reader.files().items():
            writer.attach(name, safetensors.numpy.save(arrays))
    return {split: len(source) for split, source in sources.items()}


class MotionCodes:
    """What is kept of a BCD.

    Attributes:
      dataset: name of what is written.
      provenance: beside what every dataset has.
    """

    dataset = "codes"

    def __init__(self, run: Run, vars, sources):
        self.provenance = {}
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.read)
        self._step = run.config.data.get("common", {}).get("decimate", 1)

    @staticmethod
    def source(run: Run, split: str, frames: int):
        """The split's clips at the rate they are stored with, windows in the middle, `frames` long."""
        data = run.config.data
        given = _given(run, split)
        changes = {}
        if frames:
            if "frames" not in given:
                raise ConfigError(
                    f"--frames={frames}: clips of {data.kind} have one length; leave it out"
                )
            changes["frames"] = frames
        if "decimate" in given:
            changes["decimate"] = 1
        return _still(run, split, **changes)

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Of the first `count` of a batch of elements."""
        video = np.stack([clip_of(element) for element in elements])
        content = video[:, :: self._step][:, : self._run.system.half]
        full, fast = (
            jax.device_get(
                self._read(self._vars, self._run.put_rows({"content": content, "motion": motion}))
            )
            for motion in (video, video[:, ::2])
        )
        return [
            {"content": full["content"][i], "ids": full["ids"][i], "ids_fast": fast["ids"][i]}
            for i in range(count)
        ]

    def files(self) -> dict[str, dict[str, np.ndarray]]:
        """The codebooks."""
        quantizer = jax.device_get(self._vars.params["model"]["quantizer"])
        return {codes.QUANTIZER: paths.flatten(quantizer)}


class VidTwinLatents:
    """What is kept of a VidTwin; attributes and methods as of `MotionCodes`."""

    dataset = "vidtwin_latents"

    def __init__(self, run: Run, vars, sources):
        self.provenance = {
            "classes": list(sources["train"].classes),
            "weights": fingerprint(vars.params["model"]),
        }
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.read)
        self._class_of = sources["train"].class_of
        self._moments = {name: vidtwin_latents.Moments() for name in vidtwin_latents.LATENTS}

    @staticmethod
    def source(run: Run, split: str, frames: int):
        """The split's clips as in training, windows in the middle."""
        if frames:
            raise ConfigError(
                f"--frames={frames}: a VidTwin reads clips of one length; leave it out"
            )
        source = _still(run, split)
        if not getattr(source, "classes", ()):
            raise ConfigError(
                f"the clips of config.data ({run.config.data.kind}) belong to no classes, so a "
                "class-conditional generator cannot learn from them: heads, sprites and the videos of "
                "python -m vidmotion.data.prepare ucf101 have some"
            )
        return source

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Of the first `count` of a batch of elements."""
        video = np.stack([element["video"] for element in elements])
        means = jax.device_get(self._read(self._vars, self._run.put_rows({"video": video})))
        if split == "train":
            for name, moments in self._moments.items():
                moments.add(means[name][:count])
        return [
            {
                **{name: means[name][i] for name in self._moments},
                "label": np.int32(self._class_of(elements[i])),
            }
            for i in range(count)
        ]

    def files(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean and standard deviation of each channel over the train split."""
        found = {name: moments.result() for name, moments in self._moments.items()}
        return {vidtwin_latents.STATISTICS: paths.flatten(found)}


KINDS = {"bcd": MotionCodes, "vidtwin": VidTwinLatents}  # by name of the system


def _given(run: Run, split: str) -> dict:
    """Arguments of the split's source."""
    return {**run.config.data.get("common", {}), **run.config.data[split]}


def _still(run: Run, split: str, **changes):
    """The split's source with windows in the middle of their clips."""
    if _given(run, split).get("random"):
        changes["random"] = False
    return run.source(split, **changes)


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m vidmotion.encode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--workdir", required=True, help="folder of a trained BCD or VidTwin run")
    flag("--out", required=True, help="folder of the dataset to write")
    flag("--frames", type=startup.at_least(1), default=0, help="frames per clip of a BCD")
    flag("--batch", type=startup.at_least(1), default=32, help="clips at a time (default 32)")
    flag("--force", action="store_true", help="replace a dataset that is there")
    args, changes = startup.parse_with_config(parser, arguments)
    command = shlex.join(["python", "-m", "vidmotion.encode", *arguments])

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        run = open_run(args.workdir, changes)
        counts = encode(run, args.out, args.frames, args.batch, args.force, command)
        listed = ", ".join(f"{count} {split} clips" for split, count in counts.items())
        log.info("%s: %s", args.out, listed)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; {args.out} is as it was")


if __name__ == "__main__":
    sys.exit(main())
