"""The chat template: messages and tools to the text a model was trained on.

It runs in `sandbox.py`. It knows no tokens.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from edgekit.errors import BundleError, RequestError
from edgekit.generation.sandbox import LimitError, Limits, Sandbox, check_size

__all__ = ["ChatTemplate"]

_MAX_SOURCE = 262_144
_MAX_SECONDS = 5.0
_MAX_ARGUMENTS = 32
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


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
        environment = Sandbox(
            # As Hugging Face renders them: other whitespace would be other tokens.
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            # The output is tokens, not HTML.
            autoescape=False,
        )
        environment.add_filter("tojson", _tojson)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        self.source = source
        self._variables = dict(variables or {})
        self._taken = _GIVEN.union(self._variables, environment.globals)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise BundleError(f"the chat template is not valid: {_line(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt.

        Args:
            messages: Objects as Hugging Face's templates take them, with `role` and `content` at least.
            tools: Functions that the model may call, in the same library's shape.
            arguments: Further variables; none that the template has already.
            add_generation_prompt: End with the opening of the assistant's turn.

        Raises:
            RequestError: The template refuses these messages (`raise_exception`), or an argument has no good name.
            BundleError: The template failed, or passed a limit.
        """
        values = {
            "documents": None,
            **self._checked(arguments or {}),
            **self._variables,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        size = 0
        try:
            with Limits(_MAX_SECONDS):
                for piece in self._template.generate(values):
                    size += len(piece)
                    check_size(size)
                    pieces.append(piece)
        except _RefusedError as error:
            raise RequestError(f"the chat template refuses these messages: {_line(error)}", param="messages") from error
        except Exception as error:  # a template can raise anything Python can
            raise BundleError(f"the chat template failed: {_line(error)}") from error
        return "".join(pieces)

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(arguments) > _MAX_ARGUMENTS:
            raise RequestError(f"a chat template takes at most {_MAX_ARGUMENTS} arguments", param="template_arguments")
        for name in arguments:
            if not name.isidentifier() or name.startswith("_"):
                raise RequestError(f"`{name}` is no name of a template's variable", param="template_arguments")
            if name in self._taken:
                raise RequestError(f"the template argument `{name}` is set already", param="template_arguments")
        return arguments


class _RefusedError(Exception):
    """The template called `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012  Jinja reads it from the class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= 16:
        raise LimitError("indents too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
