"""A caller's JSON schema, checked word by word and written anew so that llguidance enforces all of it.

llguidance skips what it does not know (and, in old drafts, some of what it does), reads numbers as doubles, and does
not see that a schema can never be satisfied. So it is never given a caller's schema but what this makes of it: only
words that are enforced, references resolved, patterns and formats translated, bounds exact. What is written may allow
less than the caller's schema does (integers of 18 digits, no properties beside the ones named), never more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from edgekit.errors import nearest
from edgekit.generation.grammar.errors import PartError, refusal
from edgekit.generation.grammar.keywords import ANNOTATIONS, DIALECTS, ENFORCED, REFUSED, TYPES
from edgekit.generation.grammar.literals import check_literal, distinct, type_name
from edgekit.generation.grammar.satisfiable import Options, close_objects, prove_disjoint, prune
from edgekit.generation.grammar.values import KEYWORDS_OF, lower_array, lower_number, lower_object, lower_string

__all__ = ["LoweredSchema", "lower_schema"]

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SUBSCHEMAS = 2000
MAX_DEPTH = 32
# llguidance goes down references by recursion, some KiB of stack each; all depths together bound the deepest way.
MAX_TOTAL_DEPTH = 400
MAX_CONSTANTS = 5000

_COMPOSITION = ("$ref", "allOf", "anyOf", "oneOf")


class LoweredSchema:
    """A schema that llguidance enforces as it stands.

    Attributes:
        root: The schema, without `$defs`.
        definitions: What `$ref`s lead to.
    """

    def __init__(self, root: Any, definitions: dict[str, Any], places: dict[int, str]) -> None:
        self.root = root
        self.definitions = definitions
        self._places = places

    def parts(self, part: Any) -> list[Any]:
        """Return the schemas directly inside one, in order."""
        if not isinstance(part, dict):
            return []
        if "$ref" in part:
            return [self.definitions[part["$ref"].rsplit("/", 1)[1]]]
        found = [value for key in ("properties", "patternProperties") for value in part.get(key, {}).values()]
        found += [part[key] for key in ("additionalProperties", "items") if key in part]
        found += [value for key in ("prefixItems", "allOf", "anyOf") for value in part.get(key, [])]
        return found

    def place(self, part: Any, otherwise: str) -> str:
        """Return where in the caller's schema a part comes from."""
        return self._places.get(id(part), otherwise)

    def document(self, part: Any, options: Mapping[str, Any]) -> str:
        """Return a part as a document of its own, as JSON text, with llguidance's options."""
        document = dict(part) if isinstance(part, dict) else {} if part else {"enum": []}
        if self.definitions:
            document["$defs"] = self.definitions
        return json.dumps(document | {"x-guidance": dict(options)}, ensure_ascii=True)


def lower_schema(schema: object, *, param: str, path: str = "#") -> LoweredSchema:
    """Check a schema and write it anew.

    Args:
        schema: JSON Schema, 2020-12 or older.
        param: The field of the request, for errors.
        path: What the schema itself is called in errors; parts follow as `/properties/name`.

    Raises:
        RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of what is wrong.
    """
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(PartError(f"a schema is a JSON value: {error}", invalid=True), path=path, param=param) from None
    if size > MAX_SCHEMA_BYTES:
        too_large = PartError(f"a schema may have {MAX_SCHEMA_BYTES} bytes, not {size}", complex_=True)
        raise refusal(too_large, path=path, param=param)
    # A copy in plain lists and dictionaries, which nobody changes meanwhile.
    lowering = _Lowering(json.loads(json.dumps(schema)), path)
    try:
        return lowering.run()
    except PartError as complaint:
        raise refusal(complaint, path=lowering.here, param=param) from None


