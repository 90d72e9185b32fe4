"""Published peak rates and memory of accelerators, and the share of the peak that a step used.

Every figure is per *JAX device*, as `len(jax.devices())` counts them: JAX shows each chip of TPU v2, v3 and TPU7x as
two devices, so the figures of these chips are halved.
"""

import re
from typing import NamedTuple

from vidmotion.errors import ConfigError


class Peak(NamedTuple):
    """A device's dense bf16 rate in TFLOP/s (10^12) and its memory in GB (10^9 bytes), as the vendor rounds them."""

    tflops: float
    memory_gb: float


# (regex over `jax.Device.device_kind`, peak). The regex must match the whole name, so that a laptop part, a MIG slice
# or a superchip whose name merely contains a known one stays unknown. No rate counts sparsity: NVIDIA states most
# tensor rates with 2:4 sparsity, and those are halved in this table.
_PEAKS: tuple[tuple[str, Peak], ...] = (
    # Google Cloud TPU documentation, "System architecture", the page of each version.
    (r"TPU v2", Peak(45 / 2, 16 / 2)),  # "Cloud TPU v2": 180 TFLOP/s, 64 GB per board of 4 chips
    (r"TPU v3", Peak(123 / 2, 32 / 2)),  # "TPU v3": 123 TFLOP/s, 32 GiB per chip
    (r"TPU v4", Peak(275, 32)),  # "TPU v4": 275 TFLOP/s, 32 GiB
    (r"TPU v5 lite|TPU v5e", Peak(197, 16)),  # "TPU v5e": 197 TFLOP/s, 16 GB
    (r"TPU v5p?", Peak(459, 95)),  # "TPU v5p": 459 TFLOP/s, 95 GB
    (r"TPU v6 lite|TPU v6e", Peak(918, 32)),  # "TPU v6e": 918 TFLOP/s, 32 GB
    (r"TPU7x", Peak(2307 / 2, 192 / 2)),  # "TPU7x (Ironwood)": 2307 TFLOP/s, 192 GiB per chip
    # NVIDIA data sheets of the named products. V100 and T4 have no bf16 units, so theirs is the fp16 tensor rate.
    (r"(NVIDIA )?A100-(SXM4|PCIE)-40GB", Peak(312, 40)),  # A100 data sheet
    (r"(NVIDIA )?A100-SXM4-80GB|NVIDIA A100 80GB PCIe", Peak(312, 80)),
    (r"NVIDIA H100 80GB HBM3", Peak(1979 / 2, 80)),  # H100 data sheet, SXM column
    (r"NVIDIA H100 PCIe", Peak(1513 / 2, 80)),  # H100 data sheet, PCIe column
    (r"NVIDIA H100 NVL", Peak(1671 / 2, 94)),  # H100 data sheet, NVL column
    (r"NVIDIA H200", Peak(1979 / 2, 141)),  # H200 data sheet, SXM column
    (r"NVIDIA H200 NVL", Peak(1671 / 2, 141)),  # H200 data sheet, NVL column
    (r"NVIDIA B200", Peak(4500 / 2, 180)),  # DGX B200 data sheet: 36 PFLOP/s, 1,440 GB for 8
    (r"NVIDIA L4", Peak(242 / 2, 24)),  # L4 data sheet
    (r"(NVIDIA|Tesla) V100-SXM2-16GB", Peak(125, 16)),  # V100 data sheet, NVLink column
    (r"(NVIDIA|Tesla) V100-SXM2-32GB", Peak(125, 32)),
    (r"(NVIDIA|Tesla) V100-PCIE-16GB", Peak(112, 16)),  # V100 data sheet, PCIe column
    (r"(NVIDIA|Tesla) V100-PCIE-32GB", Peak(112, 32)),
    (r"(NVIDIA|Tesla) T4", Peak(65, 16)),  # T4 data sheet
    # NVIDIA architecture white papers (Ada appendix A, GA102 table 2): bf16, fp32 accumulation.
    (r"NVIDIA GeForce RTX 4090", Peak(165.2, 24)),
    (r"NVIDIA GeForce RTX 3090", Peak(71, 24)),
)


