"""A response format as a rule of a grammar: all of it, or where a model may call a tool or else answer in that form.

What `regex` and `choice` may be is decided here alone. Both become one regular expression: its texts share an
automaton, where llguidance holds 2000 alternatives of a rule at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError, refusal, too_much
from edgekit.generation.grammar.lark import lark_json
from edgekit.generation.grammar.patterns import full_match, literal
from edgekit.generation.request import ResponseFormat

__all__ = ["format_rule"]

MAX_CHOICES = 2000
MAX_CHOICE_CHARS = 64 * 1024

_PARAM = "response_format"


def format_rule(response_format: ResponseFormat) -> str:
    """Return the body of a rule, in Lark, that an answer in this format matches.

    Raises:
        RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of the part; or it
            is a grammar of its own, whose names might be the other's too.
    """
    kind, value = response_format.kind, response_format.value
    if kind == "json_object":
        return lark_json({"type": "object"}, param=_PARAM)
    if kind == "json_schema":
        return lark_json(value, param=_PARAM)
    if kind == "grammar":
        raise RequestError(
            "a `grammar` goes neither with `tools` nor behind reasoning that the chat template has begun",
            hint='leave the tools out, or send `"reasoning_effort": "none"`',
            param=_PARAM,
        )
    try:
        return f"/{_choice(value) if kind == 'choice' else _regex(value)}/"
    except PartError as complaint:
        raise refusal(complaint, path="", param=_PARAM) from None


def _choice(texts: object) -> str:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise PartError("`choice` is a list of texts", invalid=True)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise PartError("`choice` is a list of texts that are not empty", invalid=True)
    if len(texts) > MAX_CHOICES:
        raise too_much("choice", MAX_CHOICES, "texts")
    if sum(map(len, texts)) > MAX_CHOICE_CHARS:
        raise too_much("choice", MAX_CHOICE_CHARS, "characters")
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise PartError("`choice` holds half of a surrogate pair", invalid=True)
    return "|".join(literal(text) for text in dict.fromkeys(texts))


def _regex(pattern: object) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise PartError("`regex` is a text that is not empty", invalid=True)
    # A pattern that matches nothing but the empty text is one all the same: `^$`.
    return full_match(pattern) or "(?:)"
