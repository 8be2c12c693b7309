from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgekit.runners.base import Chunk
from tests.runners.tensorrt.engines import build, open_double
from tests.runners.tensorrt.tensorrt_double import ICudaEngine, IRuntimeConfig
from tests.runners.tensorrt.test_runner import export


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(export(tmp_path_factory.mktemp("cached"), "portable"), segments=2)


def run(engines: list[Path], cache: Path) -> None:
    runner = open_double(engines, runtime_cache=cache).runner
    runner.run([Chunk(0, [1] * 5)])
    runner.run([Chunk(0, [1])])
    runner.close()


def test_what_was_compiled_is_kept_for_the_next_start(engines: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(engines, cache)
    # Two segments, for a chunk and for one token.
    assert cache.read_bytes() == b"cache:" + b"k" * 4
    run(engines, cache)
    assert cache.read_bytes() == b"cache:" + b"k" * 8


def test_it_is_written_when_decoding_begins_and_not_only_at_the_end(engines: list[Path], tmp_path: Path) -> None:
    runner = open_double(engines, runtime_cache=tmp_path / "cache").runner
    runner.run([Chunk(0, [1] * 5)])
    assert not (tmp_path / "cache").exists()
    runner.run([Chunk(0, [1])])
    assert (tmp_path / "cache").read_bytes() == b"cache:" + b"k" * 4


def test_one_that_does_not_fit_is_replaced(engines: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(b"another version")
    run(engines, cache)
    assert cache.read_bytes() == b"cache:" + b"k" * 4


def test_a_folder_that_cannot_be_written_is_a_warning(
    engines: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(engines, tmp_path / "missing" / "cache")
    assert "cannot keep compiled kernels" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name"), [(ICudaEngine, "create_runtime_config"), (IRuntimeConfig, "create_runtime_cache")]
)
def test_tensorrt_itself_has_none(
    engines: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    monkeypatch.delattr(kind, name)
    run(engines, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
