from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.export import page_cache
from edgekit.export.writers import streamed
from edgekit.export.writers.safetensors import ShardWriter
from edgekit.export.writers.streamed import StreamedFile


@pytest.mark.parametrize("large", [False, True])
def test_a_streamed_file_has_the_bytes_and_the_hash_of_its_parts(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # so that parts are moved on to the disk behind the writer
        monkeypatch.setattr(streamed, "TRAIL", 1 << 16)
        monkeypatch.setattr(streamed, "_STEP", 1 << 16)
    data = np.random.default_rng(0).bytes(3_000_001)
    file = StreamedFile(tmp_path / "data")
    for start in range(0, len(data), 77_777):
        assert file.tell() == start
        file.write(memoryview(data)[start : start + 77_777])
    assert file.close() == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "data").read_bytes() == data
    assert file.close() == hashlib.sha256(data).hexdigest()


def test_shards_are_hashed_as_they_are_closed(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    with ShardWriter(tmp_path, [f"t{i}" for i in range(5)], max_shard_bytes=8_000) as shards:
        for i, row in enumerate(values):
            shards.add(f"t{i}", "F32", row.shape, iter((row,)))
        files, hashes = shards.finish(5000)
    assert [name for name in files if name.endswith(".safetensors")] == sorted(hashes)
    assert len(hashes) == 3
    for name, sha256 in hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_what_a_large_checkpoint_was_read_from_is_forgotten_behind_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[int, int]] = []
    monkeypatch.setattr(page_cache, "forget", lambda *part: forgotten.append(part[1:]))
    small = page_cache.Trail(1 << 20)
    small.passed(tmp_path, 0, page_cache.TRAIL * 2)
    small.end()
    assert forgotten == []
    large = page_cache.Trail(1 << 60)
    half = page_cache.TRAIL // 2
    for number in range(4):
        large.passed(tmp_path, number * half, half)
    assert forgotten == [(0, half), (half, half)]
    large.end()
    assert [start for start, _ in forgotten] == [0, half, 2 * half, 3 * half]


def test_forgetting_changes_no_byte_and_a_missing_file_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"edgekit" * 10_000)
    page_cache.forget(path, 4096, 8192, written=True)
    assert path.read_bytes() == b"edgekit" * 10_000
    page_cache.forget(tmp_path / "missing")
