"""Checks that a checkpoint has exactly the tensors that its configuration describes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.quantization.grid import as_floats

__all__ = ["MISSING", "check_tensors"]

MISSING = "a file may be missing, or this is an adapter or another kind of model"
"""The hint for a tensor that a checkpoint lacks."""

# Rows compared at a time.
_ROWS = 4096


def check_tensors(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors do not match its configuration, before any work is done.

    Raises:
        ExportError: A tensor is missing, has another shape, or is not used.
    """
    present = checkpoint.tensors
    expected = decoder.tensor_shapes()
    for name, shape in expected.items():
        if name not in present:
            raise ExportError(f"the checkpoint has no tensor `{name}`", hint=_hint(name, decoder))
        if present[name].shape != shape:
            raise ExportError(f"tensor `{name}` has shape {present[name].shape}; the configuration gives {shape}")
    # An unread tensor would change answers silently: a bias that the configuration does not mention, for example.
    ignorable = {decoder.head.weight} if decoder.tied else set()
    unused = sorted(
        name
        for name in present
        if name not in expected
        and name not in ignorable
        and "rotary_emb" not in name
        and not _is_zero_bias(checkpoint, name)
    )
    if unused:
        raise ExportError(
            f"the checkpoint has tensors this architecture does not use: {', '.join(unused[:3])}"
            + (f" and {len(unused) - 3} more" if len(unused) > 3 else ""),
            hint=f"is it really a `{decoder.model_type}` model?",
        )
    if decoder.tied and decoder.head.weight in present:
        _check_head(decoder, checkpoint)


def _hint(name: str, decoder: Decoder) -> str:
    if name == decoder.head.weight:
        return f"{MISSING}. If the embedding is the head, set `tie_word_embeddings` to true in config.json"
    return MISSING


def _is_zero_bias(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is an all-zero bias: AutoGPTQ stores one for every layer, whether the model has it or not."""
    if not name.endswith(".bias") or len(checkpoint.tensors[name].shape) != 1:
        return False
    return not np.count_nonzero(as_floats(checkpoint.read(name)))


def _check_head(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Refuse a stored head that differs from the embedding to which it is tied.

    transformers 4 uses the embedding and drops the stored head; transformers 5 uses the stored head.
    """
    head, embedding = decoder.head.weight, decoder.embedding.weight
    if checkpoint.tensors[head].shape == checkpoint.tensors[embedding].shape:

        def rows(name: str, start: int) -> npt.NDArray[np.float32]:
            return as_floats(checkpoint.read(name, start, min(start + _ROWS, decoder.vocab_size)))

        starts = range(0, decoder.vocab_size, _ROWS)
        if all(np.array_equal(rows(head, start), rows(embedding, start)) for start in starts):
            return
    raise ExportError(
        f"config.json ties the output head to the embedding, but `{head}` is another matrix",
        hint="set `tie_word_embeddings` to false if the model was trained with its own head, "
        f"else remove `{head}` from the checkpoint",
    )
