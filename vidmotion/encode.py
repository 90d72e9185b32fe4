"""Encodes every clip of a dataset with a trained run, and writes the codes as a dataset for training a generator.

    python -m vidmotion.encode --workdir=RUN|--weights=DIR --out=DIR [--frames=T] [--fps=R] [--config.<field>=<value>]

Both splits of the run's data are read. What is written depends on the run's system:

- BCD: content and motion codes of `--frames` frames of each clip (default: the run's own clip length), at the rate of
  training and once more with every second frame left out (supplement A.2). Motion is encoded in the same windows as in
  sampling, content from as many frames as in training.
- VidTwin: the means of structure and dynamics, and the clip's class.
- X-NeMo: the motion code f_mot of each frame of whole clips, and the clips' emotion if it is known.
- Motion tokenizer: the tokens of the codes from which it learnt.

--fps is for clips that are drawn, such as heads: an X-NeMo sees single pictures, so codes may be denser in time than
its own clips. If weights or data have moved since training, pass --config.<field>=<value>.
"""

import argparse
import logging
import shlex
import sys

import jax
import numpy as np
import safetensors.numpy

from vidmotion import paths, startup
from vidmotion.data import encoded, pipeline
from vidmotion.data.clip_source import Classes
from vidmotion.data.records import DatasetWriter
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.transfer import boxes_of, clip_of, face_views
from vidmotion.open_run import open_run, open_weights
from vidmotion.progress import watched
from vidmotion.run import Run
from vidmotion.system import fingerprint

log = logging.getLogger("vidmotion.encode")


def encode(
    run: Run,
    out: str,
    frames: int = 0,
    batch: int = 32,
    force: bool = False,
    command: str = "",
    fps: float = 0.0,
) -> dict[str, int]:
    """Encode a run's data and write the dataset `out`, whole or not at all.

    Args:
      run: a trained run whose system is in `KINDS`.
      out: the folder to write; its content is described in `vidmotion.data.encoded`.
      frames: the number of frames per clip; 0 takes the run's own clip length.
      batch: the number of clips that are encoded together.
      force: whether to replace an existing dataset.
      command: the command that writes this dataset, to be recorded in it.
      fps: the frames per second at which clips are drawn, for an X-NeMo; 0 keeps their own rate.

    Returns:
      The number of clips per split.

    Raises:
      ConfigError, CheckpointError, DatasetError: see their messages; `out` is then left as it was.
    """
    if run.config.system.name not in KINDS:
        raise ConfigError(
            f"{run.workdir} holds a run of {run.config.system.name}, which has no motion codes or latents to "
            f"store; runs of {', '.join(KINDS)} have some"
        )
    kind = KINDS[run.config.system.name]
    if fps and not kind.any_rate:
        raise ConfigError(
            f"--fps={fps:g}: a {run.config.system.name} reads clips at their own rate; leave it out"
        )
    rate = {"fps": fps} if fps else {}
    sources = {split: kind.source(run, split, frames, **rate) for split in ("train", "eval")}
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
            for start in watched(range(0, len(source), rows), split):
                picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
                elements = [kind.element(run, source, int(i)) for i in picked]
                for record in reader.records(split, elements, min(rows, len(source) - start)):
                    writer.write(split, record)
        for name, arrays in reader.files().items():
            writer.attach(name, safetensors.numpy.save(arrays))
    return {split: len(source) for split, source in sources.items()}


class Kind:
    """Encodes clips with one kind of network and makes the records of the dataset.

    Attributes:
      dataset: the name of the dataset that is written.
      provenance: facts about this kind that are recorded in addition to those of every dataset.
      any_rate: whether clips that are drawn may have another rate than in training.
    """

    dataset: str
    any_rate = False

    @staticmethod
    def element(run: Run, source, index: int) -> dict[str, np.ndarray]:
        """Read one clip from the source, with everything that the network needs."""
        return source[index]