class Chip(NamedTuple):
    """An accelerator for which ``--mode=plan`` makes forecasts.

    Attributes:
      kind: the `jax.Device.device_kind`, under which the peak rate and memory are listed above.
      bandwidth_gb: bandwidth to the device's own memory, GB/s (10^9 bytes).
      link_gb: bandwidth to the neighbouring devices, GB/s one way, all links together.
      island: the number of devices that these links connect.
      network_gb: bandwidth between islands, GB/s per device one way.
      clock_ghz: the clock of a TPU's matrix units in GHz; None if it does not follow from the peak rate.
    """

    kind: str
    bandwidth_gb: float
    link_gb: float
    island: int
    network_gb: float
    clock_ghz: float | None = None

    @property
    def flops(self) -> float:
        """Dense bf16 peak, FLOP/s."""
        return peak_flops(self.kind)

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return hbm_bytes(self.kind)

    @property
    def bandwidth(self) -> float:
        """Bandwidth to the device's own memory, bytes per second."""
        return self.bandwidth_gb * 1e9

    @property
    def link(self) -> float:
        """Bandwidth between neighbouring devices of an island, bytes per second."""
        return self.link_gb * 1e9

    @property
    def network(self) -> float:
        """Bandwidth per device between islands, bytes per second."""
        return self.network_gb * 1e9


# Link rates are the vendors' totals, halved if they add both directions. The network rate of a GPU is that of the
# vendor's own server, which has one port per GPU. TPU figures are from the pages named above, and an island is the
# version's largest slice; no rate per device is published between slices, so 100 Gbit/s per host of 4 is assumed. The
# clock is the one at which the matrix units (v5e: 4; v4 and v5p: 8), each with 128 x 128 multiply-adds per cycle,
# reach the peak.
CHIPS = {
    "v4": Chip("TPU v4", 1228, 300, 4096, 3.125, 1.05),
    "v5e": Chip("TPU v5e", 819, 200, 256, 3.125, 1.5),
    "v5p": Chip("TPU v5p", 2765, 600, 8960, 3.125, 1.75),
    "v6e": Chip("TPU v6e", 1640, 400, 256, 3.125),
    "a100-40": Chip("NVIDIA A100-SXM4-40GB", 1555, 300, 8, 25),
    "a100-80": Chip("NVIDIA A100-SXM4-80GB", 2039, 300, 8, 25),
    "h100": Chip("NVIDIA H100 80GB HBM3", 3350, 450, 8, 50),
    "h200": Chip("NVIDIA H200", 4800, 450, 8, 50),
    "b200": Chip("NVIDIA B200", 8000, 900, 8, 50),
}


def chip(name: str) -> Chip:
    """Return the chip with a short name, such as ``v5e``.

    Raises:
      ConfigError: the name is not one of `CHIPS`.
    """
    if name not in CHIPS:
        raise ConfigError(f"config.plan.chip={name!r} is not known; choose from {', '.join(CHIPS)}")
    return CHIPS[name]


def _peak(kind: str) -> Peak | None:
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, kind)), None)


def peak_flops(kind: str) -> float | None:
    """Return the dense bf16 peak of one device in FLOP/s; None if `_PEAKS` has no published figure for it.

    Args:
        kind: `jax.Device.device_kind`, for example "TPU v4" or "NVIDIA H100 80GB HBM3".
    """
    peak = _peak(kind)
    return None if peak is None else peak.tflops * 1e12


def hbm_bytes(kind: str) -> int | None:
    """Return the memory of one device in bytes, for planning without the device; None if unknown.

    The vendor's GB are taken as 10^9 bytes, which gives as much memory as the device has, or a little less. If the
    device is present, prefer `device.memory_stats()["bytes_limit"]`.
    """
    peak = _peak(kind)
    return None if peak is None else int(peak.memory_gb * 1e9)


def mfu(flops_per_step: float, seconds: float, devices: int, kind: str) -> float | None:
    """Return the model FLOP utilisation in [0, 1]: model FLOPs / (step time x devices x peak).

    Args:
        flops_per_step: the FLOPs that the model's mathematics requires in one step of the whole job;
            recomputation by rematerialisation is not counted (PaLM, appendix B).
        seconds: the wall time of one step.
        devices: the number of JAX devices that share the step.
        kind: the `jax.Device.device_kind` of the devices.

    Returns:
        None when the peak of `kind` is unknown.

    Raises:
        ValueError: `seconds` or `devices` is not positive.
    """
    if seconds <= 0 or devices <= 0:
        raise ValueError(f"mfu needs positive seconds and devices, got {seconds} and {devices}")
    peak = peak_flops(kind)
    return None if peak is None else flops_per_step / (seconds * devices * peak)
