"""Parses YAML strictly into frozen dataclasses: the fields' types are the schema, and every error names its line.

A field is a bool, int, float, str, `Path`, `Literal`, another dataclass, a tuple of one of these, or any of them
`| None`; `Annotated` adds a `Between`, a `OneOf` or a `Matches`.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from edgekit.errors import ConfigError, nearest, spelled

__all__ = ["Between", "Matches", "OneOf", "Tree", "build", "check", "convert", "field_types", "load", "read"]

T = TypeVar("T")
Tree = dict[str, Any]
"""Converted values by field name; a nested dataclass is a nested Tree. Fields that are not set are absent."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class Between:
    """Inclusive bounds of a number; None means unbounded."""

    low: float | None = None
    high: float | None = None

    def violation(self, value: Any) -> str | None:
        """Return the rule that `value` violates, or None."""
        low, high = self.low, self.high
        if low is not None and high is not None:
            if low <= value <= high:
                return None
            return f"must be {spelled(low)}" if low == high else f"must be between {spelled(low)} and {spelled(high)}"
        if low is not None and not value >= low:
            return f"must be at least {spelled(low)}"
        if high is not None and not value <= high:
            return f"must be at most {spelled(high)}"
        return None


@dataclass(frozen=True, slots=True)
class OneOf:
    """The numbers that are allowed."""

    allowed: tuple[int, ...]

    def violation(self, value: Any) -> str | None:
        """Return the rule if `value` violates it, or None."""
        return None if value in self.allowed else f"must be one of {', '.join(map(str, self.allowed))}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A regular expression that the full string must match, and the rule in words."""

    pattern: str
    rule: str

    def violation(self, value: Any) -> str | None:
        """Return the rule if `value` violates it, or None."""
        return None if re.fullmatch(self.pattern, value) else self.rule


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from, and how to interpret paths in it.

    Attributes:
        name: File name, or the name of an environment variable.
        path: Converts the string of a `Path` field to a path; may raise ConfigError.
    """

    name: str
    path: Callable[[str], Path] = Path

    def error(self, message: str, node: yaml.Node | None = None, hint: str | None = None) -> ConfigError:
        """Return an error that names the source and, given a node, its line."""
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        return ConfigError(f"{self.name}{line}: {message}", hint=hint)


def load(text: str, cls: type[T], source: Source) -> T:
    """Parse `text` and build a `cls`.

    Raises:
        ConfigError: Invalid YAML, an unknown or missing key, or a value of the wrong type.
    """
    return build(cls, read(text, cls, source), source)


def read(text: str, cls: type[Any], source: Source) -> Tree:
    """Parse `text`, a mapping whose keys are fields of `cls`, or an empty document.

    Raises:
        ConfigError: As `load`, except that a missing key is not an error yet.
    """
    root = _compose(text, source)
    return {} if root is None or _is_empty(root) else _mapping(root, cls, "", source)


def build(cls: type[T], tree: Mapping[str, Any], source: Source, where: str = "") -> T:
    """Build a `cls` from the result of `read`.

    Args:
        cls: The dataclass.
        tree: Its values.
        source: For the message.
        where: The key of the tree, for the message; empty for the whole file.

    Raises:
        ConfigError: A field without a default is missing.
    """
    values: dict[str, Any] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type] # T is a dataclass by contract
        key = f"{where}.{item.name}" if where else item.name
        if item.name in tree:
            inner = _dataclass_in(field_types(cls)[item.name])
            value = tree[item.name]
            if inner is not None and isinstance(value, dict):
                value = build(inner, value, source, key)
            elif inner is not None and isinstance(value, tuple):
                value = tuple(build(inner, entry, source, f"{key}[{index}]") for index, entry in enumerate(value))
            values[item.name] = value
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise source.error(f"`{key}` is missing")
    return cls(**values)


def check(instance: Any) -> None:
    """Check the fields of a dataclass that a program has built, rather than `build`: types and rules.

    Args:
        instance: Its fields are scalars, `Literal` strings and paths.

    Raises:
        ConfigError: A value has the wrong type, or violates one of its field's rules.
    """
    for name, annotated in field_types(type(instance)).items():
        kind, optional, rules = _unwrap(annotated)
        value = getattr(instance, name)
        if value is None and optional:
            continue
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ConfigError(f"`{name}` must be one of {', '.join(get_args(kind))}, not {value!r}")
            continue
        # True is an int in Python.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            expected = {bool: "true or false", int: "an integer", Path: "a path"}.get(kind, f"a {kind.__name__}")
            raise ConfigError(f"`{name}` must be {expected}, not {value!r}")
        for rule in rules:
            violation = rule.violation(value)
            if violation:
                raise ConfigError(f"`{name}` {violation}, not {value}")


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return the type of each field of a dataclass, `Annotated` kept."""
    return get_type_hints(cls, include_extras=True)


