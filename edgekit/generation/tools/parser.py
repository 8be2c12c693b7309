"""Finds calls in a model's text as it comes.

What comes out does not depend on how the text is cut into pieces, and nothing comes out that a later piece could make
something else: text that may become a call waits, and what does not become one comes out as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import ClassVar

from edgekit.generation.request import Tool
from edgekit.generation.stops import overlap
from edgekit.generation.tools.base import CallArguments, CallStart, Piece, TextPiece
from edgekit.generation.tools.json_scan import ObjectScanner

__all__ = ["ToolParser"]


class ToolParser:
    """The parser of one answer; formats say what opens a call and what stands around its JSON.

    It is a state machine over `_buffer`, the text not yet understood. A state is a method that takes from the buffer
    and returns True, or returns False until there is more. `_raw` is the text of the call being read, from its
    opening on: what comes out again if it is none.

    Args:
        ids: Makes a call's id.
        tools: Those there are; a call of anything else is text, and where there are none nothing is looked for.
        stream: Pass arguments on as they come.
        parallel: More than one call is allowed.
    """

    OPENINGS: ClassVar[tuple[str, ...]] = ()
    """Texts that open a call; a single line feed before one belongs to it."""
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("arguments",)
    """Keys under which a call's object may have its arguments."""

    def __init__(self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, parallel: bool) -> None:
        self._ids = ids
        self._names = frozenset(tool.name for tool in tools)
        # What may open a call waits until it is one or none.
        self._openings = self.OPENINGS if tools else ()
        self._stream = stream
        self._parallel = parallel
        self._called = False
        self._pieces: list[Piece] = []
        self._buffer = ""
        self._raw = ""
        self._object = ""
        self._scanner = ObjectScanner()
        self._outer: tuple[str, str | None] | None = None
        self._sent: int | None = None
        self._state: Callable[[], bool] = self._text

    def push(self, text: str) -> list[Piece]:
        """Take text and return what is now certain."""
        self._buffer += text
        while self._state():
            pass
        return self._take()

    def finish(self) -> list[Piece]:
        """Return what still waits, at the end of the answer; a call that is not complete is text."""
        if self._state == self._gap:
            # White space around calls is part of them.
            self._buffer = self._buffer.lstrip()
        elif self._state == self._closing:
            # What closes the call was cut short.
            self._buffer = ""
        if self._sent is None:
            self._emit(self._raw + self._buffer)
        self._raw = self._buffer = ""
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _emit(self, text: str, *, thinking: bool = False, mark: bool = False) -> None:
        if text:
            self._pieces.append(TextPiece(text, thinking, mark))

    # States.

    def _text(self) -> bool:
        """Text, until something opens a call."""
        found = [(start, marker) for marker in self._openings if (start := self._buffer.find(marker)) >= 0]
        if not found:
            marks = [mark for marker in self._openings for mark in (marker, f"\n{marker}")]
            waiting = max((overlap(self._buffer, mark) for mark in marks), default=0)
            keep = len(self._buffer) - waiting
            self._emit(self._buffer[:keep])
            self._buffer = self._buffer[keep:]
            return False
        start, marker = min(found)
        before = self._buffer[:start].removesuffix("\n") if start else ""
        self._emit(before)
        self._raw = self._buffer[len(before) : start + len(marker)]
        self._buffer = self._buffer[start + len(marker) :]
        self._state = self._opened
        return True

    def _opened(self) -> bool:
        """After what opens a call: white space and the object."""
        return self._skip_to("{", self._begin_object)

    def _inside(self) -> bool:
        """Inside the object."""
        taken = self._scanner.push(self._buffer)
        self._object += self._buffer[:taken]
        self._raw += self._buffer[:taken]
        self._buffer = self._buffer[taken:]
        if self._stream:
            self._pass_on()
        if self._scanner.failed:
            return self._reject()
        if not self._scanner.done:
            return False
        if self._sent is None and not self._accept():
            return self._reject()
        self._raw, self._sent, self._called = "", None, True
        self._state = self._closing
        return True

    def _closing(self) -> bool:
        """After the object: what closes the call."""
        self._state = self._gap
        return True

    def _gap(self) -> bool:
        """After a call: white space, then another call or text."""
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if any(rest.startswith(marker) for marker in self._openings):
            self._buffer = rest
        elif any(marker.startswith(rest) for marker in self._openings):
            return False
        self._state = self._text
        return True

    # Steps that states share.

    def _skip_to(self, char: str, then: Callable[[], None]) -> bool:
        """Take white space; go on if `char` follows, or else the call is none."""
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if rest[0] != char:
            return self._reject()
        self._advance(len(self._buffer) - len(rest))
        then()
        return True

    def _advance(self, length: int) -> None:
        """Take characters of the call that are not its object."""
        self._raw += self._buffer[:length]
        self._buffer = self._buffer[length:]

    def _begin_object(self) -> None:
        self._scanner, self._object = ObjectScanner(), ""
        self._state = self._inside

    def _reject(self) -> bool:
        """What was read is no call: it is text, up to here. What follows is looked at anew."""
        self._emit(self._raw if self._sent is None else self._object[self._sent :])
        self._raw, self._sent = "", None
        self._state = self._text
        return True

    def _call(self) -> tuple[str, str | None, int, int | None] | None:
        """Name, id and span of the arguments in the object; None if they are not known (yet)."""
        if self._outer is not None:
            name, number = self._outer
            return name, number, 0, len(self._object) if self._scanner.done else None
        values = self._scanner.values
        start, stop = values.get("name", (0, None))
        span = next((values[key] for key in self.ARGUMENTS if key in values), None)
        if stop is None or span is None or self._object[start] != '"':
            return None
        return json.loads(self._object[start:stop]), None, *span

    def _known(self, name: str) -> bool:
        return name in self._names and (self._parallel or not self._called)

    def _pass_on(self) -> None:
        """Pass on what there is of the arguments of a call that a grammar vouches for."""
        call = self._call()
        if call is None or not self._known(call[0]):
            return
        name, number, start, stop = call
        if self._sent is None:
            if self._object[start : start + 1] != "{":
                return
            self._pieces.append(CallStart(number or self._ids(), name))
            self._sent = start
        stop = len(self._object) if stop is None else stop
        if stop > self._sent:
            self._pieces.append(CallArguments(self._object[self._sent : stop]))
            self._sent = stop

    def _accept(self) -> bool:
        """Let a complete call out, if it is one."""
        call = self._call()
        if call is None or not self._known(call[0]):
            return False
        name, number, start, stop = call
        arguments = self._object[start:stop]
        if arguments[0] == '"':
            # Some models write the arguments as a string that holds their JSON.
            arguments = json.loads(arguments)
            inner = ObjectScanner()
            if inner.push(arguments) < len(arguments) or not inner.done:
                return False
        if arguments[0] != "{":
            return False
        self._pieces += [CallStart(number or self._ids(), name), CallArguments(arguments)]
        return True