class MotionCodes(Kind):
    """Encodes clips with a BCD."""

    dataset = "codes"

    def __init__(self, run: Run, vars, sources):
        self.provenance = {}
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.read)

    @staticmethod
    def source(run: Run, split: str, frames: int):
        """Open the split's clips at the rate of training, with windows of `frames` frames in the middle."""
        data = run.config.data
        given = _given(run, split)
        changes = {}
        if frames:
            if "frames" not in given:
                raise ConfigError(
                    f"--frames={frames}: clips of {data.kind} have one length; leave it out"
                )
            changes["frames"] = frames
        return _still(run, split, **changes)

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Make the records of the first `count` elements of a batch."""
        video = np.stack([clip_of(element) for element in elements])
        content = video[:, : self._run.system.half]
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
        """Return the file of the frozen codebooks."""
        quantizer = jax.device_get(self._vars.params["model"]["quantizer"])
        return {encoded.QUANTIZER: paths.flatten(quantizer)}


class VidTwinLatents(Kind):
    """Encodes clips with a VidTwin; the methods are those of `MotionCodes`."""

    dataset = "vidtwin_latents"

    def __init__(self, run: Run, vars, sources):
        self.provenance = {
            "classes": list(sources["train"].classes),
            "weights": fingerprint(vars.params["model"]),
        }
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.read)
        self._class_of = sources["train"].class_of
        self._moments = {name: encoded.Moments() for name in encoded.LATENTS}

    @staticmethod
    def source(run: Run, split: str, frames: int):
        """Open the split's clips as in training, with windows in the middle."""
        if frames:
            raise ConfigError(
                f"--frames={frames}: a VidTwin reads clips of one length; leave it out"
            )
        if not run.system.parts:
            raise ConfigError(
                f"{run.workdir} holds a VidTwin with a single latent, so there are no dynamics to store"
            )
        source = _still(run, split)
        if not isinstance(source, Classes) or not source.classes:
            raise ConfigError(
                f"the clips of config.data ({run.config.data.kind}) belong to no classes, so a "
                "class-conditional generator cannot learn from them: heads, sprites and the videos of "
                "python -m vidmotion.data.prepare ucf101 have classes"
            )
        return source

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Make the records of the first `count` elements of a batch."""
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
        """Return the file of the mean and standard deviation of each channel over the train split."""
        found = {name: moments.result() for name, moments in self._moments.items()}
        return {encoded.STATISTICS: paths.flatten(found)}


class FaceMotion(Kind):
    """Encodes clips with an X-NeMo; the methods are those of `MotionCodes`."""

    dataset = "motion_codes"
    any_rate = True

    def __init__(self, run: Run, vars, sources):
        first = sources["train"][0]
        self.provenance = {
            "encoder": run.system.encoder_fingerprint(vars),
            "conditions": list(encoded.conditions(sources["train"])),
            "fps": float(first["fps"] if "fps" in first else sources["train"].fps),
        }
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.motion_of)
        self._sources, self._moments = sources, encoded.Moments()

    @staticmethod
    def source(run: Run, split: str, frames: int, **changes):
        """Open the split's clips as evaluation reads them, because training may read pairs of frames."""
        data = run.config.data
        given = {**data.get("common", {}), **data.eval}
        if split == "train":
            theirs = {name: data.train[name] for name in data.eval if name in data.train}
            changes |= {name: value for name, value in theirs.items() if name != "kind"}
        for name, value in (("frames", frames), ("fps", changes.get("fps", 0))):
            if value and name not in given:
                raise ConfigError(
                    f"--{name}={value}: the clips of {data.kind} fix this value; leave it out"
                )
        length = {"frames": frames} if frames else {}
        arguments = {"kind": data.kind, **given, **changes, **length}
        return pipeline.make_source(arguments.pop("kind"), **arguments)

    @staticmethod
    def element(run: Run, source, index: int) -> dict[str, np.ndarray]:
        """Read the face crops of one clip, and the index of its emotion."""
        element = source[index]
        boxes, video = boxes_of(source, index, element), element["video"]
        if boxes is None:
            raise ConfigError(
                f"the clips of config.data ({run.config.data.kind}) do not say where the faces are, unlike those of "
                "python -m vidmotion.data.prepare hdtf, vfhq, nersemble, mead or portraits"
            )
        views = face_views(run.system.face_side, video, boxes, video, boxes)
        condition = np.int32(encoded.condition_of(source, element))
        return {"crops": views["driving"], "condition": condition}

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Make the records of the first `count` elements of a batch."""
        crops = self._run.put_rows(np.stack([element["crops"] for element in elements]))
        motion = jax.device_get(self._read(self._vars, crops))[:count]
        if split == "train":
            self._moments.add(motion)
        return [
            {"motion": row, "condition": element["condition"]}
            for row, element in zip(motion, elements)
        ]

    def files(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the file of the mean and standard deviation of each channel over the train split."""
        return {encoded.STATISTICS: self._moments.result()}


