"""JSON to checked fields, and what is wrong with them in one line that names the field.

It knows JSON and pydantic, and no field of any dialect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from edgekit.errors import RequestError, nearest

__all__ = ["Strict", "decode", "drop", "json_object", "printable", "read", "same", "unsupported"]

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class Strict(BaseModel):
    """An object of a request: unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


def decode(data: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body.

    Args:
        data: JSON text, or the object it decodes to.

    Raises:
        RequestError: Not JSON, not an object, or something that no reply and no tokenizer could repeat.
    """
    if isinstance(data, bytes):
        data = _parse(data)
    _check(data, "the body", None)
    return dict(data)


def json_object(text: str, at: str, what: str) -> dict[str, Any]:
    """Return the JSON object that a text within a body spells.

    Args:
        text: What the caller sent.
        at: Where it stands in the body, for messages.
        what: What it must be.

    Raises:
        RequestError: It is something else.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"`{at}` must be {what}", param=at)
    _check(value, f"`{at}`", at)
    return value


def drop(
    fields: dict[str, Any], *, harmless: Iterable[str], neutral: Mapping[str, tuple[object, ...]], at: str = ""
) -> None:
    """Take fields out that are not supported, and refuse those that would change the answer.

    Args:
        fields: What the caller sent; changed.
        harmless: Fields that never change the answer.
        neutral: Fields that would, with the values at which they do nothing (null always does nothing).
        at: Where the fields stand in the body, for messages.

    Raises:
        RequestError: `unsupported_parameter`.
    """
    for name in harmless:
        fields.pop(name, None)
    for name, values in neutral.items():
        value = fields.pop(name, None)
        # 1 == True in Python: a bool is neutral only where a bool is listed.
        if value is not None and not any(
            value == item and isinstance(value, bool) == isinstance(item, bool) for item in values
        ):
            raise unsupported(f"{at}.{name}" if at else name)


def read(model: type[Model], value: object, *, at: str = "", also: Iterable[str] = ()) -> Model:
    """Check a value against a model.

    Args:
        model: What it must be.
        value: What the caller sent.
        at: Where it stands in the body, for messages.
        also: Names that the caller may have meant besides the model's own.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        _refuse(model, error.errors(include_url=False, include_context=False)[0], at, also)


def same(param: str, *given: Value | None) -> Value | None:
    """Return the one value that several spellings of a parameter were given.

    Args:
        param: The spelling to name if they contradict one another.
        given: What each spelling says; None if it is absent.

    Raises:
        RequestError: Two spellings say two things.
    """
    values = [value for value in given if value is not None]
    if any(value != values[0] for value in values):
        raise RequestError(f"`{param}` is given twice, under two names, with two values", param=param)
    return values[0] if values else None


def unsupported(param: str, *, hint: str = "leave it out", what: str = "is not supported") -> RequestError:
    """Return the error for a field that would change the answer and cannot be obeyed."""
    return RequestError(f"`{param}` {what}", hint=hint, code="unsupported_parameter", param=param)


def printable(text: str) -> str:
    """Return a caller's text as it may stand in a one-line message."""
    return "".join(char if char.isprintable() else "?" for char in text[:100])


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the body is not JSON: {error}", hint='send {"messages": [{"role": "user", "content": "…"}]}'
        ) from error
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def _check(value: object, name: str, param: str | None) -> None:
    """Refuse what JSON can spell and nobody can repeat."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair; no tokenizer and no reply can encode it.
        raise RequestError(f"{name} holds half of a surrogate pair, which is not a character", param=param) from error
    except ValueError as error:
        # 1e999 is JSON, and more than a float holds.
        raise RequestError(f"{name} holds a number that is too large", param=param) from error
    except RecursionError as error:
        raise RequestError(f"{name} is nested too deeply", param=param) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(model: type[BaseModel], problem: ErrorDetails, at: str, also: Iterable[str]) -> NoReturn:
    path = at
    for step in problem["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    path = printable(path) or "body"
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        near = nearest(str(problem["loc"][-1]), [*_names(model, problem["loc"][:-1]), *also])
        raise unsupported(path, hint=f"did you mean `{near}`?" if near else "leave it out")
    if kind == "unsupported":
        raise RequestError(f"`{path}` {message}", code="unsupported_parameter", param=path)
    if kind == "none_required":
        raise unsupported(path)
    if kind == "missing":
        raise RequestError(f"`{path}` is missing", param=path)
    raise RequestError(f"`{path}`: {message[:1].lower()}{message[1:]}", param=path)


def _names(model: type[BaseModel], steps: Iterable[int | str]) -> list[str]:
    """Return the fields of the model that stands at the end of `steps`, or nothing if it is none of ours."""
    for step in steps:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {list, Union, UnionType}:
        for argument in get_args(annotation):
            yield from _models(argument)
