"""Encodes and decodes text with the `tokenizers` library; special tokens in text can be kept as plain text."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from edgekit.errors import BundleError

__all__ = ["Tokenizer"]

# Text that tokenizers split differently: numbers, runs of spaces, contractions, code, scripts, composed characters.
_SAMPLE = (
    "The quick brown fox, 12345.678 of them, isn't lazy!  It's   3\t+ 4 = 7...\n\n    def f(x_1):\r\n\treturn [x**2]\n"
    "Über nai\u0308ve façades… A\u030a \ufb01ne ½ Ελλάδα Привет שלום 你好。 こんにちは 안녕 🙂\u200d <b>HTML</b> https://a.b/c?d=e_f"
)

_FEW = 64


class Tokenizer:
    """A bundle's tokenizer; safe to use from several threads.

    Args:
        backend: The library's tokenizer. Its padding and truncation are turned off.

    Attributes:
        special_ids: Ids of the special tokens.
        special_tokens: Their ids by text.
        longest_special: Length of the longest one.
        special_ends: Every proper suffix of one.
    """

    def __init__(self, backend: Backend) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        # `encode_special_tokens` is a switch of the shared backend.
        self._lock = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        specials = [token for token in added.values() if token.special]
        self.special_tokens: Mapping[str, int] = {added[token_id].content: token_id for token_id in self.special_ids}
        self._special_texts = tuple(token.content for token in specials if token.content)
        self.longest_special = max(map(len, self._special_texts), default=0)
        # Every proper prefix of a special token, and the suffixes that complete it.
        self._completions: dict[str, list[str]] = {}
        for text in self._special_texts:
            for length in range(1, len(text)):
                self._completions.setdefault(text[:length], []).append(text[length:])
        self.special_ends = frozenset(rest for ends in self._completions.values() for rest in ends)
        self._first_chars = frozenset(text[0] for text in self._special_texts)
        # A normalizer may turn other text into a special token; only encoding shows it then.
        self._hidden = backend.normalizer is not None and any(token.normalized for token in specials)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`.

        Raises:
            BundleError: The file is missing or is not a tokenizer.
        """
        try:
            return cls(Backend.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise BundleError(f"the bundle has no {path.name}", hint="export it again") from None
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer: {' '.join(str(error).split())[:200]}") from error

    @property
    def backend(self) -> Backend:
        """The library's tokenizer, read-only: only this class may set its switches."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's vocabulary may be larger."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, obey_special: bool = True) -> list[int]:
        """Return token ids, without adding tokens at either end.

        Args:
            text: Any text.
            obey_special: Encode the text of a special token as that token; otherwise it stays plain text.
        """
        with self._lock:
            self._backend.encode_special_tokens = not obey_special
            try:
                return list(self._backend.encode(text, add_special_tokens=False).ids)
            finally:
                self._backend.encode_special_tokens = False

    def text(self, token_id: int) -> str:
        """Return a token as written in the vocabulary; empty for an unknown id."""
        return self._backend.id_to_token(token_id) or ""

    def encode_text(self, text: str) -> list[int]:
        """Return token ids of a raw prompt, with the tokens that the tokenizer puts in front, such as BOS.

        Special tokens in the text are encoded as such, so that a caller can write a chat template's output. A prompt
        that begins with BOS gets no second one.
        """
        prefix, ids = self._prefix(), self.encode(text)
        return ids if prefix and ids[: len(prefix)] == prefix else [*prefix, *ids]

    def _prefix(self) -> list[int]:
        with self._lock:
            full = self._backend.encode("a", add_special_tokens=True).ids
            bare = self._backend.encode("a", add_special_tokens=False).ids
        return list(full[: _find(full, bare)])

    def difference(self, other: Tokenizer) -> str | None:
        """Describe a difference to another tokenizer that changes ids; None if both encode text alike.

        The other one may have additional added tokens, as this one never produces their ids.
        """
        mine, theirs = _tokens_by_id(self._backend), _tokens_by_id(other.backend)
        additional = other.backend.get_added_tokens_decoder().keys() - mine.keys()
        for token_id in sorted((mine.keys() | theirs.keys()) - additional):
            if mine.get(token_id) != theirs.get(token_id):
                one, two = (f"`{tokens[token_id]}`" if token_id in tokens else "missing" for tokens in (mine, theirs))
                return f"token {token_id} is {one} in one and {two} in the other"
        added = "".join(token.content for token in self._backend.get_added_tokens_decoder().values())
        # The same vocabulary may be reached differently: other merges, normalizers, pre-tokenizers.
        for sample in (_SAMPLE, added):
            if self.encode(sample) != other.encode(sample):
                return "the same text encodes to different tokens"
        return None

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where `encode` would find special tokens: `(start, stop)` in characters, in order."""
        if not self._hidden and not self._may_contain_special(text):
            return []
        with self._lock:
            encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [span for token_id, span in spans if token_id in self.special_ids and span[0] < span[1]]

    def _may_contain_special(self, text: str) -> bool:
        if len(self._special_texts) > _FEW:
            # Some tokenizers have thousands; encoding looks for all of them at once.
            return any(char in text for char in self._first_chars)
        return any(special in text for special in self._special_texts)

    def special_completions(self, prefix: str) -> Sequence[str]:
        """Return the suffixes that complete this prefix to a special token."""
        return self._completions.get(prefix, ())

    def decode(self, ids: Sequence[int], *, visible: frozenset[int] = frozenset()) -> str:
        """Return the text of token ids; an incomplete character becomes U+FFFD.

        Args:
            ids: Any ids; unknown ones are skipped.
            visible: Special tokens to include as text; all others are skipped.
        """
        if visible:
            shown = [token_id for token_id in ids if token_id in visible or token_id not in self.special_ids]
            return str(self._backend.decode(shown, skip_special_tokens=False))
        return str(self._backend.decode(list(ids), skip_special_tokens=True))


def _tokens_by_id(backend: Backend) -> dict[int, str]:
    return {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}


def _find(ids: Sequence[int], part: Sequence[int]) -> int:
    """Index at which `part` starts in `ids`; 0 if it does not occur."""
    return next((start for start in range(len(ids)) if ids[start : start + len(part)] == part), 0)
