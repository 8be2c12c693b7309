"""Translates the names that tools around a model give its tensors to Hugging Face's.

`torch.compile`, `DataParallel` and PEFT wrap a model, and save its tensors under longer names; a model saved without
its output head lacks the leading `model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekit.errors import ExportError

__all__ = ["hf_names"]

# `_orig_mod` may also stand in the middle: layers are compiled one by one.
_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.)+|\b_orig_mod\.")
_LORA = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b")


def hf_names(names: Iterable[str]) -> dict[str, str]:
    """Return Hugging Face's name of each tensor, by the name it is stored under.

    Raises:
        ExportError: Two tensors get the same name, or a LoRA adapter is not merged into its model.
    """
    stored = list(names)
    lora = next((name for name in stored if _LORA.search(name)), None)
    if lora is not None:
        raise ExportError(
            f"the checkpoint has a LoRA adapter that is not merged into the model: `{lora}`",
            hint="merge it with PEFT's merge_and_unload() and save_pretrained()",
            code="unsupported_encoding",
        )
    found = {name: _unwrapped(name) for name in stored}
    if "embed_tokens.weight" in found.values():
        found = {name: hf if hf.startswith(("lm_head.", "model.")) else f"model.{hf}" for name, hf in found.items()}
    first: dict[str, str] = {}
    for name, hf in found.items():
        if first.setdefault(hf, name) != name:
            raise ExportError(f"the checkpoint has two tensors for `{hf}`: `{first[hf]}` and `{name}`")
    return found


def _unwrapped(name: str) -> str:
    while (shorter := _WRAPPERS.sub("", name)) != name:
        name = shorter
    return name
