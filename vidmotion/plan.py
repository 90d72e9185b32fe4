"""``--mode=plan``: what a config will cost, printed without allocating or training anything.

With ``--config.plan.devices=N`` the update is compiled, never executed, for N simulated devices on the CPU. Shapes and
shardings are those of the accelerator; memory and traffic are those of the program that the CPU compiler makes, which
fuses otherwise, may widen bfloat16, and keeps all-reduces where another would make reduce-scatters.
"""

import ctypes
import gc
import math
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from vidmotion import hardware, paths, run_record, sharding
from vidmotion.errors import ConfigError
from vidmotion.models import forms
from vidmotion.run import Run
from vidmotion.system import Describes

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
GIB = 2**30
# Joining all-reduces changes no byte that is sent, and takes time and memory with the square of the program's length.
# The barriers around what `remat` computes again are taken away early on the CPU, whose compiler then sees the same
# computation twice and keeps the first one's results; accelerators keep the barriers until memory is assigned.
COMPILER = {"xla_disable_hlo_passes": "cpu-all-reduce-combiner,cse_barrier_expander"}
# What no machine has: XLA finds that out when it has given every array its memory and turns to machine code, which
# would take most of the time, much of it with the square of the program's length, and change no figure here.
STOP = "vidmotion_plan_ends_here"
_BYTES = re.compile(r"\b(pred|bf16|[fsu]\d+|c\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\((.*)")
_CALLED = re.compile(
    r"(body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)


def plan(run: Run) -> str:
    """Parameters per module, FLOPs per step, state bytes per device and tokens per batch, as text.

    Where the config asks for devices: also what the compiled update takes on each of them.

    Raises:
      ConfigError: see `compiled`.
    """
    if asked(run.config):
        reckoned_with(run)  # what is wrong is said before the long part
    flops = run.flops_per_step()
    lines = [*_parameters(run), "", *_cost(run, flops), *_facts(run)]
    if asked(run.config):
        figures = compiled(run, flops)
        lines += ["", *_describe(figures)]
        if run.config.plan.record:
            kept = {
                **run_record.environment(),
                "config": run_record.without_places(run.config.to_dict()),
                **figures,
            }
            run_record.write(epath.Path(run.config.plan.record), kept)
    return "\n".join(lines)


def asked(config: Any) -> int:
    """Number of devices that ``config.plan`` wants simulated; 0 for none.

    Raises:
      ConfigError: a number that is none.
    """
    devices = config.get("plan", {}).get("devices", 0)
    if devices < 0:
        raise ConfigError(f"config.plan.devices={devices}: a number of devices, or 0 for none")
    return devices


class Compiled(NamedTuple):
    """What the compiled update of one batch size takes on one device.

    Attributes:
      batch_size: global.
      arguments, outputs, aliased, temporaries: bytes; outputs include those in the place of donated arguments.
      moved: bytes that leave a device per update, for each kind of collective.
      unknown_loops: loops around collectives whose number of rounds is not in the program, counted once.
    """

    batch_size: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    moved: dict[str, int]
    unknown_loops: int

    @property
    def peak(self) -> int:
        """Bytes held at the worst moment."""
        return peak_bytes(self.arguments, self.outputs, self.aliased, self.temporaries)


def peak_bytes(arguments: int, outputs: int, aliased: int, temporaries: int) -> int:
    """Bytes held at the worst moment; outputs in the place of arguments (`aliased`) count once."""
    return arguments + outputs - aliased + temporaries


def compile_update(run: Run, batch_size: int | None = None) -> Compiled:
    """Compile the update of `batch_size` examples (default: the config's) up to machine code; nothing is allocated.

    Raises:
      ConfigError: this version of XLA does not tell of a program what is needed here.
    """
    batch_size = batch_size or run.config.batch_size
    run = run.with_batch_size(batch_size)

    def unfinished(*args):
        with forms.of_accelerators():
            state, metrics = run.stepper.update(*args)
        return state, {**metrics, STOP: jax.ffi.ffi_call(STOP, jax.ShapeDtypeStruct((), "f"))()}

    with tempfile.TemporaryDirectory() as folder:
        told = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            _compile(run, COMPILER | sharding.compiler_options(run.mesh) | told, unfinished)
        except jax.errors.JaxRuntimeError as error:
            if STOP not in str(error):
                raise
        program, assigned = (
            [path.read_text() for path in Path(folder).glob(f"*after_optimizations{kind}.txt")]
            for kind in ("", "-buffer-assignment")
        )
    if len(program) != 1 or len(assigned) != 1:
        raise ConfigError(
            f"config.plan: XLA of jaxlib {jax.lib.__version__} writes no buffer assignment where it is looked for; "
            "use a version that setup.py names"
        )
    moved, unknown = moved_bytes(program[0])
    return Compiled(batch_size, *assigned_bytes(assigned[0]), moved, unknown)


def assigned_bytes(text: str) -> tuple[int, int, int, int]:
    """Bytes of arguments, outputs, outputs in the place of arguments, and temporaries, as XLA's statistics count them.

    Args:
      text: XLA's buffer assignment.
    """
    arguments = outputs = aliased = temporaries = 0
    for size, kind in re.findall(r"^allocation \d+: size (\d+)(.*):$", text, re.M):
        size, comes, leaves = int(size), ", parameter " in kind, ", maybe-live-out" in kind
        arguments += size * comes
        outputs += size * leaves
        aliased += size * (comes and leaves)
        temporaries += size * (", preallocated-temp" in kind)
    return arguments, outputs, aliased, temporaries


def _compile(
    run: Run, options: dict[str, Any] | None = None, update: Callable | None = None
) -> jax.stages.Compiled:
    """`update` (default: the run's), compiled anew: a program from the cache does not say what memory it takes."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return run.lower_update(update).compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def reckoned_with(run: Run) -> tuple[hardware.Chip, int]:
    """The chip that ``config.plan`` names, and the bytes of memory that a device is taken to have.

    Raises:
      ConfigError: another number of devices than `asked`, an unknown chip, or a number out of range.
    """
    want, devices = run.config.plan, run.mesh.size
    if devices != want.devices:
        raise ConfigError(
            f"config.plan.devices={want.devices}, but the mesh has {devices} device(s); set config.mesh to fit"
        )
    chip = hardware.chip(want.chip)
    if not 0 < want.efficiency <= 1:
        raise ConfigError(
            f"config.plan.efficiency={want.efficiency}: a share of the peak, in (0, 1]"
        )
    if want.memory_gib < 0:
        raise ConfigError(f"config.plan.memory_gib={want.memory_gib}: GiB, or 0 for the chip's own")
    if want.measure and devices != 1:
        raise ConfigError(
            f"config.plan.measure weighs this process, so config.plan.devices is 1, not {devices}"
        )
    return chip, int(want.memory_gib * GIB) or chip.memory_bytes


def compiled(run: Run, flops: float | None) -> dict[str, Any]:
    """Figures of the update compiled for the run's mesh, and what a chip would make of it.

    Args:
      run: with ``config.plan.devices`` on its mesh.
      flops: the FLOPs of a step, by `Run.flops_per_step`.

    Raises:
      ConfigError: as `reckoned_with`.
    """
    chip, memory = reckoned_with(run)
    want, devices = run.config.plan, run.mesh.size
    first = compile_update(run)
    seconds = {
        "compute": (flops or 0.0) / devices / (chip.flops * want.efficiency),
        # Each temporary is written and read once at least.
        "memory": (first.arguments + first.outputs + 2 * first.temporaries) / chip.bandwidth,
        "communication": sum(first.moved.values()) / chip.link_rate(devices),
    }
    step = max(seconds.values())
    figures = {
        "plan_devices": devices,
        "mesh": dict(run.mesh.shape),
        "batch_size": first.batch_size,
        "chip": want.chip,
        "assumed_efficiency": want.efficiency,
        "memory_limit": memory,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.abstract_params)),
        "parameter_bytes": sharding.bytes_per_device(
            run.abstract_params, run.state_shardings.params
        ),
        "state_bytes": sharding.bytes_per_device(run.abstract_state, run.state_shardings),
        **{f"{name}_bytes": getattr(first, name) for name in ("arguments", "temporaries", "peak")},
        "flops": flops,
        "moved_bytes": first.moved,
        "unknown_loops": first.unknown_loops,
        "seconds": seconds,
        "step_seconds": step,
        "bound": max(seconds, key=seconds.get),
        "efficiency": (flops or 0.0) / devices / chip.flops / step,
    }
    if want.fit:
        unit = sharding.batch_shards(run.mesh) * run.config.accumulate
        best = largest_batch(lambda size: compile_update(run, size).peak, first, unit, memory)
        figures["largest_batch"], figures["largest_batch_peak"] = best
    if want.measure:
        figures["measured"] = measured(run)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures["plan_cpu_seconds"] = usage.ru_utime
    return figures


def measured(run: Run, steps: int = 2) -> dict[str, int]:
    """Run the update on a batch of zeros, on one CPU device, and weigh this process meanwhile. Linux only.

    Args:
      run: with one device.
      steps: how often; from the second on, state takes the place of donated state.

    Returns:
      Bytes: ``arrays`` held (state, never-trained networks, batch); ``growth`` of the process's resident memory over
      that; ``program``, the peak that XLA states of the program that ran.
    """
    program = _compile(run)
    memory = program.memory_analysis()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.batch)
    state, consts, batch = run.fresh_state(), run.consts, run.put(zeros)
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((state, consts, batch)))
    jax.block_until_ready((state, consts, batch))
    del zeros
    gc.collect()
    # Memory that the compiler has freed goes back to the system, or the update would seem to take none.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    for _ in range(steps):
        state, _ = jax.block_until_ready(program(state, consts, batch))
    return {
        "arrays": arrays,
        "growth": _resident("VmHWM") - before,
        "program": peak_bytes(
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.alias_size_in_bytes,
            memory.temp_size_in_bytes,
        ),
    }


def _resident(name: str) -> int:
    """``VmRSS`` or its peak ``VmHWM`` of this process, bytes."""
    (kib,) = re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(kib) * 1024


def largest_batch(
    peak: Callable[[int], int], first: Compiled, unit: int, limit: int, tries: int = 4
) -> tuple[int, int]:
    """Largest batch size whose peak is within `limit`, by a line through two sizes, then checked.

    Args:
      peak: bytes at a batch size, by compiling.
      first: what is known already.
      unit: batch sizes are multiples of it.
      limit: bytes.
      tries: how often the line is drawn again through what the last check found.

    Returns:
      (batch size, its peak), the largest that was found to fit; (0, the peak of one unit) where none was.
    """
    other = first.batch_size // unit // 2 * unit or 2 * unit
    if other == first.batch_size:
        other += unit
    known = {first.batch_size: first.peak, other: peak(other)}
    for _ in range(tries):
        # The two sizes nearest to the limit make the line.
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


def moved_bytes(text: str) -> tuple[dict[str, int], int]:
    """Bytes that one device sends per run of a compiled program, for each kind of collective.

    Counted as rings do: of S bytes among n devices an all-gather, reduce-scatter or all-to-all sends S (n-1)/n, an
    all-reduce twice that, a permute S. What stands in a loop counts as often as it goes round.

    Args:
      text: the compiled program (`jax.stages.Compiled.as_text`).

    Returns:
      ({kind: bytes}, number of loops with collectives whose rounds the program does not tell, counted once).
    """
    own: dict[str, Counter] = {}
    calls: dict[str, list[tuple[str, int | None]]] = {}
    entry = name = ""
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%").split("(")[0]
            entry = name if line.startswith("ENTRY ") else entry
            own[name], calls[name] = Counter(), []
            continue
        match = _INSTRUCTION.match(line)
        if not match or not name:
            continue
        shape, kind, rest = match.groups()
        kind = kind.removesuffix("-start")
        if kind in COLLECTIVES:
            own[name][kind] += _sent(kind, shape, rest, devices)
            continue
        rounds: int | None = 1
        if kind == "while":
            told = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            rounds = int(told[1]) if told else None
        for _, names in _CALLED.findall(rest):
            calls[name] += [(part.strip(" %"), rounds) for part in names.strip("{}").split(",")]
    unknown = 0

    def total(name: str) -> Counter:
        nonlocal unknown
        found = Counter(own.get(name, {}))
        for called, rounds in calls.get(name, ()):
            inner = total(called)
            unknown += rounds is None and any(inner.values())
            for kind, size in inner.items():
                found[kind] += size * (rounds or 1)
        return found

    found = total(entry)
    return {kind: found[kind] for kind in COLLECTIVES}, unknown


def _group(rest: str) -> int | None:
    """How many devices take part in a collective; None where the text does not tell, which means all of them."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{,]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", named[1]))
        axes = re.findall(
            r"('[^']*')(?::\(\d+\)(\d+))?", named[2]
        )  # a part of an axis has its size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None


