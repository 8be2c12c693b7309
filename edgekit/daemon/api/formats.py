"""Parses response formats, in the spellings of OpenAI, vLLM, llama.cpp and Ollama.

All spellings are aliases of `response_format`, so two of them in one request contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SkipValidation

from edgekit.daemon.api.json_body import json_object
from edgekit.daemon.api.validation import Strict, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ResponseFormat

__all__ = [
    "ALIASES",
    "FlatFormat",
    "FlatSchemaFormat",
    "Format",
    "OllamaFormat",
    "Schema",
    "StructuredOutputs",
    "read_format",
    "read_ollama_format",
    "read_schema_format",
    "read_text_format",
]

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


Schema = dict[str, Any]
"""A JSON schema."""


class TextFormat(Strict):
    """No format."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object, or one of a schema, as llama.cpp and others take it."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(None, alias="schema")


class DescribedSchema(Strict):
    """A schema and what OpenAI's API has beside it."""

    name: str = ""
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    # The schema is enforced either way.
    strict: bool | None = None


class FlatSchemaFormat(DescribedSchema):
    """A schema in the Responses API and in Anthropic's."""

    type: Literal["json_schema"]


class SchemaFormat(Strict):
    """A schema in a chat; llama.cpp's clients have it without what describes it."""

    type: Literal["json_schema"]
    json_schema: DescribedSchema | None = None
    schema_: Schema | None = Field(None, alias="schema")


class RegexFormat(Strict):
    """A text that a regular expression matches."""

    type: Literal["regex"]
    regex: str


class GrammarFormat(Strict):
    """A text of a grammar in Lark's or GBNF's syntax."""

    type: Literal["grammar"]
    grammar: str


class ChoiceFormat(Strict):
    """One of several texts."""

    type: Literal["choice"]
    choice: list[str]


class StructuredOutputs(Strict):
    """vLLM's field."""

    # Which of its libraries enforces the format, and how.
    ignored: ClassVar[frozenset[str]] = frozenset({"disable_fallback"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "disable_additional_properties": (False,),
        "disable_any_whitespace": (False,),
    }

    json_: SkipValidation[Schema | str | None] = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


Format = TextFormat | JsonObjectFormat | SchemaFormat | RegexFormat | GrammarFormat | ChoiceFormat
"""`response_format`, in which a request has one of these."""

FlatFormat = TextFormat | JsonObjectFormat | FlatSchemaFormat
"""`text.format` of the Responses API."""

OllamaFormat = Literal["", "json"] | Schema
"""`format` of Ollama's API."""

_FORMATS: Mapping[str, type[Strict]] = {
    "text": TextFormat,
    "json_object": JsonObjectFormat,
    "json_schema": SchemaFormat,
    "regex": RegexFormat,
    "grammar": GrammarFormat,
    "choice": ChoiceFormat,
}
_FLAT_FORMATS: Mapping[str, type[Strict]] = {
    "text": TextFormat,
    "json_object": JsonObjectFormat,
    "json_schema": FlatSchemaFormat,
}


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
    if value is None or value == {}:
        # Go's clients send an empty object for none.
        return None
    if not isinstance(value, Mapping):
        raise RequestError(f"`{at}` must be an object with a `type`", param=at)
    kind = value.get("type")
    if not isinstance(kind, str):
        raise RequestError(
            f"`{at}.type` must be a string" if "type" in value else f"`{at}.type` is missing", param=f"{at}.type"
        )
    models = _FLAT_FORMATS if flat else _FORMATS
    if kind not in models:
        raise unsupported(
            f"{at}.type",
            hint=f"supported: {', '.join(f'`{name}`' for name in models)}",
            what="of this type is not supported",
        )
    found = read(models[kind], value, at=at)
    if isinstance(found, FlatSchemaFormat):
        return ResponseFormat("json_schema", found.schema_, name=found.name, param=f"{at}.schema")
    if isinstance(found, JsonObjectFormat) and found.schema_ is None:
        return ResponseFormat("json_object", param=at)
    if isinstance(found, SchemaFormat) and found.json_schema is not None:
        described = found.json_schema
        return ResponseFormat("json_schema", described.schema_, name=described.name, param=f"{at}.json_schema.schema")
    if isinstance(found, JsonObjectFormat | SchemaFormat):
        if found.schema_ is None:
            raise RequestError(f"`{at}.json_schema` is missing", param=f"{at}.json_schema")
        return ResponseFormat("json_schema", found.schema_, param=f"{at}.schema")
    return None if isinstance(found, TextFormat) else _value(kind, getattr(found, kind), f"{at}.{kind}")


def _structured(value: object) -> list[tuple[str, ResponseFormat | None]]:
    if value is None or value == []:
        return []
    at = "structured_outputs"
    given = read(StructuredOutputs, value, at=at)
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
