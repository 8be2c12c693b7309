"""Types of the protocol between the benchmark and an engine's process; needs only the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

__all__ = ["Answer", "Engine", "Options", "Request"]


@dataclass(frozen=True)
class Options:
    """Options for loading an engine.

    Attributes:
        form: Variant of the engine, defined by each engine.
        streams: Maximum concurrent requests.
        endless: Ignore end-of-sequence tokens, so that every answer has `max_tokens`.
        lookup: Draft tokens of the engine's own prompt lookup; 0 disables it.
        folder: Folder that keeps a prefix over a restart; empty: none.
    """

    threads: int = 2
    context: int = 2048
    form: str = ""
    streams: int = 1
    endless: bool = False
    lookup: int = 0
    folder: str = ""


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        messages: The chat.
        tokens: The rendered chat; empty until edgekit has rendered it.
        temperature: 0 is greedy.
        schema: JSON schema that the answer must follow.
        speculate: Whether edgekit may use speculative decoding; None: its default. Peers follow `Options.lookup`.
        keep: Whether the prompt may be cached, and cached prompts used.
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
    """An answer, with times in seconds since its group of requests was submitted.

    Attributes:
        tokens: Generated tokens, including the end-of-sequence token.
        cached: Prompt tokens taken from a cache.
        accepted: Accepted draft tokens.
        ended: It ended with an end-of-sequence token, before `max_tokens`.
    """

    prompt: int
    tokens: int
    first_s: float
    total_s: float
    text: str = ""
    cached: int = 0
    accepted: int = 0
    ended: bool = False
    ids: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Convert for JSON."""
        return asdict(self)


class Engine(Protocol):
    """A loaded engine."""

    version: str

    def render(self, request: Request) -> list[int]:
        """Return the prompt's tokens; only edgekit implements this."""

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests concurrently."""

    def keep(self, request: Request, shared: int) -> None:
        """Save the first `shared` tokens of the prompt for a later process."""

    def close(self) -> None:
        """Save what `keep` requested, and release the engine."""
