"""Opens a GGUF model that `llama-gguf-split` split into several files, by any one of them.

Source: `tools/gguf-split` in the llama.cpp repository. Parts are named `model-00001-of-00003.gguf`; each states its
index (`split.no`, from 0) and the number of parts (`split.count`), the first has the metadata, and
`split.tensors.count` is the number of tensors in all parts. An unsplit file is a series of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.errors import ExportError
from edgekit.export.checkpoints.files import DOWNLOAD_AGAIN, BoundedFile
from edgekit.export.checkpoints.gguf.container import Container, read_container

__all__ = ["open_shards", "single_model", "stem_of"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_shards(path: Path) -> tuple[list[BoundedFile], Container]:
    """Open a GGUF model by one of its files.

    Returns:
        Its files in order, which the caller closes, and their combined contents.

    Raises:
        ExportError: A file is missing or damaged, or is not part of this model.
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


def single_model(paths: Iterable[Path]) -> Path | None:
    """Return the first file of the one model in these GGUF files; None if they are no model or several."""
    ordered = sorted(paths)
    models = {path.with_name(f"{stem_of(path)}.gguf") for path in ordered}
    return ordered[0] if len(models) == 1 else None


def stem_of(path: Path) -> str:
    """The model's name in a file name: without `.gguf` and the part number."""
    match = _PART.fullmatch(path.name)
    return match["stem"] if match else path.stem


def _series(path: Path) -> Sequence[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise ExportError(f"{path} has an impossible part number")
    paths = []
    for number in range(1, count + 1):
        paths.append(path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf"))
        if not paths[-1].exists():
            raise ExportError(f"{paths[-1]} is missing; it is part of the model", hint=DOWNLOAD_AGAIN)
    return paths


def _check(files: Sequence[BoundedFile], parts: Sequence[Container]) -> None:
    """Refuse files that are not, in this order, the parts of one model."""
    if len(files) == 1:
        # llama.cpp also takes a count of 0 to mean an unsplit file.
        if _stated(parts[0], "split.count", 1) not in (0, 1):
            raise ExportError(
                f"{files[0].name} is one part of a split GGUF file",
                hint="put its parts in one folder, under their own names: model-00001-of-00003.gguf and so on",
            )
        return
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        if (_stated(part, "split.no", -1), _stated(part, "split.count", -1)) != (number, len(files)):
            raise ExportError(
                f"{file.name} does not state that it is part {number + 1} of {len(files)}",
                hint="was it renamed? fetch it again",
            )
    present = sum(len(part.tensors) for part in parts)
    expected = _stated(parts[0], "split.tensors.count", present)
    if expected != present:
        raise ExportError(f"the parts of {files[0].name} have {present} tensors, not {expected}", hint=DOWNLOAD_AGAIN)


def _stated(part: Container, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    return value if type(value) is int else -1
