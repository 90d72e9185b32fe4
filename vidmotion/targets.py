"""Finds the compiler for an update: a chip's own, on a machine that has no such chip, or XLA for the CPU.

The package ``libtpu`` (extra ``aot-tpu``) compiles TPU programs for a slice of a given shape; jax's CUDA plugin (extra
``aot-gpu``) compiles GPU programs for a description of the GPU. Neither touches a device.
"""

import importlib.metadata
import importlib.util
import logging
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from vidmotion import hardware, startup
from vidmotion.errors import ConfigError

log = logging.getLogger(__name__)

# Environment variables that the compilers read when they are loaded, which is when JAX first looks for devices. The
# slice is described, so no metadata server is needed; and several processes may compile at once, since none of them
# holds a chip.
_ENVIRONMENT = {
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_STDERR_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
    "gpu": {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
# Without a GPU no kernel can be tried out, so autotuning is off and XLA takes the libraries' defaults. Triton's matrix
# products cannot do without autotuning.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Combining all-reduces changes no byte that is sent, and its time and memory grow with the square of the program's
# length. XLA for the CPU would remove the barriers around the recomputation of `remat` early, see the same computation
# twice, and keep the first one's results; accelerators keep the barriers until memory is assigned. Machine code is not
# optimised, since it never runs: this changes no figure and saves most of the time.
_CPU_OPTIONS = {
    "xla_disable_hlo_passes": "cpu-all-reduce-combiner,cse_barrier_expander",
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# XLA's GpuTargetConfig, with placeholders for the figures that differ between data center GPUs.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {block} cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{kind}"
"""
# Figures per chip, from NVIDIA's white papers on the architectures and the table of compute capabilities in the CUDA
# programming guide.
_AMPERE = {"major": 8, "cores": 108, "units": 64, "clock": 1.41, "cache": 41943040}
_AMPERE |= {"shared": 167936, "block": 166912}
_HOPPER = {"major": 9, "cores": 132, "units": 128, "clock": 1.98, "cache": 52428800}
_HOPPER |= {"shared": 233472, "block": 232448}
_GPUS = {"a100-40": _AMPERE, "a100-80": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}


class Target(NamedTuple):
    """The compiler and the devices for which an update is compiled.

    Attributes:
      compiler: the compiler's name and version; ``XLA for the CPU`` stands in for the chip's own.
      devices: the devices of the mesh.
      platform: ``tpu``, ``gpu`` or ``cpu``.
      options: the compiler's options.
    """

    compiler: str
    devices: list
    platform: str
    options: dict[str, Any]

    @property
    def own(self) -> bool:
        """Whether the compiler is the chip's own."""
        return self.platform != "cpu"

    @property
    def lowering(self) -> tuple[str, ...]:
        """The platform's name for `jax.stages.Traced.lower`."""
        return ("cuda" if self.platform == "gpu" else self.platform,)


def device_count(want: Any) -> int:
    """Return the number of devices that ``config.plan`` asks for; 0 means that nothing is to be compiled.

    Args:
      want: ``config.plan``, or None if the config has none.

    Raises:
      ConfigError: the chip is unknown, the number or the topology is not valid, or the two disagree.
    """
    if not want:
        return 0
    devices, topology = want.devices, want.topology
    _maker(want.chip)
    if devices < 0:
        raise ConfigError(
            f"config.plan.devices={devices} must be a number of devices, or 0 for none"
        )
    if topology and _maker(want.chip) == "gpu":
        raise ConfigError(
            f"config.plan.topology={topology!r} is the shape of a TPU slice; for {want.chip} give "
            "config.plan.devices"
        )
    if topology and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise ConfigError(
            f"config.plan.topology={topology!r} must be the sides of a TPU slice in chips, such as 2x2, 16x16 or 4x4x4"
        )
    chips = math.prod(map(int, topology.split("x"))) if topology else 0
    if devices and chips and devices != chips:
        raise ConfigError(
            f"config.plan.devices={devices}, but config.plan.topology={topology} has {chips} devices; set only one"
        )
    return devices or chips


def prepare(want: Any) -> None:
    """Prepare this process for `find`; call this before JAX looks for devices.

    Raises:
      ConfigError: as for `device_count`; or JAX has started already.
    """
    count = device_count(want)
    if not count:
        return
    platform = _platform(want)
    os.environ.update(_ENVIRONMENT.get(platform, {}))
    startup.simulate_devices(1 if platform in _ENVIRONMENT else count)


def find(want: Any) -> Target:
    """Find the target that ``config.plan`` asks for, in a process that `prepare` made ready.

    If the chip's compiler is not installed, a warning says so and XLA for the CPU stands in.

    Raises:
      ConfigError: as for `device_count`; or the slice does not exist, or the compiler cannot be used now.
    """
    count, platform = device_count(want), _platform(want)
    if platform == "cpu":
        if want.compiler == "chip" and not want.measure:
            log.warning("%s; XLA for the CPU makes the forecast instead", _missing(want.chip))
        return Target("XLA for the CPU", jax.devices(), "cpu", _CPU_OPTIONS)
    if platform == "gpu":
        return Target(_version("gpu"), _gpus(want.chip, count), "gpu", _GPU_OPTIONS)
    if not want.topology:
        raise ConfigError(
            f"config.plan.topology is missing: give the shape of the slice of {want.chip}, such as 2x2 for four chips"
        )
    return Target(_version("tpu"), _tpus(want.chip, want.topology), "tpu", {})


def _platform(want: Any) -> str:
    """Return the platform to compile for: the chip's, unless its compiler is missing or the CPU is asked for."""
    if want.compiler not in ("chip", "cpu"):
        raise ConfigError(f"config.plan.compiler={want.compiler!r}: choose chip or cpu")
    if want.compiler == "cpu" or want.measure or _missing(want.chip):
        return "cpu"
    return _maker(want.chip)


def _maker(chip: str) -> str:
    return "tpu" if hardware.chip(chip).kind.startswith("TPU") else "gpu"


def _missing(chip: str) -> str:
    """Tell why a chip's own compiler cannot be used; empty if it can."""
    maker = _maker(chip)
    if not any(map(importlib.util.find_spec, _PACKAGES[maker])):
        return f"the compiler of {chip} is not installed (pip install 'vidmotion[aot-{maker}]')"
    if maker == "gpu" and chip not in _GPUS:
        return f"what the compiler of {chip} must know about the chip is known only for {', '.join(_GPUS)}"
    return ""


def _version(platform: str) -> str:
    name = next(name for name in _PACKAGES[platform] if importlib.util.find_spec(name))
    return f"{name} {importlib.metadata.version(name)}"


def _tpus(chip: str, topology: str) -> list:
    """Return the abstract devices of a TPU slice.

    Raises:
      ConfigError: there is no such slice, or libtpu cannot be used now.
    """
    sides = [*map(int, topology.split("x")), 1][:3]
    options: dict[str, Any] = {}
    if math.prod(sides) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # the default host has four chips
    if chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as in JAX
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{topology}", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0]
        if "lockfile" in text:
            raise ConfigError(
                "libtpu's lock /tmp/libtpu_lockfile is held by another process; wait until that ends, or set "
                "config.plan.compiler=cpu for a forecast without libtpu"
            ) from error
        raise ConfigError(
            f"config.plan.topology={topology} is not a slice of {chip}: {text}"
        ) from error


def _gpus(chip: str, count: int) -> list:
    """Return the abstract devices of GPU servers that hold `count` GPUs, at most `hardware.Chip.island` per server."""
    known = hardware.chip(chip)
    if count > known.island and count % known.island:
        raise ConfigError(
            f"config.plan.devices={count}: a server holds {known.island} of {chip}, so choose at most {known.island} "
            "or a multiple of it"
        )
    text = _GPU.format(
        **_GPUS[chip],
        bandwidth=int(known.bandwidth),
        memory=known.memory_bytes,
        kind=known.kind,
    )
    shape = f"{-(-count // known.island)}x1x{min(count, known.island)}"
    return topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape).devices
