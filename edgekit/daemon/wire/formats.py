"""What an answer must look like, in the spellings of OpenAI, vLLM, llama.cpp and Ollama. It knows no grammar.

`response_format` says everything; the others are its synonyms, so two of them in one request contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from edgekit.daemon.wire.reading import Strict, json_object, printable, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.request import ResponseFormat

__all__ = ["SPELLINGS", "read_format", "read_ollama_format"]

# vLLM's and llama.cpp's fields at the top of a body, with the kind that each stands for.
SPELLINGS: Mapping[str, str] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
}


class _JsonObject(Strict):
    type: str
    # llama.cpp's and others' way to give a schema.
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class _Described(Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    # The schema is enforced either way.
    strict: bool | None = None


class _Structured(Strict):
    json_: Any = Field(None, alias="json")
    regex: Any = None
    choice: Any = None
    grammar: Any = None
    json_object: bool | None = None


def read_format(
    response_format: object, structured_outputs: object, spelled: Mapping[str, object]
) -> ResponseFormat | None:
    """Return the format that a request asks for; None is free text.

    Args:
        response_format: OpenAI's field, whose `type` may also be `regex`, `grammar` or `choice`.
        structured_outputs: vLLM's field.
        spelled: The fields of `SPELLINGS` that are not null.

    Raises:
        RequestError: Not understood, or two formats.
    """
    asked = [("response_format", _openai(response_format))]
    asked += _structured(structured_outputs)
    asked += [(name, _value(SPELLINGS[name], value, name)) for name, value in spelled.items()]
    found = [(name, item) for name, item in asked if item is not None]
    if len(found) > 1:
        raise RequestError(
            f"`{found[1][0]}` and `{found[0][0]}` both say what the answer must look like",
            hint="leave out one of them",
            param=found[1][0],
        )
    return found[0][1] if found else None


def read_ollama_format(value: object) -> ResponseFormat | None:
    """Return what Ollama's `format` asks for: "json", or a schema.

    Raises:
        RequestError: Neither.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return ResponseFormat("json_object")
    if isinstance(value, Mapping):
        return ResponseFormat("json_schema", dict(value))
    raise RequestError('`format` must be "json" or a JSON schema', param="format")


def _openai(value: object) -> ResponseFormat | None:
    if value is None:
        return None
    at = "response_format"
    if not isinstance(value, Mapping):
        raise RequestError(f"`{at}` must be an object with a `type`", param=at)
    fields = dict(value)
    kind = fields.get("type")
    if kind in {"json_object", "json_schema"} and "schema" in fields and "json_schema" not in fields:
        kind = "json_object"
    if kind == "json_object":
        schema = read(_JsonObject, fields, at=at).schema_
        return ResponseFormat("json_object") if schema is None else ResponseFormat("json_schema", schema)
    if kind == "json_schema":
        described = read(_Described, _only(fields, "json_schema", at), at=f"{at}.json_schema")
        return ResponseFormat("json_schema", described.schema_, name=described.name)
    if kind in {"regex", "grammar", "choice"}:
        return _value(kind, _only(fields, kind, at), f"{at}.{kind}")
    if kind == "text":
        _only({**fields, "text": None}, "text", at)
        return None
    if isinstance(kind, str):
        raise unsupported(
            f"{at}.type",
            hint="it may be `text`, `json_object`, `json_schema`, `regex`, `grammar` or `choice`",
            what="of this type is not supported",
        )
    raise RequestError(f"`{at}.type` is missing", param=f"{at}.type")


def _structured(value: object) -> list[tuple[str, ResponseFormat | None]]:
    if value is None:
        return []
    at = "structured_outputs"
    given = read(_Structured, value, at=at)
    asked: list[tuple[str, ResponseFormat | None]] = [
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
        asked.append((f"{at}.json_object", ResponseFormat("json_object")))
    return asked


def _value(kind: str, value: object, at: str) -> ResponseFormat:
    if kind == "json":
        return ResponseFormat("json_schema", _schema(value, at))
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise RequestError(f"`{at}` must be a list of texts that are not empty", param=at)
        return ResponseFormat("choice", tuple(value))
    if not isinstance(value, str) or not value:
        raise RequestError(f"`{at}` must be a text that is not empty", param=at)
    return ResponseFormat("regex" if kind == "regex" else "grammar", value)


def _schema(value: object, at: str) -> dict[str, Any]:
    if isinstance(value, str):
        return json_object(value, at, "a JSON schema")
    if not isinstance(value, dict):
        raise RequestError(f"`{at}` must be a JSON schema", param=at)
    return value


def _only(fields: Mapping[str, object], name: str, at: str) -> object:
    """Return one field of an object that may hold no other but `type`."""
    for other in fields:
        if other not in {"type", name}:
            raise unsupported(f"{at}.{printable(other)}")
    if name not in fields:
        raise RequestError(f"`{at}.{name}` is missing", param=f"{at}.{name}")
    return fields[name]
