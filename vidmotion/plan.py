"""``--mode=plan``: prints what a config will cost, without allocating or training anything.

With ``--config.plan.devices=N``, or ``--config.plan.topology=16x16`` for a TPU, the update is compiled by the chip's
own compiler (`targets`) but never executed. Memory, kernels and traffic are then those of the program that the chip
would run, and a TPU's compiler also estimates the cycles. If that compiler is not installed, XLA for the CPU stands
in: it fuses operations differently, may widen bfloat16, and keeps all-reduces that other compilers turn into
reduce-scatters. All times are forecasts.
"""

import contextlib
import ctypes
import gc
import logging
import math
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from vidmotion import hardware, paths, run_record, sharding, targets
from vidmotion.errors import ConfigError
from vidmotion.models import forms
from vidmotion.program import Program
from vidmotion.run import Run
from vidmotion.system import Describes
from vidmotion.targets import Target

log = logging.getLogger(__name__)

GIB = 2**30
SPOKEN = 30.0  # seconds between two messages about a compilation in progress
LISTED = 10  # number of entries kept of a profile
# The share of the peak that the TPU's attention kernels are assumed to reach, since its compiler does not estimate
# them. By its schedules (docs/plans/blocks), those of `short_attention` reach 21 to 54 %.
KERNEL_SHARE = 0.25


def report(config: ml_collections.ConfigDict, workdir: str = "") -> str:
    """Return the text of `plan` for a config; `targets.prepare` must have prepared this process.

    Raises:
      ConfigError: see `compiled`, `targets.find` and `Run`.
    """
    if not targets.device_count(config.get("plan")):
        return plan(Run(config, workdir, abstract=True))
    target = targets.find(config.plan)
    mesh = sharding.make_mesh(config.mesh, target.devices)
    return plan(Run(config, workdir, mesh=mesh), target)


def plan(run: Run, target: Target | None = None) -> str:
    """Describe a run as text: parameters per module, FLOPs per step, state bytes per device and tokens per batch.

    With a target, the text also tells what the compiled update takes on each of the target's devices, and these
    figures are written to ``config.plan.record`` if that names a file.

    Raises:
      ConfigError: see `compiled`.
    """
    if target:
        reckoned_with(run)  # finds mistakes in the config before the long compilation
    flops = run.flops_per_step()
    lines = [*_parameters(run), "", *_cost(run, flops), *_facts(run)]
    if target:
        figures = compiled(run, target, flops)
        lines += ["", *_describe(figures)]
        if run.config.plan.record:
            kept = {
                **run_record.environment(),
                "config": run_record.without_places(run.config.to_dict()),
                **figures,
            }
            run_record.write(epath.Path(run.config.plan.record), kept)
    return "\n".join(lines)


class Compiled(NamedTuple):
    """The memory that the update compiled for one batch size takes on one device.

    Attributes:
      batch_size: the global batch size.
      arguments: bytes of the arguments.
      outputs: bytes of the outputs, those stored in the place of donated arguments included.
      aliased: bytes of the outputs that are stored in the place of donated arguments.
      temporaries: bytes of the temporaries; if the compiler refused the program, the bytes it says it needs, less
        `arguments`.
      program: the compiled program; None if the compiler refused it because it needs too much memory.
      refusal: the compiler's message if it refused the program, else empty.
    """

    batch_size: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: Program | None = None
    refusal: str = ""

    @property
    def peak(self) -> int:
        """The most bytes held at any moment."""
        return peak_bytes(self.arguments, self.outputs, self.aliased, self.temporaries)


def peak_bytes(arguments: int, outputs: int, aliased: int, temporaries: int) -> int:
    """Return the most bytes held at any moment; outputs in the place of arguments (`aliased`) count once."""
    return arguments + outputs - aliased + temporaries


