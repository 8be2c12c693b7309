"""What of a streamed answer no message has carried yet; gathers many small pieces into few messages.

It knows no broker and no JSON.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from edgekit.generation.request import Delta, Ended, FinishReason, TokenLogprob, ToolCallDelta

__all__ = ["Batch", "Pending"]

# What a token's log probability, or one of the likeliest beside it, takes as JSON, in characters at least.
_LOGPROB_CHARS = 64


@dataclass(slots=True)
class Batch:
    """The content of one delta message: reasoning, text, then calls, of one answer.

    Attributes:
        index: Which of the `n` answers.
        calls: Pieces of calls; those of one call are joined.
        reasoning: What the model thought before it answered.
        reason: Why the answer ended, if nothing follows of it and others go on.
    """

    index: int
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    reasoning: str = ""
    reason: FinishReason | None = None


class Pending:
    """Pieces of all answers of a request, each answer's in order."""

    def __init__(self) -> None:
        self._answers: dict[int, deque[Delta | ToolCallDelta | Ended]] = {}

    def __bool__(self) -> bool:
        return bool(self._answers)

    def add(self, piece: Delta | ToolCallDelta | Ended) -> None:
        """Take a piece of an answer, or its end."""
        if isinstance(piece, Delta) and not piece.text and not piece.logprobs:
            return
        self._answers.setdefault(piece.index, deque()).append(piece)

    def take(self, limit: int) -> list[Batch]:
        """Take a batch of each answer that has something pending; what does not fit stays.

        Args:
            limit: Characters that a batch may hold, its log probabilities' JSON included.
        """
        return [self._take(index, limit) for index in sorted(self._answers)]

    def _take(self, index: int, limit: int) -> Batch:
        pieces = self._answers[index]
        batch = Batch(index)
        room = limit
        while pieces and room > 0:
            piece = pieces[0]
            if isinstance(piece, Ended):
                batch.reason = piece.reason
                pieces.popleft()
                continue
            if isinstance(piece, Delta) and (batch.calls or (piece.reasoning and batch.text)):
                # In one message reasoning comes before text, and text before calls: what came after takes the next.
                break
            head, tail = _split(piece, room)
            _join(batch, head)
            room -= _size(head)
            pieces.popleft()
            if tail is not None:
                pieces.appendleft(tail)
                break
        if not pieces:
            del self._answers[index]
        return batch


def _split(piece: Delta | ToolCallDelta, room: int) -> tuple[Delta | ToolCallDelta, Delta | ToolCallDelta | None]:
    """Cut a piece into what fits and the rest; at least one character or token fits."""
    if _size(piece) <= room:
        return piece, None
    if isinstance(piece, ToolCallDelta):
        if len(piece.arguments) <= room:
            return piece, None
        head = replace(piece, arguments=piece.arguments[:room])
        return head, replace(piece, arguments=piece.arguments[room:], id=None, name=None)
    if len(piece.text) > room:
        return replace(piece, text=piece.text[:room], logprobs=()), replace(piece, text=piece.text[room:])
    most = max(1 if not piece.text else 0, (room - len(piece.text)) // _logprob_size(piece))
    if most >= len(piece.logprobs):
        return piece, None
    return replace(piece, logprobs=piece.logprobs[:most]), replace(piece, text="", logprobs=piece.logprobs[most:])


def _join(batch: Batch, piece: Delta | ToolCallDelta) -> None:
    if isinstance(piece, Delta):
        if piece.reasoning:
            batch.reasoning += piece.text
        else:
            batch.text += piece.text
        batch.logprobs += piece.logprobs
    elif batch.calls and batch.calls[-1].number == piece.number:
        last = batch.calls[-1]
        batch.calls[-1] = replace(last, arguments=last.arguments + piece.arguments)
    else:
        batch.calls.append(piece)


def _size(piece: Delta | ToolCallDelta) -> int:
    if isinstance(piece, ToolCallDelta):
        return len(piece.arguments) + len(piece.name or "") + len(piece.id or "")
    return len(piece.text) + len(piece.logprobs) * _logprob_size(piece)


def _logprob_size(piece: Delta) -> int:
    return _LOGPROB_CHARS * (1 + max((len(item.top) for item in piece.logprobs), default=0))
