"""Runs the notebooks on the shipped networks and stores their outputs in them.

    pip install -e '.[docs]'
    python docs/notebooks.py                    # all of them; names, such as `bcd xnemo`, choose some

Each notebook runs in a kernel and a folder of its own, on the CPU. What it writes to the log is left out, and so is
what would differ from machine to machine. A hash of its code is stored with the outputs, by which a test finds outputs
that the code no longer makes.
"""

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
TIMEOUT = 900  # seconds for one cell


def code_sha256(notebook: dict) -> str:
    """Returns the hash of the sources of a notebook's code cells."""
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()


def run(file: Path) -> None:
    """Runs a notebook and writes it back with its outputs."""
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
        if cell.cell_type == "code":
            cell.outputs = [kept(one) for one in cell.outputs if one.get("name") != "stderr"]
    names = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {
        "kernelspec": names,
        "language_info": {"name": "python"},
        "vidmotion": {"code_sha256": code_sha256(notebook)},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, file)


def kept(output: dict) -> dict:
    """Returns an output whose picture, if it has one, is kept in its smallest form and in no other."""
    data = output.get("data", {})
    pictures = {kind: data[kind] for kind in ("image/png", "image/jpeg") if kind in data}
    if pictures:
        smallest = min(pictures, key=lambda kind: len(pictures[kind]))
        output["data"] = {smallest: pictures[smallest]}
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)} (default: all)")
    names = parser.parse_args().names or known
    if unknown := set(names) - set(known):
        parser.error(f"there is no notebook {', '.join(sorted(unknown))}")
    os.environ.update({"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)})
    for setting in ("VIDMOTION_BUDGET", "VIDMOTION_WORKDIR", "VIDMOTION_RECORDS"):
        os.environ.pop(setting, None)
    for name in names:
        began = time.perf_counter()
        run(FOLDER / f"{name}.ipynb")
        size = (FOLDER / f"{name}.ipynb").stat().st_size / 1e3
        print(f"{name}: {time.perf_counter() - began:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
