"""The types that a schema without `type` is about.

By the specification its keywords constrain values of their own type only, and any other value is valid. Its author
means one of these types. Which, is told by what it is merged with, else by its own keywords; a keyword that constrains
nothing (`additionalProperties: true`) tells nothing. Whatever is found here, no invalid value is allowed by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import NUMBER_FORMATS, TYPES
from edgekit.generation.grammar.literals import type_name

__all__ = ["DEPENDENCIES", "TypeInference", "Types", "in_order", "meet", "whole"]

Types = frozenset[str]

DEPENDENCIES = ("dependentRequired", "dependentSchemas", "dependencies")
# References and alternatives that are followed, one inside the other.
MAX_HOPS = 16

_KEYWORDS_OF: Mapping[str, frozenset[str]] = {
    "object": frozenset(
        [
            *("properties", "required", "additionalProperties", "patternProperties"),
            *("minProperties", "maxProperties", "propertyNames", *DEPENDENCIES),
        ]
    ),
    "array": frozenset(["items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"]),
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
}


class TypeInference:
    """Finds the types of the parts of one schema.

    Args:
        target: Returns the target of a `$ref`, or raises a `PartError`.
    """

    def __init__(self, target: Callable[[object], Any]) -> None:
        self._target = target
        # By `id()`, with the part itself, which keeps it from being reused.
        self._stated: dict[int, tuple[Any, Types | None]] = {}
        self._meant: dict[int, tuple[Any, Types | None]] = {}

    def stated(self, node: Any, hops: int = 0) -> Types | None:
        """The types that `type`, constants, and the parts of a composition allow; None if they allow all."""
        if not isinstance(node, dict):
            return frozenset() if node is False else None
        if hops > MAX_HOPS:
            return None
        if id(node) not in self._stated:
            # A reference that leads back here states nothing.
            self._stated[id(node)] = (node, None)
            self._stated[id(node)] = (node, self._state(node, hops))
        return self._stated[id(node)][1]

    def meant(self, node: Any, hops: int = 0) -> Types | None:
        """The stated types, else those of all keywords here and in the parts of a composition; None without any."""
        if (stated := self.stated(node, hops)) is not None or not isinstance(node, dict) or hops > MAX_HOPS:
            return stated
        if id(node) not in self._meant:
            self._meant[id(node)] = (node, None)
            parts = [part for keyword in ("$ref", "allOf", "anyOf", "oneOf") for part in self.parts(node, keyword)]
            found = [kinds for part in parts if (kinds := self.meant(part, hops + 1)) is not None]
            self._meant[id(node)] = (node, frozenset().union(_of_keywords(node), *found) or None)
        return self._meant[id(node)][1]

    def composed(self, node: Mapping[str, Any], keyword: str, hops: int = 0) -> Types | None:
        """What `stated` returns for the parts of one keyword: `$ref`, `allOf`, `anyOf` or `oneOf`."""
        found = [self.stated(part, hops + 1) for part in self.parts(node, keyword)]
        if keyword in {"$ref", "allOf"}:
            return meet(found)
        known = [kinds for kinds in found if kinds is not None]
        return frozenset().union(*known) if known and len(known) == len(found) else None

    def parts(self, node: Mapping[str, Any], keyword: str) -> list[Any]:
        """The schemas of a keyword; none if it is malformed, which is reported where it is read."""
        if keyword not in node:
            return []
        if keyword != "$ref":
            return node[keyword] if isinstance(node[keyword], list) else []
        try:
            return [self._target(node[keyword])]
        except PartError:
            return []

    def _state(self, node: dict[str, Any], hops: int) -> Types | None:
        types = node.get("type")
        if types is not None:
            names = types if isinstance(types, list) else [types]
            return whole(name for name in names if isinstance(name, str))
        if "const" in node:
            return whole([type_name(node["const"])])
        if isinstance(node.get("enum"), list):
            return whole(type_name(value) for value in node["enum"])
        return meet(self.composed(node, keyword, hops) for keyword in ("$ref", "allOf", "anyOf", "oneOf"))


def meet(found: Iterable[Types | None]) -> Types | None:
    """The types in all of these sets, of which None contains all types."""
    known = [kinds for kinds in found if kinds is not None]
    return frozenset.intersection(*known) if known else None


def in_order(kinds: Types | None) -> list[str]:
    """The types for a schema's `type`."""
    return [name for name in TYPES if name in (kinds or ()) and not (name == "integer" and "number" in (kinds or ()))]


def whole(names: Iterable[str]) -> Types:
    """A set of types in which an integer is a number too."""
    found = {*names}
    return frozenset(found | ({"integer"} if "number" in found else set()))


def _of_keywords(node: Mapping[str, Any]) -> Types:
    """The types of the keywords that constrain something."""
    found = {
        name
        for name, keywords in _KEYWORDS_OF.items()
        if any(keyword in keywords and not _is_idle(keyword, value) for keyword, value in node.items())
    }
    if node.get("format") in list(NUMBER_FORMATS):
        found = {*found, "number"} - ({"string"} if not node.keys() & {"minLength", "maxLength", "pattern"} else set())
    return whole(found)


def _is_idle(keyword: str, value: Any) -> bool:
    """Whether a keyword constrains nothing, and names nothing either."""
    if keyword in {"additionalProperties", "additionalItems"}:
        return value is True or value == {}
    return keyword == "uniqueItems" and value is False
