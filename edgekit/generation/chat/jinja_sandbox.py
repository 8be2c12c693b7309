"""Runs chat templates in Jinja's immutable sandbox, with limits on time and memory.

A template comes with a checkpoint and is untrusted. A single operation can do a lot of work in C code, which cannot be
interrupted, so the size of each result is estimated before the operation runs and charged to a budget for the whole
rendering.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["MAX_CHARACTERS", "LimitError", "Limits", "Sandbox", "check_size"]

MAX_CHARACTERS = 4 * 1_048_576
"""Maximum number of characters in one value, and in a prompt."""
_MAX_TOTAL_CHARACTERS = 8 * MAX_CHARACTERS
_MAX_WIDTH = 10_000
# Dividing integers takes time that grows with the square of their length. JSON's have at most 4300 digits here.
_MAX_BITS = 16_384
# Size charged for an item of a list or mapping, in characters.
_ITEM_SIZE = 16
# Methods whose result size depends on the contents of their arguments, and filters that no prompt needs.
_NO_METHODS = frozenset({"expandtabs", "format", "format_map", "maketrans", "translate"})
_NO_FILTERS = ("forceescape", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")

_spent: ContextVar[list[int]] = ContextVar("spent")


class LimitError(Exception):
    """Raised when a template exceeds a limit."""


class Limits:
    """Context manager that gives one rendering a time limit and a size budget.

    A trace function runs for every line and interrupts Python code, however deeply its loops are nested. Only time on a
    processor counts: on a busy or suspended machine, a rendering may wait for longer than it may run.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = time.thread_time()
        self._next_check = time.monotonic() + self._seconds
        self._token = _spent.set([0])
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        _spent.reset(self._token)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ARG002  the interpreter's signature
        if frame.f_code.co_filename == __file__:
            # The size estimates here are bounded, and slow when traced line by line.
            return None
        # `thread_time` asks the kernel, so it is not called for every line.
        if time.monotonic() > self._next_check:
            left = self._began + self._seconds - time.thread_time()
            if left <= 0:
                raise LimitError(f"ran longer than {self._seconds:g} s")
            self._next_check = time.monotonic() + left
        return self._trace


