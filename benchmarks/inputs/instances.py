"""Random values for a JSON Schema, most of them valid, and mutations of them; a validator judges which are.

The generator does not know how edgekit reads a schema. Properties have only names that the schema mentions, and come in
its order.

A schema without `type` that has keywords for objects allows numbers, strings and so on too, by the letter: its keywords
say nothing about them. Its author hardly means that, so these values are told from the others.
"""

from __future__ import annotations

import copy
import random
from fractions import Fraction
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from referencing.exceptions import Unresolvable

__all__ = ["Instances"]

_FORMATS = {
    "date": ["2024-02-29", "1999-12-31"],
    "date-time": ["2024-02-29T23:59:59Z", "2001-01-01T00:00:00.5+02:00"],
    "time": ["23:59:59Z"],
    "email": ["a.b@example.org"],
    "hostname": ["a-1.example.org"],
    "ipv4": ["192.168.0.1"],
    "ipv6": ["::1", "2001:db8::8a2e:370:7334"],
    "uri": ["https://example.org/a?b=c#d", "urn:example:a"],
    "uri-reference": ["../a#b", "urn:example:a"],
    "iri": ["https://example.org/é"],
    "iri-reference": ["../é#b", "urn:example:a"],
    "uri-template": ["/a/{b}{?c}"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "regex": ["^[a-z]+$"],
    "duration": ["P1D"],
    "json-pointer": ["/a/0"],
}
_STRINGS = [
    "",
    "a",
    "A1",
    "abc",
    "a-b",
    "a_b",
    "x y",
    "1",
    "1.2.3",
    "/a",
    "é",
    "1234567890",
    "arn:aws:s3:::bucket",
    "true",
]
_NUMBERS = [0, 1, -1, 2, 7, 10, 100, 3600, 0.5, -2.25, 65535]
# What jsonschema checks only if further packages are installed.
_CHECKED = {"uri", "uri-reference", "iri", "iri-reference", "uri-template", "date-time", "duration", "json-pointer"}
_ANY = [None, True, 1, "a", [], {}]
_DEPTH = 7


class Instances:
    """Values for one schema.

    Raises:
        SchemaError: The schema itself is invalid.
    """

    def __init__(self, schema: Any, seed: int) -> None:
        base = validators.validator_for(schema)
        base.check_schema(schema)
        kind = validators.extend(base, {"multipleOf": _multiple_of})
        formats = Draft202012Validator.FORMAT_CHECKER
        missing = _CHECKED - formats.checkers.keys()
        assert not missing, f"jsonschema[format-nongpl] is needed: nothing checks {', '.join(sorted(missing))}"
        self._judge: Validator = kind(schema, format_checker=formats)
        self._typed: Validator = kind(_typed(schema), format_checker=formats)
        self._root = schema
        self._rng = random.Random(seed)  # noqa: S311

    def is_valid(self, value: Any) -> bool | None:
        """Whether the validator accepts a value; None if it cannot tell."""
        return self._ask(self._judge, value)

    def is_meant(self, value: Any) -> bool:
        """Whether a valid value would be valid too if each schema had the `type` that its keywords are for."""
        return self._ask(self._typed, value) is not False

    @staticmethod
    def _ask(judge: Validator, value: Any) -> bool | None:
        try:
            return judge.is_valid(value)
        except (RecursionError, Unresolvable, SchemaError, ValueError, TypeError, OverflowError):
            return None

    def draw(self) -> Any:
        """Return a value that tries to be valid."""
        return self._value(self._root, 0)

    def mutate(self, value: Any) -> Any:
        """Return a value in which one place has another value, or is left out."""
        rng, value = self._rng, copy.deepcopy(value)
        places = [
            (node, key) for node in _containers(value) for key in (node if isinstance(node, dict) else range(len(node)))
        ]
        if not places:
            return rng.choice([*_ANY, *_STRINGS, *_NUMBERS])
        node, key = rng.choice(places)
        if rng.random() < 0.3:
            del node[key]
        elif isinstance(node, list) and rng.random() < 0.3:
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = rng.choice([*_ANY, *_STRINGS, *_NUMBERS])
        return value

    def _value(self, schema: Any, depth: int) -> Any:
        rng = self._rng
        if not isinstance(schema, dict) or depth > 2 * _DEPTH:
            return rng.choice(_ANY)
        schema = self._merged(schema, 0)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return rng.choice(schema["enum"])
        given = [*schema.get("examples", [])] if isinstance(schema.get("examples"), list) else []
        given += [schema["default"]] if "default" in schema else []
        if given and rng.random() < 0.4:
            return rng.choice(given)
        types = schema.get("type", _likely_type(schema))
        kind = rng.choice(types) if isinstance(types, list) and types else types
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return self._scalar(schema, kind)

    def _merged(self, schema: dict[str, Any], hops: int) -> dict[str, Any]:
        """Follow references, choose alternatives and merge what must all match, as far as that is easy."""
        out = dict(schema)
        if hops > _DEPTH:
            return out
        parts = []
        if isinstance(reference := out.pop("$ref", None), str):
            parts.append(self._target(reference))
        alternatives = [out.pop(keyword, None) for keyword in ("anyOf", "oneOf")]
        parts += [self._rng.choice(options) for options in alternatives if isinstance(options, list) and options]
        if isinstance(both := out.pop("allOf", None), list):
            parts += both
        for part in parts:
            if isinstance(part, dict):
                for key, value in self._merged(part, hops + 1).items():
                    if key == "required" and key in out:
                        out[key] = [*out[key], *value]
                    elif key == "properties" and key in out:
                        out[key] = {**value, **out[key]}
                    else:
                        out.setdefault(key, value)
        return out

    def _target(self, reference: str) -> Any:
        node = self._root
        for segment in reference.split("/")[1:]:
            key = segment.replace("~1", "/").replace("~0", "~")
            node = node.get(key) if isinstance(node, dict) else None
        return node if reference.startswith("#") else None

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
        required = schema["required"] if isinstance(schema.get("required"), list) else []
        share = 0.4 if depth < 3 else 0.0
        names = [name for name in properties if name in required or self._rng.random() < share]
        names += [name for name in required if name not in names]
        if depth > _DEPTH:
            names = list(required)
        return {name: self._value(properties.get(name, True), depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        count = min(max(least, self._rng.choice([0, 1, 1, 2])), schema.get("maxItems", 50), 50)
        items, prefix = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):
            items, prefix = schema.get("additionalItems", True), items
        if depth > _DEPTH:
            count = least
        return [self._value(prefix[at] if at < len(prefix) else items, depth + 1) for at in range(count)]

    def _scalar(self, schema: dict[str, Any], kind: Any) -> Any:
        rng = self._rng
        if kind == "string":
            choices = _FORMATS.get(schema.get("format", ""), _STRINGS)
            text = rng.choice(choices)
            least = schema.get("minLength", 0)
            return text if len(text) >= least or least > 200 else text + "a" * (least - len(text))
        if kind in {"integer", "number"}:
            bounds = [schema[name] for name in ("minimum", "maximum") if isinstance(schema.get(name), int | float)]
            number = rng.choice([*_NUMBERS, *bounds, *bounds])
            return int(number) if kind == "integer" else number
        return rng.random() < 0.5 if kind == "boolean" else None if kind == "null" else rng.choice(_ANY)


def _likely_type(schema: dict[str, Any]) -> str | None:
    if schema.keys() & {"properties", "required", "additionalProperties", "patternProperties"}:
        return "object"
    if schema.keys() & {"items", "prefixItems", "minItems"}:
        return "array"
    return "string" if schema.keys() & {"pattern", "minLength", "maxLength", "format"} else None


def _typed(schema: Any) -> Any:
    """Add the `type` that a schema's keywords are for, where neither a `type` nor a composition says more."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        if isinstance(out.get(keyword), dict):
            out[keyword] = {name: _typed(part) for name, part in out[keyword].items()}
    for keyword in ("items", "prefixItems", "anyOf", "oneOf"):
        if isinstance(out.get(keyword), list):
            out[keyword] = [_typed(part) for part in out[keyword]]
    for keyword in ("items", "additionalProperties"):
        out |= {keyword: _typed(out[keyword])} if isinstance(out.get(keyword), dict) else {}
    composed = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "not", "if"}
    kind = _likely_type(schema) if not composed & schema.keys() else None
    return {"type": kind, **out} if kind else out


def _containers(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [value, *(container for part in inside for container in _containers(part))]


def _multiple_of(_: Any, divisor: Any, value: Any, __: Any) -> Any:
    """Of decimal numbers, without the rounding errors of floats."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and Fraction(repr(value)) % Fraction(repr(divisor))
    ):
        yield ValidationError(f"{value} is not a multiple of {divisor}")
