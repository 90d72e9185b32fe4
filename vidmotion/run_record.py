"""Reads and writes the JSON record of a run: its config, hardware, progress, speed and results.

Tables in the README and in ``docs/results`` are built from committed records, never typed.
"""

import importlib.metadata
import json
import logging
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vidmotion import files
from vidmotion.metrics.result import MetricResult

log = logging.getLogger(__name__)

RECORD = "record.json"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, Any]:
    """Return the hardware, library versions and commit of this process."""
    device = jax.devices()[0]
    return {
        "commit": _commit(),
        "python": sys.version.split()[0],
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def without_places(config: Any) -> Any:
    """Reduce each absolute path in a config to its last component, because a record is to be shared."""
    if isinstance(config, Mapping):
        return {name: without_places(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_places(value) for value in config]
    if isinstance(config, str) and Path(config).is_absolute():
        return Path(config).name
    return config


def peak_memory() -> dict[str, int]:
    """Return the peak bytes of this process, and of the first local device if it counts them."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if "peak_bytes_in_use" in stats:
        peak["device_bytes"] = stats["peak_bytes_in_use"]
    return peak


def write(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all."""
    files.atomic_write(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read(path: epath.Path) -> dict[str, Any] | None:
    """Read a record; None if there is no file, or, with a warning, if it cannot be read."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        why = "not a table of names and values"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = error
    log.warning("%s cannot be read and is treated as missing: %s", path, why)
    return None


def table(results: Sequence[MetricResult]) -> str:
    """Format results as an aligned text table."""
    rows = [("metric", "value", "n", "convention")]
    for row in results:
        value = "-" if row.value is None else f"{row.value:.4f}"
        what = "; ".join(filter(None, (row.convention, row.note)))
        rows.append((row.metric, value, str(row.n), what))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _commit() -> str:
    """Return the commit of this checkout, with "+changes" if it is not clean; "unknown" outside git."""
    try:
        root = Path(__file__).resolve().parents[1]
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
