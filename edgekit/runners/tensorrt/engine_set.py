"""Describes what a build wrote: the engine of one bundle, cut into segments of layers that run one after another.

    FOLDER/
        engine.json           this description, written last
        segment-00.engine     a serialized engine of consecutive layers
        segment-01.engine     its input `segments[1].boundary` is the output of the segment before

A whole engine is a set of one segment. The values between segments, the residual stream, have the name that the graph
gives them; every other input of a segment is an input of the graph.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.atomic_file import replace_file
from edgekit.bundle.bundle import hash_file
from edgekit.errors import RunnerError

__all__ = [
    "ENGINE_JSON",
    "FORMAT",
    "SEGMENT_NAME",
    "EngineSegment",
    "EngineSet",
    "Profile",
    "capability_text",
    "parse_engine_set",
    "read_engine_set",
    "verify_files",
    "write_engine_set",
]

ENGINE_JSON = "engine.json"
FORMAT = 1
SEGMENT_NAME = re.compile(r"segment-[0-9]{2}\.engine")
_MAX_JSON = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "build it again: edgekit build BUNDLE"


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that one optimization profile supports; its index in `EngineSet.profiles` is the engine's.

    Attributes:
        batch: Max sequences in one execution.
        tokens: Max new tokens of each; at least 1.
    """

    batch: int
    tokens: int


@dataclass(frozen=True, slots=True)
class EngineSegment:
    """One serialized engine.

    Attributes:
        file: Its name in the folder.
        size: Bytes.
        sha256: 64 lower-case hexadecimal digits.
        first_layer: Index of its first decoder layer; None if it has none, only the embedding or the output head.
        last_layer: Index of its last decoder layer, which belongs to it.
        boundary: The input that is an output of the segment before; None in the first segment.
        inputs: All its inputs, the boundary and `past_key_values.N.key` included.
        outputs: All its outputs, the next segment's boundary, `present.N.key` or `logits` included.
    """

    file: str
    size: int
    sha256: str
    first_layer: int | None
    last_layer: int | None
    boundary: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineSet:
    """The engine of one bundle for one GPU.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        version: Of the library; an engine loads in no other.
        compute_capability: Of the GPU, `8.7`.
        built_for: The library's name of the capability, `SM86`; empty if it built for the GPU of the machine.
        dialect: Of the graph: `portable` or `native`.
        layout: Version of the dialect's inputs and outputs (`edgekit.bundle.manifest.LAYOUTS`).
        graph_sha256: Of the graph and its weights (`edgekit.runners.tensorrt.store.graph_digest`).
        context_length: Max tokens of a sequence. `native`'s cache has exactly as many positions; `portable`'s at most
            as many, in whole blocks of 8.
        workspace_bytes: The builder's limit for the engine's scratch memory; 0 if it had none.
        profiles: By index: 0 is for one new token, 1 for a prefill chunk, 2 for one new token of each of several
            sequences, which may be missing.
        segments: In the order of execution.
    """

    library: str
    version: str
    compute_capability: str
    built_for: str
    dialect: str
    layout: int
    graph_sha256: str
    context_length: int
    workspace_bytes: int
    profiles: tuple[Profile, ...]
    segments: tuple[EngineSegment, ...]

    @property
    def capability_text(self) -> str:
        """The compute capability of the GPU, and the one that the library built for, if that is another one."""
        return capability_text(self.compute_capability, self.built_for)

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments)


def capability_text(device: str, built_for: str) -> str:
    """Return a device's compute capability for people, and the one that the library built for, if that is another one.

    Args:
        device: `8.7`.
        built_for: As in `EngineSet`.
    """
    digits = built_for.removeprefix("SM")
    own = f"{digits[:-1]}.{digits[-1:]}"
    if not digits or own == device:
        return f"compute capability {device}"
    return f"compute capability {device} (built for {own}: the library has no kernels of its own for {device})"


def write_engine_set(folder: Path, engine: EngineSet) -> None:
    """Write the description; the segments are already in the folder.

    Raises:
        OSError: It cannot be written.
    """
    data = {"format": FORMAT, **asdict(engine)}
    text = json.dumps({"digest": _digest(data), **data}, indent=2) + "\n"
    replace_file(folder / ENGINE_JSON, text.encode())


def read_engine_set(folder: Path) -> EngineSet:
    """Read the description of an engine; the segments are not verified (`verify_files`).

    Raises:
        RunnerError: There is none, it is damaged, or a newer edgekit wrote it; the message names the field.
    """
    path = folder / ENGINE_JSON
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JSON + 1)
    except FileNotFoundError:
        raise RunnerError(f"{folder} has no engine: it has no {ENGINE_JSON}", hint=_AGAIN) from None
    except OSError as error:
        raise RunnerError(f"cannot read {path}: {error.strerror}") from error
    return parse_engine_set(text, str(path))


