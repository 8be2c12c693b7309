"""Parses response formats, in the spellings of OpenAI, vLLM, llama.cpp and Ollama.

All spellings are aliases of `response_format`, so two of them in one request contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from edgekit.daemon.api.json_body import json_object
from edgekit.daemon.api.validation import Strict, printable, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ResponseFormat

__all__ = ["ALIASES", "read_format", "read_ollama_format", "read_schema_format", "read_text_format"]

# Top-level fields of vLLM and llama.cpp, with the kind of format that each sets.
ALIASES: Mapping[str, str] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
}


class _JsonObject(Strict):
    type: str
    # How llama.cpp and others take a schema.
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class _Described(Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    # The schema is enforced either way.
    strict: bool | None = None


class _Structured(Strict):
    # vLLM's: which of its libraries enforces the format, and how.
    ignored: ClassVar[frozenset[str]] = frozenset({"disable_fallback"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "disable_additional_properties": (False,),
        "disable_any_whitespace": (False,),
    }

    json_: Any = Field(None, alias="json")
    regex: Any = None
    choice: Any = None
    grammar: Any = None
    json_object: bool | None = None


def read_format(
    response_format: object, structured_outputs: object, aliases: Mapping[str, object]
) -> ResponseFormat | None:
    """Return the requested format; None is free text.

    Args:
        response_format: OpenAI's field, whose `type` may also be `regex`, `grammar` or `choice`.
        structured_outputs: vLLM's field.
        aliases: The fields of `ALIASES` that are not null.

    Raises:
        RequestError: A format is invalid, or there are two.
    """
    formats = [("response_format", _openai(response_format))]
    formats += _structured(structured_outputs)
    formats += [(name, _value(ALIASES[name], value, name)) for name, value in aliases.items()]
    found = [(name, item) for name, item in formats if item is not None]
    if len(found) > 1:
        raise RequestError(
            f"`{found[1][0]}` and `{found[0][0]}` both set the response format",
            hint="leave out one of them",
            param=found[1][0],
        )
    return found[0][1] if found else None


def read_ollama_format(value: object) -> ResponseFormat | None:
    """Return the format of Ollama's `format`: "json" or a schema.

    Raises:
        RequestError: It is neither.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return ResponseFormat("json_object", param="format")
    if isinstance(value, Mapping):
        return ResponseFormat("json_schema", dict(value), param="format")
    raise RequestError('`format` must be "json" or a JSON schema', param="format")


def read_text_format(value: object) -> ResponseFormat | None:
    """Return the format of the Responses API's `text.format`, which has a schema's fields beside its type.

    Raises:
        RequestError: It is invalid.
    """
    return _openai(value, "text.format", flat=True)


def read_schema_format(value: object, at: str) -> ResponseFormat:
    """Return the format of an object of type `json_schema` with a `schema`, at a path of the body.

    Raises:
        RequestError: It is invalid.
    """
    found = _openai(value, at, flat=True)
    if found is None or found.kind != "json_schema":
        raise RequestError(f'`{at}.type` must be "json_schema"', param=f"{at}.type")
    return found


def _openai(value: object, at: str = "response_format", *, flat: bool = False) -> ResponseFormat | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise RequestError(f"`{at}` must be an object with a `type`", param=at)
    fields = dict(value)
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise RequestError(
            f"`{at}.type` must be a string" if "type" in fields else f"`{at}.type` is missing", param=f"{at}.type"
        )
    if flat and kind == "json_schema":
        described = read(_Described, {name: item for name, item in fields.items() if name != "type"}, at=at)
        return ResponseFormat("json_schema", described.schema_, name=described.name, param=f"{at}.schema")
    if kind in {"json_object", "json_schema"} and "schema" in fields and "json_schema" not in fields:
        kind = "json_object"
    if kind == "json_object":
        schema = read(_JsonObject, fields, at=at).schema_
        if schema is None:
            return ResponseFormat("json_object", param=at)
        return ResponseFormat("json_schema", schema, param=f"{at}.schema")
    if kind == "json_schema":
        described = read(_Described, _only(fields, "json_schema", at), at=f"{at}.json_schema")
        return ResponseFormat("json_schema", described.schema_, name=described.name, param=f"{at}.json_schema.schema")
    if kind in {"regex", "grammar", "choice"}:
        return _value(kind, _only(fields, kind, at), f"{at}.{kind}")
    if kind == "text":
        _only({**fields, "text": None}, "text", at)
        return None
    raise unsupported(
        f"{at}.type",
        hint="supported: `text`, `json_object`, `json_schema`, `regex`, `grammar`, `choice`",
        what="of this type is not supported",
    )


def _structured(value: object) -> list[tuple[str, ResponseFormat | None]]:
    if value is None or value == []:
        return []
    at = "structured_outputs"
    given = read(_Structured, value, at=at)
    formats: list[tuple[str, ResponseFormat | None]] = [
        (f"{at}.{kind}", _value(kind, item, f"{at}.{kind}"))
        for kind, item in (
            ("json", given.json_),
            ("regex", given.regex),
            ("choice", given.choice),
            ("grammar", given.grammar),
        )
        if item is not None
    ]
    if given.json_object:
        formats.append((f"{at}.json_object", ResponseFormat("json_object", param=f"{at}.json_object")))
    return formats


def _value(kind: str, value: object, at: str) -> ResponseFormat:
    if kind == "json":
        return ResponseFormat("json_schema", _schema(value, at), param=at)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise RequestError(f"`{at}` must be a list of non-empty strings", param=at)
        return ResponseFormat("choice", tuple(value), param=at)
    if not isinstance(value, str) or not value:
        raise RequestError(f"`{at}` must be a non-empty string", param=at)
    return ResponseFormat("regex" if kind == "regex" else "grammar", value, param=at)


def _schema(value: object, at: str) -> dict[str, Any]:
    if isinstance(value, str):
        return json_object(value, at, "a JSON schema")
    if not isinstance(value, dict):
        raise RequestError(f"`{at}` must be a JSON schema", param=at)
    return value


def _only(fields: Mapping[str, object], name: str, at: str) -> object:
    """Return the field of an object that may have no others except `type`."""
    for other in fields:
        if other not in {"type", name}:
            raise unsupported(f"{at}.{printable(other)}")
    if name not in fields:
        raise RequestError(f"`{at}.{name}` is missing", param=f"{at}.{name}")
    return fields[name]
