"""Protobuf's wire format: a message as its fields, without a schema. It knows no message of anyone's.

A message may come from a stranger: whatever its bytes are, reading them ends in fields or in a `BundleError`, in time
and memory that are bounded. Nothing here recurses: a field that holds a message is a span of bytes until it is asked
for.

Source: protobuf's documentation, "Encoding".
"""

from __future__ import annotations

import struct

from edgekit.errors import BundleError

__all__ = ["Message"]

_VARINT, _FIXED64, _SPAN, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED32: 4, _FIXED64: 8}
# The longest varint: 64 bits, seven in a byte.
_VARINT_BYTES = 10
# Fields and packed numbers in one file; each costs some hundred bytes of memory. A graph of ours has some 400 a layer.
_MOST = 1 << 18


class Message:
    """Bytes that are fields.

    A field's number alone does not say what it holds: whoever asks says it, and is refused where the bytes cannot be
    that. As protobuf has it, the last of several single fields counts and a missing one is zero or empty.

    Args:
        data: The whole file.
        start: Where in it the message begins.
        stop: Where it ends, within the file.
        budget: Shared by all messages of a file: fields that may yet be read.

    Raises:
        BundleError: The bytes are no fields, or too many.
    """

    __slots__ = ("_budget", "_data", "_fields", "_start")

    def __init__(self, data: bytes, start: int = 0, stop: int | None = None, budget: list[int] | None = None) -> None:
        self._data, self._start = data, start
        self._budget = [_MOST] if budget is None else budget
        # By number: kind, and start and stop of what it holds, or of a varint its value.
        self._fields: dict[int, list[tuple[int, int, int]]] = {}
        at, stop = start, len(data) if stop is None else stop
        while at < stop:
            key, at = _varint(data, at, stop)
            number, kind = key >> 3, key & 7
            self._spend(1)
            if not 0 < number < 1 << 29:
                raise _damaged(at)
            if kind == _VARINT:
                value, at = _varint(data, at, stop)
                field = (kind, value, 0)
            else:
                # Others are groups, which nothing has used for long, and two kinds that do not exist.
                if kind == _SPAN:
                    length, at = _varint(data, at, stop)
                elif kind in _WIDTH:
                    length = _WIDTH[kind]
                else:
                    raise _damaged(at)
                if length > stop - at:
                    raise _damaged(at)
                field = (kind, at, at + length)
                at += length
            self._fields.setdefault(number, []).append(field)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def contents(self, number: int) -> list[bytes]:
        """The bytes of every field of that number."""
        return [self._data[start:stop] for start, stop in self._spans(number)]

    def texts(self, number: int) -> list[str]:
        """The same as text."""
        try:
            return [content.decode() for content in self.contents(number)]
        except UnicodeDecodeError:
            raise _damaged(self._start) from None

    def text(self, number: int) -> str:
        """The last text, or an empty one."""
        return texts[-1] if (texts := self.texts(number)) else ""

    def messages(self, number: int) -> list[Message]:
        """Every message, in order."""
        return [Message(self._data, start, stop, self._budget) for start, stop in self._spans(number)]

    def message(self, number: int) -> Message | None:
        """The only message, or None. Protobuf would merge several; nobody writes them."""
        messages = self.messages(number)
        if len(messages) > 1:
            raise _damaged(self._start)
        return messages[0] if messages else None

    def integers(self, number: int) -> list[int]:
        """Every number, of 64 bits with a sign: packed, or one a field."""
        values = []
        for kind, value, stop in self._fields.get(number, ()):
            if kind == _VARINT:
                values.append(_signed(value))
                continue
            if kind != _SPAN:
                raise _damaged(self._start)
            at = value
            while at < stop:
                packed, at = _varint(self._data, at, stop)
                self._spend(1)
                values.append(_signed(packed))
        return values

    def integer(self, number: int) -> int:
        """The last number, or 0."""
        return values[-1] if (values := self.integers(number)) else 0

    def floats(self, number: int) -> list[float]:
        """Every number of single precision: packed, or one a field."""
        values: list[float] = []
        for kind, start, stop in self._fields.get(number, ()):
            if kind not in {_SPAN, _FIXED32} or (stop - start) % 4:
                raise _damaged(self._start)
            count = (stop - start) // 4
            self._spend(count)
            values += struct.unpack_from(f"<{count}f", self._data, start)
        return values

    def float(self, number: int) -> float:
        """The last number of single precision, or 0."""
        return values[-1] if (values := self.floats(number)) else 0.0

    def _spans(self, number: int) -> list[tuple[int, int]]:
        fields = self._fields.get(number, ())
        if any(kind != _SPAN for kind, _, _ in fields):
            raise _damaged(self._start)
        return [(start, stop) for _, start, stop in fields]

    def _spend(self, fields: int) -> None:
        self._budget[0] -= fields
        if self._budget[0] < 0:
            raise BundleError("the graph has more parts than any model of ours", hint="is this a bundle of edgekit's?")


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number, and where it ends."""
    if at < stop and (first := data[at]) < 0x80:
        return first, at + 1
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise _damaged(at)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _damaged(at: int) -> BundleError:
    return BundleError(f"the graph is damaged near byte {at}", hint="check the bundle: edgekit verify DIR")
