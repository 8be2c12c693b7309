"""Validates decoded bodies with pydantic; an error is one line that names the field, in the API's words."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails

from edgekit.daemon.api.ignored import ignore, near_name
from edgekit.daemon.api.json_body import shown
from edgekit.errors import RequestError, field_path, nearest

__all__ = [
    "Empty",
    "Integer",
    "Stop",
    "Strict",
    "build_validators",
    "printable",
    "read",
    "renamed",
    "resolve_alias",
    "unsupported",
]

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")

# An unknown name that is closer to a known one, by `difflib`'s ratio, is taken for a misspelling of it.
_MISSPELT = 0.8

# Of two threads that build one model, pydantic 2.12 lets one take away the validator of the other.
_building = threading.Lock()

# What a value must be, by the kind of pydantic's error. A strict model of JSON values has no other kinds.
_EXPECTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
}


def _to_integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_stop_strings(value: object) -> object:
    strings = [value] if isinstance(value, str) else value
    return [item for item in strings if item != ""] if isinstance(strings, list) else strings


Integer = Annotated[int, BeforeValidator(_to_integer)]
"""An integer; 64.0 is one, as JSON does not distinguish them and some clients write every number so."""

Stop = Annotated[
    list[str],
    BeforeValidator(_to_stop_strings),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""Stop strings: one or a list; an empty one stops nothing."""


Empty = Annotated[list[Any], WithJsonSchema({"type": "array", "maxItems": 0})]
"""A list that is always empty."""


