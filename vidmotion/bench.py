r"""Times one update on the devices of this machine, without data, weights or training.

    vidmotion bench --config=sprites:demo --out=bench
    vidmotion bench --out=bench                                 # all recipes, each in a process of its own

Batches and never-trained networks are random numbers of the right shapes, so that only the compiled update is timed.
``--config.<field>=<value>`` changes any field of the config. One JSON record per recipe is written into the folder. If
``docs/plans`` has a forecast of ``--mode=plan`` for the same update, the record holds it beside the measurement.
"""

import argparse
import json
import logging
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vidmotion import hardware, run_record, sharding, startup
from vidmotion.errors import EXIT_DONE, EXIT_UNMEASURED, ConfigError
from vidmotion.open_run import load_config, set_field
from vidmotion.run import Run
from vidmotion.trace import WARM, Trace
from vidmotion.train import compile_update, rates

log = logging.getLogger("vidmotion.bench")

RECIPES = (
    *("sprites", "lrs3", "vidtwin:size=base", "warpface"),
    *("xnemo:stage=2", "xnemo:stage=4"),
)
CONVENTION = (
    "model FLOPs of one update (forward, backward, optimizer; no recomputation, PaLM appendix B) / "
    "(median step time x devices x dense bf16 peak)"
)


def bench(run: Run, out: epath.Path, steps: int = 20, profile: int = 0) -> dict[str, Any]:
    """Compile the update of the run's last phase, run it `steps` times after `WARM` warm-up steps, and time each.

    A step ends when its results are complete. Unlike in training, the next step is not dispatched ahead.

    Args:
      run: the run whose update is timed; its data and weights are not read.
      out: the folder in which the trace is written, as ``profile``.
      steps: the number of steps to time, at least one.
      profile: the number of further steps to trace, for TensorBoard and ui.perfetto.dev.

    Returns:
      The record of the measurement.

    Raises:
      ConfigError: the update takes more memory than the devices have.
    """
    try:
        flops = run.flops_per_step()
        update, compile_seconds = compile_update(run)
        state = run.fresh_state()
        rows, whole = sharding.batch(run.mesh), sharding.replicated(run.mesh)
        batch, consts = _random(run.batch, rows), _random(run.abstract_consts, whole)
        seconds = []
        with Trace(out, steps, profile) as trace:
            for done in range(1, WARM + steps + profile + 1):
                began = time.perf_counter()
                state, _ = jax.block_until_ready(update(state, consts, batch))
                seconds.append(time.perf_counter() - began)
                trace.completed(done, state)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"an update of {run.config.batch_size} examples takes more memory than the devices have; lower "
            f"config.batch_size, or see docs/training.md: {str(error).splitlines()[0]}"
        ) from error
    timed = seconds[WARM : WARM + steps]
    median = statistics.median(timed)
    speed = rates(run, flops, 1, median)
    memory = update.memory_analysis()
    return {
        **run_record.environment(),
        "config": run_record.without_places(run.config.to_dict()),
        "mesh": dict(run.mesh.shape),
        "batch_size": run.config.batch_size,
        "compile_seconds": compile_seconds,
        "steps": steps,
        "step_seconds": {"median": median, "min": min(timed), "max": max(timed), "all": timed},
        "flops": flops,
        "mfu_convention": CONVENTION,
        "mfu": speed.get("speed/mfu", "unknown"),
        **{name.removeprefix("speed/"): value for name, value in speed.items()},
        "peak_memory": run_record.peak_memory(),
        "temporaries_bytes": memory.temp_size_in_bytes if memory else None,
    }


def _random(shapes: Any, where: jax.sharding.Sharding) -> Any:
    """Make arrays of the given shapes on the devices: small random floats, True for bools, zeros for other types."""

    def value(key, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        return jnp.full(leaf.shape, leaf.dtype == bool, leaf.dtype)

    def make():
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(0), len(leaves) + 1)
        return tree.unflatten(map(value, keys, leaves))

    return jax.jit(make, out_shardings=where)()