def convert(kind: Any, text: str, source: Source, where: str, node: yaml.Node | None = None) -> Any:
    """Convert the string of one scalar to `kind`.

    Args:
        kind: A field's type.
        text: The string as written.
        source: For the message and for paths.
        where: The key, for the message.
        node: The YAML node, for the line; None if the value is not from a file.

    Raises:
        ConfigError: The string does not convert to `kind`, or violates one of its rules.
    """
    plain = not isinstance(node, yaml.ScalarNode) or node.style is None
    kind, optional, rules = _unwrap(kind)
    if plain and text in _NULL:
        if optional:
            return None
        raise source.error(f"`{where}` must not be empty", node)
    value = _scalar(kind, text, source, where, node)
    for rule in rules:
        violation = rule.violation(value)
        if violation:
            raise source.error(f"`{where}` {violation}, not `{text}`", node)
    return value


def _scalar(kind: Any, text: str, source: Source, where: str, node: yaml.Node | None) -> Any:
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise source.error(f"`{where}` must be true or false, not `{text}`", node)
    if kind is int:
        # Not int(): it accepts "1_0" and Arabic digits. Twenty digits are more than any field allows.
        if re.fullmatch(r"[-+]?[0-9]{1,20}", text):
            return int(text)
        raise source.error(f"`{where}` must be a whole number, not `{text}`", node)
    if kind is float:
        if re.fullmatch(r"[-+]?[0-9]{1,20}(\.[0-9]*)?([eE][-+]?[0-9]{1,2})?", text):
            return float(text)
        raise source.error(f"`{where}` must be a number, not `{text}`", node)
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        meant = nearest(text, get_args(kind))
        hint = f"did you mean `{meant}`?" if meant else None
        raise source.error(f"`{where}` must be one of {', '.join(get_args(kind))}, not `{text}`", node, hint)
    if "\0" in text:
        raise source.error(f"`{where}` contains a NUL character", node)
    return source.path(text) if kind is Path else text


def _mapping(node: yaml.Node, cls: type[Any], where: str, source: Source) -> Tree:
    if not isinstance(node, yaml.MappingNode):
        what = f"`{where}` must be a mapping" if where else "the file must be a mapping"
        raise source.error(f"{what} (`name: value`), not {_kind_of(node)}", node)
    known = field_types(cls)
    tree: Tree = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        inside = f" in `{where}`" if where else ""
        if key is None:
            raise source.error(f"a key{inside} must be a string, not {_kind_of(key_node)}", key_node)
        if key not in known:
            meant = nearest(key, known)
            hint = f"did you mean `{meant}`?" if meant else "known keys: " + ", ".join(sorted(known))
            raise source.error(f"unknown key `{key}`{inside}", key_node, hint)
        if key in tree:
            raise source.error(f"`{key}`{inside} is given twice", key_node)
        tree[key] = _value(value_node, known[key], f"{where}.{key}" if where else key, source)
    return tree


def _value(node: yaml.Node, annotated: Any, where: str, source: Source) -> Any:
    kind, optional, _ = _unwrap(annotated)
    if dataclasses.is_dataclass(kind):
        # `mqtt:` may have every line below it commented out.
        return (None if optional else {}) if _is_empty(node) else _mapping(node, kind, where, source)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise source.error(f"`{where}` must be a list (`[a, b]`), not {_kind_of(node)}", node)
        item = get_args(kind)[0]
        return tuple(_value(entry, item, f"{where}[{index}]", source) for index, entry in enumerate(node.value))
    if not isinstance(node, yaml.ScalarNode):
        raise source.error(f"`{where}` must be a single value, not {_kind_of(node)}", node)
    return convert(annotated, node.value, source, where, node)


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULL


def _unwrap(annotated: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """The bare type, whether None is allowed, and the `Annotated` rules."""
    optional, rules = False, ()
    while True:
        if get_origin(annotated) is Annotated:
            annotated, *extra = get_args(annotated)
            rules = (*rules, *extra)
        elif get_origin(annotated) in {Union, types.UnionType}:
            optional = True
            (annotated,) = (part for part in get_args(annotated) if part is not type(None))
        else:
            return annotated, optional, rules


def _dataclass_in(annotated: Any) -> type[Any] | None:
    kind, _, _ = _unwrap(annotated)
    if get_origin(kind) is tuple:
        kind, _, _ = _unwrap(get_args(kind)[0])
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None


def _kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"`{str(node.value)[:40]}`"


def _compose(text: str, source: Source) -> yaml.Node | None:
    """Parse into nodes, which unlike values have line numbers; nothing is constructed.

    Aliases are rejected because a few lines of them expand to gigabytes, deep nesting because it exhausts the stack.
    """
    if len(text) > MAX_BYTES:
        raise source.error(f"larger than {MAX_BYTES} bytes")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{source.name}:{line}: aliases (`*name`) are not supported", hint="write it out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{source.name}:{line}: nested more than {MAX_DEPTH} deep")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f"{source.name}:{mark.line + 1}" if mark else source.name
        raise ConfigError(f"{location}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # such as a control character
        raise ConfigError(f"{source.name}: not valid YAML: {' '.join(str(error).split())}") from error
