"""A deterministic model that fills in the middle, with the tokens of Qwen2.5-Coder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from edgekit.generation.chat.infill import find_fill_format
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.model import TextModel
from tests.generation.tiny import EchoRunner, byte_tokenizer, echo_model

__all__ = ["QWEN", "fill_model", "fill_tokenizer", "spaced_tokenizer"]

QWEN = (
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<|endoftext|>"),
)


def fill_tokenizer(*markers: str, special: bool = False) -> Tokenizer:
    """One token per byte, ChatML's, and these; Qwen's own are not special."""
    backend = byte_tokenizer().backend
    added = [AddedToken(text, special=special, normalized=False) for text in markers]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
    return Tokenizer(backend)


def spaced_tokenizer(*markers: str) -> Tokenizer:
    """A tokenizer that puts a space in front of each text, as SentencePiece does: Code Llama's."""
    chars = ["▁", "\n", *map(chr, range(33, 127))]
    backend = Backend(models.BPE(vocab={char: number for number, char in enumerate(chars)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(list(markers))
    return Tokenizer(backend)


class FillRunner(EchoRunner):
    """An `EchoRunner` that answers after a token in place of the start of a turn."""

    def __init__(self, tokenizer: Tokenizer, answer: str, opening: str, **options: Any) -> None:
        super().__init__(tokenizer, "", **options)
        # Unlike its parent's, the answer may have tokens that are written as text.
        self._answer = [*tokenizer.encode(answer), *tokenizer.encode("<|im_end|>")]
        self._opening = tokenizer.encode(opening)


def fill_model(
    answer: str, *, context_length: int = 1024, sequence_slots: int = 1, opening: str = "<|fim_middle|>"
) -> TextModel:
    """A text model that fills every gap with `answer`; tokens in it are tokens.

    Args:
        answer: The text.
        context_length: In tokens, which are bytes here.
        sequence_slots: Number of sequence slots.
        opening: The end of the prompts that are answered.
    """
    tokenizer = fill_tokenizer(*QWEN)
    model = echo_model(context_length=context_length)
    fill = find_fill_format(tokenizer)
    assert fill is not None
    return replace(
        model,
        info=replace(model.info, name="coder", capabilities=("completion", "insert"), fill_template=fill.template),
        tokenizer=tokenizer,
        runner=FillRunner(
            tokenizer,
            answer,
            opening,
            context_length=context_length,
            max_chunk=64,
            sequence_slots=sequence_slots,
        ),
        fill=fill,
    )
