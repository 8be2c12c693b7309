from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.export.checkpoints import files as files_module
from edgekit.export.checkpoints.files import BoundedFile, hash_files, share_blocks
from edgekit.export.io.block_cache import BlockCache, sha256_of
from edgekit.export.io.direct_io import BLOCK, DirectFile

SIZE = 5 * BLOCK + 12_345


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "weights"
    file.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return file


@pytest.fixture(params=["direct", "through the page cache", "refused when it is used"])
def shared(path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BoundedFile]:
    """The file, large for this machine, on systems with direct I/O and without."""
    monkeypatch.setattr(files_module, "is_large", lambda total: total >= SIZE)
    if request.param == "through the page cache":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    file = BoundedFile(path)
    blocks = share_blocks([file])
    assert blocks is not None
    if request.param == "refused when it is used":
        assert file._shared is not None
        plain, direct = os.preadv, file._shared[1]._direct

        def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            if descriptor == direct:
                raise OSError(22, "Invalid argument")
            return plain(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
    yield file
    blocks.close()
    file.close()


def test_small_files_stay_in_the_page_cache(path: Path) -> None:
    file = BoundedFile(path)
    assert share_blocks([file]) is None
    file.close()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (7, 3 * BLOCK), (BLOCK - 1, 70_000), (BLOCK, BLOCK), (SIZE - 100_000, 100_000), (3, 10), (SIZE, 0)],
)
def test_shared_blocks_give_the_bytes_of_the_file(shared: BoundedFile, path: Path, offset: int, length: int) -> None:
    expected = path.read_bytes()[offset : offset + length]
    assert shared.read(offset, length, "it").tobytes() == expected
    assert b"".join(chunk.tobytes() for chunk in shared.chunks(offset, length, "it")) == expected


def test_hashing_and_reading_at_the_same_time_reads_each_block_once(
    shared: BoundedFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = DirectFile.read

    def counted(self: DirectFile, block: np.ndarray, offset: int) -> int:
        read.append(offset)
        return plain(self, block, offset)

    monkeypatch.setattr(DirectFile, "read", counted)
    done: list[int] = []
    with ThreadPoolExecutor() as pool:
        hashing = pool.submit(hash_files, (), [shared], lambda *progress: done.append(progress[0]))
        chunks = pool.map(lambda at: shared.read(at, min(100_000, SIZE - at), "it").tobytes(), range(0, SIZE, 100_000))
        assert b"".join(chunks) == path.read_bytes()
        (found,) = hashing.result()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.size, done[-1]) == (SIZE, SIZE)
    assert sorted(read) == list(range(0, SIZE, BLOCK))


def test_few_blocks_are_kept_and_evicted_ones_are_read_again(path: Path) -> None:
    cache, descriptor = BlockCache(capacity=2), os.open(path, os.O_RDONLY)
    file = DirectFile(descriptor)
    expected = path.read_bytes()
    first = list(cache.chunks(file, 0, SIZE))  # more than the capacity; none is overwritten while it is referenced
    again = list(cache.chunks(file, 0, SIZE))
    assert b"".join(chunk.tobytes() for chunk in first) == b"".join(chunk.tobytes() for chunk in again) == expected
    assert len(cache._blocks) == 2
    cache.close()
    file.close()
    os.close(descriptor)


def test_a_file_that_shrank_is_truncated(shared: BoundedFile, path: Path) -> None:
    os.truncate(path, 2 * BLOCK)
    with pytest.raises(ExportError, match="truncated"):
        shared.read(BLOCK, 3 * BLOCK, "tensor `x`")


def test_a_disk_error_is_reported_and_the_read_can_be_repeated(
    shared: BoundedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(DirectFile, "read", failing)
        with pytest.raises(ExportError, match="tensor `x`: Input/output error"):
            shared.read(0, 2 * BLOCK, "tensor `x`")
        with pytest.raises(ExportError, match="Input/output error"):
            hash_files((), [shared])
    assert shared.read(0, 2 * BLOCK, "tensor `x`").size == 2 * BLOCK


@pytest.mark.parametrize("size", [0, 1, BLOCK, SIZE])
def test_a_file_is_hashed(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(1).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