def compile_update(run: Run, target: Target, batch_size: int | None = None) -> Compiled:
    """Compile the update of `batch_size` examples (by default the config's batch size), without allocating any."""
    batch_size = batch_size or run.config.batch_size
    run = run.with_batch_size(batch_size)

    def update(*args):
        with forms.of(target.platform if target.own else "any"):
            return run.stepper.update(*args, phase=run.stepper.phase(run.config.steps - 1))

    with _progress(f"compiling a batch of {batch_size} by {target.compiler}"):
        lowered = run.lower_update(update, platforms=target.lowering)
        try:
            program = _compile(lowered, target.options | sharding.compiler_options(run.mesh))
        except jax.errors.JaxRuntimeError as error:
            needed = _needed(str(error))
            if not needed:
                raise
            state = sharding.bytes_per_device(run.abstract_state, run.state_shardings)
            return Compiled(batch_size, state, 0, 0, needed - state, None, str(error))
    return Compiled(batch_size, *_sizes(program), Program(program.as_text()))


def _needed(refusal: str) -> int:
    """Read from a compiler's refusal how many bytes the program needs; 0 if the message is about something else."""
    told = re.search(r"(?:Used|temporaries \() ?([\d.]+)([KMGT])", refusal)
    if "RESOURCE_EXHAUSTED" not in refusal or not told:
        return 0
    return int(float(told[1]) * 2 ** (10 * (" KMGT".index(told[2]))))