class _Compiler(CodeGenerator):
    """Compiles `~` and list, tuple and mapping literals into calls of the sandbox, which Jinja would not make."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Concatenate in the sandbox."""
        self.write("environment.join((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Charge the new value to the budget."""
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.charge(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Charge the new value to the budget."""
        self.write("environment.charge(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Charge the new value to the budget."""
        self.write("environment.charge(")
        super().visit_Dict(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The Jinja environment that compiles and runs one template."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_check_printable)
        # Jinja joins the output of blocks and macros with `concat`.
        self.concat = self.join  # type: ignore[method-assign]
        self.globals.pop("lipsum")
        for name in _NO_FILTERS:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        # Templates' tests that divide: `even`, `odd` and `divisibleby`.
        for name, function in list(self.tests.items()):
            self.tests[name] = _short_integers(function)

    def add_filter(self, name: str, function: Any) -> None:
        """Add a filter, or replace the one of this name."""
        self.filters[name] = _bounded(name, function)

    @staticmethod
    def join(parts: Iterable[Any]) -> str:
        """Join values as strings."""
        strings = [part if isinstance(part, str) else str(_check_printable(part)) for part in parts]
        _spend(sum(map(len, strings)))
        return "".join(strings)

    @staticmethod
    def charge(value: Any) -> Any:
        """Charge a new value to the budget and return it."""
        _spend(_estimate_size(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse operations that turn small operands into a large result, or take long."""
        _check_bits((left, right))
        if operator == "**" and (abs(left) > _MAX_WIDTH or abs(right) > 64):
            raise LimitError("computes too large a power")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _spend(_estimate_size(value) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
                raise LimitError("multiplies numbers that are too large")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _spend(_shallow_size(left) + _shallow_size(right))
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Refuse calls that would fill memory: widths (`ljust`, `range`) and long results (`replace`, `join`)."""
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        _check_widths(args, kwargs)
        # Jinja wraps `str.format` in its own function.
        if name in _NO_METHODS and not isinstance(owner, Mapping):
            raise LimitError(f"uses str.{name}, which is not available")
        if isinstance(owner, str | bytes):
            if name == "join" and args:
                args = (_collect(args[0], len(owner)), *args[1:])
            if name == "replace":
                _check_replace(owner, args)
        result = super().call(context, function, *args, **kwargs)
        _check_bits((result,))
        return self.charge(result) if isinstance(result, str | bytes | list | tuple | dict) else result


def _bounded(name: str, function: Any) -> Any:
    """Return a filter that refuses arguments whose result would be too large."""
    # Jinja passes the environment as first argument to filters that carry this attribute.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    def bounded(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = args[:skip], args[skip] if len(args) > skip else None, args[skip + 1 :]
        _check_widths(rest, kwargs)
        strings = [item for item in (*rest, *kwargs.values()) if isinstance(item, str)]
        if name == "format":
            _check_format(str(value), rest or dict(kwargs))
        elif name == "join":
            value = _collect(value, max(map(len, strings), default=0))
        elif name == "replace":
            _check_replace(str(_check_printable(value)), (*rest, *kwargs.values()))
        elif name == "indent":
            _spend(str(_check_printable(value)).count("\n") * max(map(len, strings), default=0))
        elif isinstance(value, Iterator):
            value = _charged_items(value)
        elif isinstance(value, list | tuple | dict) and name not in {"length", "count", "first", "last", "items"}:
            _estimate_size(value)
        if name == "int" and isinstance(value, str | bytes) and len(value) > _MAX_BITS:
            raise LimitError("converts too long a text to a number")
        _check_bits((value, *rest))
        result = function(*before, value, *rest, **kwargs)
        _check_bits((result,))
        return Sandbox.charge(result) if isinstance(result, str | list | tuple | dict) else result

    if skip:
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def _short_integers(function: Any) -> Any:
    """Return a test of templates that refuses integers that are too long."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_bits((*args, *kwargs.values()))
        return function(*args, **kwargs)

    if hasattr(function, "jinja_pass_arg"):
        checked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return checked


def _check_bits(values: Iterable[Any]) -> None:
    """Refuse integers that are too long to compute with."""
    for value in values:
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise LimitError(f"computes with an integer of more than {_MAX_BITS} bits")


def check_size(size: int) -> None:
    """Refuse a string or value of more than `MAX_CHARACTERS`."""
    if size > MAX_CHARACTERS:
        raise LimitError(f"produces more than {MAX_CHARACTERS} characters")


def _spend(size: int) -> None:
    """Charge the budget of the running template; without one (Jinja folds constants), only check the size."""
    check_size(size)
    spent = _spent.get([0])
    spent[0] += size
    if spent[0] > _MAX_TOTAL_CHARACTERS:
        raise LimitError(f"produces more than {_MAX_TOTAL_CHARACTERS} characters in intermediate values")


def _estimate_size(value: Any) -> int:
    """Return roughly how many characters a value has as a string; a value referenced twice counts twice."""
    total, pending = 0, [value]
    while pending:
        item = pending.pop()
        # Tuples of types: `isinstance` with a union runs Python code.
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            total += _ITEM_SIZE * len(item)
            pending += item
        elif isinstance(item, dict):
            total += _ITEM_SIZE * len(item)
            pending += [*item.keys(), *item.values()]
        if total > MAX_CHARACTERS:
            check_size(total)
    return total


def _shallow_size(value: str | Sequence[Any]) -> int:
    return len(value) if isinstance(value, str) else _ITEM_SIZE * len(value)


def _check_printable(value: Any) -> Any:
    """Check the size of a value that will be converted to a string, and return it."""
    if not isinstance(value, str):
        _estimate_size(value)
    return value


def _charged_items(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(_ITEM_SIZE + _estimate_size(item))
        yield item


def _collect(items: Any, separator_length: int) -> list[Any]:
    """Return the items to be joined as a list, charged together with their separators."""
    collected = list(_charged_items(items)) if isinstance(items, Iterable) else [items]
    _spend(separator_length * len(collected))
    return collected


def _check_replace(text: str | bytes, args: Sequence[Any]) -> None:
    kind = type(text) if isinstance(text, bytes) else str
    if len(args) >= 2 and isinstance(args[0], kind) and isinstance(args[1], kind):
        _spend(len(text) + text.count(args[0]) * len(args[1]))  # type: ignore[arg-type]


def _check_format(template: str, values: Any) -> None:
    if re.search(r"%[^%a-zA-Z]*(\d{4,}|\*)", template):
        raise LimitError("uses too large a field width")
    _spend(len(template) + template.count("%") * (_estimate_size(values) + 1000))


def _check_widths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise LimitError(f"passes a number above {_MAX_WIDTH} to a function")
