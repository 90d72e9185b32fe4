"""The device mesh ``(data, fsdp, tensor)`` and where each array lies on it.

Shardings are decided by path rules on parameter names, not by metadata on the arrays. A rule's value is

- ``None``: the leaf is on every device;
- an axis name such as ``"fsdp"``: the largest dimension which that axis divides is split over it;
- a tuple such as ``("fsdp", "tensor")``: one entry per dimension, aligned to the right, so that one rule
  serves a layer and the same layer stacked by `scan`.

Axes that do not divide their dimension are dropped, leaves below `MIN_SIZE` values stay whole.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vidmotion import chunked_map, paths
from vidmotion.errors import ConfigError

PyTree = Any
AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(chunked_map.BATCH_AXES)
MIN_SIZE = 1024
DEFAULT_RULES = ((".*", "fsdp"),)


def make_mesh(
    shape: Mapping[str, int], devices: list | None = None, abstract: bool = False
) -> Mesh | AbstractMesh:
    """Mesh with axes `AXES`.

    Args:
      shape: size of each axis; missing axes are 1, one axis may be -1 (all remaining devices).
      devices: defaults to all devices of all processes.
      abstract: a mesh to reckon with, of any number of devices; nothing can be put on it.

    Raises:
      ConfigError: unknown axis, a size that is none, two free axes, or a product that is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(shape) - set(AXES)
    if unknown:
        raise ConfigError(
            f"config.mesh: unknown axes {sorted(unknown)}; the axes are {', '.join(AXES)}"
        )
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"config.mesh: sizes are positive or -1, got {dict(zip(AXES, sizes))}")
    if sizes.count(-1) > 1:
        raise ConfigError(f"config.mesh: at most one axis may be -1, got {dict(zip(AXES, sizes))}")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    types = (AxisType.Auto,) * len(AXES)
    if abstract and -1 not in sizes:
        return AbstractMesh(tuple(sizes), AXES, axis_types=types)
    if math.prod(sizes) != len(devices):
        unit = "a multiple of " if -1 in sizes else ""
        raise ConfigError(
            f"config.mesh: {dict(zip(AXES, sizes))} needs {unit}{fixed} devices, there are "
            f"{len(devices)}"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of pieces the batch is cut into: every axis but ``tensor`` divides it."""
    return math.prod(mesh.shape[axis] for axis in chunked_map.BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int, processes: int) -> None:
    """Refuse a global batch that cannot be cut evenly.

    Raises:
      ConfigError: naming the sizes and the nearest batch sizes that fit; or processes that would have
        to read the same rows.
    """
    if batch_shards(mesh) % processes:
        raise ConfigError(
            f"config.mesh: {processes} processes cannot share {batch_shards(mesh)} batch shards (data x "
            "fsdp) evenly; the tensor axis must stay within a process"
        )
    unit = batch_shards(mesh) * accumulate
    if batch_size % unit or batch_size < unit:
        below = batch_size // unit * unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(
            f"config.batch_size={batch_size} cannot be cut into {batch_shards(mesh)} mesh shards "
            f"(data x fsdp) x {accumulate} microbatches on {processes} process(es); use {near}"
        )


def spec(shape: tuple[int, ...], value: Any, mesh: Mesh) -> PartitionSpec:
    """Partition of an array of `shape` under a rule's `value` (see the module's docstring).

    Raises:
      ConfigError: a value that is not as described there.
    """
    named = (
        [value] if isinstance(value, str) else [axis for axis in value or () if axis is not None]
    )
    if not set(named) <= set(AXES) or len(set(named)) < len(named):
        raise ConfigError(
            f"config.sharding: {value!r} is not None, an axis, or a tuple of None and different axes; "
            f"the axes are {', '.join(AXES)}"
        )
    if value is None or math.prod(shape) < MIN_SIZE:
        return PartitionSpec()
    if isinstance(value, str):
        size = mesh.shape[value]
        fitting = [i for i, n in enumerate(shape) if n % size == 0 and n >= size]
        if size == 1 or not fitting:
            return PartitionSpec()
        largest = max(fitting, key=lambda i: (shape[i], i))
        return PartitionSpec(*(value if i == largest else None for i in range(len(shape))))
    aligned = [None] * max(len(shape) - len(value), 0) + list(value)[-len(shape) :]
    kept = [
        axis if axis is not None and n % mesh.shape[axis] == 0 else None
        for axis, n in zip(aligned, shape)
    ]
    return PartitionSpec(*kept)


def of_params(params: PyTree, rules: paths.Rules, mesh: Mesh) -> PyTree:
    """Tree of `NamedSharding` like the (abstract) parameter tree `params`.

    Raises:
      ConfigError: a leaf matches no rule, or a rule's value makes no sense.
    """
    values = paths.flatten(paths.assign(rules, params, "config.sharding"))
    return paths.unflatten(
        {
            path: NamedSharding(mesh, spec(leaf.shape, values[path], mesh))
            for path, leaf in paths.flatten(params).items()
        }
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """First dimension cut over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, BATCH)


def put_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows of a batch as global arrays cut over the mesh."""

    def put(x):
        # The global shape is given, or JAX would take a leaf that lies whole on each process for
        # one that all processes hold alike.
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(batch(mesh), x, shape)

    return jax.tree.map(put, local)


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """Bytes that one device holds of a tree of shapes under its shardings."""
    total = 0
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings)):
        total += math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """`function`, traced where `chunked_map.row_shards` knows the mesh; two of the same are equal: `jit` compiles once.

    Attributes:
      function: takes arrays whose batch is cut over the mesh.
      mesh: that mesh.
    """

    function: Callable[..., Any]
    mesh: Mesh | AbstractMesh

    def __call__(self, *args, **kwargs):
        abstract = self.mesh if isinstance(self.mesh, AbstractMesh) else self.mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(abstract):
            return self.function(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str]:
    """XLA's options for every large program of this project, for the platform of a mesh.

    On the CPU, XLA's fusions of the YNN library are switched off. With them the backward pass of a convolution is two
    to three times slower, and the bias of every layer is spread over its batch ahead of the first layer: X-NeMo at
    512 px and 8 frames then needs 14.4 GiB of temporaries, and 1.9 without.
    """
    if isinstance(mesh, AbstractMesh):
        platform = jax.default_backend()
    else:
        platform = mesh.devices.flat[0].platform
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if platform == "cpu" else {}
