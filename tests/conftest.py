"""Test-wide settings: eight fake CPU devices, strict ranks, a warm compilation cache."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"vidmotion-test-cache-{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]


def _shared(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


@pytest.fixture(scope="session")
def sheets_dir() -> Path:
    """The public Sprites sheets (README, section Data); absent on most machines."""
    path = _shared("VIDMOTION_SHEETS", "data/sprite_sheets")
    if not path.is_dir():
        pytest.skip(f"Sprites sheets not found at {path}; set VIDMOTION_SHEETS to run this test")
    return path


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Inputs and outputs of reference networks; absent on most machines."""
    path = _shared("VIDMOTION_FIXTURES", "fixtures")
    if not path.is_dir():
        pytest.skip(
            f"reference fixtures not found at {path}; set VIDMOTION_FIXTURES to run this test"
        )
    return path
