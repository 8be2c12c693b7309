"""What an engine process is asked and what it answers. Both sides read it, so it needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

__all__ = ["Answer", "Ask", "Engine", "Options"]


@dataclass(frozen=True)
class Options:
    """How an engine is loaded.

    Attributes:
        form: Which of an engine's forms; each engine says which it has.
        streams: Answers that may run at once.
        endless: No answer ends before its `max_tokens`.
        lookup: Tokens that the engine's own prompt lookup guesses ahead; 0 is off.
        folder: Where a prefix is kept over a restart; empty keeps none.
    """

    threads: int = 2
    context: int = 2048
    form: str = ""
    streams: int = 1
    endless: bool = False
    lookup: int = 0
    folder: str = ""


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted.

    Attributes:
        messages: The chat, for who renders it himself.
        tokens: The same chat, rendered; empty until edgekit has said what it is.
        temperature: 0 is greedy.
        schema: JSON schema that the answer must follow.
        speculate: Whether edgekit may guess ahead; None leaves it to edgekit. Peers go by `Options.lookup`.
        keep: The prompt may be remembered, and remembered prompts may be used.
    """

    messages: Sequence[dict[str, str]]
    max_tokens: int
    tokens: Sequence[int] = ()
    temperature: float = 0.0
    schema: dict[str, Any] | None = None
    speculate: bool | None = None
    keep: bool = False


@dataclass
class Answer:
    """One answer that came, with its times in seconds since all that were asked with it were handed over.

    Attributes:
        tokens: Generated ones, a token that ends the answer included.
        cached: Tokens of the prompt that were not computed.
        guessed: Tokens that were guessed ahead rightly.
        ended: It ended by itself, before `max_tokens`.
    """

    prompt: int
    tokens: int
    first_s: float
    total_s: float
    text: str = ""
    cached: int = 0
    guessed: int = 0
    ended: bool = False
    ids: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the pipe."""
        return asdict(self)


class Engine(Protocol):
    """A loaded engine."""

    version: str

    def render(self, ask: Ask) -> list[int]:
        """The prompt's tokens; only edgekit can."""

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer all at once."""

    def keep(self, ask: Ask, shared: int) -> None:
        """Keep the first `shared` tokens of the prompt for a process to come."""

    def close(self) -> None:
        """Write what is to be kept, and end."""
