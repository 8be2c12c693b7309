"""Parses protobuf's wire format into fields, without a schema.

Messages are untrusted: any bytes are either parsed or raise `BundleError`, in bounded time and memory. Parsing does not
recurse: a nested message is a span of bytes until it is requested.

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
# Fields and packed numbers in one file; each takes about a hundred bytes of memory. Edgekit's graphs have 400 to 1,600
# per layer.
_MAX_FIELDS = 1 << 18


class Message:
    """The fields of a message.

    The wire format does not fully determine a field's type: the caller requests one, and gets a `BundleError` if the
    bytes cannot be of it. As in protobuf, the last of several singular fields counts, and a missing one is zero or
    empty.

    Args:
        data: The full file.
        start: Start of the message in the file.
        stop: End of the message in the file.
        budget: Remaining number of fields, shared by all messages of a file.

    Raises:
        BundleError: The bytes are not a message, or have too many fields.
    """

    __slots__ = ("_budget", "_data", "_fields", "_start")

    def __init__(self, data: bytes, start: int = 0, stop: int | None = None, budget: list[int] | None = None) -> None:
        self._data, self._start = data, start
        self._budget = [_MAX_FIELDS] if budget is None else budget
        # By number: wire type, and start and stop of the contents, or the value of a varint.
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
                # The rest are groups, which are obsolete, and two wire types that do not exist.
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
        """Return the bytes of every field with this number."""
        return [self._data[start:stop] for start, stop in self._spans(number)]

    def texts(self, number: int) -> list[str]:
        """Return every string."""
        try:
            return [content.decode() for content in self.contents(number)]
        except UnicodeDecodeError:
            raise _damaged(self._start) from None

    def text(self, number: int) -> str:
        """Return the last string, or an empty one."""
        return texts[-1] if (texts := self.texts(number)) else ""

    def messages(self, number: int) -> list[Message]:
        """Return every message, in order."""
        return [Message(self._data, start, stop, self._budget) for start, stop in self._spans(number)]

    def message(self, number: int) -> Message | None:
        """Return the only message, or None. Several, which protobuf would merge, are rejected."""
        messages = self.messages(number)
        if len(messages) > 1:
            raise _damaged(self._start)
        return messages[0] if messages else None

    def integers(self, number: int) -> list[int]:
        """Return every signed 64-bit number, packed or one per field."""
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
        """Return the last signed 64-bit number, or 0."""
        return values[-1] if (values := self.integers(number)) else 0

    def floats(self, number: int) -> list[float]:
        """Return every float32 number, packed or one per field."""
        values: list[float] = []
        for kind, start, stop in self._fields.get(number, ()):
            if kind not in {_SPAN, _FIXED32} or (stop - start) % 4:
                raise _damaged(self._start)
            count = (stop - start) // 4
            self._spend(count)
            values += struct.unpack_from(f"<{count}f", self._data, start)
        return values

    def float(self, number: int) -> float:
        """Return the last float32 number, or 0."""
        return values[-1] if (values := self.floats(number)) else 0.0

    def _spans(self, number: int) -> list[tuple[int, int]]:
        fields = self._fields.get(number, ())
        if any(kind != _SPAN for kind, _, _ in fields):
            raise _damaged(self._start)
        return [(start, stop) for _, start, stop in fields]

    def _spend(self, fields: int) -> None:
        self._budget[0] -= fields
        if self._budget[0] < 0:
            raise BundleError("the graph has too many fields", hint="was this bundle made by edgekit?")


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """Return a number and the offset behind it."""
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
