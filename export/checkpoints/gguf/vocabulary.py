"""The base class of GGUF vocabularies: tokens, token types, special tokens, the frame of a `tokenizer.json`.

Source of the keys: ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgekit.errors import ExportError
from edgekit.export.checkpoints.end_tokens import AddedToken, end_tokens
from edgekit.export.checkpoints.fixes import TextFixes

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "USER_DEFINED", "Json", "Vocabulary"]

Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Vocabulary:
    """One file's vocabulary.

    Args:
        metadata: The file's key-value pairs.
        file: The file's name, for messages.
        vocab_size: Rows of the embedding.

    Raises:
        ExportError: It is unsupported or damaged.
    """

    def __init__(self, metadata: Mapping[str, Any], file: str, vocab_size: int) -> None:
        self._metadata = metadata
        self._file = file
        self._check_kind()
        self.tokens = self._strings("tokens")
        if not 0 < len(self.tokens) <= vocab_size:
            raise self._damaged(f"{len(self.tokens)} tokens for an embedding of {vocab_size} rows")
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self._damaged("a token appears twice")
        self.types = self._types()

    def tokenizer_json(self) -> bytes:
        """The contents of `tokenizer.json`, checked by loading it."""
        first_added, end = self._tail()
        added = [
            {
                "id": number,
                "content": self.tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[number] == CONTROL,
            }
            for number in range(end)
            if self.types[number] in (CONTROL, USER_DEFINED)
        ]
        empty: Json = {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
        }
        document: Json = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            **self._pipeline(),
            "model": {**empty, **self._model(self._first_added(first_added))},
        }
        text = json.dumps(document, ensure_ascii=False)
        try:
            built = Tokenizer.from_str(text)
            moved = next((token for token in added if built.token_to_id(str(token["content"])) != token["id"]), None)
        except Exception as error:  # the library raises bare Exception
            raise self._damaged(" ".join(str(error).split())[:200]) from error
        if moved is not None:
            raise self._damaged(f"special token `{moved['content']}` cannot keep its id {moved['id']}")
        return text.encode()

    def special(self, fixes: TextFixes) -> dict[str, str]:
        """`bos_token`, `eos_token`, `pad_token`, `unk_token`, as strings."""
        found: dict[str, str | None] = {}
        for key, hf_key in (
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("padding", "pad_token"),
            ("unknown", "unk_token"),
        ):
            number = self._id(f"{key}_token_id")
            if number is not None:
                found[hf_key] = self.tokens[number]
        found |= dict(fixes.special)
        return {key: token for key, token in found.items() if token is not None}

    def eos_token_ids(self, fixes: TextFixes, template: str | None) -> tuple[int, ...]:
        """Every token that ends an answer, since the model may have been trained with any of them."""
        if fixes.eos_tokens:
            return tuple(self.ids[token] for token in fixes.eos_tokens if token in self.ids)
        stated = [self._id(f"{key}_token_id") for key in ("eos", "eot", "eom")]
        added = {
            token: AddedToken(number, special=kind == CONTROL)
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        }
        given = [number for number in stated if number is not None]
        found = end_tokens(given, added, template, self.special(fixes))
        if not found:
            raise self._damaged("it names no token that ends an answer")
        return found

    def _check_kind(self) -> None:
        """Refuse a vocabulary of another kind, before reading anything else."""
        raise NotImplementedError

    def _pipeline(self) -> Json:
        """`normalizer`, `pre_tokenizer`, `post_processor` and `decoder`."""
        raise NotImplementedError

    def _model(self, first_added: int) -> Json:
        """The BPE model over the tokens before `first_added`."""
        raise NotImplementedError

    def _first_added(self, tail: int) -> int:
        """First token that is not in the BPE model; `tail` is the first that need not be."""
        return tail

    def _tail(self) -> tuple[int, int]:
        """Start and end of the special tokens at the end of the vocabulary.

        They are left out of the BPE model, so that merging never produces one. After them come the unused rows that
        pad an embedding to a round number.
        """
        end = len(self.types)
        while end and self.types[end - 1] == UNUSED:
            end -= 1
        start = end
        while start and self.types[start - 1] in (CONTROL, USER_DEFINED):
            start -= 1
        return start, end

    def _bos_processor(self, plain: Json | None, *, default: bool) -> Json | None:
        """Return a post-processor that prepends the BOS token if the file says so, else `plain`."""
        bos = self._id("bos_token_id")
        if self._metadata.get("tokenizer.ggml.add_bos_token", default) is not True or bos is None:
            return plain
        token = self.tokens[bos]
        start: Json = {"SpecialToken": {"id": token, "type_id": 0}}
        first: Json = {"Sequence": {"id": "A", "type_id": 0}}
        second: Json = {"Sequence": {"id": "B", "type_id": 1}}
        template: Json = {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, start | {"SpecialToken": {"id": token, "type_id": 1}}, second],
            "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
        }
        return template if plain is None else {"type": "Sequence", "processors": [plain, template]}

    def _types(self) -> list[int]:
        types = self._metadata.get("tokenizer.ggml.token_type")
        if types is None:
            return [NORMAL] * len(self.tokens)
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(self.tokens):
            raise self._damaged("it does not have one type per token")
        return [int(kind) for kind in types]

    def _strings(self, key: str) -> Sequence[str]:
        strings = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(strings, list):
            raise self._damaged(f"it has no {key}")
        return strings

    def _id(self, key: str) -> int | None:
        number = self._metadata.get(f"tokenizer.ggml.{key}")
        if number is None or number in (-1, 0xFFFFFFFF):
            return None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(self.tokens):
            raise self._damaged(f"`{key}` is {str(number)[:40]}, which is not a token id")
        return number

    def _damaged(self, why: str) -> ExportError:
        return ExportError(f"the tokenizer of {self._file} is damaged: {why}", hint="fetch the file again")
