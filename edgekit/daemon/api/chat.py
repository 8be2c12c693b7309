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

__all__ = ["parse_chat"]

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
    reasoning_effort: Any = None
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
            template_arguments=_template_arguments(body),
            **common(body),
        )
    return request, options(body)


def _template_arguments(body: _Body) -> dict[str, Any]:
    """Return the additional variables of the chat template.

    Raises:
        RequestError: A name is reserved or not an identifier, or `enable_thinking` contradicts `reasoning_effort`.
    """
    if body.reasoning_effort not in (None, "none"):
        raise unsupported(
            "reasoning_effort", hint="set the variables of this model's chat template with `chat_template_kwargs`"
        )
    variables = dict(body.chat_template_kwargs or {})
    for name in variables:
        if name in _RESERVED:
            raise RequestError(
                f"`chat_template_kwargs.{name}` is set by the daemon", param=f"chat_template_kwargs.{name}"
            )
        if not name.isidentifier():
            raise RequestError(
                f"`chat_template_kwargs`: `{printable(name)}` is not a variable name", param="chat_template_kwargs"
            )
    if body.reasoning_effort == "none" and variables.setdefault("enable_thinking", False) is not False:
        raise RequestError(
            "`chat_template_kwargs.enable_thinking` contradicts `reasoning_effort`",
            param="chat_template_kwargs.enable_thinking",
        )
    return variables
