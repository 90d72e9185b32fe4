"""Reads kernels, traffic, cycles and large arrays of a compiled program from XLA's text of it.

Only computations that run are counted, each as often as the loops around it repeat it. Every branch of a conditional
counts once.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
KERNELS = ("fused attention", "convolution", "product")
# Parts of the names of the functions that implement attention kernels for the TPU.
_FLASH = re.compile(r"flash_attention|flash_mha|short_attention")
# Products of the backward kernels of jax's flash attention, which do not state their cost.
_BACKWARD = {"flash_mha_bwd_dq": 3, "flash_mha_bwd_dkv": 4}
LANES = 128  # the matrix unit takes as long for fewer channels
_BYTES = re.compile(r"\b(pred|bf16|[fsu]\d+|c\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\((.*)")
_CALLED = re.compile(
    r"(body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
# Instructions whose results are not new arrays, because they pass on the arrays of other instructions.
_NO_ARRAY = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      kind: the operation, for example ``fusion``.
      shape: the shape of the result, as text.
      rest: the rest of the line, from the operands on.
      rounds: how often the instruction runs.
      inner: whether the instruction is part of a fusion or a reduction, and so makes no array in memory.
    """

    kind: str
    shape: str
    rest: str
    rounds: int
    inner: bool

    @property
    def op_name(self) -> str:
        """Path of the traced operation from which the instruction was made; empty if the text does not tell."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Program:
    """The instructions of a compiled program, each with how often it runs.

    Args:
      text: the text of the program, from `jax.stages.Compiled.as_text`.

    Attributes:
      instructions: the instructions that run.
      unknown_loops: the number of loops that hold collectives or estimated cycles and for which the text does not
        tell the number of rounds. Their instructions are counted as running once.
    """

    def __init__(self, text: str):
        partitions = re.search(r"num_partitions=(\d+)", text)
        self._devices = int(partitions[1]) if partitions else 1
        bodies: dict[str, list[tuple[str, str, str]]] = {}
        name = entry = ""
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%").split("(")[0]
                entry = name if line.startswith("ENTRY ") else entry
                bodies[name] = []
            elif name and (match := _INSTRUCTION.match(line)):
                shape, kind, rest = match.groups()
                bodies[name].append((kind, shape, rest))
        runs, outer = Counter({entry: 1}), {entry}
        loops: list[str] = []  # bodies of loops of unknown length
        self.instructions: list[Instruction] = []
        # A computation is written before those that call it.
        for name in reversed(bodies):
            if not runs[name]:
                continue
            for kind, shape, rest in bodies[name]:
                inner = name not in outer
                self.instructions.append(Instruction(kind, shape, rest, runs[name], inner))
                told = _rounds(rest, bodies) if kind == "while" else None
                rounds = 1 if told is None else told
                for how, names in _CALLED.findall(rest):
                    for called in (part.strip(" %") for part in names.strip("{}").split(",")):
                        runs[called] += rounds * runs[name]
                        if not inner and kind != "fusion" and (how != "to_apply" or kind == "call"):
                            outer.add(called)
                        if kind == "while" and how == "body" and told is None:
                            loops.append(called)
        self.unknown_loops = sum(self._counts(bodies, loop) for loop in loops)

    def _counts(self, bodies: dict[str, list[tuple[str, str, str]]], name: str) -> bool:
        """Tell whether a computation, or one that it calls, holds a collective or estimated cycles."""
        for kind, _, rest in bodies.get(name, ()):
            if kind.removesuffix("-start") in COLLECTIVES or "estimated_cycles" in rest:
                return True
            for _, names in _CALLED.findall(rest):
                if any(
                    self._counts(bodies, part.strip(" %")) for part in names.strip("{}").split(",")
                ):
                    return True
        return False

    def moved_bytes(self, island: int = 0) -> dict[str, int]:
        """Return the bytes that one device sends per run, for each kind of collective.

        The counts are those of ring algorithms: for S bytes among n devices, an all-gather, reduce-scatter or
        all-to-all sends S (n-1)/n, an all-reduce twice that, and a permute S.

        Args:
          island: the number of consecutive devices that are connected with each other by fast links. With a number,
            the result is what one device sends to other islands: a ring goes through all devices of an island before
            it leaves it, on a path for each of them, so they share what leaves.
        """
        moved = dict.fromkeys(COLLECTIVES, 0)
        for one in self.instructions:
            kind = one.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            groups = _pairs(one.rest) if kind == "collective-permute" else None
            groups = _groups(one.rest, self._devices) if groups is None else groups
            members = groups.shape[1]
            sent = one.rounds * _sent(kind, _result(one, kind, members), members)
            if island:
                most = max(len(np.unique(group // island)) for group in groups)
                sent = sent * most // members if most > 1 else 0
            moved[kind] += sent
        return moved

    def kernels(self) -> dict[str, int]:
        """Count how many fused attentions (one kernel each), convolutions and matrix products run."""
        count = dict.fromkeys(KERNELS, 0)
        for one in self.instructions:
            if kernel := _kernel(one):
                count[kernel] += one.rounds
        return count

    def cycles(self) -> Iterator[tuple[str, str, int]]:
        """Yield (module, kind of operation, cycles) for each instruction whose cycles the TPU's compiler has estimated.

        The module is the path of the network's parts with ``*`` for numbers; the kind is the traced operation's name.
        """
        for one in self.instructions:
            told = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
            if told and not one.inner:
                yield *_place(one), one.rounds * int(told[1])

    def kernel_costs(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield (module, kind of operation, FLOPs, bytes) for each kernel whose cycles the TPU's compiler does not
        estimate.

        A kernel states its cost itself. That of the kernels in `_BACKWARD` follows from the shapes of queries and keys.
        """
        for one in self.instructions:
            if _kernel(one) != "fused attention" or "estimated_cycles" in one.rest:
                continue
            stated = re.search(r'"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', one.rest)
            flops, moved = map(int, stated.groups()) if stated else _backward_cost(one)
            module, _ = _place(one)
            yield module, "fused attention", one.rounds * flops, one.rounds * moved

    def largest_arrays(self, count: int = 5) -> list[dict[str, int | str]]:
        """Return ``bytes``, ``shape`` and ``operation`` of the `count` largest results in memory, each shape once."""
        found = {}
        for one in self.instructions:
            if one.inner or one.kind in _NO_ARRAY or one.kind.endswith("-done"):
                continue
            for dtype, dimensions in _BYTES.findall(one.shape):
                shape = f"{dtype}[{dimensions}]"
                found.setdefault(shape, (size_of(shape), one.op_name or one.kind))
        largest = sorted(found.items(), key=lambda item: -item[1][0])[:count]
        return [
            {"bytes": size, "shape": shape, "operation": operation}
            for shape, (size, operation) in largest
        ]


