"""What `propertyNames` allows: names from a list, or names that match a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.literals import read_count
from edgekit.generation.grammar.patterns import search
from edgekit.generation.grammar.typos import meant

__all__ = ["Names", "read_names"]

MAX_NAME_LENGTH = 1000


class Names:
    """Names that an object's properties may have.

    Args:
        constants: All of them; None if they are not listed.
        pattern: A regular expression in llguidance's syntax that the others match.
        matches: Whether a name certainly matches.
    """

    def __init__(self, constants: list[str] | None, pattern: str, matches: Callable[[str], bool]) -> None:
        self.constants = constants
        self.pattern = pattern
        self._matches = matches

    def allow(self, name: str) -> bool:
        """Whether a property may have this name; a doubtful one may not."""
        return self._matches(name) and (self.constants is None or name in self.constants)


def read_names(schema: Any) -> Names | None:
    """Read the schema of `propertyNames`, without references; None if it allows every name.

    Raises:
        PartError: It is malformed, or cannot be enforced.
    """
    if schema is True:
        return None
    if schema is False:
        return Names([], "", lambda _: False)
    if not isinstance(schema, Mapping):
        raise PartError("`propertyNames` must be a schema", invalid=True)
    known = {"type", "enum", "const", "pattern", "minLength", "maxLength"}
    composed = {"anyOf", "allOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "$recursiveRef", "format"}
    if misspelt := next((word for word in schema if word not in known | composed and meant(word, known)), None):
        raise PartError(f"unknown keyword `{misspelt}`", hint=f"did you mean `{meant(misspelt, known)}`?")
    if schema.keys() & composed:
        raise PartError("`propertyNames` is enforced only with `enum`, `const`, `pattern` or a length")
    types = schema.get("type", "string")
    if "string" not in (types if isinstance(types, list) else [types]):
        return Names([], "", lambda _: False)
    rules = known & schema.keys() - {"type"}
    low = read_count(schema.get("minLength", 0), MAX_NAME_LENGTH, "minLength")
    high = read_count(schema.get("maxLength", MAX_NAME_LENGTH), MAX_NAME_LENGTH, "maxLength")
    source = schema.get("pattern", "")
    if not isinstance(source, str):
        raise PartError("`pattern` must be a string", invalid=True)
    pattern = search(source)

    def matches(name: str) -> bool:
        # Names at which engines might differ are left out.
        found = all(re.search(source, name, flags) for flags in (0, re.ASCII)) if source else True
        return low <= len(name) <= high and found and not (source and "\n" in name)

    if "enum" in rules or "const" in rules:
        listed = schema.get("enum", [schema.get("const")])
        if not isinstance(listed, list):
            raise PartError("`enum` must be a list", invalid=True)
        constants = [name for name in listed if isinstance(name, str) and name == schema.get("const", name)]
        return Names(list(dict.fromkeys(filter(matches, constants))), "", matches)
    if not rules:
        return None
    if "pattern" in rules and len(rules) > 1:
        raise PartError("`propertyNames` with both a `pattern` and a length is not enforced")
    if "pattern" not in rules:
        pattern = f"^(?s:.){{{low},{high}}}$"
    return Names(None, pattern, matches)