def _sent(kind: str, shape: str, rest: str, devices: int) -> int:
    """Bytes one of `devices` sends in a collective whose result has the (tuple) `shape`."""
    size = 0
    for dtype, dimensions in _BYTES.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        size += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
    if kind == "collective-permute":
        return size
    n = _group(rest) or devices
    if kind == "reduce-scatter":
        return size * (n - 1)  # its result is one n-th
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1)


def _describe(figures: dict[str, Any]) -> list[str]:
    """Figures of `compiled` as lines of text."""
    seconds = ", ".join(f"{name} {value:.3g} s" for name, value in figures["seconds"].items())
    rows = [
        ("compiled for", f"{figures['plan_devices']} simulated device(s), never executed"),
        ("parameter bytes per device", f"{figures['parameter_bytes']:,}"),
        (
            "peak memory per device",
            f"{figures['peak_bytes']:,}  ({figures['peak_bytes'] / GIB:.2f} GiB: arguments "
            f"{figures['arguments_bytes']:,}, temporaries {figures['temporaries_bytes']:,})",
        ),
        *((f"{kind} bytes sent", f"{size:,}") for kind, size in figures["moved_bytes"].items()),
        (
            f"predicted step on {figures['chip']}",
            f"{figures['step_seconds']:.3g} s, bound by {figures['bound']} ({seconds}; compute at "
            f"{figures['assumed_efficiency']:.0%} of the bf16 peak, assumed)",
        ),
        ("predicted efficiency", f"{figures['efficiency']:.1%} of the bf16 peak"),
    ]
    if figures["unknown_loops"]:
        rows.append(("loops of unknown length", f"{figures['unknown_loops']}, counted once"))
    if "largest_batch" in figures:
        limit = f"{figures['memory_limit'] / GIB:.1f} GiB"
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


def _parameters(run: Run) -> list[str]:
    """Counts per player and top-level module, frozen leaves told apart."""
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
    """What the system adds."""
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
        "  (parameters, optimizer, averages; gradients and activations come on top)",
        f"mesh                        {mesh}; here {jax.device_count()} device(s)",
        f"batch                       {run.config.batch_size} examples, "
        f"{run.config.batch_size // rows} per shard, {run.config.accumulate} microbatch(es)",
        f"tokens per batch            {tokens:,}",
    ]
