"""Collects the deltas of a request's choices into complete ones, for replies that are not streamed."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.generation.types import Delta, TokenLogprob, ToolCall, ToolCallDelta

__all__ = ["CollectedCall", "CollectedChoice", "CollectedReply"]


@dataclass(slots=True)
class CollectedCall:
    """A tool call so far.

    Attributes:
        arguments: Fragments of the arguments' JSON.
    """

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, delta: ToolCallDelta) -> None:
        """Add a delta."""
        self.id = delta.id or self.id
        self.name = delta.name or self.name
        self.arguments.append(delta.arguments)

    def tool_call(self) -> ToolCall:
        """Return the call so far."""
        return ToolCall(self.id, self.name, "".join(self.arguments))


@dataclass(slots=True)
class CollectedChoice:
    """One choice so far.

    Attributes:
        texts: Text deltas.
        reasonings: Reasoning deltas, which are not part of the text.
        calls: Tool calls by index.
        logprobs: Log probabilities of the tokens.
    """

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, CollectedCall] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, without tool calls and reasoning."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """The model's reasoning before the answer."""
        return "".join(self.reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls, in order."""
        return [self.calls[number].tool_call() for number in sorted(self.calls)]


class CollectedReply:
    """The `n` choices of one request.

    Args:
        n: Number of choices.
    """

    def __init__(self, n: int = 1) -> None:
        self.answers = [CollectedChoice() for _ in range(n)]

    def add(self, delta: Delta | ToolCallDelta) -> None:
        """Add a delta of one of the choices."""
        choice = self.answers[delta.index]
        if isinstance(delta, Delta):
            (choice.reasonings if delta.reasoning else choice.texts).append(delta.text)
            choice.logprobs += delta.logprobs
        else:
            choice.calls.setdefault(delta.number, CollectedCall()).add(delta)
