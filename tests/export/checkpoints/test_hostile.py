"""Damaged and hostile files: whatever stands in them, a reader answers with values or with an `ExportError`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import ExportError
from edgekit.export.checkpoints.gguf import GgufCheckpoint
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from tests.export.checkpoints.gguf_files import write_gguf
from tests.models import tiny_checkpoint


class Blob(bytes):
    """Bytes that do not fill the screen when an example is shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


FEW_HUNDRED = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_ROOM = 1 << 30


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process grow by a gigabyte at most: a larger allocation raises MemoryError, which fails the test."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_all(open_it: Callable[[], GgufCheckpoint | FolderCheckpoint]) -> bool:
    """Read everything; return whether it could be."""
    with little_memory():
        try:
            with closing(open_it()) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.read(name)
                checkpoint.tokenizer()
        except ExportError as error:
            assert error.message.isprintable()  # noqa: PT017  that it is raised is not the point
            return False
        return True


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("source")
    tiny_checkpoint(folder, model_type="llama", layers=1, hidden=32, intermediate=32, vocab=300)
    return Blob(write_gguf(folder, folder / "x.gguf", encoding="Q4_0", pre="smollm").read_bytes())


@pytest.fixture(scope="module")
def safetensors_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("st"), layers=1, hidden=32, intermediate=32, vocab=300)


def flipped(data: bytes, flips: list[tuple[int, int]], head: int) -> bytes:
    """Change bytes; half of them in the head, where the structure is."""
    changed = bytearray(data)
    for number, (at, value) in enumerate(flips):
        changed[at % (head if number % 2 == 0 else len(changed))] = value
    return bytes(changed)


FLIPS = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=8)


def test_the_undamaged_files_are_read(gguf_bytes: bytes, safetensors_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes)
    assert read_all(lambda: GgufCheckpoint(tmp_path / "x.gguf"))
    assert read_all(lambda: FolderCheckpoint(safetensors_folder))


@FEW_HUNDRED
@given(flips=FLIPS)
def test_a_gguf_file_with_changed_bytes_is_read_or_refused(
    gguf_bytes: bytes, tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(flipped(gguf_bytes, flips, 16_000))
    read_all(lambda: GgufCheckpoint(path))


@FEW_HUNDRED
@given(share=st.floats(0, 0.9999))
def test_a_gguf_file_cut_anywhere_is_refused(gguf_bytes: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes[: int(len(gguf_bytes) * share)])
    assert not read_all(lambda: GgufCheckpoint(path))


@FEW_HUNDRED
@given(length=st.sampled_from([2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]), at=st.integers(8, 16_000))
def test_a_gguf_file_with_a_huge_number_anywhere_allocates_nothing_huge(
    gguf_bytes: bytes, tmp_path: Path, length: int, at: int
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes[:at] + length.to_bytes(8, "little") + gguf_bytes[at + 8 :])
    read_all(lambda: GgufCheckpoint(path))


def folder_with(source: Path, folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "model.safetensors").write_bytes(data)
    return folder


@FEW_HUNDRED
@given(flips=FLIPS)
def test_a_safetensors_file_with_changed_bytes_is_read_or_refused(
    safetensors_folder: Path, tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    data = flipped((safetensors_folder / "model.safetensors").read_bytes(), flips, 1_200)
    folder = folder_with(safetensors_folder, tmp_path / "x", data)
    read_all(lambda: FolderCheckpoint(folder))


@FEW_HUNDRED
@given(share=st.floats(0, 0.9999))
def test_a_safetensors_file_cut_anywhere_is_refused(safetensors_folder: Path, tmp_path: Path, share: float) -> None:
    data = (safetensors_folder / "model.safetensors").read_bytes()
    folder = folder_with(safetensors_folder, tmp_path / "x", data[: int(len(data) * share)])
    assert not read_all(lambda: FolderCheckpoint(folder))


@FEW_HUNDRED
@given(name=st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json"]), flips=FLIPS)
def test_a_folder_with_changed_json_is_read_or_refused(
    safetensors_folder: Path, tmp_path: Path, name: str, flips: list[tuple[int, int]]
) -> None:
    folder = folder_with(safetensors_folder, tmp_path / "x", (safetensors_folder / "model.safetensors").read_bytes())
    data = (safetensors_folder / name).read_bytes()
    (folder / name).write_bytes(flipped(data, flips, len(data)))
    read_all(lambda: FolderCheckpoint(folder))