class _Lowering:
    """One schema on its way. `here` is the path of what is being read, for whoever catches the complaint."""

    def __init__(self, root: Any, path: str) -> None:
        self.here = path
        self._base = path
        self._root = root
        self._names: dict[str, str] = {}
        self._pending: list[tuple[str, str, Any]] = []
        self._places: dict[int, str] = {}
        self._choices: list[tuple[str, list[Any]]] = []
        self._inferred: set[int] = set()
        self._composes = False
        self._count = 0
        self._constants = 0
        self._deepest = 0

    def run(self) -> LoweredSchema:
        lowered: dict[str, Any] = {}
        root = self.schema(self._root, self._base, 0)
        depth = self._deepest
        while self._pending:
            name, path, node = self._pending.pop(0)
            self._deepest = 0
            lowered[name] = self.schema(node, path, 0)
            depth += self._deepest + 1
            if depth > MAX_TOTAL_DEPTH:
                raise PartError("the schema's references are nested too deeply", complex_=True)
        options = Options(lowered, self._inferred)
        for path, choice in self._choices:
            self.here = path
            prove_disjoint(choice, options)
        self.here = self._base
        root = prune(root, lowered)
        if not self._composes:
            close_objects([root, *lowered.values()])
        return LoweredSchema(root, lowered, self._places)

    def schema(self, node: Any, path: str, depth: int) -> Any:
        """Return what llguidance gets for a schema at `path`."""
        self.here = path
        self._count += 1
        self._deepest = max(self._deepest, depth)
        if self._count > MAX_SUBSCHEMAS:
            raise PartError(f"a schema may have {MAX_SUBSCHEMAS} parts", complex_=True)
        if depth > MAX_DEPTH:
            raise PartError(f"a schema may be nested {MAX_DEPTH} deep", complex_=True)
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise PartError(f"a schema is an object or a boolean, not {json.dumps(node)[:40]}", invalid=True)
        words = self._words(node, path)
        lowered = self._lower(node, words, path, depth)
        self.here = path
        if isinstance(lowered, dict):
            self._places.setdefault(id(lowered), path)
        return lowered

    def _words(self, node: dict[str, Any], path: str) -> list[str]:
        """The words of a schema that constrain, in order."""
        words = []
        for word, value in node.items():
            self.here = f"{path}/{_escape(word)}"
            if word in ENFORCED:
                if word not in {"$defs", "definitions"}:
                    words.append(word)
            elif word == "$schema":
                if not isinstance(value, str) or value.rstrip("#") not in DIALECTS:
                    raise PartError("this dialect of JSON Schema is not known")
            elif (word in {"$id", "id"} and path == self._base) or (word == "uniqueItems" and value is False):
                continue
            elif word in REFUSED:
                raise PartError(f"`{word}` is not enforced", hint=f"{REFUSED[word]}; leave it out")
            elif word not in ANNOTATIONS and not word.startswith("x-"):
                close = nearest(word, ENFORCED)
                hint = f"did you mean `{close}`?" if close else "leave it out"
                raise PartError(f"`{word}` is not enforced: no such word is known", hint=hint)
        self.here = path
        return words

    def _lower(self, node: dict[str, Any], words: list[str], path: str, depth: int) -> Any:
        composed = [word for word in words if word in _COMPOSITION]
        others = [word for word in words if word not in _COMPOSITION]
        if len(composed) == 1 and not others:
            return self._composed(node, composed[0], path, depth)
        if composed and (len(composed) > 1 or others != ["type"]):
            self._composes = True
        if not words:
            return True
        constants = self._enumerated(node, path)
        types, inferred = self._types(node, constants, others)
        self.here = path
        simple, further = self._simple(node, types, path, depth)
        out: dict[str, Any] = {}
        for word in words:
            self.here = f"{path}/{_escape(word)}"
            if word in {"const", "enum"}:
                out["enum"] = constants
            elif word in _COMPOSITION:
                part = self._composed(node, word, path, depth)
                if isinstance(part, dict) and len(part) == 1 and not part.keys() & out.keys():
                    out.update(part)
                else:
                    further.append(part)
            elif not simple.keys() <= out.keys():
                out.update(simple)
        if further:
            out["allOf"] = out.get("allOf", []) + further
        if inferred:
            self._inferred.add(id(out))
        return out

    def _composed(self, node: dict[str, Any], word: str, path: str, depth: int) -> Any:
        if word == "$ref":
            self.here = f"{path}/$ref"
            return {"$ref": f"#/$defs/{self._resolve(node[word])}"}
        self.here = f"{path}/{word}"
        members = node[word]
        if not isinstance(members, list) or not members:
            raise PartError(f"`{word}` must be a list of schemas", invalid=True)
        parts = [self.schema(member, f"{path}/{word}/{at}", depth + 1) for at, member in enumerate(members)]
        self.here = f"{path}/{word}"
        if len(parts) == 1:
            return parts[0]
        if word == "allOf":
            self._composes = True
            return {"allOf": parts}
        if word == "oneOf":
            self._choices.append((self.here, parts))
        return {"anyOf": parts}

    def _resolve(self, reference: object) -> str:
        """Return the new name of what a reference leads to."""
        if not isinstance(reference, str):
            raise PartError("a reference is a text", invalid=True)
        if reference != "#" and not reference.startswith("#/"):
            raise PartError(
                "a reference leads to a path in the same schema, such as `#/$defs/name`; nothing is fetched"
            )
        target = self._root
        keys = [unquote(key).replace("~1", "/").replace("~0", "~") for key in reference.split("/")[1:]]
        for key in keys:
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise PartError(f"the reference {reference} leads nowhere", invalid=True)
        pointer = "/".join(_escape(key) for key in keys)
        if pointer not in self._names:
            self._names[pointer] = f"d{len(self._names)}"
            path = f"{self._base}/{pointer}" if pointer else self._base
            self._pending.append((self._names[pointer], path, target))
        return self._names[pointer]

    def _enumerated(self, node: dict[str, Any], path: str) -> list[Any] | None:
        """The constants that `enum` and `const` leave, in order."""
        constants = None
        if "enum" in node:
            self.here = f"{path}/enum"
            if not isinstance(node["enum"], list):
                raise PartError("`enum` must be a list", invalid=True)
            constants = node["enum"]
        if "const" in node:
            self.here = f"{path}/const"
            listed = constants
            constants = [node["const"]]
            if listed is not None and len(distinct([*listed, *constants])) > len(distinct(listed)):
                raise PartError("nothing satisfies this: `const` is not among `enum`")
        if constants is not None:
            self._constants += sum(check_literal(value) for value in constants)
            if self._constants > MAX_CONSTANTS:
                raise PartError(f"a schema may have {MAX_CONSTANTS} constants", complex_=True)
            if not constants:
                raise PartError("nothing satisfies this: `enum` is empty")
            constants = distinct(constants)
        return constants

    def _types(self, node: dict[str, Any], constants: list[Any] | None, words: list[str]) -> tuple[list[str], bool]:
        """The types that a schema allows, and whether they were taken from its other words."""
        if "type" in node:
            types = node["type"] if isinstance(node["type"], list) else [node["type"]]
            if not types or any(name not in TYPES for name in types):
                raise PartError(f"`type` must be one of {', '.join(TYPES)}, or a list of them", invalid=True)
            return distinct(types), False
        if constants is not None:
            return distinct(type_name(value) for value in constants), False
        for name, keywords in KEYWORDS_OF.items():
            if keywords.intersection(words):
                return [name], True
        return [], False

    def _simple(
        self, node: dict[str, Any], types: list[str], path: str, depth: int
    ) -> tuple[dict[str, Any], list[Any]]:
        """What is said about the value itself, and schemas that must hold as well."""
        out: dict[str, Any] = {"type": types[0] if len(types) == 1 else types} if types else {}
        further: list[Any] = []

        def inner(member: Any, *keys: str | int) -> Any:
            where = "/".join(_escape(str(key)) for key in keys)
            return self.schema(member, f"{path}/{where}", depth + 1)

        def at(word: str) -> None:
            self.here = f"{path}/{word}"

        if "object" in types:
            out |= lower_object(node, inner, at)
        if "array" in types:
            out |= lower_array(node, inner, at)
        if "string" in types:
            part, patterns = lower_string(node, at)
            out |= part
            further += [{"type": out["type"], "pattern": pattern} for pattern in patterns]
        if {"integer", "number"} & set(types):
            out |= lower_number(node, types, at)
        self.here = path
        return out, further


def _escape(key: str) -> str:
    """A key as a step of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
