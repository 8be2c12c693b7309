"""The chat template: messages to the text a model was trained on.

A template comes with a checkpoint and is hostile until proven otherwise: it runs in Jinja's immutable sandbox, with
limits on time and size. It knows no tokens.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.errors import BundleError, RequestError

__all__ = ["ChatTemplate"]

_MAX_SOURCE = 262_144
_MAX_OUTPUT = 16 * 1_048_576
_MAX_WIDTH = 10_000
_MAX_SECONDS = 5.0


class ChatTemplate:
    """A compiled template; safe to use from several threads.

    Args:
        source: Jinja text, as Hugging Face's `chat_template` holds it.
        variables: Names the template may use besides the messages: `bos_token`, `eos_token`, …

    Raises:
        BundleError: It is too long, or not a template.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        if len(source) > _MAX_SOURCE:
            raise BundleError(f"the chat template has {len(source)} characters; at most {_MAX_SOURCE} are read")
        environment = _Environment(
            # As Hugging Face renders them: other whitespace would be other tokens.
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            # The output is tokens, not HTML.
            autoescape=False,
        )
        environment.filters["tojson"] = _tojson
        for name in ("center", "indent", "wordwrap", "batch", "slice", "format", "truncate"):
            environment.filters[name] = _bounded(environment.filters[name])
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        self._variables = dict(variables or {})
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise BundleError(f"the chat template is not valid: {_line(error)}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt.

        Args:
            messages: Objects with `role` and `content`.
            add_generation_prompt: End with the opening of the assistant's turn.

        Raises:
            RequestError: The template refuses these messages (`raise_exception`).
            BundleError: The template failed, or passed a limit.
        """
        values = {
            "tools": None,
            "documents": None,
            **self._variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        size = 0
        try:
            with _TimeLimit(_MAX_SECONDS):
                for piece in self._template.generate(values):
                    size += len(piece)
                    _check_size(size)
                    pieces.append(piece)
        except _RefusedError as error:
            raise RequestError(f"the chat template refuses these messages: {_line(error)}", param="messages") from error
        except Exception as error:  # a template can raise anything Python can
            raise BundleError(f"the chat template failed: {_line(error)}") from error
        return "".join(pieces)


class _RefusedError(Exception):
    """The template called `raise_exception`."""


class _LimitError(Exception):
    """The template passed a limit."""


class _TimeLimit:
    """Interrupts Python code of this thread after some seconds, whatever loops it nests.

    A trace function sees every line that runs; one C call is not interrupted, so widths are bounded elsewhere.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ARG002  the interpreter's signature
        if time.monotonic() > self._until:
            raise _LimitError(f"ran longer than {self._seconds:g} s")
        return self._trace


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on what one operation may make."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse operators that make much out of little."""
        if operator == "**" and (abs(left) > _MAX_WIDTH or abs(right) > 64):
            raise _LimitError("raises to too high a power")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and len(value) * times > _MAX_OUTPUT:
                    raise _LimitError("repeats too often")
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
                raise _LimitError("multiplies too large numbers")
        if operator == "%" and isinstance(left, str) and re.search(r"\d{4,}|\*", left):
            raise _LimitError("formats too wide")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Refuse calls with widths that would fill memory: `ljust`, `zfill`, `range`."""
        # str.format hides its widths in the text; templates format with filters and `~`.
        if getattr(function, "__name__", "") in {"format", "format_map"}:
            raise _LimitError("uses str.format, which is not available")
        _check_widths(args, kwargs)
        return super().call(context, function, *args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012  Jinja reads it from the class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_size(size: int) -> None:
    if size > _MAX_OUTPUT:
        raise _LimitError(f"made more than {_MAX_OUTPUT} characters")


def _check_widths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise _LimitError(f"passes a number above {_MAX_WIDTH} to a function")


def _bounded(function: Any) -> Any:
    # Jinja hands some filters the environment first, by a mark on the function.
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths(args, kwargs)
        if any(isinstance(item, str) and re.search(r"%[^%a-zA-Z]*(\d{4,}|\*)", item) for item in args):
            raise _LimitError("formats too wide")
        return function(*args, **kwargs)

    if hasattr(function, "jinja_pass_arg"):
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= 16:
        raise _LimitError("indents too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
