"""Read a dataset once through a trained BCD and keep content and motion codes: what the generator learns from.

    python -m vidmotion.encode --workdir=RUN --out=DIR [--frames=T]

Both splits of the run's data are read, `--frames` frames of each clip (default: the run's own clip length), at full rate
and with every second frame left out (supplement A.2). Motion is encoded in the same windows as in sampling.
"""

import logging
import sys

import jax
import numpy as np
import safetensors.numpy
from absl import app, flags
from etils import epath
from tqdm import tqdm

from vidmotion import media, paths
from vidmotion.data import codes
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.main import set_up_devices, set_up_log

log = logging.getLogger("vidmotion.encode")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained BCD run.")
_OUT = flags.DEFINE_string("out", None, "Folder of the dataset to write.")
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames per clip; 0 is the run's own length.")
_BATCH = flags.DEFINE_integer("batch", 32, "Clips at a time.", lower_bound=1)
_FORCE = flags.DEFINE_bool("force", False, "Overwrite a dataset that is there.")


def encode(run, out: str, frames: int, batch: int, force: bool) -> dict[str, int]:
    """Write `out`; returns the number of clips per split.

    Raises:
      ConfigError, CheckpointError, DatasetError: see their messages; nothing is then complete there.
    """
    if not hasattr(run.system, "read"):
        raise ConfigError(
            f"{run.workdir} holds a {run.config.system.name}, which has no motion codes"
        )
    for section in (run.config.data.get("common", {}), run.config.data.train, run.config.data.eval):
        if frames and "frames" in section:
            with section.unlocked():
                section.frames = frames
    vars = run.trained_vars()
    read = jax.jit(run.system.read)
    quantizer = paths.flatten(vars.params["model"]["quantizer"])
    counts = {}
    with DatasetWriter(
        out,
        "codes",
        provenance={"workdir": run.workdir.name, "system": run.config.system.to_dict()},
        overwrite=force,
    ) as writer:
        for split in ("train", "eval"):
            source = run.source(split)
            counts[split] = len(source)
            rows = run.rows(batch)
            for start in tqdm(range(0, len(source), rows), desc=split, disable=None):
                picked = np.minimum(np.arange(start, start + rows), len(source) - 1)
                video = np.stack([source[int(i)]["video"] for i in picked])
                full = jax.device_get(read(vars, run.put_rows({"content": video, "motion": video})))
                fast = jax.device_get(
                    read(vars, run.put_rows({"content": video, "motion": video[:, ::2]}))
                )
                for i in range(min(rows, len(source) - start)):
                    record = {
                        "content": full["content"][i],
                        "ids": full["ids"][i],
                        "ids_fast": fast["ids"][i],
                    }
                    writer.write(split, record)
        arrays = {path: np.asarray(value) for path, value in quantizer.items()}
        safetensors.numpy.save_file(arrays, str(epath.Path(out) / codes.QUANTIZER))
    return counts


def main(argv: list[str]) -> None:
    """Entry point under `absl.app.run`."""
    set_up_log()
    set_up_devices()
    from vidmotion.checkpoint import CheckpointError
    from vidmotion.run import open_run

    try:
        counts = encode(
            open_run(_WORKDIR.value), _OUT.value, _FRAMES.value, _BATCH.value, _FORCE.value
        )
    except (ConfigError, CheckpointError, DatasetError, media.MediaError) as error:
        log.error("%s", error)
        sys.exit(EXIT_REFUSED)
    log.info("%s: %s", _OUT.value, ", ".join(f"{n} {split} clips" for split, n in counts.items()))
    sys.exit(EXIT_DONE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main)
