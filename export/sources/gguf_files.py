"""Chooses a GGUF model among the files of a repository by the name of its quantization, as Ollama and llama.cpp do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekit.errors import ExportError

__all__ = ["choose_gguf", "quantizations"]

_SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32|FP32))$", re.IGNORECASE)
# Files beside a model that are none: the image encoder of another one, and calibration statistics.
_NOT_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)
# What llama.cpp and Ollama take if no quantization is named.
_DEFAULT = "Q4_K_M"


def quantizations(names: Iterable[str]) -> dict[str, list[tuple[str, ...]]]:
    """Group the GGUF models among files by quantization.

    Args:
        names: Paths in a repository.

    Returns:
        By quantization (a file's name where it states none), the models' files, each in the order of its parts.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not _NOT_MODELS.search(name.rpartition("/")[2]):
            models.setdefault(_SPLIT.sub("", name), []).append(name)
    found: dict[str, list[tuple[str, ...]]] = {}
    for model, files in models.items():
        stem = model.rpartition("/")[2][: -len(".gguf")]
        match = _QUANTIZATION.search(stem)
        found.setdefault(match[1].upper() if match else stem, []).append(tuple(files))
    return found


def choose_gguf(
    hub_id: str, names: Iterable[str], *, tag: str | None = None, file: str | None = None
) -> tuple[str, ...] | None:
    """Choose the files of one GGUF model.

    Args:
        hub_id: The repository, for messages.
        names: Paths of its files.
        tag: Quantization, or a file's name; None takes `Q4_K_M` if there are several.
        file: Path of one of its files, any part of a split one; it takes precedence.

    Returns:
        Their paths, in the order of their parts; None if the repository has no GGUF model and none was named.

    Raises:
        ExportError: There is no such model, or several.
    """
    found = quantizations(names)
    if file is not None:
        models = [files for models in found.values() for files in models if file in files]
        if not models:
            raise ExportError(f"{hub_id} has no file {file}", hint=_known(found), code="unknown_model")
        return models[0]
    if not found and tag is None:
        return None
    wanted = tag or (next(iter(found)) if len(found) == 1 else _DEFAULT)
    models = found.get(wanted.upper()) or [
        files for label, models in found.items() for files in models if _matches(wanted, label, files)
    ]
    if not models:
        what = f"no quantization `{tag}`" if tag else f"several quantizations, and none is {_DEFAULT}"
        raise ExportError(f"{hub_id} has {what}", hint=_known(found, hub_id), code="unknown_model")
    if len(models) > 1:
        paths = ", ".join(files[0] for files in models[:8])
        raise ExportError(
            f"{hub_id} has several models with the quantization {wanted}: {paths}",
            hint=f"name one by its address: https://huggingface.co/{hub_id}/blob/main/{models[0][0]}",
            code="unknown_model",
        )
    return models[0]


def _matches(wanted: str, label: str, files: tuple[str, ...]) -> bool:
    names = {label, label.removeprefix("UD-"), *(part.rpartition("/")[2] for part in files)}
    return wanted.lower() in {name.lower() for name in (*names, *(name.removesuffix(".gguf") for name in names))}


def _known(found: dict[str, list[tuple[str, ...]]], hub_id: str = "") -> str:
    if not found:
        return "it has no GGUF model"
    first = min(found)
    example = f"; name one: {hub_id}:{first}" if hub_id else ""
    return f"it has {', '.join(sorted(found))}{example}"
