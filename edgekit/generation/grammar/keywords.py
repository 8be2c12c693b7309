"""Which words of JSON Schema are enforced, which are remarks, and which are refused.

docs/structured-output.md lists them. A word that is in none of these sets is refused too.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ANNOTATIONS", "DIALECTS", "ENFORCED", "FORMATS", "NUMBER_FORMATS", "REFUSED", "TYPES"]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

ENFORCED = frozenset(
    [
        *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
        *("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    ]
)

# They constrain nothing. `discriminator` is OpenAPI's hint to parsers, beside a `oneOf` that says the same.
ANNOTATIONS = frozenset(
    [
        *("$schema", "$comment", "title", "description", "default", "examples", "example", "deprecated"),
        *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "externalDocs", "xml"),
    ]
)

# Words that would constrain an answer, and why they are not enforced.
REFUSED: Mapping[str, str] = {
    "uniqueItems": "a grammar does not remember earlier items",
    "not": "a grammar says what is allowed",
    "if": "conditions are not enforced",
    "then": "conditions are not enforced",
    "else": "conditions are not enforced",
    "contains": "a grammar does not look for an item",
    "minContains": "a grammar does not count some of the items",
    "maxContains": "a grammar does not count some of the items",
    "contentSchema": "text in a string is not parsed",
    "dependencies": "conditions are not enforced",
    "dependentRequired": "conditions are not enforced",
    "dependentSchemas": "conditions are not enforced",
    "propertyNames": "`patternProperties` with `additionalProperties: false` says it in a way that is enforced",
    "unevaluatedItems": "`items` says it in a way that is enforced",
    "unevaluatedProperties": "`additionalProperties` says it in a way that is enforced",
    "$anchor": "references lead to a path, such as `#/$defs/name`",
    "$dynamicAnchor": "references lead to a path, such as `#/$defs/name`",
    "$dynamicRef": "references lead to a path, such as `#/$defs/name`",
    "$recursiveAnchor": "references lead to a path, such as `#/$defs/name`",
    "$recursiveRef": "references lead to a path, such as `#/$defs/name`",
    "nullable": '`type` takes a list, such as `["string", "null"]`',
}

DIALECTS = frozenset(
    [
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
        "http://json-schema.org/schema",
    ]
)

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

# Formats of strings. A pattern of edgekit's own where llguidance's takes more than the format does (29 February of any
# year, leap seconds at any time) or would let a model write digits without end (fractions of a second); None leaves it
# to llguidance. With each the longest text, if the format itself does not end.
FORMATS: Mapping[str, tuple[str | None, int | None]] = {
    "date": (_DATE, None),
    "time": (_TIME, None),
    "date-time": (f"{_DATE}T{_TIME}", None),
    "duration": (None, 64),
    "email": (None, 254),
    "hostname": (None, 253),
    "ipv4": (None, None),
    "ipv6": (None, None),
    "uuid": (None, None),
    "uri": (None, 2000),
}

# OpenAPI's formats of numbers, as bounds; None bounds nothing.
NUMBER_FORMATS: Mapping[str, tuple[int, int] | None] = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": None,
    "float": None,
    "double": None,
}
