"""Text to token ids and back, over the `tokenizers` library.

It knows which ids are special, and can encode text so that special tokens in it stay plain text. It knows no chat.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from edgekit.errors import BundleError

__all__ = ["Tokenizer"]

# What tokenizers cut differently: numbers, runs of spaces, contractions, code, scripts, characters of several forms.
_SAMPLE = (
    "The quick brown fox, 12345.678 of them, isn't lazy!  It's   3\t+ 4 = 7...\n\n    def f(x_1):\r\n\treturn [x**2]\n"
    "Über nai\u0308ve façades… A\u030a \ufb01ne ½ Ελλάδα Привет שלום 你好。 こんにちは 안녕 🙂\u200d <b>HTML</b> https://a.b/c?d=e_f"
)


class Tokenizer:
    """A bundle's tokenizer; safe to use from several threads.

    Args:
        backend: The library's tokenizer. Its padding and truncation are switched off.
    """

    def __init__(self, backend: Backend) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        # Whether special tokens are obeyed is a switch on the one backend.
        self._lock = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        specials = [token for token in added.values() if token.special]
        self.special_tokens: Mapping[str, int] = {added[number].content: number for number in self.special_ids}
        self._special_texts = tuple(token.content for token in specials if token.content)
        self.longest_special = max(map(len, self._special_texts), default=0)
        # Every beginning of a special token, and what is then missing.
        self._rests: dict[str, list[str]] = {}
        for text in self._special_texts:
            for length in range(1, len(text)):
                self._rests.setdefault(text[:length], []).append(text[length:])
        # A normalizer may turn harmless text into such a token; then only encoding tells.
        self._hidden = backend.normalizer is not None and any(token.normalized for token in specials)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`.

        Raises:
            BundleError: The file is missing or not a tokenizer.
        """
        try:
            return cls(Backend.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise BundleError(f"the bundle has no {path.name}", hint="export it again") from None
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer: {' '.join(str(error).split())[:200]}") from error

    @property
    def backend(self) -> Backend:
        """The library's tokenizer, to read; its switches are set by this class alone."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive; a model's vocabulary may be wider."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, obey_special: bool = True) -> list[int]:
        """Return token ids; nothing is added at either end.

        Args:
            text: Any text.
            obey_special: Turn the text of a special token into that token; otherwise it stays text.
        """
        with self._lock:
            self._backend.encode_special_tokens = not obey_special
            try:
                return list(self._backend.encode(text, add_special_tokens=False).ids)
            finally:
                self._backend.encode_special_tokens = False

    def text(self, number: int) -> str:
        """Return a token as the vocabulary writes it; empty if it is none."""
        return self._backend.id_to_token(number) or ""

    def encode_text(self, text: str) -> list[int]:
        """Return token ids of a text that stands alone; special tokens in it are text.

        Before it comes what the tokenizer puts before every text, such as the token that begins one.
        """
        return [*self._before(), *self.encode(text, obey_special=False)]

    def _before(self) -> list[int]:
        with self._lock:
            whole = self._backend.encode("a", add_special_tokens=True).ids
            bare = self._backend.encode("a", add_special_tokens=False).ids
        return list(whole[: _find(whole, bare)])

    def difference(self, other: Tokenizer) -> str | None:
        """Say where another tokenizer turns the same text into other ids; None if it does not.

        It may have further added tokens, which no text of this one's becomes.
        """
        mine, theirs = _by_number(self._backend), _by_number(other.backend)
        further = other.backend.get_added_tokens_decoder().keys() - mine.keys()
        for number in sorted((mine.keys() | theirs.keys()) - further):
            if mine.get(number) != theirs.get(number):
                one, two = (f"`{known[number]}`" if number in known else "not there" for known in (mine, theirs))
                return f"token {number} is {one} in one and {two} in the other"
        added = "".join(token.content for token in self._backend.get_added_tokens_decoder().values())
        # The vocabulary may be the same and the way to it another: merges, normalizers, how text is cut into words.
        for sample in (_SAMPLE, added):
            if self.encode(sample) != other.encode(sample):
                return "the same text becomes other tokens"
        return None

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where `encode` would find special tokens: `(start, stop)` in characters, in order."""
        if not self._hidden and not any(special in text for special in self._special_texts):
            return []
        with self._lock:
            encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [span for number, span in spans if number in self.special_ids and span[0] < span[1]]

    def special_rests(self, beginning: str) -> Sequence[str]:
        """Return what after this text would make special tokens of it."""
        return self._rests.get(beginning, ())

    def decode(self, ids: Sequence[int], *, visible: frozenset[int] = frozenset()) -> str:
        """Return the text of token ids; a cut character becomes U+FFFD.

        Args:
            ids: Any ids; those of no token are left out.
            visible: Special tokens that have their text; the others have none.
        """
        if visible:
            shown = [number for number in ids if number in visible or number not in self.special_ids]
            return str(self._backend.decode(shown, skip_special_tokens=False))
        return str(self._backend.decode(list(ids), skip_special_tokens=True))


def _by_number(backend: Backend) -> dict[int, str]:
    return {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}


def _find(whole: Sequence[int], part: Sequence[int]) -> int:
    """Where `part` begins in `whole`; 0 if it does not stand there."""
    return next((start for start in range(len(whole)) if whole[start : start + len(part)] == part), 0)
