"""Answers put together from their pieces, for replies that come as a whole. It knows no dialect."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.generation.request import Delta, TokenLogprob, ToolCall, ToolCallDelta

__all__ = ["Gathered", "GatheredCall", "Written"]


@dataclass(slots=True)
class GatheredCall:
    """A tool call so far.

    Attributes:
        pieces: Of the arguments' JSON text.
    """

    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    def add(self, piece: ToolCallDelta) -> None:
        """Take a piece."""
        self.id = piece.id or self.id
        self.name = piece.name or self.name
        self.pieces.append(piece.arguments)

    def whole(self) -> ToolCall:
        """The call as it stands."""
        return ToolCall(self.id, self.name, "".join(self.pieces))


@dataclass(slots=True)
class Written:
    """One answer so far.

    Attributes:
        thoughts: Pieces of the model's reasoning, which are not of the answer.
    """

    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, GatheredCall] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Everything but the calls and the reasoning."""
        return "".join(self.pieces)

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered."""
        return "".join(self.thoughts)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls, in their order."""
        return [self.calls[number].whole() for number in sorted(self.calls)]


class Gathered:
    """The `n` answers of one request.

    Args:
        n: How many there are to be.
    """

    def __init__(self, n: int = 1) -> None:
        self.answers = [Written() for _ in range(n)]

    def add(self, event: Delta | ToolCallDelta) -> None:
        """Take a piece of one of them."""
        answer = self.answers[event.index]
        if isinstance(event, Delta):
            (answer.thoughts if event.reasoning else answer.pieces).append(event.text)
            answer.logprobs += event.logprobs
        else:
            answer.calls.setdefault(event.number, GatheredCall()).add(event)
