"""Puts the messages of a reply over MQTT together, as docs/mqtt.md describes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.client.answers import read_calls, read_error, read_finish
from edgekit.generation.types import Delta, Finished, Restarted, ToolCallDelta

__all__ = ["ReplyReader"]


class ReplyReader:
    """The state of one reply: which attempt it belongs to, and which deltas have been received.

    Attributes:
        attempt: The newest attempt seen.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self._begin()

    def _begin(self) -> None:
        self._received = ""
        self._expected_seq = self._deltas = 0
        self._gapless = True

    def read(self, message: Mapping[str, Any]) -> Iterator[Delta | ToolCallDelta | Restarted | Finished]:
        """Yield what a message adds to the reply; text of lost deltas is taken from the final message.

        Repeated deliveries and messages of an older attempt add nothing.

        Args:
            message: A `delta`, `final` or `error`; other types are ignored.

        Raises:
            EdgekitError: The message is the device's error.
        """
        kind, attempt = message.get("type"), _number(message.get("attempt"))
        if kind not in {"delta", "final", "error"} or attempt < self.attempt:
            return
        if attempt > self.attempt:
            self.attempt = attempt
            if self._deltas:
                yield Restarted()
            self._begin()
        if kind == "delta":
            yield from self._delta(message)
        elif kind == "final":
            # `content` is null if the answer is only tool calls.
            answer = message.get("message") or {}
            content = str(answer.get("content") or "")
            if content.startswith(self._received) and len(content) > len(self._received):
                yield self._next(content[len(self._received) :])
            yield from read_calls(answer.get("tool_calls"), self._deltas)
            yield read_finish(message.get("finish_reason"), message.get("usage"), message.get("timings"))
        else:
            raise read_error(message.get("error"))

    def _delta(self, message: Mapping[str, Any]) -> Iterator[Delta]:
        seq = _number(message.get("seq"))
        if seq < self._expected_seq:
            return
        self._gapless = self._gapless and seq == self._expected_seq
        if not self._gapless:
            return
        self._expected_seq += 1
        text = str(message.get("text", ""))
        self._received += text
        reasoning = message.get("reasoning_content")
        if reasoning:
            yield self._next(str(reasoning), reasoning=True)
        if text or not reasoning:
            yield self._next(text)

    def _next(self, text: str, *, reasoning: bool = False) -> Delta:
        self._deltas += 1
        return Delta(self._deltas - 1, text, reasoning=reasoning)


def _number(value: object) -> int:
    """Return a counter of the protocol; 0 if it is missing, as in replies of older daemons."""
    return value if isinstance(value, int) else 0
