"""A SentencePiece BPE vocabulary inside a GGUF file, as a `tokenizer.json` (Llama 2, Mistral, TinyLlama, Phi-3, Gemma).

SentencePiece keeps a score per piece and joins, step by step, the two neighbours whose join scores highest. The
`tokenizers` library joins by a list of pairs in order of rank: all ways to put a piece together from two others, best
score first, are that list. Unknown characters become bytes.

Sources: google/sentencepiece's `bpe_model.cc`, and ggml's `docs/gguf.md` for the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit.errors import ExportError
from edgekit.export.checkpoints.gguf_vocabulary import BYTE, NORMAL, UNKNOWN, USER_DEFINED, Json, Vocabulary

__all__ = ["SentencePieceVocabulary"]

_SPACE = "▁"


class SentencePieceVocabulary(Vocabulary):
    """Tokens with scores (`tokenizer.ggml.model: llama`)."""

    def _check_kind(self) -> None:
        """Scores are what makes it one."""
        scores: Any = self._metadata.get("tokenizer.ggml.scores")
        tokens: Any = self._metadata.get("tokenizer.ggml.tokens")
        whole = isinstance(scores, np.ndarray) and scores.dtype.kind == "f" and isinstance(tokens, list)
        if not whole or len(scores) != len(tokens) or not np.isfinite(scores).all():
            raise ExportError(
                f"the tokenizer of {self._file} is damaged: tokens and their scores are not equally many",
                hint="fetch the file again",
            )

    def _first_added(self, _tail: int) -> int:
        """Every token stays in the model: pieces that only text as a whole stands for are in no pair."""
        return len(self.tokens)

    def _around(self) -> Json:
        """How text becomes pieces and pieces become text."""
        prefix = self._metadata.get("tokenizer.ggml.add_space_prefix", True) is True
        spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        steps: list[Json] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
        back: list[Json] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*steps, spaces]},
            "pre_tokenizer": None,
            "post_processor": self._bos_first(None, default=True),
            "decoder": {"type": "Sequence", "decoders": back},
        }

    def _model(self, first_added: int) -> Json:
        unknown = next((token for token, kind in zip(self.tokens, self.types, strict=True) if kind == UNKNOWN), None)
        return {
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": any(kind == BYTE for kind in self.types),
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(self.tokens[:first_added])},
            "merges": self._pairs(),
        }

    def _pairs(self) -> list[list[str]]:
        scores: Any = self._metadata["tokenizer.ggml.scores"]
        found = sorted(
            (-float(scores[whole]), -len(left), left, right) for whole, left, right in self._splits()
        )  # the longer left piece first, as it came about first
        return [[left, right] for _, _, left, right in found]

    def _splits(self) -> Iterator[tuple[int, str, str]]:
        """Every way to make a piece of two others."""
        plain = {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            # Runs of spaces and line feeds are "user defined" in some vocabularies, and still made of pieces.
            if kind == NORMAL or (kind == USER_DEFINED and not token.strip(_SPACE + "\n"))
        }
        for token, number in plain.items():
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in plain and right in plain:
                    yield number, left, right