def _sizes(program: jax.stages.Compiled) -> tuple[int, int, int, int]:
    """Return XLA's figures for the bytes of arguments, outputs, aliased outputs and temporaries."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
    )


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Log `what`, and every `SPOKEN` seconds how long it has been going on."""
    began, done = time.perf_counter(), threading.Event()

    def speak():
        while not done.wait(SPOKEN):
            log.info("%s: %.0f s so far", what, time.perf_counter() - began)

    log.info("%s", what)
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
    """Compile a program without the compilation cache: a cached program does not tell how much memory it takes."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return lowered.compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def reckoned_with(run: Run) -> tuple[hardware.Chip, int]:
    """Return the chip that ``config.plan`` names, and the bytes of memory that a device is assumed to have.

    Raises:
      ConfigError: the mesh has another number of devices than ``config.plan`` asks for, the chip is unknown, or a
        number is out of range.
    """
    want, devices = run.config.plan, run.mesh.size
    if devices != targets.device_count(want):
        raise ConfigError(
            f"config.plan asks for {targets.device_count(want)} devices, but the mesh has {devices} device(s); set "
            "config.mesh to fit"
        )
    chip = hardware.chip(want.chip)
    if not 0 < want.efficiency <= 1:
        raise ConfigError(
            f"config.plan.efficiency={want.efficiency} must be a share of the peak, in (0, 1]"
        )
    if want.memory_gib < 0:
        raise ConfigError(
            f"config.plan.memory_gib={want.memory_gib} must be a number of GiB, or 0 for the chip's own"
        )
    if want.measure and devices != 1:
        raise ConfigError(
            f"config.plan.measure measures this process, so config.plan.devices must be 1, not {devices}"
        )
    return chip, int(want.memory_gib * GIB) or chip.memory_bytes


def compiled(run: Run, target: Target, flops: float | None) -> dict[str, Any]:
    """Compile the update for the run's mesh, and return its memory and a forecast of its time on the chip.

    Args:
      run: a run on a mesh of the target's devices.
      target: the compiler and devices to compile for.
      flops: the FLOPs of a step, from `Run.flops_per_step`; None if unknown.

    Raises:
      ConfigError: as for `reckoned_with`.
    """
    chip, memory = reckoned_with(run)
    want, devices = run.config.plan, run.mesh.size
    began = time.perf_counter()
    first = compile_update(run, target)
    figures = {
        "plan_devices": devices,
        "topology": want.topology,
        "compiler": target.compiler,
        "own_compiler": target.own,
        "compile_seconds": time.perf_counter() - began,
        "mesh": dict(run.mesh.shape),
        "batch_size": first.batch_size,
        "chip": want.chip,
        "memory_limit": memory,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.abstract_params)),
        "parameter_bytes": sharding.bytes_per_device(
            run.abstract_params, run.state_shardings.params
        ),
        "state_bytes": sharding.bytes_per_device(run.abstract_state, run.state_shardings),
        **{f"{name}_bytes": getattr(first, name) for name in ("arguments", "temporaries", "peak")},
        "fits": first.program is not None and first.peak <= memory,
        "flops": flops,
    }
    if first.program is None:
        figures["refusal"] = first.refusal
    else:
        figures |= _forecast(first, chip, want.efficiency, devices, flops)
    if want.fit:
        unit = sharding.batch_shards(run.mesh) * run.config.accumulate
        best = largest_batch(
            lambda size: compile_update(run, target, size).peak, first, unit, memory
        )
        figures["largest_batch"], figures["largest_batch_peak"] = best
    if want.measure:
        figures["measured"] = measured(run)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures["plan_cpu_seconds"] = usage.ru_utime
    return figures


def _forecast(
    first: Compiled, chip: hardware.Chip, efficiency: float, devices: int, flops: float | None
) -> dict[str, Any]:
    """Summarise a compiled program and forecast how long its step will take.

    The time of computation is that of the cycles that a TPU's compiler estimates. Without an estimate it is the longer
    of two times: that of the FLOPs at an assumed share of the peak, and that of the traffic to memory, in which each
    temporary is counted as written once and read once.
    """
    program = first.program
    modules, kinds, total = Counter(), Counter(), 0
    for module, kind, cycles in program.cycles():
        modules[module or "update and losses"] += cycles
        kinds[kind] += cycles
        total += cycles
    if total and chip.clock_ghz:
        for module, kind, work, traffic in program.kernel_costs():
            longest = max(work / (KERNEL_SHARE * chip.flops), traffic / chip.bandwidth)
            cycles = round(longest * chip.clock_ghz * 1e9)
            modules[module] += cycles
            kinds[kind] += cycles
            total += cycles
    moved, far = program.moved_bytes(), program.moved_bytes(chip.island)
    slow, fast = sum(far.values()), sum(moved.values()) - sum(far.values())
    seconds = {"communication": slow / chip.network + fast / chip.link}
    found = {
        "kernels": program.kernels(),
        "moved_bytes": moved,
        "moved_bytes_between_islands": slow,
        "unknown_loops": program.unknown_loops,
        "largest_arrays": program.largest_arrays(),
    }
    if total and chip.clock_ghz:
        seconds["cycles"] = total / (chip.clock_ghz * 1e9)
    else:
        found["assumed_efficiency"] = efficiency
        seconds["compute"] = (flops or 0.0) / devices / (chip.flops * efficiency)
        traffic = first.arguments + first.outputs + 2 * first.temporaries
        seconds["memory"] = traffic / chip.bandwidth
    if total:
        found["cycles"] = total
        found["cycles_by_module"] = dict(modules.most_common(LISTED))
        found["cycles_by_kind"] = dict(kinds.most_common(LISTED))
    step = max(seconds.values())
    return {
        **found,
        "seconds": seconds,
        "step_seconds": step,
        "bound": max(seconds, key=seconds.get),
        "efficiency": (flops or 0.0) / devices / chip.flops / step,
    }


def measured(run: Run, steps: int = 2) -> dict[str, int]:
    """Run the update on a batch of zeros on one CPU device, and measure this process's memory. Linux only.

    Args:
      run: a run on one device.
      steps: the number of updates to run; from the second on, the new state takes the place of the donated state.

    Returns:
      Bytes: ``arrays``, held by the state, the never-trained networks and the batch; ``growth``, the growth of the
      process's resident memory beyond the arrays during the updates; ``program``, the peak that XLA states for the
      program.
    """
    program = _compile(run.lower_update(), sharding.compiler_options(run.mesh))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.batch)
    state, consts, batch = run.fresh_state(), run.consts, run.put(zeros)
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((state, consts, batch)))
    jax.block_until_ready((state, consts, batch))
    del zeros
    gc.collect()
    # Return the memory that the compiler has freed to the system; otherwise the update would reuse it and seem to
    # take none.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    for _ in range(steps):
        state, _ = jax.block_until_ready(program(state, consts, batch))
    return {
        "arrays": arrays,
        "growth": _resident("VmHWM") - before,
        "program": peak_bytes(*_sizes(program)),
    }


def _resident(name: str) -> int:
    """Return this process's resident memory (``VmRSS``) or its peak (``VmHWM``) in bytes."""
    (kib,) = re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(kib) * 1024


