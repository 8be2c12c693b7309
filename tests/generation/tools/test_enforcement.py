"""Outputs that the grammars allow, with markers that are ordinary text and with markers that are special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from edgekit.errors import RequestError
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.tools import ToolFormat
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.tools.llama3 import Llama3
from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.tools.qwen3 import Qwen3
from edgekit.generation.types import Tool, ToolChoice
from tests.generation.tiny import byte_tokenizer
from tests.generation.tools.enforce import TOKENS, allows
from tests.generation.tools.events import CITY, TOOLS, parse
from tests.generation.tools.test_parser import HERMES, LISTED, LLAMA3, NAMED, QWEN3, call

AUTO, NONE, REQUIRED = ToolChoice(), ToolChoice("none"), ToolChoice("required")
PARIS = '{"city": "Paris"}'


@dataclass(frozen=True)
class Case:
    """A format with its markers, and the format in which its calls are written."""

    format: ToolFormat
    writer: ToolFormat
    between: str = "\n"

    def call(self, tool: str, arguments: str) -> str:
        return call(self.writer, tool, arguments)

    def allows(self, choice: ToolChoice, text: str, *, parallel: bool = True, **options: Any) -> bool:
        lark = self.format.lark(TOOLS, choice, parallel, **options)
        assert lark is not None
        return allows(lark, text, special=self.format.markers)


def _tokens(*names: str) -> dict[str, int]:
    return {name: TOKENS[name] for name in names}


_TAGS = _tokens("<tool_call>", "</tool_call>")
_MARKERS = _tokens("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
CASES = {
    "hermes": Case(Hermes("", {}), HERMES),
    "hermes, tokens": Case(Hermes("", _TAGS), HERMES),
    "qwen3": Case(Qwen3("", {}), QWEN3),
    "qwen3, tokens": Case(Qwen3("", _TAGS | _tokens("<think>", "</think>")), QWEN3),
    "llama3": Case(Llama3("", {}), LLAMA3),
    "llama3, tokens": Case(Llama3("", _tokens("<|python_tag|>")), LLAMA3),
    "mistral": Case(Mistral("", _MARKERS), LISTED),
    "mistral, names": Case(Mistral("[ARGS]", _MARKERS), NAMED, between=""),
    "mistral, ids": Case(Mistral("[ARGS] [CALL_ID]", _MARKERS), NAMED, between=""),
}
everywhere = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
with_text_before = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.writer is not LLAMA3],
    ids=[name for name in CASES if "llama" not in name],
)


@everywhere
def test_text_is_free_until_a_call_begins(case: Case) -> None:
    for text in ("", "Hi.\n\n<b>{}[1]</b> \u4e16\U0001f600 tool_call", '{"city": "Paris"}', '{"name": "Bob"}'):
        assert case.allows(AUTO, text)
        assert case.allows(NONE, text)
        assert not case.allows(REQUIRED, text)


@everywhere
def test_a_call_is_allowed_unless_calls_are_forbidden(case: Case) -> None:
    for text in (case.call("weather", PARIS), case.call("find", '{"x": [1, {}]}'), case.call("now", "{}")):
        assert case.allows(AUTO, text)
        assert case.allows(REQUIRED, text)
        assert not case.allows(NONE, text)


@with_text_before
def test_a_call_may_follow_text(case: Case) -> None:
    text = f"Let me see.\n{case.call('now', '{}')}"
    assert case.allows(AUTO, text)
    assert not case.allows(REQUIRED, text)
    assert not case.allows(NONE, text)


@everywhere
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("unknown", "{}"),
        ("weather", "{}"),
        ("weather", '{"city": 1}'),
        ("weather", '{"city": "Paris", "more": 1}'),
        ("weather", '{"city": "Paris"'),
        ("now", '{"x": 1}'),
        ("find", "[]"),
        ("find", '{"x": }'),
    ],
)
def test_a_call_that_has_begun_must_match_its_tool(case: Case, tool: str, arguments: str) -> None:
    text = case.call(tool, arguments)
    assert not case.allows(REQUIRED, text)
    # A call of Llama's begins only with the name of a tool.
    assert case.allows(AUTO, text) == (case.writer is LLAMA3 and tool == "unknown")


@everywhere
def test_a_named_tool_is_called_and_only_once(case: Case) -> None:
    named = ToolChoice("required", "now")
    now = case.call("now", "{}")
    assert case.allows(named, now)
    assert not case.allows(named, case.call("weather", PARIS))
    assert not case.allows(named, "Hi")
    assert not case.allows(named, now + case.between + now)


@with_text_before
def test_parallel_calls_must_be_allowed(case: Case) -> None:
    if case.writer is LISTED:
        one = case.call("now", "{}")
        two = one[:-1] + ', {"name": "weather", "arguments": {"city": "Paris"}}]'
    else:
        two = case.call("now", "{}") + case.between + case.call("weather", PARIS)
    for choice in (AUTO, REQUIRED):
        assert case.allows(choice, two)
        assert not case.allows(choice, two, parallel=False)
    assert [event[1] for event in parse(case.format, [two], enforced=True)] == ["now", "weather"]


@everywhere
def test_output_without_a_call_must_match_the_response_format(case: Case) -> None:
    content = '%json {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}'
    for choice in (AUTO, NONE):
        assert case.allows(choice, '{"answer": 1}', content=content)
        assert not case.allows(choice, "Hi", content=content)
    # Without its token a call of Llama's is indistinguishable from content.
    opening = "" if case.writer is not LLAMA3 else "<|python_tag|>"
    if case is not CASES["llama3"]:
        assert case.allows(AUTO, opening + case.call("now", "{}"), content=content)
    assert not case.allows(NONE, case.call("now", "{}"), content=content)


@pytest.mark.parametrize("name", ["qwen3", "qwen3, tokens"])
def test_reasoning_may_come_first_whatever_is_asked_for(name: str) -> None:
    case = CASES[name]
    reasoning = "Hm, {\n"
    now = case.call("now", "{}")
    for opening, options in (("<think>", {}), ("", {"thinking": True})):
        before = f"{opening}{reasoning}</think>\n\n"
        assert case.allows(AUTO, f"{before}Hi", **options)
        assert case.allows(NONE, f"{before}Hi", **options)
        for choice in (AUTO, REQUIRED):
            assert case.allows(choice, before + now, **options)
            assert not case.allows(choice, before + case.call("unknown", "{}"), **options)
        assert not case.allows(REQUIRED, f"{before}Hi", **options)
        assert not case.allows(NONE, before + now, **options)
        # The output may end inside the reasoning.
        assert case.allows(AUTO, opening + reasoning, **options)


@everywhere
def test_without_tools_there_is_nothing_to_enforce(case: Case) -> None:
    assert case.format.lark([], AUTO, parallel=True) is None
    # A response format is something to enforce.
    lark = case.format.lark([], AUTO, parallel=True, content='"yes" | "no"')
    assert lark is not None
    assert allows(lark, "yes")
    assert not allows(lark, "Hi")


def test_reasoning_comes_before_an_answer_in_a_response_format_too() -> None:
    lark = QWEN3.lark([], AUTO, parallel=True, thinking=True, content='"yes" | "no"')
    assert lark is not None
    assert allows(lark, "Hm.</think>\n\nyes")
    assert not allows(lark, "Hm.</think>\n\nHi")


@pytest.mark.parametrize(
    "text", ['"]}\\', "</tool_call>", "<|python_tag|>", "// # %json {", "é世\U0001f600", "a/b\n\t"]
)
def test_what_callers_write_into_schemas_is_no_grammar(text: str) -> None:
    tool = Tool("t", text, {"type": "object", "properties": {text: {"enum": [text]}}, "required": [text]}, strict=True)
    for case in CASES.values():
        lark = case.format.lark([tool], ToolChoice("required", "t"), parallel=True)
        assert lark is not None
        assert not allows(lark, case.call("t", "{}"), special=case.format.markers)


@everywhere
def test_a_strict_schema_that_cannot_be_enforced_is_refused_with_its_path(case: Case) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "contains": {"type": "integer"}}}}
    with pytest.raises(RequestError, match=r"tools.*properties\.a") as caught:
        case.format.lark([Tool("t", "", schema, strict=True)], AUTO, parallel=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_schema", "tools")
    # A tool that is not strict takes any object then, and the others keep their schemas.
    lark = case.format.lark([Tool("t", "", schema), Tool("weather", "", CITY)], AUTO, parallel=True)
    assert lark is not None
    special = case.format.markers
    assert allows(lark, case.call("t", '{"a": [1]}'), special=special)
    assert not allows(lark, case.call("t", "[1]"), special=special)
    assert not allows(lark, case.call("weather", "{}"), special=special)


@everywhere
@pytest.mark.parametrize("choice", [AUTO, REQUIRED, ToolChoice("required", "weather")], ids=str)
@pytest.mark.parametrize("strict", [False, True])
def test_arguments_are_held_to_the_schema_with_or_without_strict(
    case: Case, choice: ToolChoice, *, strict: bool
) -> None:
    untyped = {name: value for name, value in CITY.items() if name != "type"}
    for parameters in (CITY, untyped):
        lark = case.format.lark([Tool("weather", "", parameters, strict=strict)], choice, parallel=True)
        assert lark is not None
        allowed = [
            arguments
            for arguments in (PARIS, "{}", '{"city": 1}', '{"city": "Paris", "more": 1}', "5", '"x"', "null", "[]")
            if allows(lark, case.call("weather", arguments), special=case.format.markers)
        ]
        assert allowed == [PARIS]


@pytest.mark.parametrize("name", [name for name in CASES if "tokens" not in name and "mistral" not in name])
@pytest.mark.parametrize("choice", [AUTO, NONE, REQUIRED], ids=lambda choice: choice.mode)
def test_the_grammar_compiler_accepts_them(name: str, choice: ToolChoice) -> None:
    lark = CASES[name].format.lark(TOOLS, choice, parallel=True)
    assert lark is not None
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.encode("<|im_end|>"))
    matcher = compiler.compile_lark(lark, param="tools").matcher()
    text = "Hi" if choice is not REQUIRED else CASES[name].call("weather", PARIS)
    for token in tokenizer.encode(text):
        matcher.accept(token)
    assert matcher.accepting


def test_many_tools_make_a_grammar_that_compiles() -> None:
    tools = [Tool(f"tool_{number}", "", {"type": "object"}, strict=True) for number in range(128)]
    for case in CASES.values():
        lark = case.format.lark(tools, AUTO, parallel=True)
        assert lark is not None
        assert allows(lark, case.call("tool_77", "{}"), special=case.format.markers)
