"""Checks of whole lowered schemas: whether two alternatives can both match, and whether any value matches at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import TYPES
from edgekit.generation.grammar.literals import identity, type_name

__all__ = ["Options", "UnsatisfiableError", "overlapping", "prune"]

MAX_PROOF_DEPTH = 6
MAX_PROOFS = 50_000
# Characters of the shortest value.
MAX_SHORTEST = 100_000


class UnsatisfiableError(PartError):
    """No finite value satisfies the whole schema."""


class Options:
    """Compares alternatives of `oneOf`.

    Args:
        definitions: Targets of `$ref`, by name.
        inferred: `id()`s of lowered schemas with an inferred type; their originals also allow every other type.
        closed: `id()`s of lowered schemas whose originals allow additional properties.
    """

    def __init__(self, definitions: dict[str, Any], inferred: set[int], closed: set[int]) -> None:
        self._definitions = definitions
        self._inferred = inferred
        self._closed = closed
        self._open = False
        self._proofs = 0

    @contextmanager
    def all_open(self) -> Iterator[None]:
        """Compare as if no object were closed whose original is open."""
        self._open = True
        yield
        self._open = False

    def resolve(self, node: Any) -> Any:
        """Follow references."""
        for _ in range(len(self._definitions) + 1):
            if not (isinstance(node, dict) and node.keys() == {"$ref"}):
                return node
            node = _target(node, self._definitions)
        return True

    def disjoint(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether provably no value generated for `one` satisfies the original schema of `other`."""
        self._proofs += 1
        if self._proofs > MAX_PROOFS:
            raise PartError("`oneOf` has too many options to compare", complex_=True)
        one, other = self.resolve(one), self.resolve(other)
        if one is False or other is False:
            return True
        if depth > MAX_PROOF_DEPTH or one is True or other is True:
            return False
        for left, right, swapped in ((one, other, False), (other, one, True)):
            parts = left.get("anyOf")
            if parts and all(
                self.disjoint(right, part, depth + 1) if swapped else self.disjoint(part, right, depth + 1)
                for part in parts
            ):
                return True
        generated = self._types(one, original=False)
        common = {(a, b) for a in generated for b in self._types(other, original=True) if _overlap(a, b)}
        if not common:
            return True
        if "enum" in one and "enum" in other and not _identities(one) & _identities(other):
            return True
        return common == {("object", "object")} and self._discriminated(one, other, depth)

    def _discriminated(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Whether a property required by both always differs, or one disallows a property that the other requires."""
        required, other_required = one.get("required", []), other.get("required", [])
        for name in required:
            mine, theirs = one.get("properties", {}).get(name, True), other.get("properties", {}).get(name, True)
            if name in other_required and self.disjoint(mine, theirs, depth + 1):
                return True
        for names, schema in ((required, other), (other_required, one)):
            closed = schema.get("additionalProperties", True) is False and "patternProperties" not in schema
            if id(schema) in self._closed and (self._open or schema is other):
                continue
            if closed and any(name not in schema.get("properties", {}) for name in names):
                return True
        return False

    def _types(self, node: dict[str, Any], *, original: bool) -> set[str]:
        if original and id(node) in self._inferred:
            return set(TYPES)
        types = node.get("type", list(TYPES))
        types = {types} if isinstance(types, str) else set(types)
        if "enum" in node:
            types = {name for value in node["enum"] for name in types if _overlap(name, type_name(value))}
        return types


def overlapping(members: list[Any], options: Options) -> set[tuple[int, int]]:
    """Return the pairs of members of a `oneOf` that might match the same value; without any it equals `anyOf`.

    Where there are some, the members are merged with the opposites of others, and so are not closed any more; then the
    pairs that differ only by being closed are among them.
    """

    def found() -> set[tuple[int, int]]:
        return {
            (first, second)
            for first, one in enumerate(members)
            for second, other in enumerate(members[first + 1 :], first + 1)
            if not (options.disjoint(one, other) and options.disjoint(other, one))
        }

    if not found():
        return set()
    with options.all_open():
        return found()


def prune(root: Any, definitions: dict[str, Any]) -> Any:
    """Remove parts that no finite value satisfies, and return the root.

    Raises:
        PartError: No finite value satisfies the root, or only very long ones; or a reference leads back to itself.
    """
    _reject_loops({"": root, **definitions})
    lengths = dict.fromkeys(definitions, inf)
    while True:
        found = {name: _shortest(node, lengths) for name, node in definitions.items()}
        if found == lengths:
            break
        lengths = found
    shortest = _shortest(root, lengths)
    if shortest == inf:
        raise UnsatisfiableError("no finite value satisfies this schema")
    if shortest > MAX_SHORTEST:
        raise PartError(
            f"even the shortest value has {shortest:.0f} characters, more than {MAX_SHORTEST}", complex_=True
        )
    productive = {name for name, length in lengths.items() if length < inf}
    if len(productive) < len(definitions):
        for name in set(definitions) - productive:
            definitions[name] = False
        for node in [root, *definitions.values()]:
            _cut(node, productive)
    return root


def _reject_loops(nodes: dict[str, Any]) -> None:
    """Reject references that lead back to themselves without a property or an item in between."""
    edges = {name: list(_in_place(node)) for name, node in nodes.items()}
    done: set[str] = set()
    for start, first in edges.items():
        stack = [(start, iter(first))]
        on_path = {start}
        while stack:
            name, following = stack[-1]
            step = next((other for other in following if other not in done), None)
            if step is None:
                done.add(name)
                on_path.discard(name)
                stack.pop()
            elif step in on_path:
                raise PartError("a reference leads back to itself")
            else:
                on_path.add(step)
                stack.append((step, iter(edges[step])))


def _in_place(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield _name(node)
        for keyword in ("allOf", "anyOf"):
            for member in node.get(keyword, []):
                yield from _in_place(member)


def _shortest(node: Any, lengths: dict[str, float]) -> float:
    """At most the length of the shortest value in characters; infinite if no finite value satisfies the schema."""
    if isinstance(node, bool):
        return 1 if node else inf
    length = max(
        [
            lengths[_name(node)] if "$ref" in node else 1,
            *(_shortest(member, lengths) for member in node.get("allOf", [])),
            min(_shortest(member, lengths) for member in node["anyOf"]) if "anyOf" in node else 1,
        ]
    )
    if length == inf or not _common_types([node, *node.get("allOf", [])]):
        return inf
    if "enum" in node:
        return max(length, min(len(json.dumps(value, ensure_ascii=False)) for value in node["enum"]))
    types = node.get("type", list(TYPES))
    types = [types] if isinstance(types, str) else types
    return max(length, min(_of_type(name, node, lengths) for name in types))


def _common_types(nodes: list[Any]) -> set[str]:
    """The types that all of several schemas allow."""
    common = set(TYPES)
    for node in nodes:
        if isinstance(node, dict) and "type" in node:
            types = node["type"]
            allowed = {types} if isinstance(types, str) else set(types)
            common &= allowed | ({"integer"} if "number" in allowed else set())
    return common


def _of_type(name: str, node: dict[str, Any], lengths: dict[str, float]) -> float:
    if name == "object":
        rest = True if "patternProperties" in node else node.get("additionalProperties", True)
        properties = node.get("properties", {})
        return 2 + sum(4 + len(key) + _shortest(properties.get(key, rest), lengths) for key in node.get("required", []))
    if name == "array":
        prefix, count = node.get("prefixItems", []), node.get("minItems", 0)
        further = max(count - len(prefix), 0)
        # An item that no value satisfies does not matter where none is needed.
        rest = 1 + _shortest(node.get("items", True), lengths) if further else 0
        return 2.0 + sum(1 + _shortest(part, lengths) for part in prefix[:count]) + float(further * rest)
    if name == "string":
        return 2 + float(node.get("minLength", 0))
    return 1


def _cut(node: Any, productive: set[str]) -> None:
    """Replace references to unsatisfiable definitions by `false`."""
    if not isinstance(node, dict):
        return

    def cut(part: Any) -> Any:
        _cut(part, productive)
        return False if isinstance(part, dict) and "$ref" in part and _name(part) not in productive else part

    for keyword in ("properties", "patternProperties"):
        if keyword in node:
            node[keyword] = {key: cut(value) for key, value in node[keyword].items()}
    for keyword in ("prefixItems", "allOf", "anyOf"):
        if keyword in node:
            node[keyword] = [cut(value) for value in node[keyword]]
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            node[keyword] = cut(node[keyword])


def _overlap(one: str, other: str) -> bool:
    return one == other or {one, other} == {"integer", "number"}


def _identities(node: dict[str, Any]) -> set[Any]:
    return {identity(value) for value in node["enum"]}


def _name(node: dict[str, Any]) -> str:
    return str(node["$ref"]).rsplit("/", 1)[1]


def _target(node: dict[str, Any], definitions: dict[str, Any]) -> Any:
    return definitions[_name(node)]
