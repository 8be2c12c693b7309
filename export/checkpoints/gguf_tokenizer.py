"""The tokenizer inside a GGUF file, as a `tokenizer.json` of the `tokenizers` library.

GGUF keeps a byte-level BPE's tokens and merges, and only names the way text is split before (`tokenizer.ggml.pre`);
the splits stand here. Source: the published `tokenizer.json` of the models named, and llama.cpp's `llama-vocab.cpp`
for `default`. SentencePiece vocabularies are `gguf_sentencepiece`'s affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.checkpoints.gguf_sentencepiece import SentencePieceVocabulary
from edgekit.export.checkpoints.gguf_vocabulary import Json, Vocabulary

__all__ = ["PRE_TOKENIZERS", "build_tokenizer"]


def _bytes(*, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _cl100k(digits: str) -> str:
    """The split that GPT-4's tokenizer introduced; models differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_LLAMA3 = _sequence(_split(_cl100k(r"\p{N}{1,3}")), _bytes(use_regex=False))
PRE_TOKENIZERS: dict[str, Json] = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": _sequence(_DIGITS, _bytes(use_regex=True)),
    "qwen2": _sequence(_split(_cl100k(r"\p{N}")), _bytes(use_regex=False)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    # What llama.cpp does for a vocabulary it knows nothing of.
    "default": _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _bytes(use_regex=False),
    ),
}
"""By the name in `tokenizer.ggml.pre`."""

_NORMALIZERS: dict[str, Json] = {"qwen2": {"type": "NFC"}}
# These take a piece that is a token as it stands, whatever the merges say.
_WHOLE_TOKENS_FIRST = {"llama-bpe", "llama3", "llama-v3"}


def build_tokenizer(metadata: Mapping[str, Any], file: str, vocab_size: int, fixes: TextFixes) -> TokenizerFiles:
    """Build the text side of a checkpoint.

    Args:
        metadata: The file's key-value pairs.
        file: The file's name, for messages.
        vocab_size: Rows of the embedding.
        fixes: The catalogue's corrections.

    Raises:
        ExportError: The file carries no tokenizer, one of a kind edgekit does not know, or a damaged one.
    """
    kind = metadata.get("tokenizer.ggml.model")
    vocabulary = (SentencePieceVocabulary if kind == "llama" else _ByteLevelVocabulary)(metadata, file, vocab_size)
    special = vocabulary.special(fixes)
    return TokenizerFiles(
        tokenizer_json=vocabulary.tokenizer_json(),
        chat_template=_template(metadata, file, fixes),
        special=special,
        eos_token_ids=vocabulary.ends(fixes),
    )


class _ByteLevelVocabulary(Vocabulary):
    """Tokens with merges (`tokenizer.ggml.model: gpt2`)."""

    def _check_kind(self) -> None:
        kind = self._metadata.get("tokenizer.ggml.model")
        if kind is None:
            raise ExportError(f"{self._file} carries no tokenizer", hint="export the model from its safetensors")
        if kind != "gpt2":
            raise ExportError(
                f"{self._file} has the `{str(kind)[:40]}` tokenizer, which edgekit does not read from GGUF",
                hint="export the model from its safetensors, which carry tokenizer.json",
                code="unsupported_tokenizer",
            )
        pre = self._metadata.get("tokenizer.ggml.pre", "default")
        if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
            raise ExportError(
                f"{self._file} splits text as `{str(pre)[:40]}` does, which edgekit does not know",
                hint=f"known: {', '.join(sorted(PRE_TOKENIZERS))}; export the model from its safetensors",
                code="unsupported_tokenizer",
            )
        self.pre = pre

    def _around(self) -> Json:
        plain = _bytes(use_regex=True) | {"trim_offsets": False}
        return {
            "normalizer": _NORMALIZERS.get(self.pre),
            "pre_tokenizer": PRE_TOKENIZERS[self.pre],
            "post_processor": self._bos_first(plain, default=self.pre in _WHOLE_TOKENS_FIRST),
            "decoder": _bytes(use_regex=True) | {"add_prefix_space": True},
        }

    def _model(self, first_added: int) -> Json:
        return {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": self.pre in _WHOLE_TOKENS_FIRST,
            "vocab": {token: number for number, token in enumerate(self.tokens[:first_added])},
            "merges": self._merges(first_added),
        }

    def _merges(self, limit: int) -> list[list[str]]:
        pairs: list[list[str]] = []
        for merge in self._strings("merges"):
            pair = merge.split(" ")
            if len(pair) != 2 or any(self.ids.get(part, limit) >= limit for part in (*pair, "".join(pair))):
                raise self._damaged(f"merge `{merge[:60]}` is not of two tokens into a third")
            pairs.append(pair)
        return pairs


def _template(metadata: Mapping[str, Any], file: str, fixes: TextFixes) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ExportError(f"the chat template of {file} is not text")
    if template is None:
        return None
    for old, new in fixes.replace:
        template = template.replace(old, new)
    found = hashlib.sha256(template.encode()).hexdigest()
    if fixes.template_sha256 not in (None, found):
        raise ExportError(f"the chat template of {file} is not the one the catalogue knows", hint="report this")
    return template
