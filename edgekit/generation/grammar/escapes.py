r"""Which numeric escapes (`\u0061`) the strings of an answer may have.

llguidance allows them in names of properties too. There they must not give a name that the schema mentions a second
spelling: under it, the property would count as an unlisted one, and could have any value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.generation.grammar.errors import PartError
from edgekit.generation.grammar.literals import numeric_escape

__all__ = ["Escapes"]

_SHORT = 'nrbtf\\"'


@dataclass(frozen=True, slots=True)
class Escapes:
    """The escapes of an answer.

    Attributes:
        numeric: Numeric escapes are allowed: of control characters everywhere, of others in strings without a pattern.
    """

    numeric: bool

    @property
    def options(self) -> dict[str, Any]:
        """The options for llguidance."""
        return {
            "json_allowed_escapes": _SHORT + ("u" if self.numeric else ""),
            "json_allow_general_unicode_escapes": self.numeric,
        }

    @classmethod
    def of(cls, roots: Iterable[Any]) -> Escapes:
        """Return the escapes that are safe with a lowered schema.

        Raises:
            PartError: It has a constant or a name that needs an escape which is not allowed.
        """
        nodes = [node for root in roots for node in _nodes(root)]
        named = [node for node in nodes if node.get("properties") or node.get("required")]
        # Merged schemas name properties in one place and allow others in another.
        merged = any("allOf" in node or _merges(node) for node in nodes)
        mixed = bool(named) and any(_is_free(node) for node in (nodes if merged else named))
        numeric = not mixed and not any("patternProperties" in node for node in nodes)
        if not numeric:
            texts = [name for node in named for name in [*node.get("properties", {}), *node.get("required", [])]]
            texts += [text for node in nodes for value in node.get("enum", []) for text in _texts(value)]
            if missing := next(filter(None, map(numeric_escape, texts)), None):
                raise PartError(
                    f"the control character U+{ord(missing):04X} in a constant or name is not enforced in this schema",
                    hint="set `additionalProperties: false`, or remove `patternProperties`",
                )
        return cls(numeric)


def _is_free(node: dict[str, Any]) -> bool:
    """Whether it allows unlisted properties."""
    types = node.get("type", "object")
    return "object" in (types if isinstance(types, list) else [types]) and (
        node.get("additionalProperties", True) is not False
    )


def _merges(node: dict[str, Any]) -> bool:
    """Whether references or alternatives are merged with other keywords."""
    return bool(node.keys() & {"$ref", "anyOf"}) and len(node) > 1


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    # A place of references or alternatives only is no schema of its own.
    if not (node.keys() & {"$ref", "anyOf"} and len(node) == 1):
        yield node
    for keyword in ("properties", "patternProperties"):
        for part in node.get(keyword, {}).values():
            yield from _nodes(part)
    for keyword in ("prefixItems", "allOf", "anyOf"):
        for part in node.get(keyword, []):
            yield from _nodes(part)
    for keyword in ("items", "additionalProperties"):
        yield from _nodes(node.get(keyword))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
