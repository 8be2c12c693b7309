"""Coalesces the deltas of a streamed answer into few messages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from edgekit.generation.types import ChoiceFinished, Delta, FinishReason, TokenLogprob, ToolCallDelta

__all__ = ["DeltaBatch", "DeltaBuffer"]

# Minimum size in JSON of a token's log probability, or of one of its alternatives, in characters.
_LOGPROB_CHARS = 64


@dataclass(slots=True)
class DeltaBatch:
    """The content of one delta message: reasoning, text, then tool calls, of one answer.

    Attributes:
        index: Which of the `n` answers.
        calls: Tool call deltas, those of one call joined.
        reasoning: Reasoning text.
        reason: Finish reason, if the answer ends here while others go on.
    """

    index: int
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    reasoning: str = ""
    reason: FinishReason | None = None


class DeltaBuffer:
    """Unsent deltas of all answers of a request, in order per answer."""

    def __init__(self) -> None:
        self._answers: dict[int, deque[Delta | ToolCallDelta | ChoiceFinished]] = {}

    def __bool__(self) -> bool:
        return bool(self._answers)

    def add(self, delta: Delta | ToolCallDelta | ChoiceFinished) -> None:
        """Append a delta of an answer, or its end."""
        if isinstance(delta, Delta) and not delta.text and not delta.logprobs:
            return
        self._answers.setdefault(delta.index, deque()).append(delta)

    def take(self, limit: int) -> list[DeltaBatch]:
        """Remove and return one batch per answer that has pending deltas; the rest stays.

        Args:
            limit: Maximum size of a batch in characters, with the JSON of its log probabilities.
        """
        return [self._take(index, limit) for index in sorted(self._answers)]

    def _take(self, index: int, limit: int) -> DeltaBatch:
        deltas = self._answers[index]
        batch = DeltaBatch(index)
        free = limit
        while deltas and free > 0:
            delta = deltas[0]
            if isinstance(delta, ChoiceFinished):
                batch.reason = delta.reason
                deltas.popleft()
                continue
            if isinstance(delta, Delta) and (batch.calls or (delta.reasoning and batch.text)):
                # In a message reasoning precedes text, and text precedes calls; another order needs another message.
                break
            head, tail = _split(delta, free)
            _join(batch, head)
            free -= _size(head)
            deltas.popleft()
            if tail is not None:
                deltas.appendleft(tail)
                break
        if not deltas:
            del self._answers[index]
        return batch


def _split(delta: Delta | ToolCallDelta, free: int) -> tuple[Delta | ToolCallDelta, Delta | ToolCallDelta | None]:
    """Split a delta into the part that fits and the rest; at least one character or token fits."""
    if _size(delta) <= free:
        return delta, None
    if isinstance(delta, ToolCallDelta):
        if len(delta.arguments) <= free:
            return delta, None
        head = replace(delta, arguments=delta.arguments[:free])
        return head, replace(delta, arguments=delta.arguments[free:], id=None, name=None)
    if len(delta.text) > free:
        return replace(delta, text=delta.text[:free], logprobs=()), replace(delta, text=delta.text[free:])
    count = max(1 if not delta.text else 0, (free - len(delta.text)) // _logprob_size(delta))
    if count >= len(delta.logprobs):
        return delta, None
    return replace(delta, logprobs=delta.logprobs[:count]), replace(delta, text="", logprobs=delta.logprobs[count:])


def _join(batch: DeltaBatch, delta: Delta | ToolCallDelta) -> None:
    if isinstance(delta, Delta):
        if delta.reasoning:
            batch.reasoning += delta.text
        else:
            batch.text += delta.text
        batch.logprobs += delta.logprobs
    elif batch.calls and batch.calls[-1].number == delta.number:
        last = batch.calls[-1]
        batch.calls[-1] = replace(last, arguments=last.arguments + delta.arguments)
    else:
        batch.calls.append(delta)


def _size(delta: Delta | ToolCallDelta) -> int:
    if isinstance(delta, ToolCallDelta):
        return len(delta.arguments) + len(delta.name or "") + len(delta.id or "")
    return len(delta.text) + len(delta.logprobs) * _logprob_size(delta)


def _logprob_size(delta: Delta) -> int:
    return _LOGPROB_CHARS * (1 + max((len(item.top) for item in delta.logprobs), default=0))
