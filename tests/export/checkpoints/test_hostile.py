"""Damaged and hostile files: whatever they contain, a reader returns values or raises an `EdgekitError`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import BoundedFile, read_small
from edgekit.export.sources.open import open_checkpoint
from tests.export.checkpoints.fuzzing import KINDS, Input, attempt, bounds, run, seeded, write_seeds

pytestmark = pytest.mark.serial

INPUTS = 300  # of each kind; benchmarks/fuzz_checkpoints.py runs any number


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_checkpoints_are_read(seeds: Path, kind: str) -> None:
    assert attempt(seeds / kind, seeded(0)) == "read"


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_checkpoint_is_read_or_refused_in_little_memory_and_time(seeds: Path, kind: str) -> None:
    outcomes: Counter[str] = Counter()
    with bounds():
        for number in range(INPUTS):
            which = Input(kind, number)
            try:
                outcomes[run(which, seeds)] += 1
            except BaseException as error:
                raise AssertionError(f"{which} was neither read nor refused") from error
    # Neither may be rare, or the changes are too gross or too gentle to test anything.
    assert INPUTS * 0.05 < outcomes["read"] < INPUTS * 0.8, outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_weights_cut_anywhere_are_refused(seeds: Path, kind: str) -> None:
    rng = seeded(kind)
    path = max((seeds / kind).glob("*[.gs]*"), key=lambda file: file.suffix in {".gguf", ".safetensors"})
    contents = path.read_bytes()
    try:
        for share in (0, 0.0001, 0.001, 0.5, 0.9999, *(rng.random() for _ in range(20))):
            path.write_bytes(contents[: int((len(contents) - 32) * share)])  # GGUF may end in up to 31 bytes of padding
            assert attempt(seeds / kind, rng) != "read"
    finally:
        path.write_bytes(contents)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "folder.gguf"):
        for read in (BoundedFile, read_small):
            with pytest.raises(ExportError, match="not a regular file"):
                read(tmp_path / name)
    with pytest.raises(ExportError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe.gguf")
