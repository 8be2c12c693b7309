"""A chat to prompt tokens, by the model's own template, so that nobody can speak with the model's control tokens.

What callers write is text: `<|im_end|>` in a message, a tool's description or a call's arguments must not end the turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BundleError, RequestError
from edgekit.generation.guard import Guard
from edgekit.generation.request import Message, Tool, ToolCall
from edgekit.generation.sandbox import MAX_CHARACTERS
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Prompt", "encode_chat"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given.

    Attributes:
        left_out: Messages that were left out to make it fit.
        thinking: It ends within the model's reasoning, which the answer goes on with.
    """

    tokens: Sequence[int]
    left_out: int = 0
    thinking: bool = False


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    arguments: Mapping[str, Any] | None = None,
    prompt_id: Callable[[str], str] = str,
) -> Prompt:
    """Return the prompt of a chat, the opening of the assistant's turn included.

    Args:
        tokenizer: The model's.
        template: The model's.
        messages: The chat.
        tools: What the model may call.
        arguments: Further variables of the template.
        prompt_id: What stands for a call's id in the prompt.

    Raises:
        RequestError: The template refuses the messages, or tears a special token of a message apart; a call's
            arguments are no JSON object; something is too long or nested too deep.
        BundleError: The template failed.
    """
    shaped = [_message(message, messages[:number], prompt_id) for number, message in enumerate(messages)]
    functions = [_function(tool) for tool in tools]
    guard = Guard(tokenizer, [*shaped, *functions, dict(arguments or {})])
    if guard.size > MAX_CHARACTERS:
        raise RequestError(
            f"messages and tools have {guard.size} characters; at most {MAX_CHARACTERS} are read",
            hint="shorten the messages or leave out old ones",
            code="context_length_exceeded",
            param="messages",
        )

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        return template.render(guard.put(messages), tools=guard.put(functions), arguments=guard.put(arguments or {}))

    try:
        text = render(shaped)
    except BundleError:
        written = [_with_written_arguments(message) for message in shaped]
        if written == shaped:
            raise
        # Some templates join the arguments' text to their own.
        text = render(written)
    return Prompt(guard.encode(text), thinking=text.rstrip().endswith("<think>"))


def _message(message: Message, before: Sequence[Message], prompt_id: Callable[[str], str]) -> dict[str, Any]:
    shaped: dict[str, Any] = {"role": message.role, "content": message.content}
    name = message.name
    if message.tool_calls:
        # Only then: templates ask whether the key is there.
        shaped["tool_calls"] = [
            {
                "id": prompt_id(call.id),
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shaped["tool_call_id"] = prompt_id(message.tool_call_id)
        calls = (call for earlier in reversed(before) for call in earlier.tool_calls if name is None)
        name = next((call.name for call in calls if call.id == message.tool_call_id), name)
    if name is not None:
        shaped["name"] = name
    return shaped


def _arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object, which the templates write as JSON again."""
    try:
        arguments = json.loads(call.arguments or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"the arguments of the call of `{call.name}` are not a JSON object", param="messages")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _with_written_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _function(tool: Tool) -> dict[str, Any]:
    """The shape that Hugging Face's templates take."""
    parameters = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
