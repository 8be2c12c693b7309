"""Encodes prompts that fill in the middle (FIM) with a code model's own tokens.

The models differ in how they write the gap: Qwen2.5-Coder `<|fim_prefix|>A<|fim_suffix|>C<|fim_middle|>`, Codestral
`[SUFFIX]C[PREFIX]A`. Which form a model takes is known by the tokens in its vocabulary, as in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.time_limit import UNLIMITED, TimeLimit
from edgekit.generation.types import Infill

__all__ = ["FillFormat", "find_fill_format"]


@dataclass(frozen=True, slots=True)
class _Markers:
    """How a family of models writes the gap.

    Attributes:
        middle: Ends the prompt; empty if nothing does.
        suffix_first: The suffix precedes the prefix.
    """

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False


_FAMILIES = (
    _Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, Qwen3-Coder, CodeGemma, Granite 4
    _Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, Granite Code, Stable Code
    _Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  DeepSeek-Coder's
    _Markers("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Markers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4
    _Markers("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),  # Seed-Coder
    _Markers("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)
# In front of another file's name, and of the repository's.
_FILES = ("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<filename>", "<|filename|>")
_REPOSITORIES = ("<|repo_name|>", "<repo_name>", "<reponame>", "<|reponame|>")
_ENDS = (
    *("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "▁<EOT>", "[MIDDLE]"),
    *("<|endoftext|>", "<｜end▁of▁sentence｜>", "<|EOT|>", "</s>"),  # noqa: RUF001
)
# llama.cpp names the repository and the file that is edited so; models see that there are several files.
_REPOSITORY_NAME = "myproject\n"
_FILE_NAME = "filename\n"
# In front of another file, for models without a token for it.
_SNIPPET = "\n\n--- snippet ---\n\n"
# The suffix's share of a context that is too short for both.
_SUFFIX_SHARE = 4
# No tokenizer needs so many characters for a token, on average.
_MAX_TOKEN_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class FillFormat:
    """How a model fills in the middle.

    Attributes:
        markers: The tokens around the gap.
        ids: Ids of the tokens above that the vocabulary has, by their text.
        file: The token in front of another file; empty if there is none.
        repository: The token in front of the repository's name; empty if there is none.
    """

    markers: _Markers
    ids: Mapping[str, int]
    file: str
    repository: str

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end the output: after the gap, the model may begin another file."""
        return frozenset(self.ids.values())

    @property
    def template(self) -> str:
        """The form in the syntax of Ollama's templates, by which clients recognise such a model."""
        markers = self.markers
        prefix, suffix = markers.prefix + "{{ .Prompt }}", markers.suffix + "{{ .Suffix }}"
        return (suffix + prefix if markers.suffix_first else prefix + suffix) + markers.middle

    def opened_in(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt's tokens ask for the gap to be filled: some clients write them themselves."""
        return self.ids[self.markers.middle or self.markers.prefix] in prompt

    def encode(
        self,
        tokenizer: Tokenizer,
        prefix: str,
        infill: Infill,
        *,
        room: int | None = None,
        limit: TimeLimit = UNLIMITED,
    ) -> list[int]:
        """Return the prompt's token ids.

        Tokens that are written in the text are text: source code may mention them.

        Args:
            tokenizer: The model's tokenizer.
            prefix: Text before the gap.
            infill: Text after it, and other files.
            room: Maximum tokens of the prompt: the oldest files go first, then text far from the gap; None keeps all.
            limit: Time for it.

        Raises:
            RequestError: The time is over.
        """
        texts = _Texts(tokenizer, self.ids)
        suffix = infill.suffix
        if room is not None:
            # Text that will be dropped need not be encoded.
            prefix, suffix = prefix[-_MAX_TOKEN_CHARACTERS * room :], suffix[: _MAX_TOKEN_CHARACTERS * room]
        before, after = texts.encode(prefix, first=True), texts.encode(suffix)
        limit.check()
        markers = self.markers
        start = tokenizer.encode_text("")
        end = [self.ids[markers.middle]] if markers.middle else []
        if room is not None:
            room -= len(start) + len(end) + 2
            before, after = _shortened(before, after, max(0, room))
            room -= len(before) + len(after)
        parts = [[self.ids[markers.prefix], *before], [self.ids[markers.suffix], *after]]
        if markers.suffix_first:
            parts.reverse()
        return [*start, *self._files(texts, infill, room, limit), *chain(*parts), *end]

    def _files(self, texts: _Texts, infill: Infill, room: int | None, limit: TimeLimit) -> list[int]:
        """Return the tokens of the other files that there is room for, the last ones first."""
        if not infill.files:
            return []
        head = [self.ids[self.repository], *texts.encode(_REPOSITORY_NAME)] if self.repository else []
        tail = [self.ids[self.file], *texts.encode(_FILE_NAME)] if self.file else []
        left = None if room is None else room - len(head) - len(tail)
        kept: list[list[int]] = []
        for name, text in reversed(infill.files):
            limit.check()
            if left is not None and len(text) > _MAX_TOKEN_CHARACTERS * max(0, left):
                break
            opening = [self.ids[self.file], *texts.encode(f"{name}\n")] if self.file else texts.encode(_SNIPPET)
            file = [*opening, *texts.encode(text)]
            if left is not None:
                left -= len(file)
                if left < 0:
                    break
            kept.append(file)
        return [*head, *chain(*reversed(kept)), *tail] if kept else []


def find_fill_format(tokenizer: Tokenizer) -> FillFormat | None:
    """Return how the model of a tokenizer fills in the middle; None if its vocabulary has no tokens for it."""
    added = {token.content: token_id for token_id, token in tokenizer.backend.get_added_tokens_decoder().items()}
    for markers in _FAMILIES:
        needed = [text for text in (markers.prefix, markers.suffix, markers.middle) if text]
        if all(text in added for text in needed):
            ids = {text: added[text] for text in (*needed, *_ENDS, *_FILES, *_REPOSITORIES) if text in added}
            file, repository = (next((text for text in known if text in ids), "") for known in (_FILES, _REPOSITORIES))
            return FillFormat(markers, ids, file, repository)
    return None


class _Texts:
    """Encodes text without special tokens, as it is within another text: no space is put in front.

    Args:
        tokenizer: The tokenizer.
        markers: Tokens that the text must not become: some vocabularies do not call theirs special.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        plain = [re.escape(text) for text in markers if text not in tokenizer.special_tokens]
        self._markers = re.compile("|".join(plain)) if plain else None
        self._break = tokenizer.encode("\n", obey_special=False)
        # SentencePiece puts a space in front of each text.
        self._spaced = tokenizer.encode("a", obey_special=False) != self._after_break("a")

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text.
            first: It begins the text that the model sees, so a space may be put in front.
        """
        within = self._spaced and not first
        return list(chain.from_iterable(self._encode(piece, within=within) for piece in self._pieces(text)))

    def _pieces(self, text: str) -> Iterator[str]:
        """Yield parts of a text none of which contains a marker."""
        start = 0
        for found in self._markers.finditer(text) if self._markers else ():
            middle = (found.start() + found.end()) // 2
            yield text[start:middle]
            start = middle
        if start < len(text):
            yield text[start:]

    def _encode(self, text: str, *, within: bool) -> list[int]:
        return self._after_break(text) if within else self._tokenizer.encode(text, obey_special=False)

    def _after_break(self, text: str) -> list[int]:
        ids, start = self._tokenizer.encode(f"\n{text}", obey_special=False), self._break
        # A tokenizer that puts nothing in front may join the line break with the next one.
        return ids[len(start) :] if ids[: len(start)] == start else self._tokenizer.encode(text, obey_special=False)


def _shortened(before: list[int], after: list[int], room: int) -> tuple[list[int], list[int]]:
    """Return the parts next to the gap that fit; either may take what the other one leaves."""
    if len(before) + len(after) > room:
        suffix = min(len(after), max(room // _SUFFIX_SHARE, room - len(before)))
        return before[max(0, len(before) - (room - suffix)) :], after[:suffix]
    return before, after
