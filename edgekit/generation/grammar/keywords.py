"""JSON Schema keywords: which are enforced, which are annotations, and which are rejected.

docs/structured-output.md lists them. A keyword in none of these sets is an annotation, unless it is a misspelt one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["ANNOTATIONS", "DIALECT", "ENFORCED", "FORMATS", "NUMBER_FORMATS", "OTHER_FORMATS", "TYPES", "UNSUPPORTED"]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

ENFORCED = frozenset(
    [
        *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
        *("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("propertyNames", "uniqueItems", "not", "if", "then", "else"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
    ]
)

# They constrain nothing, like every keyword that is not listed here. `discriminator` is OpenAPI's hint to parsers; the
# `oneOf` next to it says the same. `nullable` is OpenAPI's too, and JSON Schema allows no null for it.
ANNOTATIONS = frozenset(
    [
        *("$schema", "$comment", "title", "description", "default", "examples", "example", "deprecated"),
        *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "externalDocs", "xml"),
        *("$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "nullable", "id", "$id"),
    ]
)

# Keywords that would constrain the output, with the reason why they are not enforced.
UNSUPPORTED: Mapping[str, str] = {
    "contains": "a grammar cannot require that some item matches",
    "minContains": "a grammar cannot count matching items",
    "maxContains": "a grammar cannot count matching items",
    "contentSchema": "the contents of strings are not parsed",
    "unevaluatedItems": "use `items`",
    "unevaluatedProperties": "use `additionalProperties`",
    "$dynamicRef": "references must be paths, such as `#/$defs/name`",
    "$recursiveRef": "references must be paths, such as `#/$defs/name`",
}

# Any spelling of the meta-schemas' addresses, from draft 4 on.
DIALECT = re.compile(
    r"https?://json-schema\.org/(?:draft-0[4-7]/(?:hyper-)?schema|draft/(?:2019-09|2020-12)/(?:hyper-)?schema|schema)[/#]*"
)

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

# RFC 3986 and 3987, without addresses in brackets and without characters beyond U+FFFF.
_UNRESERVED = "A-Za-z0-9._~"
_INTERNATIONAL = rf"{_UNRESERVED}\x{{A0}}-\x{{D7FF}}\x{{F900}}-\x{{FDCF}}\x{{FDF0}}-\x{{FFEF}}"


def _references(unreserved: str) -> tuple[str, str]:
    """Patterns of absolute addresses, and of absolute and relative ones."""

    def chars(further: str) -> str:
        return rf"(?:[{unreserved}!$&'()*+,;={further}-]|%[0-9A-Fa-f]{{2}})"

    part = chars(":@")
    authority = rf"//(?:{chars(':')}*@)?{chars('')}*(?::[0-9]*)?(?:/{part}*)*"
    absolute = rf"/(?:{part}+(?:/{part}*)*)?"
    end = rf"(?:\?{chars(':@/?')}*)?(?:#{chars(':@/?')}*)?"
    full = rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{authority}|{absolute}|{part}+(?:/{part}*)*)?{end}"
    relative = rf"(?:{authority}|{absolute}|{chars('@')}+(?:/{part}*)*)?{end}"
    return full, f"(?:{full}|{relative})"


_, _URI_REFERENCE = _references(_UNRESERVED)
_IRI, _IRI_REFERENCE = _references(_INTERNATIONAL)
_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9][0-9]{0,3}|\*)?"
_URI_TEMPLATE = (
    r"(?:[!#$&()*+,./0-9:;=?@A-Z\[\]_a-z~-]|%[0-9A-Fa-f]{2}"
    rf"|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"


def _regexes(depth: int) -> str:
    group = rf"|\((?:\?:)?{_regexes(depth - 1)}\)" if depth else ""
    atom = rf"(?:[A-Za-z0-9 _@%#&=<>,:;!/'\"`~-]|\.|\\[dDsSwW.\\/*+?()\[\]{{}}|^$-]|\[\^?[A-Za-z0-9_.@ ]+\]{group})"
    branch = rf"(?:{atom}[*+?]?)*"
    return rf"{branch}(?:\|{branch})*"


_REGEX = rf"\^?{_regexes(1)}\$?"

# String formats: pattern and maximum length. The pattern is edgekit's own where llguidance's accepts more than the
# format (29 February in any year, leap seconds at any time) or has no bound (fractions of a second); None uses
# llguidance's. The length is given where the format itself has no bound.
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
    "iri": (_IRI, 2000),
    "uri-reference": (_URI_REFERENCE, 2000),
    "iri-reference": (_IRI_REFERENCE, 2000),
    "uri-template": (_URI_TEMPLATE, 2000),
    "idn-email": (
        r"[A-Za-z0-9_+-]{1,64}(?:\.[A-Za-z0-9_+-]{1,20}){0,5}@(?:[A-Za-z0-9]{1,60}\.){1,5}[A-Za-z]{2,20}",
        254,
    ),
    "idn-hostname": (r"[A-Za-z0-9]{1,60}(?:\.[A-Za-z0-9]{1,60}){0,8}", 253),
    "json-pointer": (_POINTER, None),
    "relative-json-pointer": (f"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})", None),
    # Without lookaround and back references, groups at most two deep.
    "regex": (_REGEX, None),
}

# Formats of others that look like a misspelling.
OTHER_FORMATS = frozenset(["guid"])

# OpenAPI's number formats as bounds; None adds no bound.
NUMBER_FORMATS: Mapping[str, tuple[int, int] | None] = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": None,
    "float": None,
    "double": None,
}
