"""Rewrites keywords that forbid something (`not`, `if`, `dependentRequired`, …) as schemas that say what is allowed.

A grammar states what is allowed. So the opposite of a schema is built keyword by keyword: a value that violates one of
its keywords. Where only part of the opposite can be said, it allows less, never more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import TYPES
from edgekit.generation.grammar.literals import type_name
from edgekit.generation.grammar.patterns import MAX_PATTERN_CHARS

__all__ = ["REWRITTEN", "opposite", "rewrite", "without"]

MAX_DEPTH = 6
MAX_OPTIONS = 64
_ANY = r"[\x00-\u{10FFFF}]"

# `then` and `else` do nothing without `if`.
REWRITTEN = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")

Schema = Any
Resolve = Callable[[object], Schema]


def rewrite(node: Mapping[str, Any], keyword: str, resolve: Resolve) -> Schema:
    """Return a schema that says the same as a keyword of `node`, or less.

    Args:
        node: The schema that has the keyword.
        keyword: One of `REWRITTEN`.
        resolve: Returns the target of a `$ref`.

    Raises:
        PartError: The keyword is malformed, or cannot be enforced.
    """
    value = node[keyword]
    if keyword == "not":
        return opposite(value, resolve)
    if keyword == "if":
        return _any(
            [
                _all([value, node.get("then", True)]),
                _all([opposite(value, resolve), node.get("else", True)]),
            ]
        )
    if not isinstance(value, dict):
        raise PartError(f"`{keyword}` must be an object", invalid=True)
    return _all([_dependency(name, needed) for name, needed in value.items()])


def opposite(node: Schema, resolve: Resolve, depth: int = 0) -> Schema:
    """Return a schema that only values match that do not match this one.

    Raises:
        PartError: No keyword has an opposite that can be enforced.
    """
    if isinstance(node, bool):
        return not node
    if not isinstance(node, dict):
        raise PartError("a schema must be an object or a boolean", invalid=True)
    options: list[Schema] = []
    if depth < MAX_DEPTH:
        # Until draft 7, `$ref` disables what stands next to it.
        keywords = ["$ref"] if "$ref" in node else list(node)
        for keyword in keywords:
            options += _violations(node, keyword, node[keyword], resolve, depth + 1)
    options = [option for option in options if option is not False][:MAX_OPTIONS]
    if not options and node.keys() - {"$comment", "title", "description"}:
        raise PartError("the opposite of this schema cannot be enforced")
    return _any(options)


def without(rival: Schema, member: Schema, resolve: Resolve) -> Schema:
    """Return what `opposite` returns for `rival`, or a schema of values with properties that `rival` does not allow.

    Args:
        rival: The schema that no value may match.
        member: The schema that the values match too; it names the properties that they may have.
        resolve: As for `rewrite`.

    Raises:
        PartError: As `opposite`.
    """
    rival, member = _followed(rival, resolve), _followed(member, resolve)
    if not isinstance(rival, dict) or not isinstance(member, dict):
        return opposite(rival, resolve)
    options: list[Schema] = []
    closed = rival.get("additionalProperties") is False and "patternProperties" not in rival
    if closed and isinstance(member.get("properties"), dict):
        names = [name for name in member["properties"] if name not in rival.get("properties", {})]
        options += [{"type": "object", "required": [name]} for name in names]
    try:
        options.append(opposite(rival, resolve))
    except PartError:
        if not options:
            raise
    return _any(options[:MAX_OPTIONS])


def _followed(node: Schema, resolve: Resolve) -> Schema:
    for _ in range(MAX_DEPTH):
        if not (isinstance(node, dict) and "$ref" in node):
            break
        node = resolve(node["$ref"])
    return node


def _violations(node: Mapping[str, Any], keyword: str, value: Any, resolve: Resolve, depth: int) -> list[Schema]:
    """Schemas of values that violate one keyword; none where that cannot be said."""

    def inner(part: Schema) -> Schema:
        try:
            return opposite(part, resolve, depth)
        except PartError:
            return False

    if keyword == "$ref":
        return [inner(resolve(value))]
    if keyword == "not":
        return [value]
    if keyword == "anyOf" and isinstance(value, list):
        return [_all([inner(part) for part in value])]
    if keyword == "allOf" and isinstance(value, list):
        return [inner(part) for part in value]
    if keyword == "required" and isinstance(value, list):
        return [_without(name) for name in value if isinstance(name, str)]
    if keyword == "properties" and isinstance(value, dict):
        return [_with(name, opposed) for name, part in value.items() if (opposed := inner(part)) is not False]
    if keyword == "items" and isinstance(value, dict | bool) and "prefixItems" not in node:
        opposed = inner(value)
        return [] if opposed is False else [{"type": "array", "minItems": 1, "prefixItems": [opposed]}]
    if keyword == "type":
        return _other_types(value if isinstance(value, list) else [value])
    if keyword in {"const", "enum"}:
        return _other_values([value] if keyword == "const" else value)
    return _beyond(node, keyword, value)


def _beyond(node: Mapping[str, Any], keyword: str, value: Any) -> list[Schema]:
    """Values on the other side of a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    kinds = {"Length": "string", "Items": "array", "Properties": "object"}
    for suffix, kind in kinds.items():
        if keyword == f"min{suffix}" and value >= 1:
            return [{"type": kind, f"max{suffix}": int(value) - 1}]
        if keyword == f"max{suffix}":
            return [{"type": kind, f"min{suffix}": int(value) + 1}]
    if keyword == "minimum" and not node.get("exclusiveMinimum"):
        return [{"type": "number", "exclusiveMaximum": value}]
    if keyword == "maximum" and not node.get("exclusiveMaximum"):
        return [{"type": "number", "exclusiveMinimum": value}]
    bounds = {"exclusiveMinimum": "maximum", "exclusiveMaximum": "minimum"}
    return [{"type": "number", bounds[keyword]: value}] if keyword in bounds else []


