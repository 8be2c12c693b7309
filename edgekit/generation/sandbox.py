"""Where chat templates run: Jinja's immutable sandbox, with limits on time and memory.

A template comes with a checkpoint and is hostile until proven otherwise. One step of it may do much in a single call
into C, which nothing interrupts; so what a step will make is estimated before it is taken, and all steps together draw
on one budget.
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
"""Most characters of one value, and of a prompt."""
_MAX_MADE = 8 * MAX_CHARACTERS
_MAX_WIDTH = 10_000
# What an item of a list or mapping weighs, in characters.
_ITEM = 16
# Methods whose result's size hides in their arguments' text, and filters of no use to a prompt.
_NO_METHODS = frozenset({"expandtabs", "format", "format_map", "maketrans", "translate"})
_NO_FILTERS = ("forceescape", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")

_made: ContextVar[list[int]] = ContextVar("made")


class LimitError(Exception):
    """The template passed a limit."""


class Limits:
    """A span in which one template runs: its time and its budget.

    A trace function sees every line that runs and interrupts Python code, whatever loops it nests.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._until = time.monotonic() + self._seconds
        self._token = _made.set([0])
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        _made.reset(self._token)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ARG002  the interpreter's signature
        if frame.f_code.co_filename == __file__:
            # What weighs values is bounded, and slow if watched line by line.
            return None
        if time.monotonic() > self._until:
            raise LimitError(f"ran longer than {self._seconds:g} s")
        return self._trace


class _Compiler(CodeGenerator):
    """Sends through the sandbox what Jinja would do on its own: `~`, and making lists and mappings."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Join in the sandbox."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Weigh what is made."""
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.made(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Weigh what is made."""
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Weigh what is made."""
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that compiles and runs one template."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_printable)
        # Jinja joins with it what a block or macro made.
        self.concat = self.joined  # type: ignore[method-assign]
        self.globals.pop("lipsum")
        for name in _NO_FILTERS:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Any) -> None:
        """Add a filter, or put it in another's place."""
        self.filters[name] = _bounded(name, function)

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """Join texts, or what becomes text."""
        texts = [part if isinstance(part, str) else str(_printable(part)) for part in parts]
        _spend(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def made(value: Any) -> Any:
        """Let a new value pass if it is not too large."""
        _spend(_weight(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse operators that make much out of little."""
        if operator == "**" and (abs(left) > _MAX_WIDTH or abs(right) > 64):
            raise LimitError("raises to too high a power")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _spend(_weight(value) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
                raise LimitError("multiplies too large numbers")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _spend(_size(left) + _size(right))
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Refuse calls that would fill memory: widths as of `ljust` and `range`, texts as of `replace` and `join`."""
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        _check_widths(args, kwargs)
        # Jinja hands out `str.format` as a function of its own.
        if name in _NO_METHODS and not isinstance(owner, Mapping):
            raise LimitError(f"uses str.{name}, which is not available")
        if isinstance(owner, str | bytes):
            if name == "join" and args:
                args = (_gathered(args[0], len(owner)), *args[1:])
            if name == "replace":
                _check_replace(owner, args)
        result = super().call(context, function, *args, **kwargs)
        return self.made(result) if isinstance(result, str | bytes | list | tuple | dict) else result


def _bounded(name: str, function: Any) -> Any:
    """Return a filter that refuses what would make too much."""
    # Jinja hands some filters the environment first, by a mark on the function.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    def bounded(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = args[:skip], args[skip] if len(args) > skip else None, args[skip + 1 :]
        _check_widths(rest, kwargs)
        texts = [item for item in (*rest, *kwargs.values()) if isinstance(item, str)]
        if name == "format":
            _check_format(str(value), rest or dict(kwargs))
        elif name == "join":
            value = _gathered(value, max(map(len, texts), default=0))
        elif name == "replace":
            _check_replace(str(_printable(value)), (*rest, *kwargs.values()))
        elif name == "indent":
            _spend(str(_printable(value)).count("\n") * max(map(len, texts), default=0))
        elif isinstance(value, Iterator):
            value = _metered(value)
        elif isinstance(value, list | tuple | dict) and name not in {"length", "count", "first", "last", "items"}:
            _weight(value)
        result = function(*before, value, *rest, **kwargs)
        return Sandbox.made(result) if isinstance(result, str | list | tuple | dict) else result

    if skip:
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def check_size(size: int) -> None:
    """Refuse a text or value of more than `MAX_CHARACTERS`."""
    if size > MAX_CHARACTERS:
        raise LimitError(f"makes more than {MAX_CHARACTERS} characters")


def _spend(size: int) -> None:
    """Draw on the budget of the template that runs, if one does: constants are folded before."""
    check_size(size)
    spent = _made.get([0])
    spent[0] += size
    if spent[0] > _MAX_MADE:
        raise LimitError(f"makes more than {_MAX_MADE} characters on its way")


def _weight(value: Any) -> int:
    """Return about how many characters a value would have as text; a value held twice counts twice."""
    total, open_ = 0, [value]
    while open_:
        item = open_.pop()
        # Tuples of types: a union would be asked through Python code.
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            total += _ITEM * len(item)
            open_ += item
        elif isinstance(item, dict):
            total += _ITEM * len(item)
            open_ += [*item.keys(), *item.values()]
        if total > MAX_CHARACTERS:
            check_size(total)
    return total


def _size(value: str | Sequence[Any]) -> int:
    return len(value) if isinstance(value, str) else _ITEM * len(value)


def _printable(value: Any) -> Any:
    """Let a value pass that will become text."""
    if not isinstance(value, str):
        _weight(value)
    return value


def _metered(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(_ITEM + _weight(item))
        yield item


def _gathered(items: Any, between: int) -> list[Any]:
    """Return what will be joined as a list, if it is not too large."""
    gathered = list(_metered(items)) if isinstance(items, Iterable) else [items]
    _spend(between * len(gathered))
    return gathered


def _check_replace(text: str | bytes, args: Sequence[Any]) -> None:
    kind = type(text) if isinstance(text, bytes) else str
    if len(args) >= 2 and isinstance(args[0], kind) and isinstance(args[1], kind):
        _spend(len(text) + text.count(args[0]) * len(args[1]))  # type: ignore[arg-type]


def _check_format(form: str, values: Any) -> None:
    if re.search(r"%[^%a-zA-Z]*(\d{4,}|\*)", form):
        raise LimitError("formats too wide")
    _spend(len(form) + form.count("%") * (_weight(values) + 1000))


def _check_widths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise LimitError(f"passes a number above {_MAX_WIDTH} to a function")
