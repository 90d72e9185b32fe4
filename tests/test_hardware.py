"""Published figures of JAX devices, and names that only look like a known device."""

import jax
import pytest

from vidmotion.errors import ConfigError
from vidmotion.hardware import CHIPS, chip, hbm_bytes, mfu, peak_flops


@pytest.mark.parametrize(
    ("kind", "tflops", "memory_gb"),
    [
        ("TPU v3", 61.5, 16),  # a device is half a chip
        ("TPU v4", 275, 32),
        ("TPU v5 lite", 197, 16),
        ("TPU v5e", 197, 16),
        ("TPU v5", 459, 95),
        ("TPU v5p", 459, 95),
        ("TPU v6 lite", 918, 32),
        ("TPU7x", 1153.5, 96),
        ("NVIDIA A100-SXM4-40GB", 312, 40),
        ("A100-SXM4-80GB", 312, 80),
        ("NVIDIA A100 80GB PCIe", 312, 80),
        ("NVIDIA H100 80GB HBM3", 989.5, 80),
        ("NVIDIA H100 PCIe", 756.5, 80),
        ("NVIDIA H200", 989.5, 141),
        ("NVIDIA B200", 2250, 180),
        ("NVIDIA L4", 121, 24),
        ("Tesla V100-SXM2-16GB", 125, 16),
        ("NVIDIA V100-SXM2-32GB", 125, 32),
        ("Tesla T4", 65, 16),
        ("NVIDIA GeForce RTX 4090", 165.2, 24),
        ("NVIDIA GeForce RTX 3090", 71, 24),
    ],
)
def test_known_devices(kind, tflops, memory_gb):
    assert peak_flops(kind) == pytest.approx(tflops * 1e12)
    assert hbm_bytes(kind) == memory_gb * 10**9


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "TPU v9",
        "NVIDIA L40S",  # begins like L4
        "NVIDIA GH200 480GB",  # ends like H200
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a seventh of the device
    ],
)
def test_unknown_is_none_never_a_guess(kind):
    assert peak_flops(kind) is None
    assert hbm_bytes(kind) is None
    assert mfu(1e12, 1.0, 8, kind) is None


def test_this_cpu_is_unknown():
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None


def test_mfu():
    # 8 devices of 275e12 FLOP/s can do 4.4e15 FLOPs in 2 s; the step needs 1.1e15.
    assert mfu(1.1e15, 2.0, 8, "TPU v4") == pytest.approx(0.25)
    with pytest.raises(ValueError, match="positive"):
        mfu(1.0, 0.0, 8, "TPU v4")


@pytest.mark.parametrize("name", CHIPS)
def test_chips_of_the_plan_have_a_peak_and_a_memory(name):
    assert chip(name).flops > 1e14
    assert chip(name).memory_bytes >= 16 * 10**9


def test_links_of_a_chip():
    # H100: NVLink 900 GB/s both ways within 8, then one 400 Gbit/s port each.
    assert (chip("h100").island, chip("h100").link, chip("h100").network) == (8, 450e9, 50e9)
    with pytest.raises(ConfigError, match="'abacus' is not known; choose from v4"):
        chip("abacus")
