"""Streaming parser that finds tool calls in a model's output.

The events do not depend on how the text is split into chunks, and none is ever revised: text that may become a call is
held back, and if it does not become one, it is emitted verbatim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import ClassVar

from edgekit.generation.chat.stop_strings import overlap
from edgekit.generation.tools.events import ArgumentsDelta, CallStart, ParserEvent, TextDelta
from edgekit.generation.tools.json_scan import ObjectScanner
from edgekit.generation.types import Tool

__all__ = ["ToolParser"]


class ToolParser:
    """Parses one output; subclasses define what opens a call and what surrounds its JSON.

    A state machine over `_buffer`, the text not yet parsed. A state is a method that consumes text from the buffer and
    returns True, or returns False if it needs more. `_raw` is the text of the current call, from its opening marker
    on; it is emitted as text if the call is rejected.

    Args:
        ids: Generates call ids.
        tools: The available tools; a call to any other tool is text. Without tools no call is looked for.
        stream: Emit arguments as they are generated; a grammar ensures that a call that has begun is valid.
        required: The output starts with a call.
        parallel: Allow several calls.
    """

    OPENINGS: ClassVar[tuple[str, ...]] = ()
    """Markers that open a call; a single line feed before one belongs to it."""
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("arguments",)
    """Keys of a call object under which its arguments may be."""

    def __init__(
        self, ids: Callable[[], str], tools: Sequence[Tool], *, stream: bool, required: bool, parallel: bool
    ) -> None:
        self._ids = ids
        self._names = frozenset(tool.name for tool in tools)
        # Without tools no text is held back for a call.
        self._openings = self.OPENINGS if tools else ()
        self._stream = stream
        self._required = required
        self._parallel = parallel
        self._called = False
        self._events: list[ParserEvent] = []
        self._buffer = ""
        self._raw = ""
        self._object = ""
        self._scanner = ObjectScanner()
        self._outer: tuple[str, str | None] | None = None
        self._sent: int | None = None
        self._state: Callable[[], bool] = self._text

    def push(self, text: str) -> list[ParserEvent]:
        """Add text and return the events that are now final."""
        self._buffer += text
        while self._state():
            pass
        return self._take()

    def finish(self) -> list[ParserEvent]:
        """Return the events for everything held back at the end of the output.

        The start of a call whose arguments have not begun is dropped where a grammar makes sure that it is one;
        otherwise it is text.
        """
        if self._state == self._gap:
            # White space around calls belongs to them, and by a grammar only calls follow a call.
            self._buffer = "" if self._stream else self._buffer.lstrip()
        elif self._state == self._closing:
            # The closing marker is incomplete.
            self._buffer = ""
        if self._sent is None and not (self._stream and (self._required or self._begun())):
            self._emit(self._raw + self._buffer)
        self._raw = self._buffer = ""
        return self._take()

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the model's reasoning."""
        return False

    def _take(self) -> list[ParserEvent]:
        events, self._events = self._events, []
        return events

    def _begun(self) -> bool:
        """Whether the text held back is the start of a call, as a grammar sees it."""
        return bool(self._raw)

    def _emit(self, text: str, *, thinking: bool = False, delimiter: bool = False) -> None:
        if text:
            self._events.append(TextDelta(text, thinking, delimiter))

    # States.

    def _text(self) -> bool:
        """Text before an opening marker."""
        found = [(start, marker) for marker in self._openings if (start := self._buffer.find(marker)) >= 0]
        if not found:
            openings = [opening for marker in self._openings for opening in (marker, f"\n{marker}")]
            held_back = max((overlap(self._buffer, opening) for opening in openings), default=0)
            stop = len(self._buffer) - held_back
            self._emit(self._buffer[:stop])
            self._buffer = self._buffer[stop:]
            return False
        start, marker = min(found)
        before = self._buffer[:start].removesuffix("\n") if start else ""
        self._emit(before)
        self._raw = self._buffer[len(before) : start + len(marker)]
        self._buffer = self._buffer[start + len(marker) :]
        self._state = self._opened
        return True

    def _opened(self) -> bool:
        """After an opening marker: white space, then the object."""
        return self._skip_to("{", self._begin_object)

    def _inside(self) -> bool:
        """Inside the object."""
        taken = self._scanner.push(self._buffer)
        self._object += self._buffer[:taken]
        self._raw += self._buffer[:taken]
        self._buffer = self._buffer[taken:]
        if self._stream:
            self._stream_arguments()
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
        """After the object: the closing marker."""
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

    # Shared steps.

    def _skip_to(self, char: str, then: Callable[[], None]) -> bool:
        """Consume white space; continue with `then` if `char` follows, else reject the call."""
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if rest[0] != char:
            return self._reject()
        self._advance(len(self._buffer) - len(rest))
        then()
        return True

    def _advance(self, length: int) -> None:
        """Consume characters of the call outside its object."""
        self._raw += self._buffer[:length]
        self._buffer = self._buffer[length:]

    def _begin_object(self) -> None:
        self._scanner, self._object = ObjectScanner(), ""
        self._state = self._inside

    def _reject(self) -> bool:
        """Emit what was read of the call as text and parse the rest afresh."""
        self._emit(self._raw if self._sent is None else self._object[self._sent :])
        self._raw, self._sent = "", None
        self._state = self._text
        return True

    def _call(self) -> tuple[str, str | None, int, int | None] | None:
        """Name, id and span of the arguments in the object; None if not (yet) known."""
        if self._outer is not None:
            name, call_id = self._outer
            return name, call_id, 0, len(self._object) if self._scanner.done else None
        values = self._scanner.values
        start, stop = values.get("name", (0, None))
        span = next((values[key] for key in self.ARGUMENTS if key in values), None)
        if stop is None or span is None or self._object[start] != '"':
            return None
        return json.loads(self._object[start:stop]), None, *span

    def _known(self, name: str) -> bool:
        return name in self._names and (self._parallel or not self._called)

    def _stream_arguments(self) -> None:
        """Emit the available arguments of a call that is valid by its grammar."""
        call = self._call()
        if call is None or not self._known(call[0]):
            return
        name, call_id, start, stop = call
        if self._sent is None:
            if self._object[start : start + 1] != "{":
                return
            self._events.append(CallStart(call_id or self._ids(), name))
            self._sent = start
        stop = len(self._object) if stop is None else stop
        if stop > self._sent:
            self._events.append(ArgumentsDelta(self._object[self._sent : stop]))
            self._sent = stop

    def _accept(self) -> bool:
        """Emit a complete call if it is valid."""
        call = self._call()
        if call is None or not self._known(call[0]):
            return False
        name, call_id, start, stop = call
        arguments = self._object[start:stop]
        if arguments[0] == '"':
            # Some models write the arguments as a string that contains their JSON.
            arguments = json.loads(arguments)
            inner = ObjectScanner()
            if inner.push(arguments) < len(arguments) or not inner.done:
                return False
        if arguments[0] != "{":
            return False
        self._events += [CallStart(call_id or self._ids(), name), ArgumentsDelta(arguments)]
        return True
