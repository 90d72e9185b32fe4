"""The notebooks: they run at the debug budget, and say in one sentence if something is missing.

The outputs that they store are of docs/notebooks.py, which ran them on the shipped networks.

    python tests/test_notebooks.py notebooks/bcd.ipynb FOLDER

runs the cells of a notebook as Jupyter would and leaves what they show in FOLDER as PNG.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
INSTALL, LOAD = "REPOSITORY =", "open_run(WORKDIR"  # text that only these cells hold


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def cell_with(name, text):
    [cell] = [cell for cell in code_cells(ROOT / "notebooks" / name) if text in cell]
    return cell


def execute(notebook, folder):
    """Runs all code cells in one namespace; writes figures, and pictures that end a cell, to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def shown():
        return folder / f"{len(list(folder.iterdir())):02d}.png"

    def show():
        pyplot.savefig(shown())
        pyplot.close("all")

    pyplot.show = show
    namespace = {"__name__": "__main__"}
    for place, cell in enumerate(code_cells(notebook)):
        name, tree = f"{notebook.name}[{place}]", ast.parse(cell)
        last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last), name, "eval"), namespace)
            if hasattr(value, "_repr_png_"):
                shown().write_bytes(value._repr_png_())


def test_there_is_one_to_begin_with_and_one_per_paper():
    assert [path.stem for path in NOTEBOOKS] == [
        "bcd",
        "quickstart",
        "vidtwin",
        "warpface",
        "xnemo",
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_those_of_its_code(notebook):
    text = notebook.read_text(encoding="utf-8")
    book = json.loads(text)
    assert book["nbformat"] == 4 and len(text) < 600_000
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    sources = ["".join(cell["source"]) for cell in code]
    for source in sources:
        ast.parse(source)  # plain Python, without magic
    # After a change of the code, `python docs/notebooks.py` makes the outputs anew.
    wanted = hashlib.sha256("\0".join(sources).encode()).hexdigest()
    assert book["metadata"]["vidmotion"]["code_sha256"] == wanted
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert sum(kind.startswith("image/") for kind in kinds) >= 3
    for output in outputs:
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        assert not re.search(r"/(home|root|tmp|work)/", "".join(output.get("text", "")))
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_to_its_end(notebook, heads_run, tmp_path):
    pytest.importorskip("matplotlib")
    before = notebook.read_bytes()
    work, folder = tmp_path / "work", tmp_path / "shown"
    work.mkdir(), folder.mkdir()
    environment = {**os.environ, "VIDMOTION_BUDGET": "debug", "JAX_PLATFORMS": "cpu"}
    # A notebook has one device. Nearly all the time is compilation, and unoptimised code compiles faster.
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    environment.pop("VIDMOTION_RECORDS", None)
    # The shipped networks of 64 px would be slow here: one notebook loads a debug run, and the others train one.
    environment["VIDMOTION_WORKDIR"] = str(heads_run) if notebook.stem == "bcd" else ""
    done = subprocess.run(
        [sys.executable, __file__, str(notebook), str(folder)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = code_cells(notebook)
    pictures = [cell for cell in cells if "\nImage.fromarray(" in f"\n{cell}" or "plt.show" in cell]
    shown = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert len(shown) == len(pictures) >= 3
    for picture in shown:
        assert len(np.unique(picture[..., :3])) > 4  # not blank
    assert notebook.read_bytes() == before


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_is_missing(notebook, monkeypatch):
    first = code_cells(notebook)[0]
    assert INSTALL in first
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: calls.append(command))
    monkeypatch.delenv("VIDMOTION_REPOSITORY", raising=False)
    exec(first, {})
    here, calls[:] = list(calls), []
    assert not any("vidmotion" in word for command in here for word in command)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")  # no GPU
    with pytest.raises(RuntimeError, match="set REPOSITORY in this cell"):
        exec(first, {})
    assert not calls
    monkeypatch.setenv("VIDMOTION_REPOSITORY", "a clone")
    exec(first, {})
    assert calls == [[sys.executable, "-m", "pip", "install", "a clone", "matplotlib"]]


@pytest.mark.parametrize("name", ["bcd", "quickstart", "vidtwin", "warpface", "xnemo"])
def test_a_workdir_of_something_else_is_refused(name, judge_workdir, tmp_path):
    from vidmotion.errors import ConfigError

    cell = cell_with(f"{name}.ipynb", LOAD)
    with pytest.raises(ConfigError, match="holds no run"):
        exec(cell, {"BUDGET": "debug", "WORKDIR": str(tmp_path)})
    with pytest.raises(ConfigError, match="holds a run of sprites_judge, but this"):
        exec(cell, {"BUDGET": "debug", "WORKDIR": str(judge_workdir)})


def test_no_records_no_curve(monkeypatch, tmp_path, capsys):
    cell = cell_with("bcd.ipynb", "RECORDS =")
    monkeypatch.setenv("VIDMOTION_RECORDS", str(tmp_path))
    exec(cell, {"os": os, "json": json})
    assert capsys.readouterr().out == (
        f"There is no bitrate curve to draw: {tmp_path} holds no run records of the sweep.\n"
    )


if __name__ == "__main__":
    execute(Path(sys.argv[1]), Path(sys.argv[2]))
