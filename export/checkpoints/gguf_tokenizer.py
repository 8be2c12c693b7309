"""The tokenizer inside a GGUF file, as a `tokenizer.json` of the `tokenizers` library.

GGUF keeps a byte-level BPE's tokens and merges, and only names the way text is split before (`tokenizer.ggml.pre`);
the splits stand here. Source: the published `tokenizer.json` of the models named, and llama.cpp's `llama-vocab.cpp`
for `default`. SentencePiece vocabularies (`tokenizer.ggml.model: llama`) are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.fixes import TextFixes

__all__ = ["PRE_TOKENIZERS", "build_tokenizer"]

Json = dict[str, Any]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# Tokens that end an answer in some chat format, where the vocabulary has them as control tokens.
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)


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
    vocabulary = _Vocabulary(metadata, file, vocab_size)
    special = vocabulary.special(fixes)
    return TokenizerFiles(
        tokenizer_json=vocabulary.tokenizer_json(),
        chat_template=_template(metadata, file, fixes),
        special=special,
        eos_token_ids=vocabulary.ends(fixes),
    )


class _Vocabulary:
    def __init__(self, metadata: Mapping[str, Any], file: str, vocab_size: int) -> None:
        self._metadata = metadata
        self._file = file
        self._check_kind()
        self.pre = self._pre()
        self.tokens = self._strings("tokens")
        if not 0 < len(self.tokens) <= vocab_size:
            raise self._damaged(f"{len(self.tokens)} tokens for an embedding of {vocab_size} rows")
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self._damaged("a token stands in it twice")
        self.types = self._types()

    def tokenizer_json(self) -> bytes:
        """The contents of `tokenizer.json`, tried in the library."""
        added_from, end = self._tail()
        added = [
            {
                "id": number,
                "content": self.tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[number] == _CONTROL,
            }
            for number in range(end)
            if self.types[number] in (_CONTROL, _USER_DEFINED)
        ]
        document: Json = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": _NORMALIZERS.get(self.pre),
            "pre_tokenizer": PRE_TOKENIZERS[self.pre],
            "post_processor": self._post_processor(),
            "decoder": _bytes(use_regex=True) | {"add_prefix_space": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.pre in _WHOLE_TOKENS_FIRST,
                "vocab": {token: number for number, token in enumerate(self.tokens[:added_from])},
                "merges": self._merges(added_from),
            },
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
        """`bos_token`, `eos_token`, `pad_token`, `unk_token`, as text."""
        found: dict[str, str | None] = {}
        for key, ours in (
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("padding", "pad_token"),
            ("unknown", "unk_token"),
        ):
            number = self._id(f"{key}_token_id")
            if number is not None:
                found[ours] = self.tokens[number]
        found |= dict(fixes.special)
        return {key: token for key, token in found.items() if token is not None}

    def ends(self, fixes: TextFixes) -> tuple[int, ...]:
        """Every token that ends an answer: an answer must stop whichever of them the model was taught."""
        if fixes.eos_tokens:
            return tuple(self.ids[token] for token in fixes.eos_tokens if token in self.ids)
        stated = [self._id(f"{key}_token_id") for key in ("eos", "eot", "eom")]
        known = [self.ids[token] for token in _ENDS if token in self.ids]
        found = [number for number in stated if number is not None]
        found += [number for number in known if self.types[number] == _CONTROL]
        if not found:
            raise self._damaged("it names no token that ends an answer")
        return tuple(dict.fromkeys(found))

    def _tail(self) -> tuple[int, int]:
        """Where the tokens begin that only text as a whole stands for, and where they end.

        They are left out of the BPE model, so that text never becomes one of them by merging. Behind them lie the
        unused rows that fill an embedding up to a round number.
        """
        end = len(self.types)
        while end and self.types[end - 1] == _UNUSED:
            end -= 1
        start = end
        while start and self.types[start - 1] in (_CONTROL, _USER_DEFINED):
            start -= 1
        return start, end

    def _merges(self, limit: int) -> list[list[str]]:
        pairs: list[list[str]] = []
        for merge in self._strings("merges"):
            pair = merge.split(" ")
            if len(pair) != 2 or any(self.ids.get(part, limit) >= limit for part in (*pair, "".join(pair))):
                raise self._damaged(f"merge `{merge[:60]}` is not of two tokens into a third")
            pairs.append(pair)
        return pairs

    def _post_processor(self) -> Json:
        plain = _bytes(use_regex=True) | {"trim_offsets": False}
        add_bos = self._metadata.get("tokenizer.ggml.add_bos_token", self.pre in _WHOLE_TOKENS_FIRST)
        bos = self._id("bos_token_id")
        if add_bos is not True or bos is None:
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
        return {"type": "Sequence", "processors": [plain, template]}

    def _check_kind(self) -> None:
        kind = self._metadata.get("tokenizer.ggml.model")
        if kind is None:
            raise ExportError(f"{self._file} carries no tokenizer", hint="export the model from its safetensors")
        if kind != "gpt2":
            title = "a SentencePiece" if kind == "llama" else f"the `{str(kind)[:40]}`"
            raise ExportError(
                f"{self._file} has {title} tokenizer, which edgekit does not read from GGUF",
                hint="export the model from its safetensors, which carry tokenizer.json",
                code="unsupported_tokenizer",
            )

    def _pre(self) -> str:
        pre = self._metadata.get("tokenizer.ggml.pre", "default")
        if isinstance(pre, str) and pre in PRE_TOKENIZERS:
            return pre
        raise ExportError(
            f"{self._file} splits text as `{str(pre)[:40]}` does, which edgekit does not know",
            hint=f"known: {', '.join(sorted(PRE_TOKENIZERS))}; export the model from its safetensors",
            code="unsupported_tokenizer",
        )

    def _types(self) -> list[int]:
        types = self._metadata.get("tokenizer.ggml.token_type")
        if types is None:
            return [_NORMAL] * len(self.tokens)
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(self.tokens):
            raise self._damaged("tokens and their types are not equally many")
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
            raise self._damaged(f"`{key}` is {str(number)[:40]}, which is no token")
        return number

    def _damaged(self, why: str) -> ExportError:
        return ExportError(f"the tokenizer of {self._file} is damaged: {why}", hint="fetch the file again")


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