class Strict(BaseModel):
    """An object of a request: values are not converted, and of the unknown fields the misspelt ones are rejected.

    Other unknown fields are ignored, as clients send what other servers know; the reply names them (`ignored.py`). So
    is, silently, what changes nothing: null where a default exists, an empty list in place of an object (PHP writes
    `{}` so), and the fields of `ignored` and `noop`.

    Attributes:
        ignored: Unsupported fields that never change the answer.
        noop: Unsupported fields that would, with the values that have no effect; others are rejected.
        instead: Of these, the hints for what to send in their place.
    """

    ignored: ClassVar[frozenset[str]] = frozenset()
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    instead: ClassVar[Mapping[str, str]] = {}

    # `_built` builds validators: all of them together take a twentieth of the imports.
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_without_effect(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}

        def matters(name: object, item: object) -> bool:
            field = fields.get(name) if isinstance(name, str) else None
            if field is not None:
                empty = item is None or (item == [] and _is_object(field.annotation))
                return field.is_required() or not empty
            if item is None or name in cls.ignored:
                return False
            noop = cls.noop.get(name) if isinstance(name, str) else None
            if noop is None:
                near = _misspelt(cls, str(name))
                if near is not None and near not in value:
                    # A misspelt name is an error, whatever it has.
                    return True
                if item not in ("", [], {}):
                    ignore(str(name))
                return False
            # 1 == True in Python: a bool has no effect only where a bool is listed.
            return not any(item == known and isinstance(item, bool) == isinstance(known, bool) for known in noop)

        return {name: item for name, item in value.items() if matters(name, item)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the fields of `ignored` and `noop` to the schema of the OpenAPI document, and allow unknown ones."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        properties = described.setdefault("properties", {})
        for name in sorted(cls.ignored - set(properties)):
            properties[name] = {"description": "accepted, and changes nothing"}
        for name, values in sorted(cls.noop.items()):
            only = {"enum": [None, *values], "description": "only values that change nothing"}
            properties.setdefault(name, only)
        described.pop("additionalProperties", None)
        return schema


def read(model: type[Model], value: object, *, at: str = "") -> Model:
    """Validate a value against a model.

    Args:
        model: The model.
        value: The value.
        at: Its path in the body, for the message.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    try:
        return _built(model).model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt field explains best why another one is missing.
        misspelt = (one for one in problems if one["type"] == "extra_forbidden")
        missing = problems[0]["type"] == "missing"
        _refuse(model, next(misspelt, problems[0]) if missing else problems[0], at)


def build_validators() -> None:
    """Build the validators of all bodies, so that no request waits for one."""
    for model in _derived(Strict):
        _built(model)


def _built(model: type[Model]) -> type[Model]:
    if not model.__pydantic_complete__:
        with _building:
            model.model_rebuild()
    return model


def _derived(model: type[Strict]) -> Iterator[type[Strict]]:
    for derived in model.__subclasses__():
        yield derived
        yield from _derived(derived)


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Name a parameter in errors as the body does.

    Args:
        names: The parameter's path in the body, by its name in a `ChatRequest` or `Sampling`.
    """
    try:
        yield
    except RequestError as error:
        name = names.get(error.param or "")
        if name is None:
            raise
        message = error.message.replace(f"`{error.param}`", f"`{name}`")
        raise RequestError(message, hint=error.hint, code=error.code, param=name) from error


def resolve_alias(param: str, **given: Value | None) -> Value | None:
    """Return the value of a parameter that has several names.

    Args:
        param: The name to report if the values differ.
        given: The value by each name; None if absent.

    Raises:
        RequestError: Two names have different values.
    """
    values = {name: value for name, value in given.items() if value is not None}
    first = next(iter(values), None)
    if first is None:
        return None
    for name, value in values.items():
        if value != values[first]:
            raise RequestError(
                f"`{param}` is given under two names, with different values",
                hint=f"leave out `{first}` or `{name}`",
                param=param,
            )
    return values[first]


def unsupported(param: str, *, hint: str = "leave it out", what: str = "is not supported") -> RequestError:
    """Return the error for an unsupported field that would change the answer."""
    return RequestError(f"`{param}` {what}", hint=hint, code="unsupported_parameter", param=param)


def printable(text: str) -> str:
    """Return a string from a request, shortened and made printable for a one-line message."""
    return "".join(char if char.isprintable() else "?" for char in text[:100])


def _misspelt(model: type[Strict], name: str) -> str | None:
    """Return the field of which an unknown name is a misspelling; None if it is of none, or not compared."""
    known = _by_initial(model).get(name[:1])
    return near_name(name, known, cutoff=_MISSPELT) if known else None


@cache
def _by_initial(model: type[Strict]) -> Mapping[str, frozenset[str]]:
    """Return the names of a model's fields, by their first letter."""
    known = {field.alias or name for name, field in model.model_fields.items()} | set(model.noop)
    return {initial: frozenset(one for one in known if one[0] == initial) for initial in {one[0] for one in known}}


def _refuse(model: type[BaseModel], problem: ErrorDetails, at: str) -> NoReturn:
    path = field_path(problem["loc"], at) or "body"
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known, noop = _names(model, problem["loc"][:-1])
        name = str(problem["loc"][-1])
        if name in noop:
            instead = model.instead if len(problem["loc"]) == 1 and issubclass(model, Strict) else {}
            raise unsupported(path, hint=instead.get(name, "leave it out"))
        near = nearest(name, (one for one in known if one[:1] == name[:1]))
        raise unsupported(path, hint=f"did you mean `{near}`?" if near else "leave it out")
    if kind in {"unsupported", "content"}:
        code = "unsupported_parameter" if kind == "unsupported" else None
        raise RequestError(f"`{path}` {problem['msg']}", code=code, param=path)
    if kind == "missing":
        raise RequestError(f"`{path}` is missing", param=path)
    if kind == "literal_error":
        choices = problem["ctx"]["expected"].replace("'", '"')
        given = f'"{printable(value)}"' if isinstance(value, str) else shown(value)
        raise RequestError(f"`{path}` must be {choices}, not {given}", param=path)
    if kind in _EXPECTED:
        raise RequestError(f"`{path}` must be {_EXPECTED[kind]}, not {shown(value)}", param=path)
    raise RequestError(f"`{path}` has a wrong value", param=path)


def _is_object(annotation: Any) -> bool:
    """Whether a field takes an object, and no list."""
    options = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    kinds = [get_origin(option) or option for option in options]
    return list not in kinds and any(isinstance(kind, type) and issubclass(kind, dict | BaseModel) for kind in kinds)


def _names(model: type[BaseModel], steps: Iterable[int | str]) -> tuple[list[str], Iterable[str]]:
    """Return the field names of the model at the path `steps`, and its `noop` names; empty if that is not a model."""
    for step in steps:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return [], ()
        model = inner
    noop = model.noop if issubclass(model, Strict) else {}
    ignored = model.ignored if issubclass(model, Strict) else ()
    return [*(field.alias or name for name, field in model.model_fields.items()), *noop, *ignored], noop


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {list, Union, UnionType}:
        for argument in get_args(annotation):
            yield from _models(argument)
