"""Turns the items of the Responses API into a chat's messages: an assistant's turn is one message."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.daemon.api.messages import MAX_MESSAGES, call_arguments
from edgekit.daemon.api.response_items import Item, reasoning_text
from edgekit.errors import RequestError
from edgekit.generation.types import Message, ToolCall

__all__ = ["read_turns"]


def read_turns(instructions: str | None, history: Sequence[Item], new: Sequence[Item]) -> tuple[Message, ...]:
    """Return the messages of a chat.

    Instructions and the system messages that follow them become one, as most chat templates take only one.

    Args:
        instructions: The first system message.
        history: The items of earlier responses.
        new: The request's own items.

    Raises:
        RequestError: There are too many, an output belongs to no call, or a call's arguments are no JSON object.
    """
    items = [*history, *new]
    if len(items) > MAX_MESSAGES:
        raise RequestError(
            f"there are {len(items)} items; the limit is {MAX_MESSAGES}", hint="leave out old ones", param="input"
        )
    turns = _Turns(instructions)
    for number, item in enumerate(items, -len(history)):
        turns.add(item, f"input[{number}]" if number >= 0 else "previous_response_id")
    return turns.end()


class _Turns:
    """The messages so far, and the assistant's turn that is being put together."""

    def __init__(self, instructions: str | None) -> None:
        self._messages: list[Message] = [Message("system", instructions)] if instructions else []
        self._reasoning = self._text = ""
        self._calls: list[ToolCall] = []
        self._called: set[str] = set()

    def add(self, item: Item, at: str) -> None:
        kind = item["type"]
        if kind == "reasoning":
            if self._text or self._calls:
                self._close()
            self._reasoning = reasoning_text(item)
        elif kind == "function_call":
            arguments = call_arguments(item["arguments"], f"{at}.arguments")
            self._calls.append(ToolCall(item["call_id"], item["name"], arguments))
            self._called.add(item["call_id"])
        elif kind == "function_call_output":
            self._close()
            if item["call_id"] not in self._called:
                raise RequestError(
                    f"`{at}.call_id` matches no earlier function call",
                    hint="also send the `function_call` item",
                    param=f"{at}.call_id",
                )
            self._messages.append(Message("tool", item["output"], tool_call_id=item["call_id"]))
        else:
            self._add_message(item["role"], "\n".join(part["text"] for part in item["content"]))

    def end(self) -> tuple[Message, ...]:
        self._close()
        return tuple(self._messages)

    def _add_message(self, role: str, text: str) -> None:
        if role == "assistant":
            if self._text or self._calls:
                self._close()
            self._text = text
            return
        self._close()
        if role == "user":
            self._messages.append(Message("user", text))
        elif self._messages and all(message.role == "system" for message in self._messages):
            self._messages[-1] = Message("system", f"{self._messages[-1].content}\n\n{text}")
        else:
            self._messages.append(Message("system", text))

    def _close(self) -> None:
        """End the assistant's turn."""
        if self._text or self._calls:
            self._messages.append(
                Message("assistant", self._text, tool_calls=tuple(self._calls), reasoning=self._reasoning)
            )
        self._reasoning = self._text = ""
        self._calls = []
