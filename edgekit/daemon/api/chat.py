"""Parses chat completion bodies, for both transports.

An unsupported parameter that would change the answer is rejected; one that would not is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
from edgekit.daemon.api.other_fields import CHAT_NOOP
from edgekit.daemon.api.tools import read_tool_choice, read_tools
from edgekit.daemon.api.validation import Integer, printable, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

__all__ = ["Effort", "parse_chat", "template_arguments"]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much a model reasons before it answers, in the OpenAI API's levels."""

_DEPRECATED: Mapping[str, tuple[object, ...]] = {"function_call": ("none", "auto"), "functions": ([],)}

# Template variables that the daemon sets.
_RESERVED = frozenset(
    {"add_generation_prompt", "bos_token", "eos_token", "messages", "pad_token", "tools", "unk_token"}
)


class _Body(Common):
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = CHAT_NOOP

    messages: list[ChatMessage]
    max_completion_tokens: Integer | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
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
    body = read(_Body, fields)
    choice, tools = read_tool_choice(body.tool_choice, read_tools(body.tools))
    with renamed(max_tokens_name(body, "max_completion_tokens", "n_predict")):
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=read_messages(body.messages),
            max_tokens=max_tokens(body.max_completion_tokens, body.max_tokens, body.n_predict),
            logprobs=read_logprobs(body.logprobs, body.top_logprobs),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            truncation=body.truncation or "disabled",
            reasoning="inline" if body.reasoning_format == "none" else "apart",
            template_arguments=template_arguments(body.chat_template_kwargs, body.reasoning_effort),
            turn=_turn(body),
            **common(body),
        )
    return request, options(body)


def _turn(body: _Body) -> Literal["new", "continue", "none"]:
    if not body.continue_final_message:
        return "none" if body.add_generation_prompt is False else "new"
    if body.add_generation_prompt:
        raise RequestError(
            "`continue_final_message` contradicts `add_generation_prompt`",
            hint="set `add_generation_prompt` to false",
            param="continue_final_message",
        )
    return "continue"


def template_arguments(
    given: Mapping[str, Any] | None, effort: Effort | None, param: str = "reasoning_effort"
) -> dict[str, Any]:
    """Return the additional variables of the chat template.

    A template reads one of two variables that control reasoning, or none: `enable_thinking` turns it on or off, and
    `reasoning_effort` has levels.

    Args:
        given: Variables that the request sets.
        effort: Sets both variables.
        param: Path of the effort in the request.

    Raises:
        RequestError: A name is reserved or not an identifier, or a variable contradicts the effort.
    """
    variables = dict(given or {})
    for name in variables:
        if name in _RESERVED:
            raise RequestError(
                f"`chat_template_kwargs.{name}` is set by the daemon", param=f"chat_template_kwargs.{name}"
            )
        if not name.isidentifier():
            raise RequestError(
                f"`chat_template_kwargs`: `{printable(name)}` is not a variable name", param="chat_template_kwargs"
            )
    if effort is not None:
        for name, value in {"enable_thinking": effort not in ("none", "minimal"), "reasoning_effort": effort}.items():
            if variables.setdefault(name, value) != value:
                raise RequestError(
                    f"`chat_template_kwargs.{name}` contradicts `{param}`", param=f"chat_template_kwargs.{name}"
                )
    return variables
