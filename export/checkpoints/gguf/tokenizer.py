"""Converts the tokenizer of a GGUF file to a `tokenizer.json` of the `tokenizers` library.

GGUF stores the tokens and merges of a byte-level BPE, and only the name of its pre-tokenizer (`tokenizer.ggml.pre`);
the pre-tokenizers are defined here. Source: the published `tokenizer.json` of the models named, and llama.cpp's
`llama-vocab.cpp` for `default`. `sentencepiece` converts SentencePiece vocabularies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.checkpoints.gguf.sentencepiece import SentencePieceVocabulary
from edgekit.export.checkpoints.gguf.vocabulary import Json, Vocabulary
from edgekit.export.checkpoints.sampling import gguf_sampling

__all__ = ["PRE_TOKENIZERS", "build_tokenizer"]


def _bytes(*, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _cl100k(digits: str) -> str:
    """The split pattern that GPT-4's tokenizer introduced; models differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _cased(contraction: str, digits: str) -> str:
    """The split pattern of GPT-4o's tokenizer, which also splits before capitals within a word."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (
        f"{start}{upper}*{lower}+{contraction}|{start}{upper}+{lower}*{contraction}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_LLAMA3 = _sequence(_split(_cl100k(r"\p{N}{1,3}")), _bytes(use_regex=False))
_QWEN2 = _sequence(_split(_cl100k(r"\p{N}")), _bytes(use_regex=False))
PRE_TOKENIZERS: dict[str, Json] = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": _sequence(_DIGITS, _bytes(use_regex=True)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "gpt-4o": _sequence(_split(_cased(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")), _bytes(use_regex=False)),
    "tekken": _sequence(_split(_cased("", r"\p{N}")), _bytes(use_regex=False)),
    # llama.cpp's fallback for an unknown vocabulary.
    "default": _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _bytes(use_regex=False),
    ),
}
"""By the name in `tokenizer.ggml.pre`."""

_TEMPLATE = "tokenizer.chat_template"
_NORMALIZERS: dict[str, Json] = {"qwen2": {"type": "NFC"}}
# These take a pre-token that is a token as one, without applying merges, and begin with BOS unless the file differs.
_IGNORE_MERGES = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}


def build_tokenizer(metadata: Mapping[str, Any], file: str, vocab_size: int, fixes: TextFixes) -> TokenizerFiles:
    """Build the tokenizer and chat template of a checkpoint.

    Args:
        metadata: The file's key-value pairs.
        file: The file's name, for messages.
        vocab_size: Rows of the embedding.
        fixes: The catalogue's corrections.

    Raises:
        ExportError: The file has no tokenizer, an unsupported one, or a damaged one.
    """
    kind = metadata.get("tokenizer.ggml.model")
    vocabulary = (SentencePieceVocabulary if kind == "llama" else _ByteLevelVocabulary)(metadata, file, vocab_size)
    template = _template(metadata, file, fixes)
    tool_template = _string(metadata, f"{_TEMPLATE}.tool_use", file)
    sampling, notes = gguf_sampling(metadata, file)
    notes += [
        f"the chat template `{name}` is left out: edgekit uses `default` and `tool_use`"
        for name in sorted(key.removeprefix(f"{_TEMPLATE}.") for key in metadata if key.startswith(f"{_TEMPLATE}."))
        if name != "tool_use"
    ]
    return TokenizerFiles(
        tokenizer_json=vocabulary.tokenizer_json(),
        chat_template=template,
        tool_template=tool_template,
        special=vocabulary.special(fixes),
        eos_token_ids=vocabulary.eos_token_ids(fixes, template),
        sampling=sampling,
        notes=tuple(notes),
    )


class _ByteLevelVocabulary(Vocabulary):
    """Tokens with merges (`tokenizer.ggml.model: gpt2`)."""

    def _check_kind(self) -> None:
        kind = self._metadata.get("tokenizer.ggml.model")
        if kind is None:
            raise ExportError(f"{self._file} has no tokenizer", hint="export the model from its safetensors")
        if kind != "gpt2":
            raise ExportError(
                f"{self._file} has the `{str(kind)[:40]}` tokenizer, which edgekit does not read from GGUF",
                hint="export the model from its safetensors, which come with tokenizer.json",
                code="unsupported_tokenizer",
            )
        pre = self._metadata.get("tokenizer.ggml.pre", "default")
        if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
            raise ExportError(
                f"{self._file} uses the pre-tokenizer `{str(pre)[:40]}`, which edgekit does not support",
                hint=f"supported: {', '.join(sorted(PRE_TOKENIZERS))}; export the model from its safetensors",
                code="unsupported_tokenizer",
            )
        self.pre = pre

    def _pipeline(self) -> Json:
        plain = _bytes(use_regex=True) | {"trim_offsets": False}
        return {
            "normalizer": _NORMALIZERS.get(self.pre),
            "pre_tokenizer": PRE_TOKENIZERS[self.pre],
            "post_processor": self._bos_processor(plain, default=self.pre in _IGNORE_MERGES),
            "decoder": _bytes(use_regex=True) | {"add_prefix_space": True},
        }

    def _model(self, first_added: int) -> Json:
        return {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": self.pre in _IGNORE_MERGES,
            "vocab": {token: number for number, token in enumerate(self.tokens[:first_added])},
            "merges": self._merges(first_added),
        }

    def _merges(self, limit: int) -> list[list[str]]:
        pairs: list[list[str]] = []
        for merge in self._strings("merges"):
            pair = merge.split(" ")
            if len(pair) != 2 or any(self.ids.get(part, limit) >= limit for part in (*pair, "".join(pair))):
                raise self._damaged(f"merge `{merge[:60]}` does not join two tokens into a third")
            pairs.append(pair)
        return pairs


def _template(metadata: Mapping[str, Any], file: str, fixes: TextFixes) -> str | None:
    template = _string(metadata, _TEMPLATE, file)
    if template is None:
        return None
    for old, new in fixes.replace:
        template = template.replace(old, new)
    found = hashlib.sha256(template.encode()).hexdigest()
    if fixes.template_sha256 not in (None, found):
        raise ExportError(f"the chat template of {file} does not match the catalogue", hint="report this")
    return template


def _string(metadata: Mapping[str, Any], key: str, file: str) -> str | None:
    template = metadata.get(key)
    if template is not None and not isinstance(template, str):
        raise ExportError(f"the chat template of {file} is not a string")
    return template
