"""Read a dataset once through a trained BCD and keep content and motion codes: what the generator learns from.

    python -m vidmotion.encode --workdir=RUN --out=DIR [--frames=T]

Both splits of the run's data are read, `--frames` frames of each clip (default: the run's own clip length) at the rate
at which they are stored, and once more with every second frame left out (supplement A.2). Motion is encoded in the
same windows as in sampling, content from as many frames as in training.
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
from vidmotion.data import codes
from vidmotion.data.records import DatasetWriter
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.run import Run, open_run

log = logging.getLogger("vidmotion.encode")


def encode(
    run: Run, out: str, frames: int = 0, batch: int = 32, force: bool = False, command: str = ""
) -> dict[str, int]:
    """Write the dataset `out`, whole or not at all.

    Args:
      run: a trained BCD.
      out: folder, see `vidmotion.data.codes`.
      frames: per clip; 0 is the run's own length.
      batch: clips at a time.
      force: replace a dataset that is there.
      command: kept in the dataset, as what writes it again.

    Returns:
      Number of clips per split.

    Raises:
      ConfigError, CheckpointError, DatasetError: see their messages; `out` is then as it was.
    """
    if not hasattr(run.system, "read"):
        raise ConfigError(
            f"{run.workdir} holds a {run.config.system.name}, which has no motion codes"
        )
    step = run.config.data.get("common", {}).get("decimate", 1)
    sources = {split: _source(run, split, frames) for split in ("train", "eval")}
    vars = run.trained_vars()
    read = jax.jit(run.system.read)
    quantizer = paths.flatten(jax.device_get(vars.params["model"]["quantizer"]))
    provenance = {
        "command": command or f"python -m vidmotion.encode --workdir={run.workdir} --out={out}",
        "workdir": run.workdir.name,
        "system": run.config.system.to_dict(),
        "data": {split: source.fingerprint for split, source in sources.items()},
    }
    rows = run.rows(batch)
    with DatasetWriter(out, "codes", provenance=provenance, overwrite=force) as writer:
        writer.attach(codes.QUANTIZER, safetensors.numpy.save(quantizer))
        for split, source in sources.items():
            for start in tqdm(range(0, len(source), rows), desc=split, disable=None):
                picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
                video = np.stack([source[int(i)]["video"] for i in picked])
                content = video[:, ::step][:, : run.system.half]
                full, fast = (
                    jax.device_get(read(vars, run.put_rows({"content": content, "motion": motion})))
                    for motion in (video, video[:, ::2])
                )
                for i in range(min(rows, len(source) - start)):
                    record = {
                        "content": full["content"][i],
                        "ids": full["ids"][i],
                        "ids_fast": fast["ids"][i],
                    }
                    writer.write(split, record)
    return {split: len(source) for split, source in sources.items()}


def _source(run: Run, split: str, frames: int):
    """The split's clips at the rate they are stored with, windows in the middle, `frames` long."""
    data = run.config.data
    given = {**data.get("common", {}), **data[split]}
    changes = {}
    if frames:
        if "frames" not in given:
            raise ConfigError(
                f"--frames={frames}: clips of {data.kind} have one length; leave it out"
            )
        changes["frames"] = frames
    if "decimate" in given:
        changes["decimate"] = 1
    if given.get("random"):
        changes["random"] = False
    return run.source(split, **changes)


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m vidmotion.encode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--workdir", required=True, help="folder of a trained BCD run")
    flag("--out", required=True, help="folder of the dataset to write")
    flag("--frames", type=startup.at_least(1), default=0, help="frames per clip")
    flag("--batch", type=startup.at_least(1), default=32, help="clips at a time (default 32)")
    flag("--force", action="store_true", help="replace a dataset that is there")
    args = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "vidmotion.encode", *arguments])

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        run = open_run(args.workdir)
        counts = encode(run, args.out, args.frames, args.batch, args.force, command)
        listed = ", ".join(f"{count} {split} clips" for split, count in counts.items())
        log.info("%s: %s", args.out, listed)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; {args.out} is as it was")


if __name__ == "__main__":
    sys.exit(main())
