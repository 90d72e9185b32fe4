"""The table "who may import whom" of CONTRIBUTING.md, checked against the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PURE = {"numpy", "jax", "paths", "chunked_map"}
TRUNK = PURE | {
    "optax",
    "orbax",
    "etils",
    "optim",
    "sharding",
    "state",
    "step",
    "system",
    "config_schema",
}
COMMANDS = {"main", "bench", "demo", "encode", "export", "reenact", "studio", "__main__"}
BUILDS_ON_ALL = None

# part of the package: what it may import besides the standard library, `errors` and itself.
ALLOWED = {
    "errors": set(),
    "paths": set(),
    "files": set(),
    "exported": {"jax", "numpy"},
    "progress": {"tqdm"},
    "config_schema": set(),
    "chunked_map": {"jax"},
    "metrics": PURE,
    "losses": PURE,
    "diffusion": PURE,
    "models": PURE | {"flax.linen", "einops"},
    "systems": PURE
    | {"models", "diffusion", "losses", "state", "system", "config_schema"}
    | {"flax.linen", "einops", "optax", "convert", "data", "weights"},
    "system": TRUNK,
    "state": TRUNK,
    "optim": TRUNK,
    "sharding": TRUNK,
    "step": TRUNK,
    "checkpoint": TRUNK,
    "convert": {"numpy", "paths", "files", "torch", "safetensors", "ml_dtypes"},
    "weights": {"numpy", "paths", "files", "checkpoint", "convert"},
    "startup": {"absl", "jax", "checkpoint", "data", "media"},
    "evaluation": BUILDS_ON_ALL,
    "run": BUILDS_ON_ALL,
    "open_run": BUILDS_ON_ALL,
    "trace": {"jax", "etils"},
    "program": {"numpy"},
    "targets": {"jax", "hardware", "startup"},
    "train": BUILDS_ON_ALL,
    "plan": BUILDS_ON_ALL,
    "main": BUILDS_ON_ALL,
    "bench": BUILDS_ON_ALL,
    "demo": BUILDS_ON_ALL,
    "encode": BUILDS_ON_ALL,
    "latents": BUILDS_ON_ALL,
    "reenact": BUILDS_ON_ALL,
}
# Imports that are forbidden to parts which the table above does not restrict.
NETWORKS = {"flax", "flax.linen", "models", "systems"}
FORBIDDEN = {
    "data": NETWORKS | {"jax"},
    "metric_writer": NETWORKS,
    "run_record": NETWORKS,
    "media": NETWORKS | {"jax"},
}


def names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def short(name):
    """Shortens names: `vidmotion.paths.assign` -> paths, `flax.linen.Module` -> flax.linen, `jax.numpy` -> jax."""
    parts = name.split(".")
    if parts[0] == "vidmotion":
        return parts[1]
    return ".".join(parts[:2]) if parts[0] == "flax" else parts[0]


def imports_of(path):
    """Returns {imported module: line}, including imports inside functions."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in names(node):
            if name.split(".")[0] not in sys.stdlib_module_names:
                found[short(name)] = node.lineno
    return found


def files(part):
    folder = ROOT / "vidmotion" / part
    # A package's __main__ is a command: it may import what commands may.
    modules = sorted(path for path in folder.rglob("*.py") if path.name != "__main__.py")
    found = modules or [folder.with_suffix(".py")]
    assert all(path.exists() for path in found), f"{part} is gone: mend the table"
    return found


def offenders(part, wrong):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(part)
        for name, line in imports_of(path).items()
        if name not in {part, "errors"} and wrong(name)
    ]


@pytest.mark.parametrize("part", [part for part in ALLOWED if ALLOWED[part] is not None])
def test_a_part_imports_what_it_may(part):
    assert not offenders(part, lambda name: name not in ALLOWED[part])


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_keeps_away_from_what_is_not_its_business(part):
    assert not offenders(part, lambda name: name in FORBIDDEN[part])


def test_only_commands_import_a_command():
    parts = {path.stem if path.is_file() else path.name for path in (ROOT / "vidmotion").iterdir()}
    for part in parts - COMMANDS - {"__init__", "__pycache__"}:
        assert not offenders(part, lambda name: name in COMMANDS)


def test_only_networks_know_flax():
    parts = {path.stem if path.is_file() else path.name for path in (ROOT / "vidmotion").iterdir()}
    for part in parts - {"models", "systems", "__init__", "__pycache__"}:
        assert not offenders(part, lambda name: name.startswith("flax"))


# A recipe imports another only if it is a variant of that recipe, or reads what that recipe trained.
DERIVED = {
    "heads": {"sprites"},
    "lrs3_gpt": {"lrs3", "heads"},
    "vidtwin_dit": {"vidtwin"},
    "own": {"benchmark", "lrs3", "vidtwin", "warpface", "xnemo"},
    "benchmark": {"heads", "vidtwin", "warpface", "xnemo"},
}


def test_recipes_share_one_file_and_import_no_other_recipe():
    for path in (ROOT / "configs").glob("*.py"):
        assert set(imports_of(path)) <= {"ml_collections", "configs"}, path.name
        imported = {
            name.removeprefix("configs.")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in names(node)
            if name.startswith("configs.")
        }
        assert imported - {"_shared"} == DERIVED.get(path.stem, set()), path.name


def test_flax_means_linen():
    for path in (ROOT / "vidmotion").rglob("*.py"):
        flax = {name for name in imports_of(path) if name.startswith("flax")}
        assert flax <= {"flax.linen"}, path


def test_the_reader_sees_imports_wherever_they_stand(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        "import os\nimport jax.numpy as jnp\ndef f():\n    from vidmotion.models import t5\n"
        "    import flax.linen as nn\nfrom vidmotion import paths\n"
    )
    assert imports_of(file) == {"jax": 2, "models": 4, "flax.linen": 5, "paths": 6}