def _other_types(types: list[Any]) -> list[Schema]:
    gone = set(filter(lambda name: isinstance(name, str), types))
    # A number that is no integer cannot be described; so without integers there are no numbers.
    if gone & {"integer", "number"}:
        gone |= {"integer", "number"}
    others = [name for name in TYPES if name not in gone and name != "integer"]
    return [{"type": others}] if others else []


def _other_values(values: Any) -> list[Schema]:
    if not isinstance(values, list) or not values:
        return []
    options = _other_types([type_name(value) for value in values])
    flags = {value for value in values if isinstance(value, bool)}
    if len(flags) == 1:
        options.append({"const": not flags.pop()})
    texts = [value for value in values if isinstance(value, str)]
    if texts and len(pattern := _other_texts(texts)) <= MAX_PATTERN_CHARS:
        options.append({"type": "string", "pattern": pattern})
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers:
        options += [
            {"type": "number", "exclusiveMaximum": min(numbers)},
            {"type": "number", "exclusiveMinimum": max(numbers)},
        ]
    return options


def _other_texts(texts: list[str]) -> str:
    """Return a pattern for every string but these: each leaves one of their prefixes, ends early, or goes on."""
    prefixes = sorted({text[:length] for text in texts for length in range(len(text) + 1)})
    options = []
    for start in prefixes:
        following = sorted({text[len(start)] for text in texts if text.startswith(start) and len(text) > len(start)})
        further = f"[^{''.join(map(_escaped, following))}]" if following else _ANY
        start_escaped = "".join(map(_escaped, start))
        options.append(f"{start_escaped}{further}{_ANY}*")
        if start not in texts:
            options.append(start_escaped)
    return f"^(?:{'|'.join(options)})$"


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):X}}}"


def _dependency(name: str, needed: Any) -> Schema:
    if isinstance(needed, list):
        if not all(isinstance(other, str) for other in needed):
            raise PartError("a dependency must be a list of names, or a schema", invalid=True)
        return _any([_without(name), {"type": "object", "required": list(dict.fromkeys([name, *needed]))}])
    return _any([_without(name), _all([{"type": "object", "required": [name]}, needed])])


def _without(name: str) -> Schema:
    return {"type": "object", "properties": {name: False}}


def _with(name: str, part: Schema) -> Schema:
    return {"type": "object", "properties": {name: part}, "required": [name]}


def _any(options: list[Schema]) -> Schema:
    options = [option for option in options if option is not False]
    return False if not options else options[0] if len(options) == 1 else {"anyOf": options}


def _all(parts: list[Schema]) -> Schema:
    if any(part is False for part in parts):
        return False
    parts = [part for part in parts if part is not True]
    return True if not parts else parts[0] if len(parts) == 1 else {"allOf": parts}
