"""Schemas of tools are checked once, and remembered without their text."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar.lark import lark_json
from edgekit.generation.tools import lark
from edgekit.generation.types import Tool


def tool(name: str, *, strict: bool = False, **schema: Any) -> Tool:
    return Tool(name, "", {"type": "object", "description": f"{name}{'x' * 5000}", **schema}, strict=strict)


def test_a_schema_is_checked_once_and_little_is_remembered_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def counted(schema: Any, *, param: str, path: str = "") -> str:
        checked.append(schema.get("description", "")[:1])
        return lark_json(schema, param=param, path=path)

    monkeypatch.setattr(lark, "lark_json", counted)
    monkeypatch.setattr(lark, "MAX_CHECKED", 2)
    monkeypatch.setattr(lark, "_enforceable", type(lark._enforceable)())
    first = lark.arguments(tool("a"))
    assert first == lark.arguments(tool("a")) == lark_json(dict(tool("a").parameters or {}), param="tools")
    for name in "bacab":
        lark.arguments(tool(name))
    # `b` had to make room for `c`.
    assert checked == ["a", "b", "c", "b"]
    assert [len(kept) for kept in lark._enforceable] == [32, 32]


def test_a_schema_that_cannot_be_enforced_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RequestError):
            lark.arguments(tool("n", strict=True, properties={"a": {"not": {"multipleOf": 2}}}))
