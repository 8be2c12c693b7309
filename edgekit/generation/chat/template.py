"""Renders messages and tools to text with a model's chat template, in the sandbox of `jinja_sandbox.py`."""

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
from edgekit.generation.chat.jinja_sandbox import LimitError, Limits, Sandbox, check_size

__all__ = ["TOOL_TEMPLATE", "ChatTemplate"]

TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
"""File in a bundle with the template for chats with tools, if the model has one besides its default template."""

_MAX_SOURCE = 262_144
_MAX_SECONDS = 5.0
_MAX_ARGUMENTS = 32
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled template; safe to use from several threads.

    Args:
        source: Jinja source, as in Hugging Face's `chat_template`.
        variables: Variables besides the messages: `bos_token`, `eos_token`, …

    Raises:
        BundleError: The source is too long or not a valid template.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        if len(source) > _MAX_SOURCE:
            raise BundleError(f"the chat template has {len(source)} characters; the limit is {_MAX_SOURCE}")
        environment = Sandbox(
            # As Hugging Face renders them: different whitespace would be different tokens.
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
        self._taken = _RESERVED.union(self._variables, environment.globals)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
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
            messages: Objects in the shape of Hugging Face chat templates, with at least `role` and `content`.
            tools: Functions that the model may call, in the same shape.
            arguments: Additional variables; they may not replace existing ones.
            add_generation_prompt: End with the start of the assistant's turn.

        Raises:
            RequestError: The template refuses the messages (`raise_exception`), or an argument's name is not allowed.
            BundleError: The template failed or exceeded a limit.
        """
        values = {
            "documents": None,
            **self._checked(arguments or {}),
            **self._variables,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        chunks: list[str] = []
        size = 0
        try:
            with Limits(_MAX_SECONDS):
                for chunk in self._template.generate(values):
                    size += len(chunk)
                    check_size(size)
                    chunks.append(chunk)
        except _RefusedError as error:
            raise RequestError(f"the chat template refuses these messages: {_line(error)}", param="messages") from error
        except Exception as error:  # a template can raise anything Python can
            raise BundleError(f"the chat template failed: {_line(error)}") from error
        return "".join(chunks)

    @property
    def renders_a_question(self) -> bool:
        """Whether it renders the simplest chat: if it does, a failure is due to the messages."""
        try:
            self.render([{"role": "user", "content": "Hello"}])
        except (BundleError, RequestError):
            return False
        return True

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(arguments) > _MAX_ARGUMENTS:
            message = f"a chat template takes at most {_MAX_ARGUMENTS} arguments"
            raise RequestError(message, param="chat_template_kwargs")
        for name in arguments:
            if not name.isidentifier() or name.startswith("_"):
                raise RequestError(f"`{name}` is not a valid template variable name", param="chat_template_kwargs")
            if name in self._taken:
                raise RequestError(f"the template argument `{name}` is reserved", param="chat_template_kwargs")
        return arguments


class _RefusedError(Exception):
    """The template called `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; renders its body."""

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
        raise LimitError("uses too large an indent")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
