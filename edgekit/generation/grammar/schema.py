"""Lowers a caller's JSON schema: checks every keyword and rewrites the schema so that llguidance enforces all of it.

llguidance ignores unknown keywords (and some known ones in old drafts), reads numbers as doubles, and does not detect
unsatisfiable schemas. So it never gets the caller's schema but a lowered one: only enforced keywords, references
resolved, patterns and formats translated, bounds exact. The lowered schema may allow less than the caller's (integers
of 18 digits, no properties besides the named ones), never more.

An object that names its properties is closed, unless it is merged with other schemas at its place (`allOf`, or other
keywords next to `anyOf`, `oneOf` or `$ref`): then the names of the others would be forbidden. So a definition has two
forms, one for places where it is merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from edgekit.errors import field_path
from edgekit.generation.grammar.errors import PartError, refusal
from edgekit.generation.grammar.escapes import Escapes
from edgekit.generation.grammar.inference import DEPENDENCIES, TypeInference, Types, in_order, meet, whole
from edgekit.generation.grammar.keywords import ANNOTATIONS, DIALECT, ENFORCED, TYPES, UNSUPPORTED
from edgekit.generation.grammar.literals import check_literal, distinct, identity, type_name
from edgekit.generation.grammar.names import read_names
from edgekit.generation.grammar.negation import REWRITTEN, rewrite, without
from edgekit.generation.grammar.satisfiable import Options, UnsatisfiableError, overlapping, prune
from edgekit.generation.grammar.typos import meant
from edgekit.generation.grammar.values import lower_array, lower_number, lower_object, lower_string

__all__ = ["LoweredSchema", "lower_schema"]

MAX_SCHEMA_BYTES = 300 * 1024
MAX_SUBSCHEMAS = 20_000
MAX_DEPTH = 32
# llguidance recurses through references with some KiB of stack each; the sum of all depths bounds the longest path.
MAX_TOTAL_DEPTH = 2000
MAX_CONSTANTS = 10_000
# Nesting of the JSON value as a whole, annotations too.
MAX_NESTING = 100

_COMPOSITION = ("$ref", "allOf", "anyOf", "oneOf")
_NO_CONSTRAINTS = frozenset(["$defs", "definitions", "then", "else"])
_CONSTRAINING = (ENFORCED | UNSUPPORTED.keys()) - {"$defs", "definitions"}

_Path = tuple[str | int, ...]
"""Keys and indices of a part in the caller's schema."""


class _Place(NamedTuple):
    """Where a schema stands: its path and depth, whether it is merged with others, and which types those allow."""

    path: _Path
    depth: int
    merged: bool
    within: Types | None


class LoweredSchema:
    """A schema that llguidance enforces completely.

    Attributes:
        root: The schema, without `$defs`.
        definitions: Targets of `$ref`, by name.
        depth: Sum of the depths of all definitions.
    """

    def __init__(self, root: Any, definitions: dict[str, Any], paths: dict[int, str], escapes: Escapes) -> None:
        self.root = root
        self.definitions = definitions
        self._paths = paths
        self._escapes = escapes

    def parts(self, part: Any) -> list[Any]:
        """Return the direct subschemas of a part, in order."""
        if not isinstance(part, dict):
            return []
        if "$ref" in part:
            return [self.definitions[part["$ref"].rsplit("/", 1)[1]]]
        found = [value for key in ("properties", "patternProperties") for value in part.get(key, {}).values()]
        found += [part[key] for key in ("additionalProperties", "items") if key in part]
        found += [value for key in ("prefixItems", "allOf", "anyOf") for value in part.get(key, [])]
        return found

    def path_of(self, part: Any, default: str) -> str:
        """Return the path of a part in the caller's schema."""
        return self._paths.get(id(part), default)

    def document(self, part: Any, options: Mapping[str, Any]) -> str:
        """Return a part as a standalone JSON document with llguidance's options."""
        document = dict(part) if isinstance(part, dict) else {} if part else {"enum": []}
        if self.definitions:
            document["$defs"] = self.definitions
        return json.dumps(document | {"x-guidance": {**options, **self._escapes.options}}, ensure_ascii=True)


