"""Builds the device mesh ``(data, fsdp, tensor)`` and decides how each array is placed on it.

Path rules on parameter names decide the shardings, not metadata on the arrays. A rule's value is

- ``None``: the leaf is whole on every device;
- an axis name such as ``"fsdp"``: the largest dimension that the axis divides is split over it;
- a tuple such as ``("fsdp", "tensor")``: one entry per dimension, aligned to the right, so that one rule
  serves a layer and the same layer stacked by `scan`.

An axis that does not divide its dimension is dropped, and leaves of fewer than `MIN_SIZE` values stay whole.
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
    """Make a mesh with axes `AXES`.

    Args:
      shape: the size of each axis; a missing axis has size 1, and one axis may be -1 (all remaining devices). Where
        `data` is -1 and there are fewer devices than ``fsdp x tensor``, `fsdp` takes all that `tensor` leaves, so that
        a recipe for many devices also runs on few.
      devices: the devices of the mesh; by default all devices of all processes.
      abstract: whether to make a mesh for calculations only, of any number of devices; no array can be placed on it.

    Raises:
      ConfigError: an axis is unknown, a size is not valid, two axes are -1, or the product of the sizes is not the
        number of devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(shape) - set(AXES)
    if unknown:
        raise ConfigError(
            f"config.mesh: unknown axes {sorted(unknown)}; the axes are {', '.join(AXES)}"
        )
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(
            f"config.mesh: sizes must be positive or -1, got {dict(zip(AXES, sizes))}"
        )
    if sizes.count(-1) > 1:
        raise ConfigError(f"config.mesh: at most one axis may be -1, got {dict(zip(AXES, sizes))}")
    data, fsdp, tensor = sizes
    if data == -1 and tensor <= len(devices) < fsdp * tensor:
        sizes[1] = len(devices) // tensor
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    types = (AxisType.Auto,) * len(AXES)
    if abstract and -1 not in sizes:
        return AbstractMesh(tuple(sizes), AXES, axis_types=types)
    if math.prod(sizes) != len(devices):
        unit = "a multiple of " if -1 in sizes else ""
        raise ConfigError(
            f"config.mesh: {dict(zip(AXES, sizes))} needs {unit}{fixed} devices, but there are "
            f"{len(devices)}"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of pieces into which the batch is cut: every axis but ``tensor`` divides it."""
    return math.prod(mesh.shape[axis] for axis in chunked_map.BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int, processes: int) -> None:
    """Refuse a global batch that cannot be cut evenly.

    Raises:
      ConfigError: the batch cannot be cut evenly (the message gives the sizes and the nearest batch sizes that fit),
        or several processes would have to read the same rows.
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


def _divided(shape: tuple[int, ...], size: int) -> int | None:
    """Return the largest dimension that `size` divides, the last of equals; None if there is none or `size` is 1."""
    fitting = [i for i, n in enumerate(shape) if n % size == 0 and n >= size]
    return None if size == 1 else max(fitting, key=lambda i: (shape[i], i), default=None)


def spec(shape: tuple[int, ...], value: Any, mesh: Mesh) -> PartitionSpec:
    """Return the partition of an array of `shape` under a rule's `value` (see the module's docstring).

    Raises:
      ConfigError: the value is not one that the module's docstring describes.
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
        chosen = _divided(shape, mesh.shape[value])
        if chosen is None:
            return PartitionSpec()
        return PartitionSpec(*(value if i == chosen else None for i in range(len(shape))))
    aligned = [None] * max(len(shape) - len(value), 0) + list(value)[-len(shape) :]
    kept = [
        axis if axis is not None and n % mesh.shape[axis] == 0 else None
        for axis, n in zip(aligned, shape)
    ]
    return PartitionSpec(*kept)


def of_params(params: PyTree, rules: paths.Rules, mesh: Mesh) -> PyTree:
    """Return a tree of `NamedSharding` with the structure of the (abstract) parameter tree `params`.

    Raises:
      ConfigError: a leaf matches no rule, or a rule's value is not valid.
    """
    values = paths.flatten(paths.assign(rules, params, "config.sharding"))
    return paths.unflatten(
        {
            path: NamedSharding(mesh, spec(leaf.shape, values[path], mesh))
            for path, leaf in paths.flatten(params).items()
        }
    )


def also_over_data(leaf: Any, where: NamedSharding) -> NamedSharding:
    """Return a sharding of a leaf that splits it as `where` does, and over ``data`` as well.

    Optimizer slots and averages are placed so, while parameters stay whole over ``data``: gradients are then summed
    and scattered, each device updates its share of the parameters, and they are gathered. This sends as many bytes as
    an all-reduce of gradients, after which every device would make the same update (Rajbhandari et al. 2020, ZeRO-1).
    """
    shape, size = where.shard_shape(leaf.shape), where.mesh.shape["data"]
    # Pieces of whole rows lie in one stretch of memory. For pieces of rows, a TPU transposes each kernel in every step.
    rows = _divided(shape[:-1], size)
    chosen = _divided(shape, size) if rows is None else rows
    if chosen is None or math.prod(leaf.shape) < MIN_SIZE:
        return where
    axes = [*where.spec, *[None] * (len(leaf.shape) - len(where.spec))]
    axes[chosen] = "data" if axes[chosen] is None else (axes[chosen], "data")
    return NamedSharding(where.mesh, PartitionSpec(*axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch, whose first dimension is cut over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, BATCH)


def put_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """Turn this process's rows of a batch into global arrays that are cut over the mesh."""

    def put(x):
        # Without the global shape, JAX would assume that a leaf which a process holds whole is the same on all
        # processes.
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(batch(mesh), x, shape)

    return jax.tree.map(put, local)


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """Return the bytes that one device holds of a tree of shapes under its shardings."""
    total = 0
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings)):
        total += math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Wraps a function so that it is traced with a mesh set, which `chunked_map.row_shards` reads.

    Two wrappers of the same function and mesh are equal, so `jit` compiles them once.

    Attributes:
      function: a function of arrays whose batch is cut over the mesh.
      mesh: the mesh to set.
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
    """Return the XLA options with which this project compiles every large program, for the platform of a mesh.

    On the CPU, XLA's fusions of the YNN library are switched off. With them the backward pass of a convolution is two
    to three times slower, and the bias of every layer is broadcast over its batch before the first layer runs: X-NeMo
    at 512 px and 8 frames then needs 14.4 GiB of temporaries, against 1.9 GiB without them.

    On TPUs, XLA does not cut products into pieces between which it sends arrays. Otherwise it does so with each
    gradient of a kernel that is scattered over ``data``, and the activations that the pieces share, such as GELU of the
    hidden layer, are computed again on their own: a block of `configs/sprites.py` then takes a tenth more cycles.
    """
    if isinstance(mesh, AbstractMesh):
        platform = jax.default_backend()
    else:
        platform = mesh.devices.flat[0].platform
    options = {
        "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
        "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
    }
    return options.get(platform, {})