def largest_batch(
    peak: Callable[[int], int], first: Compiled, unit: int, limit: int, tries: int = 4
) -> tuple[int, int]:
    """Find the largest batch size whose peak is within `limit`.

    A straight line through the peaks of two batch sizes gives a guess, whose peak is then computed.

    Args:
      peak: compiles the update for a batch size and returns its peak in bytes.
      first: the result for a batch size that was compiled already.
      unit: the number of which every batch size is a multiple.
      limit: the memory of a device, in bytes.
      tries: the greatest number of guesses, each from a line through the two peaks nearest to the limit.

    Returns:
      (batch size, its peak) of the largest that was found to fit; (0, the peak of one unit) if none was.
    """
    other = first.batch_size // unit // 2 * unit or 2 * unit
    if other == first.batch_size:
        other += unit
    known = {first.batch_size: first.peak, other: peak(other)}
    for _ in range(tries):
        # The line goes through the two sizes whose peaks are nearest to the limit.
        (a, at_a), (b, at_b) = sorted(known.items(), key=lambda item: abs(item[1] - limit))[:2]
        slope = max((at_b - at_a) / (b - a), 1e-9)
        guess = max(math.floor((a + (limit - at_a) / slope) / unit) * unit, unit)
        too_large = [size for size, held in known.items() if held > limit]
        guess = min(guess, min(too_large, default=guess + unit) - unit)
        if guess < unit or guess in known:
            break
        known[guess] = peak(guess)
    fitting = [size for size, held in known.items() if held <= limit]
    if fitting:
        return max(fitting), known[max(fitting)]
    return 0, known.get(unit) or peak(unit)


def _describe(figures: dict[str, Any]) -> list[str]:
    """Format the figures of `compiled` as lines of text."""
    by = (
        "the chip's own compiler"
        if figures["own_compiler"]
        else "in place of the chip's own compiler"
    )
    where = figures["topology"] or f"{figures['plan_devices']} device(s)"
    rows = [
        ("compiled for", f"{figures['chip']}, {where}, never executed"),
        ("compiled by", f"{figures['compiler']}, {by}, in {figures['compile_seconds']:.0f} s"),
        ("parameter bytes per device", f"{figures['parameter_bytes']:,}"),
        (
            "peak memory per device",
            f"{figures['peak_bytes']:,}  ({figures['peak_bytes'] / GIB:.2f} GiB: arguments "
            f"{figures['arguments_bytes']:,}, temporaries {figures['temporaries_bytes']:,})",
        ),
    ]
    limit = f"{figures['memory_limit'] / GIB:.1f} GiB"
    rows.append((f"fits in {limit}", "yes" if figures["fits"] else "no"))
    if "refusal" in figures:
        rows += [
            ("the compiler says", line.strip())
            for line in figures["refusal"].splitlines()[:30]
            if line.strip()
        ]
    if not figures["fits"]:
        rows += [
            (
                "a large array",
                f"{array['bytes'] / GIB:.2f} GiB  {array['shape']}  {array['operation']}",
            )
            for array in figures.get("largest_arrays", ())
        ]
    if "kernels" in figures:
        rows += _describe_program(figures)
    if "largest_batch" in figures:
        size, held = figures["largest_batch"], figures["largest_batch_peak"] / GIB
        rows.append(
            (
                f"largest batch in {limit}",
                f"{size}  (compiled: {held:.2f} GiB)"
                if size
                else f"none: the smallest takes {held:.2f} GiB",
            )
        )
    if "measured" in figures:
        weighed = figures["measured"]
        both = weighed["arrays"] + weighed["growth"]
        rows.append(
            (
                "measured on this CPU",
                f"{both:,}  (arrays {weighed['arrays']:,}, growth over the update {weighed['growth']:,}); "
                f"predicted / measured {figures['peak_bytes'] / both:.2f}",
            )
        )
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {text}" for label, text in rows]