def lower_schema(schema: object, *, param: str, path: str = "") -> LoweredSchema:
    """Check a schema and lower it.

    Args:
        schema: JSON Schema, 2020-12 or older.
        param: The field of the request that contains it, for errors.
        path: How errors refer to the schema, where `param` contains several; otherwise an error about the whole schema
            names no path, and parts are named by `param` and their path in it (`response_format.properties.name`).

    Raises:
        RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of the part.
    """
    try:
        _check_nesting(schema)
        size = len(json.dumps(schema, allow_nan=False))
    except PartError as error:
        raise refusal(error, path=path, param=param) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(
            PartError(f"a schema must be a JSON value: {error}", invalid=True), path=path, param=param
        ) from None
    if size > MAX_SCHEMA_BYTES:
        oversize = PartError(f"a schema may have at most {MAX_SCHEMA_BYTES} bytes, not {size}", complex_=True)
        raise refusal(oversize, path=path, param=param)
    # A private copy in plain lists and dictionaries.
    copy = json.loads(json.dumps(schema))

    def named(part: _Path) -> str:
        return field_path(part, path or param) if part else path

    split: dict[_Path, set[tuple[int, int]]] = {}
    while True:
        lowering = _Lowering(copy, named, split)
        try:
            lowered, overlaps = lowering.run()
        except UnsatisfiableError as error:
            if not split:
                raise refusal(error, path=named(lowering.here), param=param) from None
            where, pairs = next(iter(split.items()))
            raise refusal(_overlap(*min(pairs)), path=named(where), param=param) from None
        except PartError as error:
            raise refusal(error, path=named(lowering.here), param=param) from None
        if not overlaps:
            return lowered
        # Options of a `oneOf` that might match the same value are lowered again, each without what the others match.
        split = {**split, **overlaps}