class MotionTokens(Kind):
    """Encodes codes into tokens with a motion tokenizer; the methods are those of `MotionCodes`."""

    dataset = "motion_tokens"

    def __init__(self, run: Run, vars, sources):
        there = encoded.MotionCodesSource.read_provenance(run.system.codes)
        kept = {name: there[name] for name in ("encoder", "conditions", "fps")}
        self.provenance = {**kept, "network": dict(run.system.network)}
        self._run, self._vars, self._read = run, vars, jax.jit(run.system.read)
        self._step = 2**run.system.net.halvings

    @staticmethod
    def source(run: Run, split: str, frames: int):
        """Open the split's codes, all codes of each clip."""
        if frames:
            raise ConfigError(
                f"--frames={frames}: whole clips are turned into tokens; leave it out"
            )
        return run.source(split, length=0)

    def records(self, split: str, elements: list, count: int) -> list[dict[str, np.ndarray]]:
        """Make the records of the first `count` elements of a batch."""
        motion = np.stack([element["motion"] for element in elements])
        motion = motion[:, : motion.shape[1] // self._step * self._step]
        ids = jax.device_get(self._read(self._vars, self._run.put_rows({"motion": motion})))
        return [
            {"ids": row, "condition": element["condition"]}
            for row, element in zip(ids[:count], elements)
        ]

    def files(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the file of the tokenizer's variables."""
        variables = jax.device_get(self._run.system.variables(self._vars))
        return {encoded.TOKENIZER: paths.flatten(variables)}


KINDS = {  # by the name of the system
    "bcd": MotionCodes,
    "motion_tokenizer": MotionTokens,
    "vidtwin": VidTwinLatents,
    "xnemo": FaceMotion,
}


def _given(run: Run, split: str) -> dict:
    """Return the arguments of the split's source."""
    return {**run.config.data.get("common", {}), **run.config.data[split]}


def _still(run: Run, split: str, **changes):
    """Open the split's source with windows in the middle of their clips."""
    if _given(run, split).get("random"):
        changes["random"] = False
    return run.source(split, **changes)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m vidmotion.encode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", help=f"folder of a trained run of {', '.join(KINDS)}")
    model.add_argument(
        "--weights", help="folder written by python -m vidmotion.convert, instead of a run"
    )
    flag("--out", required=True, help="folder of the dataset to write")
    flag(
        "--frames", type=startup.at_least(1), default=0, help="frames per clip, for a BCD or X-NeMo"
    )
    flag("--fps", type=float, default=0.0, help="frame rate of drawn clips, for an X-NeMo")
    flag(
        "--batch",
        type=startup.at_least(1),
        default=32,
        help="number of clips to encode at a time (default 32)",
    )
    flag("--force", action="store_true", help="replace a dataset that is already at --out")
    args, changes = startup.parse_with_config(parser, arguments)
    command = shlex.join(["python", "-m", "vidmotion.encode", *arguments])

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        opened = open_weights if args.weights else open_run
        run = opened(args.weights or args.workdir, changes)
        counts = encode(run, args.out, args.frames, args.batch, args.force, command, args.fps)
        listed = ", ".join(f"{count} {split} clips" for split, count in counts.items())
        log.info("%s: %s", args.out, listed)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; {args.out} is unchanged")


if __name__ == "__main__":
    sys.exit(main())
