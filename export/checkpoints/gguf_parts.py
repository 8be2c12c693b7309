"""A GGUF model in several files, as `llama-gguf-split` makes them: any part stands for all.

Source: `tools/gguf-split` in the llama.cpp repository. Parts are named `model-00001-of-00003.gguf`; each says which
it is (`split.no`, from 0) and of how many (`split.count`), the first holds the metadata, and all tensors together
are `split.tensors.count`. A file that is whole is a series of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import DOWNLOAD_AGAIN, BoundedFile
from edgekit.export.checkpoints.gguf_container import Container, read_container

__all__ = ["one_model", "open_parts", "stem_of"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_parts(path: Path) -> tuple[list[BoundedFile], Container]:
    """Open a GGUF model by one of its files.

    Returns:
        Its files in order, which the caller closes, and what they hold together.

    Raises:
        ExportError: One is missing or damaged, or is no part of this model.
    """
    files: list[BoundedFile] = []
    try:
        files += map(BoundedFile, _series(path))
        parts = [read_container(file) for file in files]
        _check(files, parts)
    except BaseException:
        for file in files:
            file.close()
        raise
    return files, Container(parts[0].metadata, tuple(tensor for part in parts for tensor in part.tensors))


def one_model(paths: Iterable[Path]) -> Path | None:
    """Return the first file of the model that these GGUF files are; None if they are none or several models."""
    ordered = sorted(paths)
    whole = {path.with_name(f"{stem_of(path)}.gguf") for path in ordered}
    return ordered[0] if len(whole) == 1 else None


def stem_of(path: Path) -> str:
    """The model's part of a file name: without `.gguf` and without the part's number."""
    match = _PART.fullmatch(path.name)
    return match["stem"] if match else path.stem


def _series(path: Path) -> Sequence[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise ExportError(f"{path} is named as a part that there cannot be")
    paths = []
    for number in range(1, count + 1):
        paths.append(path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf"))
        if not paths[-1].exists():
            raise ExportError(f"{paths[-1]} is missing, a part of the model", hint=DOWNLOAD_AGAIN)
    return paths


def _check(files: Sequence[BoundedFile], parts: Sequence[Container]) -> None:
    """Refuse files that are not, in this order, the parts of one model."""
    if len(files) == 1:
        # llama.cpp takes a count of 0 as that of a whole file, too.
        if _stated(parts[0], "split.count", 1) not in (0, 1):
            raise ExportError(
                f"{files[0].name} is one part of a split GGUF file",
                hint="put its parts in one folder, under their own names: model-00001-of-00003.gguf and so on",
            )
        return
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        if (_stated(part, "split.no", -1), _stated(part, "split.count", -1)) != (number, len(files)):
            raise ExportError(
                f"{file.name} does not say that it is part {number + 1} of {len(files)}",
                hint="was it renamed? fetch it again",
            )
    present = sum(len(part.tensors) for part in parts)
    promised = _stated(parts[0], "split.tensors.count", present)
    if promised != present:
        raise ExportError(
            f"the parts of {files[0].name} hold {present} tensors and not {promised}", hint=DOWNLOAD_AGAIN
        )


def _stated(part: Container, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    return value if type(value) is int else -1
