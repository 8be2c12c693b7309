"""Encodes a chat as prompt tokens with the model's chat template, and guards against injected special tokens.

Everything a caller writes is plain text: `<|im_end|>` in a message, a tool description or call arguments must not end
the turn.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.errors import BundleError, RequestError
from edgekit.generation.chat.jinja_sandbox import MAX_CHARACTERS
from edgekit.generation.chat.special_tokens import SpecialTokenGuard
from edgekit.generation.chat.strict_forms import strict_forms
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.time_limit import UNLIMITED, TimeLimit
from edgekit.generation.types import Message, Tool, ToolCall

__all__ = ["Prompt", "encode_chat", "render_chat"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a prompt.

    Attributes:
        left_out: Number of messages dropped to fit the context.
        thinking: The prompt ends inside the model's reasoning, which the output continues.
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
    turn: Literal["new", "continue", "none"] = "new",
    limit: TimeLimit = UNLIMITED,
) -> Prompt:
    """Return the prompt of a chat.

    Args:
        tokenizer: The model's tokenizer.
        template: The model's chat template.
        messages: The chat.
        tools: Functions that the model may call.
        arguments: Additional template variables.
        prompt_id: Maps a call's id to the id written in the prompt.
        turn: How it ends, as in `ChatRequest`.
        limit: Time for it.

    Raises:
        RequestError: The template refuses the messages, fails on them, or splits a special token in a message; a call's
            arguments are not a JSON object; something is too long or nested too deeply; the time limit has passed; the
            last message cannot be continued.
        BundleError: The template fails on any messages.
    """
    shaped = _shaped(messages, prompt_id)
    functions = [_function(tool) for tool in tools]
    guard = SpecialTokenGuard(tokenizer, [*shaped, *functions, dict(arguments or {})], limit)
    if guard.size > MAX_CHARACTERS:
        raise RequestError(
            f"messages and tools have {guard.size} characters; the limit is {MAX_CHARACTERS}",
            hint="shorten the messages or drop old ones",
            code="context_length_exceeded",
            param="messages",
        )

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        wrapped = guard.wrap(messages)
        if turn == "continue":
            wrapped[-1]["content"] += guard.mark
        return template.render(
            wrapped,
            tools=guard.wrap(functions),
            arguments=guard.wrap(arguments or {}),
            add_generation_prompt=turn == "new",
        )

    text = _rendered(render, shaped, template)
    if turn == "continue":
        text = _up_to(guard.mark, text)
    return Prompt(guard.encode(text), thinking=text.rstrip().endswith("<think>"))


def render_chat(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    arguments: Mapping[str, Any] | None = None,
    prompt_id: Callable[[str], str] = str,
    turn: Literal["new", "continue", "none"] = "new",
) -> str:
    """Return the text of a chat's prompt; the arguments and errors are those of `encode_chat`.

    The text does not tell a special token in a message from one of the template: only the tokens do.
    """
    shaped = _shaped(messages, prompt_id)
    functions = [_function(tool) for tool in tools]
    mark = secrets.token_hex(16) if turn == "continue" else ""

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        last = {**messages[-1], "content": messages[-1]["content"] + mark}
        return template.render(
            [*messages[:-1], last], tools=functions, arguments=arguments, add_generation_prompt=turn == "new"
        )

    text = _rendered(render, shaped, template)
    return _up_to(mark, text) if mark else text


def _up_to(mark: str, text: str) -> str:
    """Return a rendered chat up to the mark at the end of its last message, which the output continues."""
    before, found, _ = text.rpartition(mark)
    if not found:
        raise RequestError(
            "the last message cannot be continued: this model's chat template does not show it as it is",
            hint="end the chat with the user's message",
            param="messages",
        )
    return before


def _rendered(
    render: Callable[[Sequence[Mapping[str, Any]]], str], messages: Sequence[dict[str, Any]], template: ChatTemplate
) -> str:
    """Return the text.

    If the template refuses the messages, they are rendered in a form that strict templates take (`strict_forms`); if it
    fails, with call arguments as strings, which some templates concatenate.
    """
    try:
        return _accepted(render, messages)
    except BundleError as failed:
        error = failed
    serialized = [_with_serialized_arguments(message) for message in messages]
    if serialized != messages:
        try:
            return _accepted(render, serialized)
        except BundleError as again:
            error = again
    if not template.renders_a_question:
        raise error
    raise RequestError(f"{error.message}, on these messages", param="messages") from error


def _accepted(render: Callable[[Sequence[Mapping[str, Any]]], str], messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the messages, or of the first of their strict forms that the template does not refuse."""
    try:
        return render(messages)
    except RequestError:
        for form in strict_forms(messages):
            with contextlib.suppress(RequestError):
                return render(form)
        raise


def _shaped(messages: Sequence[Message], prompt_id: Callable[[str], str]) -> list[dict[str, Any]]:
    shaped = []
    # Names of the functions called so far, by the call's id.
    called: dict[str, str] = {}
    for message in messages:
        shaped.append(_message(message, called, prompt_id))
        called.update((call.id, call.name) for call in reversed(message.tool_calls))
    return shaped


def _message(message: Message, called: Mapping[str, str], prompt_id: Callable[[str], str]) -> dict[str, Any]:
    shaped: dict[str, Any] = {"role": message.role, "content": message.content}
    name = message.name
    if message.reasoning:
        # As Qwen3's template calls it; others do not show reasoning of earlier turns.
        shaped["reasoning_content"] = message.reasoning
    if message.tool_calls:
        # Set only if there are calls: templates test for the key.
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
        name = called.get(message.tool_call_id) if name is None else name
    if name is not None:
        shaped["name"] = name
    return shaped


def _arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object, which templates serialize to JSON."""
    try:
        arguments = json.loads(call.arguments or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"the arguments of the call to `{call.name}` are not a JSON object", param="messages")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _with_serialized_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _function(tool: Tool) -> dict[str, Any]:
    """The shape that Hugging Face chat templates expect."""
    parameters = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