def size_of(shape: str) -> int:
    """Return the bytes of an array shape, or of all arrays of a tuple shape, as XLA writes it."""
    size = 0
    for dtype, dimensions in _BYTES.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        size += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
    return size


def _backward_cost(one: Instruction) -> tuple[int, int]:
    """Return the FLOPs and bytes of a kernel of `_BACKWARD`; zeros if it is another."""
    found = [count for name, count in _BACKWARD.items() if name in one.op_name]
    given = re.search(r"operand_layout_constraints=\{(.*?\})\}", one.rest)
    shapes = _BYTES.findall(given[1] if given else "")
    if not found or len(shapes) < 2:
        return 0, 0
    (rows, heads, queries, width), (*_, keys, _) = (
        map(int, dimensions.split(",")) for _, dimensions in shapes[:2]
    )
    flops = 2 * found[0] * rows * heads * queries * keys * max(width, LANES)
    return flops, size_of(given[1]) + size_of(one.shape)


def _kernel(one: Instruction) -> str | None:
    """Return which of `KERNELS` an instruction is; None if it is none of them."""
    if one.kind == "custom-call":
        called = re.search(r'custom_call_target="([^"]*)"', one.rest)
        target = called[1] if called else ""
        if "fmha" in target or (target == "tpu_custom_call" and _FLASH.search(one.op_name)):
            return "fused attention"
        if "$conv" in target:
            return "convolution"
        return "product" if "matmul" in target or "gemm" in target else None
    if one.kind in ("convolution", "dot"):
        # The TPU's compiler writes products as convolutions.
        return "convolution" if "conv_general" in one.op_name else "product"
    return None


