from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.errors import ExportError
from edgekit.export.checkpoints.safetensors import INDEX, Shards


def header_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def save(tensors: dict[str, Any], path: Path) -> None:
    """Write a file of any type that `ml_dtypes` has; the reference library's numpy side has no float8."""
    names = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    names |= {"float16": "F16", "float32": "F32", "float64": "F64"}
    header, data = {}, b""
    for name, values in tensors.items():
        more = values.tobytes()
        header[name] = entry(names[values.dtype.name], list(values.shape), [len(data), len(data) + len(more)])
        data += more
    header_file(path, header, data)


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FLOATS = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.float64,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_type_is_read_as_float32(tmp_path: Path, dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((1200, 1000)).astype(dtype)
    save({"w": values, "n": values[0]}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    found = shards.read("w")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))
    np.testing.assert_array_equal(shards.read("n"), values[0].astype(np.float32))
    assert shards.infos["w"].shape == (1200, 1000)
    shards.close()


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float16])
def test_every_code_of_a_narrow_type_is_widened_as_the_reference_does(tmp_path: Path, dtype: Any) -> None:
    width = np.dtype(dtype).itemsize
    values = np.arange(1 << 8 * width, dtype=f"<u{width}").view(dtype)
    save({"w": values}, tmp_path / "model.safetensors")
    found = Shards(tmp_path).read("w")
    with np.errstate(invalid="ignore"):
        expected = values.astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_ranges_of_rows_make_up_the_whole(tmp_path: Path, dtype: Any) -> None:
    values = np.random.default_rng(1).standard_normal((700, 3, 500)).astype(dtype)
    save({"w": values, "after": values[:2]}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    cuts = [0, 0, 1, 257, 699, 700]
    parts = [shards.read("w", start, stop) for start, stop in pairwise(cuts)]
    assert [len(part) for part in parts] == [0, 1, 256, 442, 1]
    np.testing.assert_array_equal(np.concatenate(parts), shards.read("w"))
    np.testing.assert_array_equal(shards.read("w", 690), values[690:].astype(np.float32))


def test_only_the_bytes_of_a_range_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((100, 100), np.float32)}, path)
    shards = Shards(tmp_path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 40 * 400)
    assert shards.read("w", 0, 60).sum() == 6000
    with pytest.raises(ExportError, match="truncated"):
        shards.read("w", 60, 61)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5), (5, None)])
def test_rows_that_a_tensor_does_not_have_are_refused(tmp_path: Path, start: int, stop: int | None) -> None:
    save_file({"w": np.ones((4, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match="tensor `w` has 4 rows"):
        Shards(tmp_path).read("w", start, stop)


def shard(folder: Path, index: bool) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {name: np.full(4, number, dtype=np.float32) for number, name in enumerate("abc")}
    save_file({"a": tensors["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "model-00002-of-00002.safetensors")
    if index:
        table = {name: f"model-0000{1 if name == 'a' else 2}-of-00002.safetensors" for name in "abc"}
        (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    return tensors


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_with_and_without_an_index(tmp_path: Path, index: bool) -> None:
    tensors = shard(tmp_path, index)
    shards = Shards(tmp_path)
    assert set(shards.infos) == set(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(shards.read(name), values)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    shard(tmp_path, index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExportError, match=r"model-00002-of-00002\.safetensors is missing"):
        Shards(tmp_path)


def test_a_tensor_that_the_index_promises_and_no_shard_has_is_named(tmp_path: Path) -> None:
    shard(tmp_path, index=True)
    table = json.loads((tmp_path / INDEX).read_text())
    table["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(table))
    with pytest.raises(ExportError, match="tensor `d` is not in model-00001"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7, "x\n.safetensors"]
)
def test_no_path_of_an_index_leaves_the_folder(tmp_path: Path, name: Any) -> None:
    shard(tmp_path, index=True)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ExportError, match="not a safetensors file beside it"):
        Shards(tmp_path)


def test_a_truncated_file_names_itself_and_the_tensor_it_ends_in(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"first": np.zeros(8, np.float32), "second": np.zeros(8, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ExportError, match=r"model\.safetensors is truncated.*tensor `second`") as caught:
        Shards(tmp_path)
    assert "fetch it again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{" * 5000, "not JSON"),
        (b'{"a":' * 5000, "not JSON"),
        (b'{"w": 1, "w": 2}', "twice"),
        ({"w": 1}, "not an object"),
        ({"w": entry("F33")}, "unknown type 'F33'"),
        ({"w": entry(shape="2")}, "an invalid shape"),
        ({"w": entry(shape=[-2])}, "an invalid shape"),
        ({"w": entry(shape=[True, 2])}, "an invalid shape"),
        ({"w": entry(offsets=[8, 0])}, "invalid offsets"),
        ({"w": entry(offsets=[0, 8, 8])}, "invalid offsets"),
        ({"w": entry(offsets=[0, 4])}, "takes 4 bytes"),
        ({"w": entry(shape=[1 << 61, 1 << 61])}, "takes 8 bytes"),
        ({"w": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, "truncated"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(tmp_path: Path, header: Any, message: str) -> None:
    header_file(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(ExportError, match=message):
        Shards(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"1234567", (1 << 63).to_bytes(8, "little") + bytes(100)])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(contents)
    with pytest.raises(ExportError, match="truncated"):
        Shards(tmp_path)


def test_a_tensor_that_is_not_a_float_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    save_file({"w": np.zeros(4, np.int32)}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    assert shards.infos["w"].encoding == "I32"
    with pytest.raises(ExportError, match="stored as I32"):
        shards.read("w")
    with pytest.raises(ExportError, match="no tensor `x`"):
        shards.read("x")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"w": np.zeros(4, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ExportError, match=r"in one\.safetensors and in two\.safetensors"):
        Shards(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="no safetensors") as caught:
        Shards(tmp_path)
    assert "convert them" in str(caught.value.hint)


def test_a_tensor_without_elements_and_a_scalar_are_read(tmp_path: Path) -> None:
    save_file({"none": np.zeros((0, 3), np.float32), "one": np.array(2.5, np.float32)}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    assert shards.read("none").shape == (0, 3)
    assert shards.read("one") == np.float32(2.5)
