"""`manifest.json`: a bundle's model, source, memory, compatible targets and files.

Unknown fields are kept, so that an old device accepts a newer bundle. A path in a manifest never leaves the bundle's
folder. The file begins with its own digest, the SHA-256 of its bytes with the digest's 64 digits replaced by zeros:
a flipped bit in the manifest is detected too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from edgekit.errors import BundleError, IncompatibleBundleError

__all__ = [
    "ENGINE_DIALECTS",
    "LAYOUTS",
    "MANIFEST_NAME",
    "SCHEMA",
    "Artifact",
    "FileEntry",
    "Manifest",
    "MemoryTable",
    "layout_of",
]

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
LAYOUTS = {"portable": 3, "native": 2}
"""By dialect: 2 reads the KV cache in place, where 1 sliced or transposed it in every step; 3 states every shape, for
want of which TensorRT reserved memory for the square of the context."""
ENGINE_DIALECTS = tuple(LAYOUTS)
"""Those that TensorRT builds."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEAD = re.compile(rb'\{\n  "digest": "([0-9a-f]{64})",\n')
_ZEROS = "0" * 64


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle.

    Attributes:
        path: Relative, with forward slashes.
        size: Bytes.
        sha256: 64 lower-case hexadecimal digits.
    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Reject paths outside the bundle, malformed digests and negative sizes."""
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path or "\0" in self.path:
            raise BundleError(f"{MANIFEST_NAME}: `{self.path}` is not a path inside the bundle")
        if path.as_posix() != self.path or self.path == MANIFEST_NAME:
            raise BundleError(f"{MANIFEST_NAME}: `{self.path}` is not the plain name of a file beside the manifest")
        if not _SHA256.fullmatch(self.sha256):
            raise BundleError(f"{MANIFEST_NAME}: `{self.path}` has no SHA-256 digest")
        if self.size < 0:
            raise BundleError(f"{MANIFEST_NAME}: `{self.path}` has a negative size")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files that a runner executes.

    Attributes:
        kind: `onnx` or `mlx`; selects the runner.
        dialect: For ONNX `onnxruntime`, `optimum`, `portable` or `native`; empty for MLX.
        layout: Version of the dialect's graphs: `LAYOUTS`.
    """

    kind: str
    dialect: str = ""
    layout: int = 1

    def check_layout(self) -> None:
        """Refuse a graph of a version that this edgekit does not run.

        Raises:
            IncompatibleBundleError: It has another layout.
        """
        known = layout_of(self.dialect)
        if self.layout != known:
            raise IncompatibleBundleError(
                f"the bundle's `{self.dialect}` graph has layout {self.layout}; this edgekit runs layout {known}",
                hint="export the model again" if self.layout < known else "update edgekit",
            )


