"""Questions about lowered schemas as a whole: may two alternatives both hold, and can a value satisfy one at all?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.keywords import TYPES
from edgekit.generation.grammar.literals import identity, type_name

__all__ = ["Options", "close_objects", "prove_disjoint", "prune"]

MAX_PROOF_DEPTH = 6
MAX_PROOFS = 20_000


class Options:
    """What is needed to compare alternatives.

    Args:
        definitions: What `$ref`s lead to.
        inferred: Ids of schemas whose type was not said; their originals allow every other type too.
    """

    def __init__(self, definitions: dict[str, Any], inferred: set[int]) -> None:
        self._definitions = definitions
        self._inferred = inferred
        self._proofs = 0

    def resolve(self, node: Any) -> Any:
        """Follow references."""
        for _ in range(len(self._definitions) + 1):
            if not (isinstance(node, dict) and node.keys() == {"$ref"}):
                return node
            node = _target(node, self._definitions)
        return True

    def disjoint(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether it is certain that nothing written for `one` satisfies what `other` was made of."""
        self._proofs += 1
        if self._proofs > MAX_PROOFS:
            raise PartError("the options of `oneOf` are too many to be compared", complex_=True)
        one, other = self.resolve(one), self.resolve(other)
        if one is False or other is False:
            return True
        if depth > MAX_PROOF_DEPTH or one is True or other is True:
            return False
        for left, right, turned in ((one, other, False), (other, one, True)):
            parts = left.get("anyOf")
            if parts and all(
                self.disjoint(right, part, depth + 1) if turned else self.disjoint(part, right, depth + 1)
                for part in parts
            ):
                return True
        written = self._types(one, original=False)
        common = {(a, b) for a in written for b in self._types(other, original=True) if _overlap(a, b)}
        if not common:
            return True
        if "enum" in one and "enum" in other and not _identities(one) & _identities(other):
            return True
        return common == {("object", "object")} and self._told_apart(one, other, depth)

    def _told_apart(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Whether a property that both require never has the same value in both, or one lacks what the other needs."""
        needed, wanted = one.get("required", []), other.get("required", [])
        for name in needed:
            mine, theirs = one.get("properties", {}).get(name, True), other.get("properties", {}).get(name, True)
            if name in wanted and self.disjoint(mine, theirs, depth + 1):
                return True
        for names, lacking in ((needed, other), (wanted, one)):
            closed = lacking.get("additionalProperties", True) is False and "patternProperties" not in lacking
            if closed and any(name not in lacking.get("properties", {}) for name in names):
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


def prove_disjoint(members: list[Any], options: Options) -> None:
    """Make sure that at most one member of a `oneOf` ever holds, so that it may be read as `anyOf`.

    Raises:
        PartError: Two members may hold together.
    """
    for at, one in enumerate(members):
        for number, other in enumerate(members[at + 1 :], at + 1):
            if not (options.disjoint(one, other) and options.disjoint(other, one)):
                raise PartError(
                    f"`oneOf` is enforced where no two options can hold together; {at} and {number} might",
                    hint="use `anyOf`, or give each option a required property with a `const` of its own",
                )


def prune(root: Any, definitions: dict[str, Any]) -> Any:
    """Take out what no finite value satisfies, and return the root.

    Raises:
        PartError: Nothing satisfies the root, or a reference leads to itself.
    """
    _refuse_loops({"": root, **definitions})
    productive: set[str] = set()
    while True:
        grown = {name for name, node in definitions.items() if _productive(node, productive)}
        if grown == productive:
            break
        productive = grown
    if not _productive(root, productive):
        raise PartError("nothing finite satisfies this schema")
    if len(productive) < len(definitions):
        for name in set(definitions) - productive:
            definitions[name] = False
        for node in [root, *definitions.values()]:
            _cut(node, productive)
    return root


def close_objects(nodes: Iterable[Any]) -> None:
    """Allow no properties beside those that an object names, where its schema does not say."""
    for node in nodes:
        if not isinstance(node, dict):
            continue
        if node.get("properties") and "additionalProperties" not in node and "patternProperties" not in node:
            for name in node.get("required", []):
                node["properties"].setdefault(name, True)
            if not node.keys() & {"minProperties", "maxProperties"}:
                node["additionalProperties"] = False
        close_objects(_children(node))


def _refuse_loops(nodes: dict[str, Any]) -> None:
    """Refuse references that lead back to themselves without a property or an item between."""
    edges = {name: list(_in_place(node)) for name, node in nodes.items()}
    done: set[str] = set()
    for start, first in edges.items():
        stack = [(start, iter(first))]
        on_way = {start}
        while stack:
            name, following = stack[-1]
            step = next((other for other in following if other not in done), None)
            if step is None:
                done.add(name)
                on_way.discard(name)
                stack.pop()
            elif step in on_way:
                raise PartError("a reference leads back to itself")
            else:
                on_way.add(step)
                stack.append((step, iter(edges[step])))


def _in_place(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield _name(node)
        for word in ("allOf", "anyOf"):
            for member in node.get(word, []):
                yield from _in_place(member)


def _productive(node: Any, productive: set[str]) -> bool:
    if isinstance(node, bool):
        return node
    if "$ref" in node and _name(node) not in productive:
        return False
    if not all(_productive(member, productive) for member in node.get("allOf", [])):
        return False
    if "anyOf" in node and not any(_productive(member, productive) for member in node["anyOf"]):
        return False
    types = node.get("type", list(TYPES))
    types = [types] if isinstance(types, str) else types
    return any(_type_productive(name, node, productive) for name in types)


def _type_productive(name: str, node: dict[str, Any], productive: set[str]) -> bool:
    if name == "object":
        rest = True if "patternProperties" in node else node.get("additionalProperties", True)
        needed = [node.get("properties", {}).get(key, rest) for key in node.get("required", [])]
    elif name == "array":
        prefix = node.get("prefixItems", [])
        least = node.get("minItems", 0)
        needed = [*prefix[:least], *([node.get("items", True)] if least > len(prefix) else [])]
    else:
        return True
    return all(_productive(part, productive) for part in needed)


def _cut(node: Any, productive: set[str]) -> None:
    """Turn references to what nothing satisfies into `false`."""
    if not isinstance(node, dict):
        return

    def cut(part: Any) -> Any:
        _cut(part, productive)
        return False if isinstance(part, dict) and "$ref" in part and _name(part) not in productive else part

    for word in ("properties", "patternProperties"):
        if word in node:
            node[word] = {key: cut(value) for key, value in node[word].items()}
    for word in ("prefixItems", "allOf", "anyOf"):
        if word in node:
            node[word] = [cut(value) for value in node[word]]
    for word in ("items", "additionalProperties"):
        if word in node:
            node[word] = cut(node[word])


def _children(node: dict[str, Any]) -> list[Any]:
    inside = [value for word in ("properties", "patternProperties") for value in node.get(word, {}).values()]
    inside += [value for word in ("prefixItems", "allOf", "anyOf") for value in node.get(word, [])]
    return inside + [node[word] for word in ("items", "additionalProperties") if word in node]


def _overlap(one: str, other: str) -> bool:
    return one == other or {one, other} == {"integer", "number"}


def _identities(node: dict[str, Any]) -> set[Any]:
    return {identity(value) for value in node["enum"]}


def _name(node: dict[str, Any]) -> str:
    return str(node["$ref"]).rsplit("/", 1)[1]


def _target(node: dict[str, Any], definitions: dict[str, Any]) -> Any:
    return definitions[_name(node)]
