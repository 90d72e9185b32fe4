"""One bit flipped in each file of a checkpoint: the state comes back as it was saved, or as saved the step before."""

import shutil

import numpy as np
import pytest
from test_checkpoint import assert_same, fill, make_state, restore

FLIPS = 30  # or one for each file, if there are more files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a workdir with the steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("whole")
    fill(workdir, [1, 2])
    return workdir


def test_a_flipped_bit_is_never_read_as_another_value(whole, tmp_path):
    rng = np.random.default_rng(0)
    files = sorted(
        path.relative_to(whole)
        for path in (whole / "checkpoints" / "2").rglob("*")
        if path.is_file()
    )
    files = [file for file in files if (whole / file).stat().st_size]
    assert len(files) > 5
    found = {}
    for number in range(max(FLIPS, len(files))):
        file = files[number % len(files)]
        workdir = tmp_path / str(number)
        shutil.copytree(whole, workdir)
        data = bytearray((workdir / file).read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (workdir / file).write_bytes(data)
        state, position = restore(workdir)
        step = position["step"]
        assert step in (1, 2)
        assert_same(state, make_state(step))
        assert (workdir / "damaged").exists() == (step == 1)
        found.setdefault(str(file), set()).add(step)
        shutil.rmtree(workdir)
    # Files of numbers are never used once they are damaged.
    assert all(steps == {1} for file, steps in found.items() if "/d/" in file)
