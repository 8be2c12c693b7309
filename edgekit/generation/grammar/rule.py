"""A response format as part of a larger grammar: where a model may call a tool or else answer in that form."""

from __future__ import annotations

from edgekit.errors import RequestError
from edgekit.generation.grammar.errors import PartError, refusal
from edgekit.generation.grammar.lark import choice_grammar, lark_json
from edgekit.generation.grammar.patterns import full_match, literal
from edgekit.generation.request import ResponseFormat

__all__ = ["format_rule"]

_PARAM = "response_format"


def format_rule(response_format: ResponseFormat) -> str:
    """Return the body of a rule, in Lark, that an answer in this format matches.

    Raises:
        RequestError: As `GrammarCompiler.compile`; or it is a grammar of its own, whose names might be the other's too.
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
        return _choice(value) if kind == "choice" else _regex(value)
    except PartError as complaint:
        raise refusal(complaint, path="", param=_PARAM) from None


def _choice(texts: object) -> str:
    choice_grammar(texts)
    assert isinstance(texts, list | tuple)  # noqa: S101  it was checked
    # One expression, not a rule of as many alternatives: llguidance holds 2000 of them at once.
    return f"/{'|'.join(literal(text) for text in texts)}/"


def _regex(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise PartError("`regex` is a text", invalid=True)
    return f"/{full_match(pattern) or '(?:)'}/"
