from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from edgekit.export.io import page_cache
from edgekit.export.io.direct_io import BLOCK
from edgekit.export.writers import streamed
from edgekit.export.writers.safetensors import ShardWriter
from edgekit.export.writers.streamed import StreamedFile


@pytest.mark.parametrize("before", [0, streamed.CACHED - 5_000_000, streamed.CACHED])
@pytest.mark.parametrize("refused", [False, True])
def test_a_streamed_file_has_the_bytes_and_the_hash_of_its_parts(
    before: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:  # like file systems that write only through the page cache
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    data = np.random.default_rng(0).bytes(3 * BLOCK + 1)
    file = StreamedFile(tmp_path / "data", before=before)
    for start in range(0, len(data), 777_777):
        assert file.tell() == start
        file.write(memoryview(data)[start : start + 777_777])
        if start % 5 == 0:
            file.flush()
            assert (tmp_path / "data").read_bytes() == data[: start + 777_777]
    assert file.close() == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "data").read_bytes() == data
    assert file.close() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [100, BLOCK - 3, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("offset", [0, 40])
def test_what_is_replaced_stays_replaced(size: int, offset: int, tmp_path: Path) -> None:
    file = StreamedFile(tmp_path / "data", hashed=False)
    file.write(bytes(size))
    file.flush()
    file.replace(b"header", offset)
    file.write(b"more")
    assert file.close() == ""
    wanted = bytes(offset) + b"header" + bytes(size - offset - 6) + b"more"
    assert (tmp_path / "data").read_bytes() == wanted


def test_a_full_disk_is_reported_and_the_file_is_closed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = StreamedFile(tmp_path / "data", before=streamed.CACHED)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK + 5, limits[1]))
        with pytest.raises(OSError, match="large"):
            file.write(bytes(20 * BLOCK))
        with pytest.raises(OSError, match="large"):
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "data").stat().st_size <= 2 * BLOCK + 5


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


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
def test_pages_of_a_large_checkpoint_are_dropped_behind_the_reader(
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
    page_cache.forget(path, 4096, 8192)
    assert path.read_bytes() == b"edgekit" * 10_000
    page_cache.forget(tmp_path / "missing")
