"""Adapts a bundle's tokenizer to llguidance: the bytes of every token, and the encoding of text within an output.

Special tokens have no bytes: a grammar refers to them by name or id, never as text. Ids that exist in the model but not
in the tokenizer are never allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from edgekit.errors import EdgekitError
from edgekit.generation.chat.tokenizer import Tokenizer

__all__ = ["Vocabulary", "token_bytes"]

# llguidance's prefix of special tokens; the byte does not occur in UTF-8.
_SPECIAL = b"\xff"
_SPACE = "\u2581"
# llguidance keeps a further trie for the tokens of each of these, and a mask takes it as a whole where all of them are
# allowed. Its four defaults take 6 MiB more for 49,152 tokens and make no mask faster; without any, masks within JSON's
# strings are four times slower (docs/benchmarks.md).
_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,10}', r'[^"\\\x00-\x1F\x7F]{1,30}']


class Vocabulary:
    """The tokens of a model, as a trie for llguidance.

    Args:
        tokenizer: The bundle's tokenizer.
        vocab_size: Width of the model's logits.
        eos_token_ids: Tokens that end the output.

    Attributes:
        added: Ids of added tokens by content, special or not.
        special: Ids of special tokens.
        last: End of the tokenizer's ids, exclusive.
        closing: Ids of tokens that begin with a quote or a closing bracket.

    Raises:
        EdgekitError: `grammar_unavailable`: the bytes of this kind of tokenizer's tokens are unknown.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self.last = tokenizer.vocab_size
        self.special = tokenizer.special_ids
        self.added = {
            token.content: token_id for token_id, token in tokenizer.backend.get_added_tokens_decoder().items()
        }
        self.eos_token_ids = frozenset(token_id for token_id in eos_token_ids if token_id < vocab_size)
        if not self.eos_token_ids or vocab_size < self.last:
            raise EdgekitError(
                "the model has no end-of-sequence token"
                if vocab_size >= self.last
                else f"the model has {vocab_size} tokens and its tokenizer {self.last}",
                code="grammar_unavailable",
            )
        tokens = token_bytes(tokenizer)
        for token_id in self.special:
            tokens[token_id] = _SPECIAL + tokens[token_id]
        encode = _continuation(tokenizer)
        _drop_duplicates(tokens, encode)
        tokens += [b""] * (vocab_size - len(tokens))
        self.closing = [token_id for token_id, token in enumerate(tokens) if token[:1] in {b'"', b"]", b"}"}]
        wrapper = _Tokens(tokens, min(self.eos_token_ids), encode)
        self.trie = LLTokenizer(wrapper, eos_token=sorted(self.eos_token_ids), slices=_SLICES)
        # The trie has a copy.
        wrapper.tokens = []


class _Tokens(TokenizerWrapper):
    """llguidance's tokenizer interface; llguidance calls it to encode forced text."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes], eos_token_id: int, encode: Callable[[str], list[int]]) -> None:
        # Without super().__init__(), which needs a tokenizer of the guidance library.
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.special_token_ids = ()
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each token; for a special token, its name.

    Raises:
        EdgekitError: `grammar_unavailable`, as `Vocabulary`.
    """
    decoders = _components(_definition(tokenizer.backend.decoder))
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
            f"output cannot be constrained with this tokenizer (decoder: {', '.join(sorted(kinds)) or 'none'})",
            code="grammar_unavailable",
        )
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens = []
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.backend.id_to_token(token_id)
        if token_id in added:
            tokens.append(added[token_id].content.encode())
        elif piece is None:
            tokens.append(b"")
        else:
            try:
                tokens.append(to_bytes(piece))
            except ValueError:
                # No text encodes to this token.
                tokens.append(b"")
    return tokens


def _drop_duplicates(tokens: list[bytes], encode: Callable[[str], list[int]]) -> None:
    """Keep one of several tokens with the same bytes: the one that text encodes to, not SentencePiece's byte token."""
    same: dict[bytes, list[int]] = {}
    for token_id, token in enumerate(tokens):
        if token:
            same.setdefault(token, []).append(token_id)
    for token, ids in same.items():
        if len(ids) > 1:
            chosen = encode(token.decode(errors="replace"))
            keep = chosen[0] if len(chosen) == 1 and chosen[0] in ids else ids[0]
            for token_id in ids:
                if token_id != keep:
                    tokens[token_id] = b""


def _continuation(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return an encoder for text within an output: no space is prepended, and text is not normalized.

    It uses a second backend over the same model, with its own switches: special tokens in text stay text.
    """
    skeleton: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": _sequence(_space_replacements(_definition(tokenizer.backend.normalizer)), "normalizers"),
        "pre_tokenizer": _sequence(
            [_unprefixed(part) for part in _components(_definition(tokenizer.backend.pre_tokenizer))], "pretokenizers"
        ),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    backend = Backend.from_str(json.dumps(skeleton))
    backend.model = tokenizer.backend.model
    added = sorted(tokenizer.backend.get_added_tokens_decoder().items())
    for token_id, token in added:
        copy = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=False,
            rstrip=False,
            normalized=token.normalized,
            special=token_id in tokenizer.special_ids,
        )
        (backend.add_special_tokens if copy.special else backend.add_tokens)([copy])
    backend.encode_special_tokens = True
    # The second backend may assign other ids to added tokens.
    original = {backend.token_to_id(token.content): token_id for token_id, token in added}

    def encode(text: str) -> list[int]:
        return [original.get(token_id, token_id) for token_id in backend.encode(text, add_special_tokens=False).ids]

    return encode


def _definition(part: Any) -> dict[str, Any] | None:
    """Definition of a tokenizer component, as in `tokenizer.json`.

    Components are pickled in this form. The complete definition would include the vocabulary, which takes half a second
    to parse.
    """
    definition: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return definition


def _space_replacements(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Normalizers that replace spaces by SentencePiece's U+2581; all others would change the text."""
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


def _sequence(parts: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return {"type": "Sequence", name: parts} if parts else None


def _byte_level_table() -> dict[int, int]:
    """Map byte-level BPE's printable characters (GPT-2's table) to bytes, for `str.translate`."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    # A character outside the table must not be taken for a byte.
    foreign = {byte: 0x100 + byte for byte in others}
    return foreign | {byte: byte for byte in plain} | {256 + at: byte for at, byte in enumerate(others)}
