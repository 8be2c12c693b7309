"""Turns a response format into a grammar rule: the whole grammar, or the part for answers without a tool call.

The values of `regex` and `choice` are validated only here. Both become one regular expression, whose strings share an
automaton; as alternatives of a rule, llguidance would track 2000 choices at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError, refusal, too_large
from edgekit.generation.grammar.lark import lark_json
from edgekit.generation.grammar.patterns import full_match, literal
from edgekit.generation.types import ResponseFormat

__all__ = ["format_rule"]

MAX_CHOICES = 2000
MAX_CHOICE_CHARS = 64 * 1024


def format_rule(response_format: ResponseFormat) -> str:
    """Return the Lark rule body that output in this format matches.

    Raises:
        RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of the part; or
            the format is itself a grammar, whose rule names might collide.
    """
    kind, value, param = response_format.kind, response_format.value, response_format.param
    if kind == "json_object":
        return lark_json({"type": "object"}, param=param)
    if kind == "json_schema":
        return lark_json(value, param=param)
    if kind == "grammar":
        raise RequestError(
            "a `grammar` cannot be combined with `tools` or with reasoning opened by the chat template",
            hint='remove the tools, or send `"reasoning_effort": "none"`',
            param=param,
        )
    try:
        return f"/{_choice(value) if kind == 'choice' else _regex(value)}/"
    except PartError as error:
        raise refusal(error, path="", param=param) from None


def _choice(choices: object) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise PartError("`choice` must be a list of strings", invalid=True)
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise PartError("`choice` must be a non-empty list of non-empty strings", invalid=True)
    if len(choices) > MAX_CHOICES:
        raise too_large("choice", MAX_CHOICES, "strings")
    if sum(map(len, choices)) > MAX_CHOICE_CHARS:
        raise too_large("choice", MAX_CHOICE_CHARS, "characters")
    if any("\ud800" <= char <= "\udfff" for choice in choices for char in choice):
        raise PartError("`choice` contains half of a surrogate pair", invalid=True)
    return "|".join(literal(choice) for choice in dict.fromkeys(choices))


def _regex(pattern: object) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise PartError("`regex` must be a non-empty string", invalid=True)
    # A pattern that matches only the empty string, such as `^$`, translates to nothing.
    return full_match(pattern) or "(?:)"
