"""Parses chat completion bodies, for both transports.

An unsupported parameter that would change the answer is rejected; one that would not is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import SkipValidation

from edgekit.daemon.api.body import (
    Common,
    ReplyOptions,
    common,
    max_tokens,
    max_tokens_name,
    options,
    read_logprobs,
)
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.messages import ChatMessage, read_messages
from edgekit.daemon.api.other_fields import CHAT_INSTEAD, CHAT_NOOP
from edgekit.daemon.api.reasoning import ChatReasoning, Effort, Thinking, reasoning_switch, template_arguments
from edgekit.daemon.api.tools import Choice, FunctionTool, read_tool_choice, read_tools
from edgekit.daemon.api.validation import Integer, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

__all__ = ["ChatBody", "parse_chat"]

_DEPRECATED: Mapping[str, tuple[object, ...]] = {"function_call": ("none", "auto"), "functions": ([],)}


class ChatBody(Common):
    """A body of `/v1/chat/completions`."""

    noop: ClassVar[Mapping[str, tuple[object, ...]]] = CHAT_NOOP
    instead: ClassVar[Mapping[str, str]] = CHAT_INSTEAD

    messages: list[ChatMessage]
    max_completion_tokens: Integer | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    # `read_tools` and `read_tool_choice` read them: their errors are clearer.
    tools: SkipValidation[list[FunctionTool] | None] = None
    tool_choice: SkipValidation[Choice | None] = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    # Other servers' names: Alibaba's, Zhipu's and DeepSeek's, OpenRouter's, llama.cpp's.
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    thinking_budget: Integer | None = None
    reasoning: ChatReasoning | bool | None = None
    reasoning_budget: Integer | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None


def parse_chat(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, ReplyOptions]:
    """Parse a chat completion request.

    Args:
        data: The body, as JSON or decoded.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    for name, noop_values in _DEPRECATED.items():
        value = fields.pop(name, None)
        if value is not None and value not in noop_values:
            raise unsupported(name, hint="use `tools` and `tool_choice` instead")
    body = read(ChatBody, fields)
    choice, tools = read_tool_choice(body.tool_choice, read_tools(body.tools))
    with renamed(max_tokens_name(body, "max_completion_tokens", "n_predict")):
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=read_messages(body.messages),
            max_tokens=max_tokens(
                max_completion_tokens=body.max_completion_tokens, max_tokens=body.max_tokens, n_predict=body.n_predict
            ),
            logprobs=read_logprobs(body.logprobs, body.top_logprobs),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            truncation=body.truncation or "disabled",
            reasoning="inline" if body.reasoning_format == "none" else "apart",
            template_arguments=_template_arguments(body),
            turn=_turn(body),
            **common(body),
        )
    return request, options(body)


def _template_arguments(body: ChatBody) -> dict[str, Any]:
    effort, switch = reasoning_switch(
        effort=body.reasoning_effort,
        reasoning=body.reasoning,
        switches={
            "enable_thinking": body.enable_thinking,
            "thinking": None if body.thinking is None else body.thinking.on,
            # A budget of tokens does not end the reasoning here; one of 0 prevents it.
            "thinking_budget": False if body.thinking_budget == 0 else None,
            "reasoning_budget": False if body.reasoning_budget == 0 else None,
        },
    )
    return template_arguments(body.chat_template_kwargs, effort, switch=switch)


def _turn(body: ChatBody) -> Literal["new", "continue", "none"]:
    if not body.continue_final_message:
        return "none" if body.add_generation_prompt is False else "new"
    if body.add_generation_prompt:
        raise RequestError(
            "`continue_final_message` contradicts `add_generation_prompt`",
            hint="set `add_generation_prompt` to false",
            param="continue_final_message",
        )
    return "continue"
