"""Every supported file format can be read; safetensors files are written."""

import json

import ml_dtypes
import numpy as np
import pytest

from vidmotion.convert.read import read, read_manifest, shapes_of, write_safetensors

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.asarray([1.5, -2], np.float16),
    "c": np.asarray([1.5, -2], ml_dtypes.bfloat16),
    "steps": np.asarray(3, np.int64),
}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    assert_same(read(path), ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode  # whoever may read new files may read it


def test_safetensors_are_read_as_by_their_library_into_memory_that_xla_takes_over(tmp_path):
    import jax
    import safetensors.numpy

    path, kinds = tmp_path / "x.safetensors", (bool, "u1", "i1", "i2", "u4", "f4", "f8")
    arrays = {f"{kind}": np.arange(7).astype(kind) for kind in kinds}
    arrays |= {**ARRAYS, "none": np.zeros((0, 3), np.float32), "large": np.ones(1000, np.float32)}
    write_safetensors(path, arrays)
    got = read(path)
    assert_same(got, safetensors.numpy.load_file(path))
    assert_same(got, arrays)
    assert shapes_of(path) == {key: x.shape for key, x in arrays.items()}
    where = jax.device_put(got["large"], jax.devices()[0]).unsafe_buffer_pointer()
    assert where == got["large"].ctypes.data
    path.write_bytes(path.read_bytes()[:-1])
    for reader in (read, shapes_of):
        with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file, or damaged"):
            reader(path)


def test_views_are_written_as_they_read(tmp_path):
    path = tmp_path / "x.safetensors"
    view = ARRAYS["a.weight"].T[::-1]
    write_safetensors(path, {"view": view})
    np.testing.assert_array_equal(read(path)["view"], view)


def test_float32_on_request(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS)
    got = read(path, float32=True)
    assert got["steps"].dtype == np.int64
    for key in ("a.weight", "b", "c"):
        assert got[key].dtype == np.float32
    np.testing.assert_array_equal(got["c"], [1.5, -2])


def test_npz(tmp_path):
    arrays = {key: value for key, value in ARRAYS.items() if key != "c"}
    np.savez(tmp_path / "x.npz", **arrays)
    assert_same(read(tmp_path / "x.npz"), arrays)


def test_split_checkpoint(tmp_path):
    files = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(ARRAYS)}
    for name in set(files.values()):
        write_safetensors(tmp_path / name, {k: ARRAYS[k] for k, f in files.items() if f == name})
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same(read(index), ARRAYS)

    index.write_text(json.dumps({"weight_map": files | {"d": "part-0.safetensors"}}))
    with pytest.raises(ValueError, match=r"parts differ: \['d'\]"):
        read(index)
    index.write_text(json.dumps({"weight_map": files | {"d": "p2.bin", "e": "p3.bin"}}))
    with pytest.raises(FileNotFoundError, match=r"p2\.bin.*p3\.bin"):
        read(index)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        read(index)


def test_bad_names(tmp_path):
    for name in ("x.safetensors", "x.pt", "x.npz", "x.safetensors.index.json"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            read(tmp_path / name)
    (tmp_path / "x.h5").touch()
    with pytest.raises(ValueError, match=r"x\.h5: the name must end in \.safetensors"):
        read(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="must end in"):
        write_safetensors(tmp_path / "x.bin", ARRAYS)


@pytest.mark.oracle
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_torch_files(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    state = {
        "a.weight": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "b": torch.tensor([1.5, -2]).half(),
        "c": torch.tensor([1.5, -2]).bfloat16(),
        "steps": torch.tensor(3),
    }
    path = tmp_path / f"x{suffix}"
    torch.save(state, path)
    assert_same(read(path), ARRAYS)
    torch.save({"epoch": 4, "state_dict": state}, path)
    assert_same(read(path), ARRAYS)
    torch.save({"epoch": 4, "ema": state}, path)
    assert_same(read(path, at="ema"), ARRAYS)
    with pytest.raises(ValueError, match=r"not tensors: epoch, ema; .*at="):
        read(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="got list"):
        read(path)


@pytest.mark.oracle
def test_torch_files_run_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    torch.save({"state_dict": {"w": torch.ones(1)}, "evil": print}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more than weights"):
        read(tmp_path / "x.pt")


@pytest.mark.oracle
def test_torch_reads_what_we_write(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)
    write_safetensors(tmp_path / "x.safetensors", ARRAYS)
    got = safetensors_torch.load_file(tmp_path / "x.safetensors")
    assert got["c"].tolist() == [1.5, -2] and got["a.weight"].shape == (2, 3)


def test_manifest(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text("# derived from source\na.weight 4x3x1x1\n\na.bias 4\nsteps scalar\n")
    assert read_manifest(path) == {"a.weight": (4, 3, 1, 1), "a.bias": (4,), "steps": ()}
    for text, said in (
        ("a 2\na 3\n", ":2: a appears a second time"),
        ("a 2y3\n", ":1: expected"),
        ("a", ":1:"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_manifest(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_manifest(tmp_path / "absent.txt")