def _describe_program(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Format kernels, traffic, cycles and the forecast of a step as (label, text) rows."""
    rows = [
        ("kernels", ", ".join(f"{name} {count:,}" for name, count in figures["kernels"].items())),
        *((f"{kind} bytes sent", f"{size:,}") for kind, size in figures["moved_bytes"].items()),
        ("of these between servers or slices", f"{figures['moved_bytes_between_islands']:,}"),
    ]
    if figures["unknown_loops"]:
        rows.append(("loops of unknown length", f"{figures['unknown_loops']}, counted once"))
    if "cycles" in figures:
        rows.append(("estimated cycles", f"{figures['cycles']:,}"))
        for kind, title in (("module", "share by module"), ("kind", "share by kind")):
            rows += [
                (title, f"{count / figures['cycles']:6.1%}  {name}")
                for name, count in figures[f"cycles_by_{kind}"].items()
            ]
    seconds = ", ".join(f"{name} {value:.3g} s" for name, value in figures["seconds"].items())
    assumed = (
        f"; compute at {figures['assumed_efficiency']:.0%} of the bf16 peak, assumed"
        if "assumed_efficiency" in figures
        else ""
    )
    return [
        *rows,
        (
            f"forecast step on {figures['chip']}",
            f"{figures['step_seconds']:.3g} s, bound by {figures['bound']} ({seconds}{assumed})",
        ),
        ("forecast share of peak", f"{figures['efficiency']:.1%} of the bf16 peak"),
    ]


def _parameters(run: Run) -> list[str]:
    """List the number of parameters per player and top-level module, in all, frozen and never trained."""
    counts: Counter[str] = Counter()
    frozen = 0
    for player, tree in run.abstract_params.items():
        learns = paths.flatten(run.stepper.optimizers[player].trainable_mask(tree))
        for path, leaf in paths.flatten(tree).items():
            counts[f"{player}/{path.split('/')[0]}"] += leaf.size
            frozen += 0 if learns[path] else leaf.size
    total = sum(counts.values())
    width = max(len(name) for name in counts)
    lines = [f"{name:<{width}}  {count:>15,}" for name, count in counts.items()]
    never = [
        f"{f'{name} (never trained)':<{width}}  {sum(x.size for x in jax.tree.leaves(tree)):>15,}"
        for name, tree in run.abstract_consts.items()
    ]
    return [
        f"{'module':<{width}}  {'parameters':>15}",
        *lines,
        f"{'all':<{width}}  {total:>15,}",
        f"{'of these frozen':<{width}}  {frozen:>15,}",
        *never,
    ]


def _facts(run: Run) -> list[str]:
    """List the lines that the system adds to the plan (`Describes.facts`)."""
    facts = run.system.facts(run.abstract_params) if isinstance(run.system, Describes) else {}
    width = max(map(len, facts), default=0)
    return ["", *(f"{label:<{width}}  {text}" for label, text in facts.items())] if facts else []


def _cost(run: Run, flops: float | None) -> list[str]:
    state = sharding.bytes_per_device(run.abstract_state, run.state_shardings)
    rows = sharding.batch_shards(run.mesh)
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    tokens = run.system.tokens(run.config.batch_size) if isinstance(run.system, Describes) else 0
    return [
        f"model FLOPs per step        {'unknown' if flops is None else f'{flops:.4g}'}"
        "  (forward, backward and optimizer; no recomputation)",
        f"state bytes per device      {state:,}"
        "  (parameters, optimizer, averages; without gradients and activations)",
        f"mesh                        {mesh}; {jax.device_count()} device(s) here",
        f"batch                       {run.config.batch_size} examples, "
        f"{run.config.batch_size // rows} per shard, {run.config.accumulate} microbatch(es)",
        f"tokens per batch            {tokens:,}",
    ]