def _place(one: Instruction) -> tuple[str, str]:
    """Return (module, kind of operation) of an instruction, from the path of its traced operation."""
    if not one.op_name:
        return "", one.kind
    *modules, last = one.op_name.split("/")
    parts = []
    for part in modules:
        # jvp(Network) and transpose(jvp(Network)) hold a module's name; jit(update) and vmap(...) do not.
        wrapped = re.fullmatch(r"(?:transpose\()?jvp\(([\w.]*)\)+", part)
        part = wrapped[1] if wrapped else part
        if re.fullmatch(r"\w+", part) and part not in (
            "while",
            "body",
            "cond",
            "checkpoint",
            "closed_call",
        ):
            parts.append(re.sub(r"\d+", "*", part))
    return "/".join(parts[:3]), re.sub(r"[\d.]+$", "", last)


def _rounds(rest: str, bodies: dict[str, list[tuple[str, str, str]]]) -> int | None:
    """Return how often a loop goes round; None if the text does not tell.

    XLA for TPUs does not write the number down. It is then the number with which the condition compares the loop's
    counter, if the condition does nothing else: the counters of JAX's loops of known length start at 0.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])
    condition = dict(_CALLED.findall(rest)).get("condition", "").strip(" %")
    does = sorted(
        (kind, rest)
        for kind, _, rest in bodies.get(condition, ())
        if kind not in ("parameter", "get-tuple-element")
    )
    if [kind for kind, _ in does] != ["compare", "constant"] or "direction=LT" not in does[0][1]:
        return None
    limit = re.match(r"(\d+)\)", does[1][1])
    return int(limit[1]) if limit else None


def _groups(rest: str, devices: int) -> np.ndarray:
    """Return which devices take part together in a collective, (groups, members).

    XLA writes the groups one by one, as the rows of a transposed grid of all devices, or by the axes of a mesh along
    which the members of a group lie. If the text does not tell, all devices are one group.
    """
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        rows = re.findall(r"\{([\d,]*)\}", listed[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    if counted := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
    ):
        grid = [int(n) for n in counted[3].split(",")]
        order = [int(n) for n in (counted[4] or "").split(",") if n] or range(len(grid))
        ids = np.arange(math.prod(grid)).reshape(grid).transpose(order)
        return ids.reshape(int(counted[1]), int(counted[2]))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{,]*\{([^}]*)\}", rest):
        # 'x':(2)4 is the part of axis x whose stride follows after 2 larger blocks, and has 4 members.
        parts = re.findall(r"('[^']*')(?::\((\d+)\)(\d+))?", named[2])
        grid, along = [], []
        for axis, size in re.findall(r"('[^']*')=(\d+)", named[1]):
            size = int(size)
            spans = [
                (int(before or 1), int(before or 1) * int(part or size))
                for name, before, part in parts
                if name == axis
            ]
            cuts = sorted({1, size, *(cut for span in spans for cut in span)})
            for low, high in itertools.pairwise(cuts):
                grid.append(high // low)
                along.append(any(first <= low and high <= last for first, last in spans))
        ids = np.arange(math.prod(grid)).reshape(grid)
        order = [i for i, member in enumerate(along) if not member]
        order += [i for i, member in enumerate(along) if member]
        members = math.prod(n for n, member in zip(grid, along) if member)
        return ids.transpose(order).reshape(-1, members)
    return np.arange(devices)[None]


def _pairs(rest: str) -> np.ndarray | None:
    """Return the (source, target) pairs of a permute; None if the text does not tell."""
    told = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest)
    return np.array(re.findall(r"(\d+),(\d+)", told[1]), int) if told else None


def _result(one: Instruction, kind: str, n: int) -> int:
    """Return the bytes of the result of a collective among `n` devices.

    The shape of one that only starts holds the operands as well, except for an all-reduce.
    """
    size = size_of(one.shape)
    if not one.kind.endswith("-start"):
        return size
    if kind == "all-gather":
        return size * n // (n + 1)
    if kind == "reduce-scatter":
        return size // (n + 1)
    return size if kind == "all-reduce" else size // 2


def _sent(kind: str, size: int, n: int) -> int:
    """Return the bytes that one of `n` devices sends in a collective whose result has `size` bytes."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (n - 1)  # the result is one n-th of the input
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1)
