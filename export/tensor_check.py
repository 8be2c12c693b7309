"""Whether a checkpoint holds the tensors that its configuration describes, and no others. It knows no target."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.quantization.grid import as_floats

__all__ = ["check_tensors"]

# Of two matrices that are compared, at a time.
_ROWS = 4096


def check_tensors(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors are not those its configuration describes, before any work is done.

    Raises:
        ExportError: One is missing, of another shape, or not used.
    """
    present = checkpoint.tensors
    expected = decoder.tensor_shapes()
    for name, shape in expected.items():
        if name not in present:
            raise ExportError(f"the checkpoint has no tensor `{name}`", hint=_hint(name, decoder))
        if present[name].shape != shape:
            raise ExportError(f"tensor `{name}` is shaped {present[name].shape}; the configuration says {shape}")
    # A tensor that nothing reads would change the answer silently: a bias the configuration does not mention, say.
    ignorable = {decoder.head.weight} if decoder.tied else set()
    strange = sorted(
        name
        for name in present
        if name not in expected
        and name not in ignorable
        and "rotary_emb" not in name
        and not _no_bias(checkpoint, name)
    )
    if strange:
        raise ExportError(
            f"the checkpoint has tensors this architecture does not use: {', '.join(strange[:3])}"
            + (f" and {len(strange) - 3} more" if len(strange) > 3 else ""),
            hint=f"is it really a `{decoder.model_type}` model?",
        )
    if decoder.tied and decoder.head.weight in present:
        _check_head(decoder, checkpoint)


def _hint(name: str, decoder: Decoder) -> str:
    if name == decoder.head.weight:
        return "is its head its embedding? Then config.json says `tie_word_embeddings: true`; else a shard is missing"
    return "is a shard missing?"


def _no_bias(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is a bias of zeros: AutoGPTQ stores one beside every layer, whether the model has it or not."""
    if not name.endswith(".bias") or len(checkpoint.tensors[name].shape) != 1:
        return False
    return not as_floats(checkpoint.read(name)).any()


def _check_head(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Refuse a head beside an embedding that is to be the head, unless they are the same.

    transformers 4 takes the embedding, and drops the other; transformers 5 takes the other.
    """
    head, embedding = decoder.head.weight, decoder.embedding.weight
    if checkpoint.tensors[head].shape == checkpoint.tensors[embedding].shape:

        def rows(name: str, start: int) -> npt.NDArray[np.float32]:
            return as_floats(checkpoint.read(name, start, min(start + _ROWS, decoder.vocab_size)))

        starts = range(0, decoder.vocab_size, _ROWS)
        if all(np.array_equal(rows(head, start), rows(embedding, start)) for start in starts):
            return
    raise ExportError(
        f"config.json says that the embedding is the output head, and `{head}` is another matrix",
        hint="set `tie_word_embeddings` to false there if the model was trained with a head of its own, "
        f"else take `{head}` out of the checkpoint",
    )