def forecast(record: dict[str, Any], plans: epath.Path) -> dict[str, Any] | None:
    """Find the forecast for the update that `record` measured; None if the folder `plans` has none.

    A plan matches if its system, batch size, number of devices and kind of chip are those of the record.
    """
    for path in sorted(plans.glob("*.json")):
        plan = run_record.read(path) or {}
        if (
            plan.get("own_compiler")
            and "step_seconds" in plan
            and hardware.chip(plan["chip"]).kind == record["device_kind"]
            and plan["plan_devices"] == record["devices"]
            and plan["batch_size"] == record["batch_size"]
            and plan["config"]["system"] == json.loads(json.dumps(record["config"]["system"]))
        ):
            kept = ("chip", "compiler", "step_seconds", "efficiency", "peak_bytes", "commit")
            return {"plan": path.name, **{name: plan[name] for name in kept}}
    return None


def describe(record: dict[str, Any]) -> str:
    """Format a record as lines of text."""
    step = record["step_seconds"]
    rows = [
        ("devices", f"{record['devices']} x {record['device_kind']}"),
        ("compiled in", f"{record['compile_seconds']:.1f} s"),
        (
            "step",
            f"{step['median']:.4g} s, median of {record['steps']} ({step['min']:.4g} to {step['max']:.4g})",
        ),
        ("examples per second", f"{record['examples_per_second']:.4g}"),
        ("model TFLOP/s", f"{record.get('model_tflops', float('nan')):.4g}"),
        ("MFU", f"{record['mfu']}: {record['mfu_convention']}"),
        ("peak memory", ", ".join(f"{k} {v:,}" for k, v in record["peak_memory"].items())),
    ]
    if expected := record["forecast"]:
        rows.append(
            (
                "forecast",
                f"{expected['step_seconds']:.4g} s, {expected['peak_bytes']:,} bytes ({expected['plan']})",
            )
        )
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _each(args: argparse.Namespace, arguments: list[str]) -> int:
    """Time all recipes, each in its own process, because a process returns its memory only when it ends."""
    failed = []
    for recipe in RECIPES:
        log.info("%s", recipe)
        command = [sys.executable, "-m", "vidmotion.bench", f"--config={recipe}", *arguments]
        if subprocess.run(command).returncode:
            failed.append(recipe)
    if failed:
        log.error(
            "could not measure %s; the records of the other recipes are kept", ", ".join(failed)
        )
    return EXIT_UNMEASURED if failed else EXIT_DONE


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m vidmotion.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--config", default="", help=f"recipe to time; by default all of {', '.join(RECIPES)}")
    flag("--out", required=True, help="folder to write the records to")
    flag(
        "--steps", type=startup.at_least(1), default=20, help="number of steps to time (default 20)"
    )
    flag("--profile", type=startup.at_least(0), default=0, help="number of further steps to trace")
    flag(
        "--plans",
        default="docs/plans",
        help="folder with the records of --mode=plan (default docs/plans)",
    )
    args, changes = startup.parse_with_config(parser, arguments)

    def work() -> int:
        if not args.config:
            return _each(args, arguments)
        startup.set_up_devices()
        try:
            config = load_config(args.config)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for name, text in changes.items():
            set_field(config, name, text)
        config.init_from = ""
        name = re.sub(r"\W+", "-", args.config.removesuffix(".py").rpartition("/")[2]).strip("-")
        out = epath.Path(args.out)
        record = bench(Run(config, ""), out / name, args.steps, args.profile)
        record["forecast"] = forecast(record, epath.Path(args.plans))
        if jax.process_index() == 0:
            out.mkdir(parents=True, exist_ok=True)
            run_record.write(out / f"{name}.json", record)
            print(describe(record), flush=True)
            log.info("record: %s", out / f"{name}.json")
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, "stopped; the records written so far are kept")


if __name__ == "__main__":
    sys.exit(main())
