"""A bundle's tokenizer as llguidance needs it: the bytes of every token, and how text in mid answer becomes tokens.

Special tokens have no bytes: a grammar reaches them by name or number, never as text. Ids that the model has and the
tokenizer has not are no tokens at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from edgekit.errors import EdgekitError
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Vocabulary", "token_bytes"]

# llguidance's mark of a special token; no UTF-8 text holds this byte.
_SPECIAL = b"\xff"
_SPACE = "\u2581"


class Vocabulary:
    """The tokens of a model.

    Args:
        tokenizer: The bundle's.
        vocab_size: Width of the model's logits.
        eos_token_ids: What ends an answer.

    Attributes:
        added: Ids of tokens that have a text as a whole, special or not.
        special: Ids of the special ones.
        last: Ids from here on are none.

    Raises:
        EdgekitError: `grammar_unavailable`: the tokens of this kind of tokenizer have no known bytes.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self.last = tokenizer.vocab_size
        self.special = tokenizer.special_ids
        self.added = {token.content: number for number, token in tokenizer.backend.get_added_tokens_decoder().items()}
        self.eos_token_ids = frozenset(number for number in eos_token_ids if number < vocab_size)
        if not self.eos_token_ids or vocab_size < self.last:
            raise EdgekitError(
                "the model has no token that ends an answer"
                if vocab_size >= self.last
                else f"the model has {vocab_size} tokens and its tokenizer {self.last}",
                code="grammar_unavailable",
            )
        tokens = token_bytes(tokenizer)
        for number in self.special:
            tokens[number] = _SPECIAL + tokens[number]
        encode = _continuation(tokenizer)
        _drop_repetitions(tokens, encode)
        tokens += [b""] * (vocab_size - len(tokens))
        wrapper = _Tokens(tokens, min(self.eos_token_ids), encode)
        self.trie = LLTokenizer(wrapper, eos_token=sorted(self.eos_token_ids))


class _Tokens(TokenizerWrapper):
    """What llguidance asks of a tokenizer; it calls back to encode forced text."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes], eos_token_id: int, encode: Callable[[str], list[int]]) -> None:
        # Not the parent's: it asks for a tokenizer of the guidance library.
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.special_token_ids = ()
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each token stands for; a special token's are its name.

    Raises:
        EdgekitError: `grammar_unavailable`, as `Vocabulary`.
    """
    decoders = _components(_described(tokenizer.backend.decoder))
    kinds = {decoder["type"] for decoder in decoders}
    to_bytes: Callable[[str], bytes]
    if "ByteLevel" in kinds:
        table = _byte_level_table()

        def to_bytes(piece: str) -> bytes:
            return piece.translate(table).encode("latin-1")

    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:

        def to_bytes(piece: str) -> bytes:
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") and "ByteFallback" in kinds:
                return bytes([int(piece[3:5], 16)])
            return piece.replace(_SPACE, " ").encode()

    else:
        raise EdgekitError(
            f"answers cannot be constrained with this tokenizer (decoder: {', '.join(sorted(kinds)) or 'none'})",
            code="grammar_unavailable",
        )
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens = []
    for number in range(tokenizer.vocab_size):
        piece = tokenizer.backend.id_to_token(number)
        if number in added:
            tokens.append(added[number].content.encode())
        elif piece is None:
            tokens.append(b"")
        else:
            try:
                tokens.append(to_bytes(piece))
            except ValueError:
                # A piece that no text leads to.
                tokens.append(b"")
    return tokens


def _drop_repetitions(tokens: list[bytes], encode: Callable[[str], list[int]]) -> None:
    """Leave one token for the same bytes: the one that text is encoded with, not SentencePiece's single bytes."""
    same: dict[bytes, list[int]] = {}
    for number, token in enumerate(tokens):
        if token:
            same.setdefault(token, []).append(number)
    for token, numbers in same.items():
        if len(numbers) > 1:
            chosen = encode(token.decode(errors="replace"))
            keep = chosen[0] if len(chosen) == 1 and chosen[0] in numbers else numbers[0]
            for number in numbers:
                if number != keep:
                    tokens[number] = b""


def _continuation(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """How text in mid answer is encoded: no blank is put before it, and it is not rewritten.

    The backend is a second one over the same model, with its own switches: special tokens in text stay text.
    """
    shell: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": _joined(_kept(_described(tokenizer.backend.normalizer)), "normalizers"),
        "pre_tokenizer": _joined(
            [_unprefixed(part) for part in _components(_described(tokenizer.backend.pre_tokenizer))], "pretokenizers"
        ),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    backend = Backend.from_str(json.dumps(shell))
    backend.model = tokenizer.backend.model
    added = sorted(tokenizer.backend.get_added_tokens_decoder().items())
    for number, token in added:
        copy = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=False,
            rstrip=False,
            normalized=token.normalized,
            special=number in tokenizer.special_ids,
        )
        (backend.add_special_tokens if copy.special else backend.add_tokens)([copy])
    backend.encode_special_tokens = True
    # The second backend may number them otherwise.
    original = {backend.token_to_id(token.content): number for number, token in added}

    def encode(text: str) -> list[int]:
        return [original.get(number, number) for number in backend.encode(text, add_special_tokens=False).ids]

    return encode


def _described(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as `tokenizer.json` has it.

    Parts are pickled as that. All of the definition has the vocabulary in it, half a second of text to read back.
    """
    described: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return described


def _kept(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Normalizers that write blanks as SentencePiece does; the rest would change the text."""
    parts = _components(normalizer)
    return [part for part in parts if part["type"] == "Replace" and part.get("content") == _SPACE]


def _unprefixed(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "ByteLevel":
        return part | {"add_prefix_space": False}
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never", "add_prefix_space": False}
    return part


def _components(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inside = next(value for name, value in part.items() if name != "type")
    return [deeper for member in inside for deeper in _components(member)]


def _joined(parts: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return {"type": "Sequence", name: parts} if parts else None


def _byte_level_table() -> dict[int, int]:
    """The printable characters that byte-level BPE writes bytes with (GPT-2's table), for `str.translate`."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    # A character outside the table must not pass for a byte.
    strangers = {byte: 0x100 + byte for byte in others}
    return strangers | {byte: byte for byte in plain} | {256 + at: byte for at, byte in enumerate(others)}
