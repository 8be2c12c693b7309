"""Grammars in Lark's syntax, as llguidance reads it: quoting, embedding JSON schemas, and checking what a caller wrote.

A caller's grammar is gone through piece by piece before llguidance sees it. Each `%json` schema is replaced by what
`schema.py` makes of it; names of tokens become numbers; what would make llguidance ignore a rule, keep the engine from
going back a token, or exhaust its stack is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from llguidance.gbnf_to_lark import any_to_lark

from edgekit.generation.grammar.errors import PartError, refusal, too_much
from edgekit.generation.grammar.schema import lower_schema

__all__ = ["lark_json", "lark_text", "prepare_lark", "to_lark"]

MAX_GRAMMAR_CHARS = 128 * 1024
# llguidance goes down rules by recursion.
MAX_RULES = 400

_PIECES = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[a-z]*)
    |(?P<token><[^<>\s]+>)
    |(?P<directive>%(?:json|regex|llguidance)\b\s*)""",
    re.VERBOSE | re.DOTALL,
)
_NUMBERS = re.compile(r"<\[(?:\*|\^?\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]>")
# `max_tokens` and `stop` keep llguidance from going back a token, `temperature` is the request's.
_ATTRIBUTE = re.compile(r"\b(max_tokens|temperature|stop|stop_capture)\s*=")
_OPTIONS = frozenset(["allow_initial_skip", "ignore_once", "no_forcing"])


def lark_text(text: str) -> str:
    """Return a text as a literal of a grammar."""
    return json.dumps(text)


def lark_json(schema: Mapping[str, Any] | bool, *, param: str, path: str = "#") -> str:
    """Return a JSON schema as a part of a rule, once it is sure that all of it will be enforced.

    Args:
        schema: JSON Schema; two or more in one grammar are told apart by llguidance as `anyOf` would.
        param: The field of the request, for errors.
        path: What the schema is called in errors, such as `tools[0].parameters`.

    Raises:
        RequestError: As `lower_schema`.
    """
    lower_schema(schema, param=param, path=path)
    return f"%json {json.dumps(schema)}"


def to_lark(text: str, *, param: str) -> str:
    """Return a grammar in Lark's syntax; llama.cpp's (GBNF) is converted.

    Raises:
        RequestError: The grammar is too large, or cannot be converted.
    """
    if len(text) > MAX_GRAMMAR_CHARS:
        raise refusal(too_much("grammar", MAX_GRAMMAR_CHARS, "characters"), path="", param=param)
    if "::=" not in text:
        return text
    try:
        return str(any_to_lark(text))
    except Exception as error:  # the converter raises several kinds, RecursionError among them
        shown = " ".join(str(error).split())[:200]
        raise refusal(PartError(f"the grammar is not GBNF: {shown}", invalid=True), path="", param=param) from error


def prepare_lark(
    text: str,
    *,
    param: str,
    special: Mapping[str, int],
    plain: Iterable[str],
    ends: Iterable[int],
    options: Mapping[str, str],
) -> str:
    """Return a grammar that llguidance may be given.

    Args:
        text: In Lark's syntax.
        param: The field of the request, for errors.
        special: Special tokens by name; `<name>` stands for the token.
        plain: Other tokens with a name; `<name>` stands for their text.
        ends: Tokens that end an answer, which a grammar does not name.
        options: llguidance's options of every JSON schema.

    Raises:
        RequestError: Something in it is not enforced, or malformed.
    """
    if len(text) > MAX_GRAMMAR_CHARS:
        raise refusal(too_much("grammar", MAX_GRAMMAR_CHARS, "characters"), path="", param=param)
    named = _Names(special, frozenset(plain), frozenset(ends))
    out: list[str] = []
    rules: list[str] = []
    schemas = 0
    try:
        for kind, piece in _pieces(text):
            if kind == "json":
                schemas += 1
                lowered = lower_schema(json.loads(piece), param=param, path=f"%json {schemas}: #")
                out.append(f"%json {lowered.document(lowered.root, options)}")
            elif kind == "token":
                out.append(named(piece))
            else:
                out.append(piece)
            rules.append(piece if kind == "code" else " " * len(piece))
        _check_rules("".join(rules))
    except PartError as complaint:
        raise refusal(complaint, path="", param=param) from None
    return "".join(out)


class _Names:
    def __init__(self, special: Mapping[str, int], plain: frozenset[str], ends: frozenset[int]) -> None:
        self._special, self._plain, self._ends = special, plain, ends

    def __call__(self, piece: str) -> str:
        """What llguidance gets for `<name>`; brackets that are no part of the token's name may be put around it."""
        if _NUMBERS.fullmatch(piece):
            return piece
        for name in (piece, piece[1:-1]):
            if name in self._special:
                if self._special[name] in self._ends:
                    raise PartError(f"`{piece}` ends an answer; a grammar ends by itself", invalid=True)
                return f"<[{self._special[name]}]>"
            if name in self._plain:
                return lark_text(name)
        raise PartError(f"the model has no token `{piece}`", invalid=True)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Split a grammar into `code`, `comment`, `text`, `regex`, `token`, `options` and `json` (the schema alone)."""
    at = 0
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    while match := _PIECES.search(text, at):
        if match.start() > at:
            yield "code", text[at : match.start()]
        at = match.end()
        kind = str(match.lastgroup)
        if kind != "directive":
            yield kind, match[0]
            continue
        word = match[0].split()[0]
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            raise PartError(f"what follows `{word}` is not JSON: {error}", invalid=True) from None
        if word == "%json":
            yield "json", text[at:end]
        else:
            if word == "%llguidance":
                _check_options(value)
            yield "options", match[0] + text[at:end]
        at = end
    if at < len(text):
        yield "code", text[at:]


def _check_options(value: object) -> None:
    if not isinstance(value, dict) or not value.keys() <= _OPTIONS:
        raise PartError(
            f"`%llguidance` takes an object with no others than {', '.join(sorted(_OPTIONS))}", invalid=True
        )


def _check_rules(code: str) -> None:
    """Check rules and their attributes; `code` is the grammar without texts, expressions and schemas."""
    if code.count(":") > MAX_RULES:
        raise too_much("grammar", MAX_RULES, "rules")
    if "@" in code:
        raise PartError("a grammar does not refer to others (`@`)", invalid=True)
    if attribute := _ATTRIBUTE.search(code):
        raise PartError(f"`{attribute[1]}` of a rule is not enforced", hint="a rule may be `lazy` or have a `suffix`")
