"""Exports a trained run as programs that need only jax and flatbuffers, neither this package nor the run's config.

jax stores programs with flatbuffers (pip install 'vidmotion[export]').

    python -m vidmotion.export --workdir=RUN --out=DIR

DIR gets ``encode.stablehlo`` and ``sample.stablehlo`` (StableHLO, as jax.export writes it, for CPU, GPU and TPU),
``weights.npz``, ``model.json``, which describes them and the shapes that they take, and ``load.py``:

    from load import Model
    model = Model("DIR")
    codes = model.encode(content, motion)    # uint8 clips of the shapes in model.about["inputs"]
    video = model.sample(content, motion)    # floats in [0, 1]

Content is a single frame, or a clip if the system needs one; a system that looks at faces takes whole pictures as
faces. Steps and strength of sampling are those of the config; --config.system.sampler.steps=16 changes them.
"""

import argparse
import importlib.util
import io
import json
import logging
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo

from vidmotion import exported, files, paths, run_record, startup
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.open_run import open_run, open_weights
from vidmotion.run import Run
from vidmotion.system import MotionTransfer, Vars

log = logging.getLogger("vidmotion.export")

PLATFORMS = ("cpu", "cuda", "tpu")


def export(run: Run, out: str) -> pathlib.Path:
    """Write the programs, weights, description and loader of a run.

    Args:
      run: a run whose system transfers motion.
      out: the folder to write to, new or empty.

    Returns:
      The folder.

    Raises:
      ConfigError: the system does not transfer motion, the folder is not empty, or flatbuffers is not installed.
      CheckpointError: the run is not trained.
    """
    system, folder = run.system, pathlib.Path(out)
    if not isinstance(system, MotionTransfer) or not system.window:
        raise ConfigError(
            f"{run.workdir} holds a run of {run.config.system.name}, which cannot transfer motion"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--out={out} is not empty; choose a new folder")
    if not importlib.util.find_spec("flatbuffers"):
        raise ConfigError(
            "jax needs flatbuffers to write programs: pip install 'vidmotion[export]'"
        )
    trained = run.trained_vars()
    # The player "model" is the only one that encoding and sampling need.
    vars = Vars({"model": trained.params["model"]}, trained.mutable, trained.consts)
    leaves = paths.flatten(vars._asdict())
    # NumPy's files have no bfloat16.
    kept = {
        name: jnp.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype
        for name, leaf in leaves.items()
    }

    def of(weights: dict[str, jax.Array]) -> Vars:
        cast = {name: weights[name].astype(leaf.dtype) for name, leaf in leaves.items()}
        tree = paths.unflatten(cast)
        return Vars(*(tree.get(part, {}) for part in Vars._fields))

    def encode(weights, content, motion):
        return system.read_codes(of(weights), {"content": content, "motion": motion})

    def sample(weights, content, motion, seed):
        batch = {"content": content, "motion": motion}
        return system.sample(of(weights), batch, jax.random.key(seed))["video"]

    still = 1 if system.content_frames else system.window
    shapes = {
        "content": (1, still, system.size, system.size, 3),
        "motion": (1, system.window, system.size, system.size, 3),
    }
    weights = {name: jax.ShapeDtypeStruct(leaf.shape, kept[name]) for name, leaf in leaves.items()}
    clips = [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in shapes.values()]
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    for name, function, arguments in (("encode", encode, ()), ("sample", sample, (seed,))):
        log.info("exporting %s", name)
        program = stablehlo.export(jax.jit(function), platforms=PLATFORMS)(
            weights, *clips, *arguments
        )
        files.atomic_write(folder / f"{name}.stablehlo", bytes(program.serialize()))
    packed = io.BytesIO()
    np.savez(packed, **{name: np.asarray(leaf, kept[name]) for name, leaf in leaves.items()})
    files.atomic_write(folder / "weights.npz", packed.getvalue())
    about = {
        "system": run.config.system.name,
        "weights": run.weights_digest(),
        "inputs": {name: {"shape": shape, "dtype": "uint8"} for name, shape in shapes.items()},
        "platforms": PLATFORMS,
        "config": run_record.without_places(run.config.to_dict()),
        **run_record.environment(),
    }
    files.atomic_write(folder / "model.json", json.dumps(about, indent=1) + "\n")
    shutil.copyfile(exported.__file__, folder / "load.py")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vidmotion.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", help="folder of a trained run")
    model.add_argument(
        "--weights", help="folder written by python -m vidmotion.convert, instead of a run"
    )
    parser.add_argument("--out", required=True, help="folder to write, new or empty")
    args, changes = startup.parse_with_config(parser, sys.argv[1:] if argv is None else argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        opened = open_weights if args.weights else open_run
        folder = export(opened(args.weights or args.workdir, changes), args.out)
        size = sum(path.stat().st_size for path in folder.iterdir())
        log.info("%s: %.1f MB; load it with load.py", folder, size / 1e6)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, f"stopped; {args.out} is incomplete")


if __name__ == "__main__":
    sys.exit(main())
