from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.engine_set import (
    ENGINE_JSON,
    EngineSegment,
    EngineSet,
    Profile,
    read_engine_set,
    verify_files,
    write_engine_set,
)


def engine_in(folder: Path) -> EngineSet:
    """An engine of two segments, whose files are in `folder`."""
    segments = []
    for index, data in enumerate((b"first" * 100, b"second" * 100)):
        name = f"segment-{index:02}.engine"
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        boundary = "x" if index else None
        segments.append(EngineSegment(name, len(data), digest, index, index, boundary, ("a", "b"), ("c",)))
    profiles = (Profile(1, 1), Profile(1, 128))
    return EngineSet("tensorrt", "10.3.0", "8.7", "", "portable", 2, "0" * 64, 4096, 1 << 30, profiles, tuple(segments))


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    write_engine_set(tmp_path, engine)
    assert read_engine_set(tmp_path) == engine
    assert engine.size == 1100
    verify_files(tmp_path, engine)


def test_a_folder_without_an_engine_is_an_error_that_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"has no engine\.json") as caught:
        read_engine_set(tmp_path)
    assert "edgekit build" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this edgekit reads 1"),
        ({"format": None}, "has no `format`"),
        ({"context_length": "long"}, "`context_length` is not a whole number"),
        ({"library": 5}, "`library` is not a text"),
        ({"segments": []}, "no profile or no segment"),
        ({"segments": {}}, "`segments` is not a list of objects"),
        ({"graph_sha256": "xyz"}, "`graph_sha256` is not a SHA-256"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_engine_set(tmp_path, engine_in(tmp_path))
    data = json.loads((tmp_path / ENGINE_JSON).read_text()) | change
    del data["digest"]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (tmp_path / ENGINE_JSON).write_text(json.dumps({"digest": digest, **data}))
    with pytest.raises(RunnerError, match=message):
        read_engine_set(tmp_path)


def test_a_changed_description_is_detected(tmp_path: Path) -> None:
    write_engine_set(tmp_path, engine_in(tmp_path))
    path = tmp_path / ENGINE_JSON
    path.write_text(path.read_text().replace('"context_length": 4096', '"context_length": 4095'))
    with pytest.raises(RunnerError, match="its digest does not match"):
        read_engine_set(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"engine"', "[" * 10_000])
def test_a_description_that_is_not_one_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / ENGINE_JSON).write_text(text)
    with pytest.raises(RunnerError, match=r"engine\.json"):
        read_engine_set(tmp_path)


@pytest.mark.parametrize("file", ["../segment-00.engine", "/etc/passwd", "engine.json", "segment-00.engine/x"])
def test_a_segment_outside_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    engine = engine_in(tmp_path)
    write_engine_set(tmp_path, replace(engine, segments=(replace(engine.segments[0], file=file),)))
    with pytest.raises(RunnerError, match="is not the name of a segment"):
        read_engine_set(tmp_path)


def test_a_missing_a_shorter_a_changed_and_a_linked_segment_are_found(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    path = tmp_path / engine.segments[1].file
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(RunnerError, match="has 599 bytes instead of 600"):
        verify_files(tmp_path, engine)
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(RunnerError, match="is damaged"):
        verify_files(tmp_path, engine)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(RunnerError, match="is missing"):
        verify_files(tmp_path, engine)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunnerError, match="not a regular file"):
        verify_files(tmp_path, engine)