def _check_nesting(schema: object) -> None:
    level = [schema]
    for _ in range(MAX_NESTING):
        level = [
            part
            for node in level
            if isinstance(node, dict | list)
            for part in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise PartError(f"a schema may be nested at most {MAX_NESTING} levels deep", complex_=True)


class _Lowering:
    """Lowers one schema.

    Args:
        root: The schema.
        named: Returns the name of a path in error messages.
        split: Pairs of options of a `oneOf` that might match the same value, by its path; they are kept apart.

    Attributes:
        here: The path of the part being read, for the handler of a `PartError`.
    """

    def __init__(self, root: Any, named: Callable[[_Path], str], split: Mapping[_Path, set[tuple[int, int]]]) -> None:
        self.here: _Path = ()
        self._root = root
        self._named = named
        self._split = split
        self._names: dict[tuple[_Path, bool, Types | None], str] = {}
        self._pending: list[tuple[str, _Path, Any, bool, Types | None]] = []
        self._paths: dict[int, str] = {}
        self._choices: list[tuple[_Path, list[Any]]] = []
        self._inferred: set[int] = set()
        self._closed: set[int] = set()
        self._inference = TypeInference(self._target)
        self._count = 0
        self._constants = 0
        self._deepest = 0

    def run(self) -> tuple[LoweredSchema, dict[_Path, set[tuple[int, int]]]]:
        """Return the lowered schema, and the pairs of options that might match the same value, by path."""
        lowered: dict[str, Any] = {}
        root = self.schema(self._root, (), 0)
        depth = self._deepest
        while self._pending:
            name, path, node, merged, within = self._pending.pop(0)
            self._deepest = 0
            lowered[name] = self.schema(node, path, 0, merged=merged, within=within)
            depth += self._deepest + 1
            if depth > MAX_TOTAL_DEPTH:
                raise PartError("the schema's references are nested too deeply", complex_=True)
        options = Options(lowered, self._inferred, self._closed)
        overlaps = {}
        for path, choice in self._choices:
            self.here = path
            if pairs := overlapping(choice, options):
                overlaps[path] = pairs
        self.here = ()
        if not overlaps:
            root = prune(root, lowered)
        return LoweredSchema(root, lowered, self._paths, Escapes.of([root, *lowered.values()])), overlaps

    def schema(self, node: Any, path: _Path, depth: int, *, merged: bool = False, within: Types | None = None) -> Any:
        """Return the lowered form of the schema at `path`.

        Args:
            node: The schema.
            path: Its path, for errors.
            depth: Its depth.
            merged: It is merged with other schemas, so it must not forbid the properties that those name.
            within: The types that those allow, as far as it is known.
        """
        self.here = path
        self._count += 1
        self._deepest = max(self._deepest, depth)
        if self._count > MAX_SUBSCHEMAS:
            raise PartError(f"a schema may have at most {MAX_SUBSCHEMAS} parts", complex_=True)
        if depth > MAX_DEPTH:
            raise PartError(f"a schema may be nested at most {MAX_DEPTH} levels deep", complex_=True)
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise PartError(f"a schema must be an object or a boolean, not {json.dumps(node)[:40]}", invalid=True)
        keywords = self._keywords(node, path)
        lowered = self._lower(node, keywords, _Place(path, depth, merged, within))
        self.here = path
        if isinstance(lowered, dict):
            self._paths.setdefault(id(lowered), self._named(path))
        return lowered

    def _keywords(self, node: dict[str, Any], path: _Path) -> list[str]:
        """The constraining keywords of a schema, in order."""
        keywords = []
        for keyword, value in node.items():
            self.here = (*path, keyword)
            if keyword in ENFORCED:
                if keyword not in _NO_CONSTRAINTS and not (value is False and keyword in {"uniqueItems", "not"}):
                    keywords.append(keyword)
            elif keyword == "$schema":
                if not isinstance(value, str) or not DIALECT.fullmatch(value):
                    raise PartError("unknown dialect of JSON Schema")
            elif keyword in {"$id", "id"} and path and isinstance(value, str):
                if not value.startswith("#") and _refers(node):
                    raise PartError(
                        f"`{keyword}` in a part with references is not enforced", hint=f"remove `{keyword}`"
                    )
            elif keyword in UNSUPPORTED:
                raise PartError(f"`{keyword}` is not enforced", hint=f"{UNSUPPORTED[keyword]}; remove `{keyword}`")
            elif keyword not in ANNOTATIONS and (close := meant(keyword, _CONSTRAINING)):
                raise PartError(f"unknown keyword `{keyword}`", hint=f"did you mean `{close}`?")
        self.here = path
        return keywords

    def _lower(self, node: dict[str, Any], keywords: list[str], place: _Place) -> Any:
        path, depth, merged, within = place
        composed = [keyword for keyword in keywords if keyword in _COMPOSITION]
        rewritten = [keyword for keyword in keywords if keyword in REWRITTEN]
        others = [keyword for keyword in keywords if keyword not in {*_COMPOSITION, *REWRITTEN}]
        if len(composed) == 1 and not others and not rewritten:
            return self._composed(node, composed[0], place)
        merged = merged or len(composed) > 1 or bool(rewritten) or bool(composed and others != ["type"])
        if not keywords:
            return True
        constants = self._enumerated(node, path)
        types, inferred = self._types(node, constants, composed, within)
        place = _Place(path, depth, merged, whole(types) if types else within)
        self.here = path
        own, conditions = self._own(node, types, path, depth, merged)
        out: dict[str, Any] = {}
        for keyword in keywords:
            self.here = (*path, keyword)
            if keyword in {"const", "enum"}:
                out["enum"] = constants
            elif keyword in REWRITTEN:
                conditions.append(self._rewritten(node, keyword, types, place))
            elif keyword in _COMPOSITION:
                part = self._composed(node, keyword, place)
                if isinstance(part, dict) and len(part) == 1 and not part.keys() & out.keys():
                    out.update(part)
                else:
                    conditions.append(part)
            elif not own.keys() <= out.keys():
                out.update(own)
        if conditions:
            out["allOf"] = out.get("allOf", []) + conditions
        if inferred:
            self._inferred.add(id(out))
        if own.get("additionalProperties") is False and "additionalProperties" not in node:
            self._closed.add(id(out))
        return out

    def _composed(self, node: dict[str, Any], keyword: str, place: _Place) -> Any:
        path, depth, merged, within = place
        here = self.here = (*path, keyword)
        if keyword == "$ref":
            return {"$ref": f"#/$defs/{self._resolve(node[keyword], merged, within)}"}
        members = node[keyword]
        if not isinstance(members, list) or not members:
            raise PartError(f"`{keyword}` must be a list of schemas", invalid=True)
        if here in self._split:
            return self._apart(members, self._split[here], path, depth)
        if keyword == "allOf" and len(members) > 1:
            merged = True
            within = meet([within, self._inference.composed(node, "allOf")])
            if within is None:
                within = self._inference.meant({"allOf": members})
        parts = [
            self.schema(member, (*here, at), depth + 1, merged=merged, within=within)
            for at, member in enumerate(members)
        ]
        self.here = here
        if len(parts) == 1:
            return parts[0]
        if keyword == "allOf":
            return {"allOf": parts}
        if keyword == "oneOf":
            self._choices.append((self.here, parts))
        return {"anyOf": parts}

    def _apart(self, members: list[Any], pairs: set[tuple[int, int]], path: _Path, depth: int) -> Any:
        """Lower a `oneOf` whose options overlap: each without the values of the options that it overlaps with."""
        here = self.here
        parts = []
        for at, member in enumerate(members):
            rivals = sorted({other for pair in pairs if at in pair for other in pair if other != at})
            listed = [self._values(members[other]) for other in (at, *rivals)]
            if None not in listed:
                taken = {identity(value) for values in listed[1:] for value in values or []}
                if left := [value for value in listed[0] or [] if identity(value) not in taken]:
                    parts.append({"enum": left})
                continue
            try:
                opposites = [without(members[other], member, self._target) for other in rivals]
                if False in opposites:
                    continue
                parts.append(self.schema({"allOf": [member, *opposites]}, (*path, "oneOf", at), depth + 1, merged=True))
            except PartError as error:
                if error.code == "schema_too_complex":
                    raise
                self.here = here
                raise _overlap(*sorted((at, rivals[0]))) from None
        self.here = here
        if not parts:
            raise _overlap(*min(pairs))
        return {"anyOf": parts}

    def _rewritten(self, node: dict[str, Any], keyword: str, types: list[str], place: _Place) -> Any:
        self.here = (*place.path, keyword)
        part = rewrite(node, keyword, self._target)
        if keyword in DEPENDENCIES and types != ["object"]:
            # Values of other types depend on nothing.
            rest = {"type": [name for name in types if name != "object"]}
            part = {"anyOf": [rest, part]} if "object" in types else rest
        return self.schema(part, self.here, place.depth + 1, merged=True, within=place.within)

    def _resolve(self, reference: object, merged: bool, within: Types | None) -> str:
        """Return the new name of a reference's target."""
        path, target = self._located(reference)
        # Only a target that states no types of its own takes those of its place.
        if self._inference.stated(target) is not None or within == self._inference.meant(target):
            within = None
        if (path, merged, within) not in self._names:
            name = self._names[path, merged, within] = f"d{len(self._names)}"
            self._pending.append((name, path, target, merged, within))
        return self._names[path, merged, within]

    def _target(self, reference: object) -> Any:
        """Return the target of a reference as the caller wrote it."""
        return self._located(reference)[1]

    def _located(self, reference: object) -> tuple[_Path, Any]:
        """Return the path of a reference's target, and the target as the caller wrote it."""
        if not isinstance(reference, str):
            raise PartError("a reference must be a string", invalid=True)
        if reference != "#" and not reference.startswith("#/"):
            raise PartError("a reference must be a path in the same schema, such as `#/$defs/name`; nothing is fetched")
        target = self._root
        path: list[str | int] = []
        for key in (unquote(key).replace("~1", "/").replace("~0", "~") for key in reference.split("/")[1:]):
            if isinstance(target, dict) and key in target:
                target = target[key]
                path.append(key)
            elif isinstance(target, list) and key.isdecimal() and len(key) < 7 and int(key) < len(target):
                target = target[int(key)]
                path.append(int(key))
            else:
                raise PartError(f"the reference {reference[:100]} has no target", invalid=True)
        return tuple(path), target

    def _enumerated(self, node: dict[str, Any], path: _Path) -> list[Any] | None:
        """The constants allowed by `enum` and `const`, in order."""
        constants = None
        if "enum" in node:
            self.here = (*path, "enum")
            if not isinstance(node["enum"], list):
                raise PartError("`enum` must be a list", invalid=True)
            constants = node["enum"]
        if "const" in node:
            self.here = (*path, "const")
            listed = constants
            constants = [node["const"]]
            if listed is not None and len(distinct([*listed, *constants])) > len(distinct(listed)):
                raise PartError("no value satisfies this: `const` is not in `enum`")
        if constants is not None:
            self._constants += sum(check_literal(value) for value in constants)
            if self._constants > MAX_CONSTANTS:
                raise PartError(f"a schema may have at most {MAX_CONSTANTS} constants", complex_=True)
            if not constants:
                raise PartError("no value satisfies this: `enum` is empty")
            constants = distinct(constants)
        return constants

    def _types(
        self, node: dict[str, Any], constants: list[Any] | None, composed: list[str], within: Types | None
    ) -> tuple[list[str], bool]:
        """The types that a schema allows, and whether they were inferred from its other keywords and its place."""
        if "type" in node:
            types = node["type"] if isinstance(node["type"], list) else [node["type"]]
            if not types or any(not isinstance(name, str) or name not in TYPES for name in types):
                raise PartError(f"`type` must be one of {', '.join(TYPES)}, or a list of them", invalid=True)
            return distinct(types), False
        if constants is not None:
            return distinct(type_name(value) for value in constants), False
        around = meet([within, *(self._inference.composed(node, keyword) for keyword in composed)])
        return in_order(around or self._inference.meant(node)), True

    def _own(
        self, node: dict[str, Any], types: list[str], path: _Path, depth: int, merged: bool
    ) -> tuple[dict[str, Any], list[Any]]:
        """Lowered keywords about the value itself, and schemas that must match in addition (`allOf`)."""
        out: dict[str, Any] = {"type": types[0] if len(types) == 1 else types} if types else {}
        conditions: list[Any] = []

        def inner(member: Any, *keys: str | int) -> Any:
            return self.schema(member, (*path, *keys), depth + 1)

        def at(keyword: str) -> None:
            self.here = (*path, keyword)

        def written_out(kind: set[str], values: list[Any]) -> None:
            """Allow only these values of a kind of type."""
            rest = [name for name in types if name not in kind]
            listed = {"enum": values}
            conditions.append({"anyOf": [{"type": rest}, listed]} if rest else listed)

        if "object" in types:
            at("propertyNames")
            names = read_names(self._followed(node.get("propertyNames", True)))
            out |= lower_object(node, inner, at, closes=not merged, names=names)
        if "array" in types:
            part = lower_array(node, inner, at, self._values(node.get("items")))
            if (arrays := part.pop("arrays", None)) is not None:
                written_out({"array"}, arrays)
            out |= part
        if "string" in types:
            part, patterns = lower_string(node, at)
            out |= part
            conditions += [{"type": out["type"], "pattern": pattern} for pattern in patterns]
        if {"integer", "number"} & set(types):
            part = lower_number(node, types, at)
            if (values := part.pop("values", None)) is not None:
                written_out({"integer", "number"}, values)
            out |= part
        self.here = path
        return out, conditions

    def _followed(self, node: Any) -> Any:
        """Follow references in the caller's schema."""
        for _ in range(MAX_DEPTH):
            if not (isinstance(node, dict) and "$ref" in node):
                break
            node = self._target(node["$ref"])
        return node

    def _values(self, node: Any) -> list[Any] | None:
        """The values of a schema that lists them all."""
        node = self._followed(node)
        if not isinstance(node, dict) or node.keys() & {*_CONSTRAINING} - {"type", "enum", "const"}:
            return None
        types = node.get("type", list(TYPES))
        types = types if isinstance(types, list) else [types]
        if not all(isinstance(kind, str) for kind in types):
            return None
        listed = node.get("enum", [node["const"]] if "const" in node else None)
        if listed is None and set(types) <= {"boolean", "null"}:
            listed = [True, False, None]
        if not isinstance(listed, list) or ("const" in node and "enum" in node):
            return None
        kinds = {*types, "integer"} if "number" in types else {*types}
        return distinct(value for value in listed if check_literal(value) and type_name(value) in kinds)


def _overlap(one: int, other: int) -> PartError:
    return PartError(
        f"`oneOf` is enforced only if no two options can match the same value; {one} and {other} might",
        hint="use `anyOf`, or give each option a required property with a distinct `const`",
    )


def _refers(node: Any) -> bool:
    """Whether a reference occurs in a schema."""
    if isinstance(node, list):
        return any(_refers(part) for part in node)
    return isinstance(node, dict) and ("$ref" in node or any(_refers(part) for part in node.values()))
