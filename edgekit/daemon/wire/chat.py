"""A chat-completions body, as both doors take it. It knows no transport.

A parameter that is not supported and would change the answer is refused rather than ignored; one that would not is
accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from edgekit.daemon.wire.body import HARMLESS, Common, WireOptions, common, options, read_logprobs
from edgekit.daemon.wire.messages import ChatMessage, read_messages
from edgekit.daemon.wire.reading import decode, drop, printable, read, same, unsupported
from edgekit.daemon.wire.tools import read_tool_choice, read_tools
from edgekit.errors import RequestError
from edgekit.generation.request import ChatRequest

__all__ = ["parse_chat", "template_arguments"]

# Parameters that would change the answer, with the values at which they do nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_DEPRECATED: Mapping[str, tuple[object, ...]] = {"function_call": ("none", "auto"), "functions": ([],)}

# What the daemon itself tells the template.
_RESERVED = frozenset(
    {"add_generation_prompt", "bos_token", "eos_token", "messages", "pad_token", "tools", "unk_token"}
)


class _Body(Common):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Any = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None


def parse_chat(
    data: bytes | Mapping[str, Any], *, request_id: str, client: str = ""
) -> tuple[ChatRequest, WireOptions]:
    """Read a chat-completions request.

    Args:
        data: The body: JSON text, or the object it decodes to.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    fields = decode(data)
    drop(fields, harmless=HARMLESS, neutral=_NEUTRAL)
    for name, neutral in _DEPRECATED.items():
        value = fields.pop(name, None)
        if value is not None and value not in neutral:
            raise unsupported(name, hint="use `tools` and `tool_choice`, which replace it")
    body = read(_Body, fields, also=[*_NEUTRAL, *HARMLESS])
    choice, tools = read_tool_choice(body.tool_choice, read_tools(body.tools))
    request = ChatRequest(
        id=request_id,
        client=client,
        messages=read_messages(body.messages),
        max_tokens=same("max_tokens", body.max_completion_tokens, body.max_tokens),
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


def template_arguments(given: Mapping[str, Any], *, thinking: bool | None = None) -> dict[str, Any]:
    """Return further variables for the chat template.

    Args:
        given: The caller's.
        thinking: What another parameter says of the template's `enable_thinking`.

    Raises:
        RequestError: A name that the daemon itself gives, or a contradiction.
    """
    for name in given:
        if name in _RESERVED:
            raise RequestError(
                f"`chat_template_kwargs.{name}` is given by the daemon itself", param=f"chat_template_kwargs.{name}"
            )
        if not name.isidentifier():
            raise RequestError(
                f"`chat_template_kwargs`: `{printable(name)}` cannot name a variable", param="chat_template_kwargs"
            )
    found = dict(given)
    if thinking is not None and found.setdefault("enable_thinking", thinking) is not thinking:
        raise RequestError(
            "`chat_template_kwargs.enable_thinking` contradicts `reasoning_effort`",
            param="chat_template_kwargs.enable_thinking",
        )
    return found


def _template_arguments(body: _Body) -> dict[str, Any]:
    if body.reasoning_effort not in (None, "none"):
        raise unsupported(
            "reasoning_effort", hint="`chat_template_kwargs` says what this model's template understands of it"
        )
    thinking = False if body.reasoning_effort == "none" else None
    return template_arguments(body.chat_template_kwargs or {}, thinking=thinking)
