"""Grammars in llguidance's Lark syntax: quoting, embedding JSON schemas, and checking a caller's grammar.

A caller's grammar is checked lexeme by lexeme before llguidance sees it. `%json` schemas are replaced by their lowered
form (`schema.py`) and token names by ids. Anything that would make llguidance ignore a rule, prevent rollback, or
exhaust its stack is rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edgekit.generation.grammar.errors import PartError, refusal, too_large
from edgekit.generation.grammar.gbnf import gbnf_to_lark, is_gbnf
from edgekit.generation.grammar.schema import lower_schema

__all__ = ["lark_json", "lark_text", "prepare_lark", "to_lark"]

MAX_GRAMMAR_CHARS = 128 * 1024
# llguidance recurses through rules.
MAX_RULES = 400
MAX_REPEAT = 10_000

_LEXEMES = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[a-z]*)
    |(?P<token><[^<>\s]+>)
    |(?P<directive>%(?:json|regex|llguidance)\b\s*)""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN_IDS = re.compile(r"<\[(?:\*|\^?\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]>")
# `max_tokens` and `stop` prevent rollback in llguidance; `temperature` is set by the request.
_ATTRIBUTE = re.compile(r"\b(max_tokens|temperature|stop|stop_capture)\s*=")
_COUNTS = re.compile(r"(?<=[{,~.])\s*(\d+)")
_OPTIONS = frozenset(["allow_initial_skip", "ignore_once", "no_forcing"])


def lark_text(text: str) -> str:
    """Return a string as a literal of a grammar."""
    return json.dumps(text)


def lark_json(schema: Mapping[str, Any] | bool, *, param: str, path: str = "") -> str:
    """Return a JSON schema as part of a rule, after checking that all of it can be enforced.

    Args:
        schema: JSON Schema. Several schemas in one grammar are alternatives to llguidance, like `anyOf`.
        param: The field of the request, for errors.
        path: As for `lower_schema`.

    Raises:
        RequestError: As `lower_schema`.
    """
    lower_schema(schema, param=param, path=path)
    return f"%json {json.dumps(schema)}"


def to_lark(text: str, *, param: str) -> str:
    """Return a grammar in Lark syntax; llama.cpp's GBNF is converted.

    Raises:
        RequestError: The grammar is too large or cannot be converted.
    """
    if len(text) > MAX_GRAMMAR_CHARS:
        raise refusal(too_large("grammar", MAX_GRAMMAR_CHARS, "characters"), path="", param=param)
    if not is_gbnf(text):
        return text
    try:
        return gbnf_to_lark(text)
    except PartError as error:
        raise refusal(error, path="", param=param) from None


def prepare_lark(
    text: str,
    *,
    param: str,
    special: Mapping[str, int],
    plain: Iterable[str],
    ends: Iterable[int],
    options: Mapping[str, str],
) -> str:
    """Check a grammar and return the form for llguidance.

    Args:
        text: Grammar in Lark syntax.
        param: The field of the request, for errors.
        special: Ids of special tokens by name; `<name>` matches the token.
        plain: Names of other added tokens; `<name>` matches their text.
        ends: End-of-sequence tokens, which a grammar must not name.
        options: llguidance options for every JSON schema.

    Raises:
        RequestError: Something in the grammar is malformed or not enforced.
    """
    if len(text) > MAX_GRAMMAR_CHARS:
        raise refusal(too_large("grammar", MAX_GRAMMAR_CHARS, "characters"), path="", param=param)
    resolve = _TokenNames(special, frozenset(plain), frozenset(ends))
    out: list[str] = []
    rules: list[str] = []
    schemas = 0
    try:
        for kind, lexeme in _split(text):
            if kind == "json":
                schemas += 1
                lowered = lower_schema(json.loads(lexeme), param=param, path=f"%json {schemas}")
                out.append(f"%json {lowered.document(lowered.root, options)}")
            elif kind == "token":
                out.append(resolve(lexeme))
            else:
                out.append(lexeme)
            rules.append(lexeme if kind == "code" else " " * len(lexeme))
        _check_rules("".join(rules))
    except PartError as error:
        raise refusal(error, path="", param=param) from None
    return "".join(out)


class _TokenNames:
    def __init__(self, special: Mapping[str, int], plain: frozenset[str], ends: frozenset[int]) -> None:
        self._special, self._plain, self._ends = special, plain, ends

    def __call__(self, lexeme: str) -> str:
        """Resolve `<name>` or `<[name]>` for llguidance; the brackets may be part of the name."""
        if _TOKEN_IDS.fullmatch(lexeme):
            return lexeme
        for name in (lexeme, lexeme[1:-1]):
            if name in self._special:
                if self._special[name] in self._ends:
                    raise PartError(f"`{lexeme}` ends the output; a grammar must not name it", invalid=True)
                return f"<[{self._special[name]}]>"
            if name in self._plain:
                return lark_text(name)
        raise PartError(f"the model has no token `{lexeme}`", invalid=True)


def _split(text: str) -> Iterator[tuple[str, str]]:
    """Yield kinds and lexemes: `code`, `comment`, `text`, `regex`, `token`, `options`, `json` (only the schema)."""
    at = 0
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    while match := _LEXEMES.search(text, at):
        if match.start() > at:
            yield "code", text[at : match.start()]
        at = match.end()
        kind = str(match.lastgroup)
        if kind != "directive":
            yield kind, match[0]
            continue
        directive = match[0].split()[0]
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            raise PartError(f"the value of `{directive}` is not JSON: {error}", invalid=True) from None
        if directive == "%json":
            yield "json", text[at:end]
        else:
            if directive == "%llguidance":
                _check_options(value)
            yield "options", match[0] + text[at:end]
        at = end
    if at < len(text):
        yield "code", text[at:]


def _check_options(value: object) -> None:
    if not isinstance(value, dict) or not value.keys() <= _OPTIONS:
        raise PartError(
            f"`%llguidance` takes an object with these keys only: {', '.join(sorted(_OPTIONS))}", invalid=True
        )


def _check_rules(code: str) -> None:
    """Check rules and their attributes; `code` is the grammar without strings, regular expressions and schemas."""
    if code.count(":") > MAX_RULES:
        raise too_large("grammar", MAX_RULES, "rules")
    for count in _COUNTS.findall(code):
        if int(count) > MAX_REPEAT:
            raise PartError(f"a repetition may have at most {MAX_REPEAT} times, not {count}", complex_=True)
    if "@" in code:
        raise PartError("a grammar cannot refer to other grammars (`@`)", invalid=True)
    if attribute := _ATTRIBUTE.search(code):
        raise PartError(
            f"the rule attribute `{attribute[1]}` is not enforced", hint="a rule may be `lazy` or have a `suffix`"
        )
