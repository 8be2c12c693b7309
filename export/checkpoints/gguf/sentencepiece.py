"""Converts a SentencePiece BPE vocabulary in GGUF to a `tokenizer.json` (Llama 2, Mistral, TinyLlama, Phi-3, Gemma).

SentencePiece has a score per piece and repeatedly merges the two neighbours whose merge scores highest. The
`tokenizers` library merges by a ranked list of pairs: here, all ways to merge a piece from two others, best score
first. Unknown characters become bytes.

Sources: google/sentencepiece's `bpe_model.cc`, and ggml's `docs/gguf.md` for the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit.errors import ExportError
from edgekit.export.checkpoints.gguf.vocabulary import BYTE, NORMAL, UNKNOWN, USER_DEFINED, Json, Vocabulary

__all__ = ["SentencePieceVocabulary"]

_SPACE = "▁"


class SentencePieceVocabulary(Vocabulary):
    """Tokens with scores (`tokenizer.ggml.model: llama`)."""

    def _check_kind(self) -> None:
        """Require one finite score per token."""
        scores: Any = self._metadata.get("tokenizer.ggml.scores")
        tokens: Any = self._metadata.get("tokenizer.ggml.tokens")
        typed = isinstance(scores, np.ndarray) and scores.dtype.kind == "f" and isinstance(tokens, list)
        if not typed or len(scores) != len(tokens) or not np.isfinite(scores).all():
            raise ExportError(
                f"the tokenizer of {self._file} is damaged: it does not have one finite score per token",
                hint="fetch the file again",
            )

    def _first_added(self, _tail: int) -> int:
        """Every token stays in the model: special tokens appear in no pair, so merging never gives one."""
        return len(self.tokens)

    def _pipeline(self) -> Json:
        """Replace spaces with `▁` before encoding, and undo it after decoding."""
        prefix = self._metadata.get("tokenizer.ggml.add_space_prefix", True) is True
        spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        normalizers: list[Json] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
        decoders: list[Json] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*normalizers, spaces]},
            "pre_tokenizer": None,
            "post_processor": self._bos_processor(None, default=True),
            "decoder": {"type": "Sequence", "decoders": decoders},
        }

    def _model(self, first_added: int) -> Json:
        unknown = next((token for token, kind in zip(self.tokens, self.types, strict=True) if kind == UNKNOWN), None)
        return {
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": any(kind == BYTE for kind in self.types),
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(self.tokens[:first_added])},
            "merges": self._merges(),
        }

    def _merges(self) -> list[list[str]]:
        scores: Any = self._metadata["tokenizer.ggml.scores"]
        found = sorted(
            (-float(scores[merged]), -len(left), left, right) for merged, left, right in self._splits()
        )  # the longer left piece first, as it was merged first
        return [[left, right] for _, _, left, right in found]

    def _splits(self) -> Iterator[tuple[int, str, str]]:
        """Every way to split a piece into two others."""
        plain = {
            token: number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            # Runs of spaces and line feeds are "user defined" in some vocabularies, and still merged from pieces.
            if kind == NORMAL or (kind == USER_DEFINED and not token.strip(_SPACE + "\n"))
        }
        for token, number in plain.items():
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in plain and right in plain:
                    yield number, left, right