def layout_of(dialect: str) -> int:
    """Return the version of a dialect's graphs that this edgekit writes and runs."""
    return LAYOUTS.get(dialect, 1)


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Memory that the bundle needs, in bytes.

    Attributes:
        weights: The artifact's weights as the runner stores them.
        kv_cache_per_token: KV cache per token and sequence slot in the target's preferred runner.
        read_per_token: Weights read to decode one token: all but the embedding table's other rows. None if unknown, as
            in bundles of older versions.
    """

    weights: int
    kv_cache_per_token: int
    read_per_token: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's manifest.

    Attributes:
        name: The model's name, as `/v1/models` shows it.
        created: UTC time of the export, ISO 8601.
        edgekit: edgekit version that wrote it.
        source: The checkpoint: its `id` and its `files` with size and SHA-256.
        architecture: Hugging Face `model_type`.
        parameters: Number of weights.
        recipe: Method, bits and group size, as the recipe reports them.
        quality: Quality figures, the fields of `edgekit.bundle.quality.Quality`; empty if not measured.
        context_length: Maximum sequence length in tokens.
        sampling: Sampling parameters for requests that state none, such as `temperature`; empty if the model has none.
        eos_token_ids: Tokens that end an answer.
        licence: SPDX identifier of the weights, or `unknown`.
        compatible: `compatible` strings of the targets that can run it.
        files: Every other file of the bundle.
        self_test: Its `file`, or `none` with the reason; empty in a bundle of an older version.
        extra: Unknown fields, from a newer edgekit.
    """

    name: str
    created: str
    edgekit: str
    source: Mapping[str, Any]
    architecture: str
    parameters: int
    artifact: Artifact
    recipe: Mapping[str, Any]
    context_length: int
    memory: MemoryTable
    eos_token_ids: tuple[int, ...]
    licence: str
    compatible: tuple[str, ...]
    files: tuple[FileEntry, ...]
    quality: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the content of `manifest.json`: the digest first, unknown fields included."""
        text = json.dumps({"digest": _ZEROS, **self.to_dict()}, indent=2, ensure_ascii=False) + "\n"
        return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain data, unknown fields included."""
        data = asdict(self)
        data.update(data.pop("extra"))
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read `manifest.json`.

        Raises:
            BundleError: Its digest is wrong, it is not JSON, or a field is missing or has the wrong type.
            IncompatibleBundleError: Its schema is newer than this version reads, or its graph has another layout.
        """
        head = _HEAD.match(text)
        if not head:
            raise BundleError(f"{MANIFEST_NAME} does not begin with its digest", hint="copy or export the bundle again")
        zeroed = text[: head.start(1)] + _ZEROS.encode() + text[head.end(1) :]
        if hashlib.sha256(zeroed).hexdigest().encode() != head[1]:
            raise BundleError(
                f"{MANIFEST_NAME} was changed: its digest does not match",
                hint="copy or export the bundle again",
            )
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST_NAME} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise BundleError(f"{MANIFEST_NAME} is not a JSON object")
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise BundleError(f"{MANIFEST_NAME} has no schema version")
        if schema > SCHEMA:
            raise IncompatibleBundleError(
                f"the bundle's schema is {schema}; this edgekit reads up to {SCHEMA}", hint="update edgekit"
            )
        known = {item.name for item in fields(cls)} - {"extra"} | {"digest"}
        try:
            manifest = cls(
                name=_as(data, "name", str),
                created=_as(data, "created", str),
                edgekit=_as(data, "edgekit", str),
                source=_as(data, "source", dict),
                architecture=_as(data, "architecture", str),
                parameters=_as(data, "parameters", int),
                artifact=Artifact(
                    kind=_as(_as(data, "artifact", dict), "kind", str),
                    dialect=str(data["artifact"].get("dialect", "")),
                    layout=_as({"layout": 1, **data["artifact"]}, "layout", int),
                ),
                recipe=_as(data, "recipe", dict),
                context_length=_as(data, "context_length", int),
                memory=MemoryTable(
                    weights=_as(_as(data, "memory", dict), "weights", int),
                    kv_cache_per_token=_as(data["memory"], "kv_cache_per_token", int),
                    read_per_token=_as(data["memory"], "read_per_token", int)
                    if data["memory"].get("read_per_token") is not None
                    else None,
                ),
                eos_token_ids=tuple(int(token) for token in _as(data, "eos_token_ids", list)),
                licence=_as(data, "licence", str),
                compatible=tuple(str(item) for item in _as(data, "compatible", list)),
                files=tuple(
                    FileEntry(_as(item, "path", str), _as(item, "size", int), _as(item, "sha256", str))
                    for item in _as(data, "files", list)
                ),
                quality=data.get("quality") or {},
                sampling=_as(data, "sampling", dict) if data.get("sampling") else {},
                self_test=_as(data, "self_test", dict) if data.get("self_test") else {},
                schema=schema,
                extra={key: value for key, value in data.items() if key not in known},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{MANIFEST_NAME}: {error}") from error
        manifest.artifact.check_layout()
        return manifest


def _as(data: Any, key: str, kind: type) -> Any:
    if not isinstance(data, dict) or key not in data:
        raise BundleError(f"{MANIFEST_NAME}: `{key}` is missing")
    value = data[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{MANIFEST_NAME}: `{key}` is not a {kind.__name__}")
    return value
