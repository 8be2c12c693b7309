"""Which call a tool's result without an id answers, in the OpenAI API's messages and in Ollama's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from edgekit.daemon.api.messages import ChatMessage, read_messages
from edgekit.daemon.api.ollama_messages import OllamaMessage, read_ollama_messages
from edgekit.errors import RequestError
from edgekit.generation.types import Message

USER = {"role": "user", "content": "q"}


def calls(*names: str) -> dict[str, Any]:
    """An assistant's calls; `name=id` has an id."""
    made = []
    for name, _, given in (name.partition("=") for name in names):
        made.append({"function": {"name": name, "arguments": {}}, **({"id": given} if given else {})})
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(**fields: str) -> dict[str, Any]:
    return {"role": "tool", "content": "r", **fields}


def read(api: str, turns: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    if api == "openai":
        return read_messages([ChatMessage.model_validate(turn) for turn in turns])
    return read_ollama_messages([OllamaMessage.model_validate(turn) for turn in turns])


def answered(api: str, turns: Sequence[dict[str, Any]]) -> list[str | None]:
    """The tool of the call that each result answers."""
    names: dict[str | None, str] = {}
    found = []
    for message in read(api, turns):
        for call in message.tool_calls:
            assert call.id not in names
            names[call.id] = call.name
        if message.role == "tool":
            found.append(names.get(message.tool_call_id))
    return found


@pytest.mark.parametrize("api", ["openai", "ollama"])
@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([calls("a"), result()], ["a"]),
        ([calls("a", "b"), result(), result()], ["a", "b"]),
        ([calls("a", "b"), result(name="b"), result()], ["b", "a"]),
        # A call that was abandoned.
        ([calls("a"), USER, calls("b"), result()], ["b"]),
        ([calls("a=1"), USER, calls("b=2"), result()], ["b"]),
        ([calls("a", "b"), result(), calls("c", "d"), result(), result()], ["a", "c", "d"]),
        ([calls("a"), USER, calls("b"), USER, calls("c"), result(), USER, calls("d"), result()], ["c", "d"]),
        # One that was not: the result comes late, or a turn is in several messages.
        ([calls("a"), USER, result()], ["a"]),
        ([calls("a"), calls("b"), result(), result()], ["a", "b"]),
        ([calls("a"), {"role": "system", "content": "s"}, result()], ["a"]),
        ([calls("a"), {"role": "assistant", "content": "wait"}, result()], ["a"]),
        # Ids that are empty, and ids that look like made ones.
        ([calls("a", "b"), result(tool_call_id=""), result(tool_call_id="")], ["a", "b"]),
        ([calls("a=call_1_1", "b"), result(), result()], ["a", "b"]),
        ([calls("a=call_1_1", "b"), result(tool_call_id="call_1_1"), result()], ["a", "b"]),
        ([calls("a=call_2_0"), calls("b"), result(tool_call_id="call_2_0"), result()], ["a", "b"]),
        ([calls("a"), USER, calls("b=call_1_0"), result(tool_call_id="call_1_0")], ["b"]),
        ([calls("a=call_1_1_", "b=call_1_2", "c"), calls("d=call_1_2_"), result(), result(), result()], [*"abc"]),
        # No call at all.
        ([result()], [None]),
        ([calls("a"), result(), result()], ["a", None]),
    ],
)
def test_a_result_answers_the_first_open_call_of_the_newest_turn(
    api: str, turns: list[dict[str, Any]], expected: list[str | None]
) -> None:
    assert answered(api, [USER, *turns]) == expected


def test_a_name_that_is_no_tools_does_not_keep_a_result_from_its_call() -> None:
    assert answered("openai", [USER, calls("a", "b"), result(name="b"), result(name="my tool")]) == ["b", "a"]


def test_a_result_does_not_reach_a_call_by_an_id_that_was_made() -> None:
    with pytest.raises(RequestError) as caught:
        read("openai", [USER, calls("a"), result(tool_call_id="call_1_0")])
    assert caught.value.param == "messages[2].tool_call_id"


def test_made_ids_are_the_same_in_the_next_request() -> None:
    turns = [USER, calls("a", "b=x"), result(), calls("c"), result()]
    longer = [*turns, USER, calls("d"), result()]
    for api in ("openai", "ollama"):
        assert read(api, longer)[: len(turns)] == read(api, turns)
