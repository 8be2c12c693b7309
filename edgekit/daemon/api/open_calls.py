"""Finds the call that a tool's result answers, where clients leave out ids."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from edgekit.generation.types import ToolCall

__all__ = ["CallIds", "OpenCalls"]


class CallIds:
    """Ids for calls that have none.

    Args:
        taken: The ids of all calls and results of the request; None or empty for one that has none.
    """

    def __init__(self, taken: Iterable[str | None]) -> None:
        self._taken = set(taken)

    def of(self, given: str | None, message: int, index: int) -> str:
        """Return the id of a call; one that it did not have is made from its place, as in the next request.

        Args:
            given: The id that it has.
            message: Number of its message.
            index: Its number in the message.
        """
        if given:
            return given
        made = f"call_{message}_{index}"
        while made in self._taken:
            made += "_"
        self._taken.add(made)
        return made


class OpenCalls:
    """Calls without a result.

    A result answers the first one of the newest turn that has any: a call of an earlier turn was abandoned. A search
    for each result would be quadratic in the messages.
    """

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}
        self._added = 0
        self._turn = 0
        # The numbers of calls, open or not, in order, for each turn; by id, by name, and of all.
        self._numbers: defaultdict[tuple[str, str], list[tuple[int, deque[int]]]] = defaultdict(list)

    def add(self, role: str, calls: Sequence[ToolCall]) -> None:
        """Take a message's calls. An assistant's messages in a row are one turn."""
        if role != "assistant":
            self._turn += 1
        for call in calls:
            self._calls[self._added] = call
            for key in (("id", call.id), ("name", call.name), ("any", "")):
                turns = self._numbers[key]
                if not turns or turns[-1][0] != self._turn:
                    turns.append((self._turn, deque()))
                turns[-1][1].append(self._added)
            self._added += 1

    def answer(self, *, call_id: str | None = None, name: str | None = None) -> str | None:
        """Close the call that a result answers, and return its id; None if there is none.

        Args:
            call_id: The call that the result names.
            name: The tool that it names; without either it answers a call of any tool.
        """
        turns = self._numbers.get(("id", call_id) if call_id else ("name", name) if name else ("any", ""), [])
        while turns:
            numbers = turns[-1][1]
            while numbers:
                call = self._calls.pop(numbers.popleft(), None)
                if call is not None:
                    return call.id
            turns.pop()
        return None