def parse_engine_set(text: bytes, path: str) -> EngineSet:
    """Parse the description of an engine.

    Args:
        text: The content of `engine.json`.
        path: What to call it in messages.

    Raises:
        RunnerError: It is damaged, or a newer edgekit wrote it.
    """
    try:
        data = json.loads(text[:_MAX_JSON])
    except (ValueError, RecursionError) as error:
        raise RunnerError(f"{path} is not JSON: {error}", hint=_AGAIN) from error
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise RunnerError(f"{path} has no `format`", hint=_AGAIN)
    if data["format"] > FORMAT:
        raise RunnerError(
            f"{path} has format {data['format']}; this edgekit reads {FORMAT}", hint=f"update edgekit, or {_AGAIN}"
        )
    if data.pop("digest", None) != _digest(data):
        raise RunnerError(f"{path} was changed: its digest does not match", hint=_AGAIN)
    try:
        return _engine_set(data)
    except _FieldError as error:
        raise RunnerError(f"{path}: {error}", hint=_AGAIN) from None


def verify_files(folder: Path, engine: EngineSet, progress: Callable[[int], None] | None = None) -> None:
    """Check the size and the SHA-256 of every segment.

    Args:
        folder: The engine's folder.
        engine: Its description.
        progress: Called with the number of bytes of each chunk hashed.

    Raises:
        RunnerError: A segment is missing, damaged, or not a regular file.
    """
    for segment in engine.segments:
        path = folder / segment.file
        if path.is_symlink() or not path.is_file():
            raise RunnerError(f"{path} is missing or not a regular file", hint=_AGAIN)
        if path.stat().st_size != segment.size:
            raise RunnerError(f"{path} has {path.stat().st_size} bytes instead of {segment.size}", hint=_AGAIN)
    for segment in engine.segments:
        path = folder / segment.file
        try:
            _, sha256 = hash_file(path, progress)
        except OSError as error:
            raise RunnerError(f"{path} cannot be read: {error.strerror}", hint=_AGAIN) from error
        if sha256 != segment.sha256:
            raise RunnerError(f"{path} is damaged: its SHA-256 is {sha256[:12]}…", hint=_AGAIN)


def _digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a description, so that a flipped bit in it is detected too."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


class _FieldError(Exception):
    """A field is missing, or not what it should be."""


def _engine_set(data: Mapping[str, Any]) -> EngineSet:
    profiles = tuple(Profile(_number(item, "batch"), _number(item, "tokens")) for item in _objects(data, "profiles"))
    segments = tuple(map(_segment, _objects(data, "segments")))
    if not profiles or not segments:
        raise _FieldError("it has no profile or no segment")
    if len({segment.file for segment in segments}) != len(segments):
        raise _FieldError("two segments have the same file")
    digest = _text(data, "graph_sha256")
    if digest and not _SHA256.fullmatch(digest):
        raise _FieldError("`graph_sha256` is not a SHA-256")
    return EngineSet(
        library=_text(data, "library"),
        version=_text(data, "version"),
        compute_capability=_text(data, "compute_capability"),
        built_for=_text(data, "built_for"),
        dialect=_text(data, "dialect"),
        layout=_number(data, "layout"),
        graph_sha256=digest,
        context_length=_number(data, "context_length"),
        workspace_bytes=_number(data, "workspace_bytes"),
        profiles=profiles,
        segments=segments,
    )


def _segment(data: Mapping[str, Any]) -> EngineSegment:
    file, sha256 = _text(data, "file"), _text(data, "sha256")
    # A path could leave the folder.
    if not SEGMENT_NAME.fullmatch(file):
        raise _FieldError(f"`{file[:40]}` is not the name of a segment")
    if not _SHA256.fullmatch(sha256):
        raise _FieldError(f"`{file}` has no SHA-256")
    return EngineSegment(
        file=file,
        size=_number(data, "size"),
        sha256=sha256,
        first_layer=None if data.get("first_layer") is None else _number(data, "first_layer"),
        last_layer=None if data.get("last_layer") is None else _number(data, "last_layer"),
        boundary=None if data.get("boundary") is None else _text(data, "boundary"),
        inputs=_texts(data, "inputs"),
        outputs=_texts(data, "outputs"),
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise _FieldError(f"`{key}` is not a text")
    return value


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _FieldError(f"`{key}` is not a list of texts")
    return tuple(value)


def _number(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _FieldError(f"`{key}` is not a whole number")
    return value


def _objects(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _FieldError(f"`{key}` is not a list of objects")
    return value
