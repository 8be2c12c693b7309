"""Parses bodies of OpenAI's Responses API into the one `ChatRequest`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from pydantic import SkipValidation

from edgekit.daemon.api.body import Common, ReplyOptions, common, max_tokens, max_tokens_name, options
from edgekit.daemon.api.formats import FlatFormat, read_text_format
from edgekit.daemon.api.json_body import decode
from edgekit.daemon.api.other_fields import CHAT_NOOP, RESPONSE_INSTEAD
from edgekit.daemon.api.reasoning import Effort, template_arguments
from edgekit.daemon.api.response_items import InputItem, Item, read_items
from edgekit.daemon.api.response_turns import read_turns
from edgekit.daemon.api.tools import FlatChoice, FlatTool, read_tool_choice, read_tools
from edgekit.daemon.api.validation import Integer, Strict, read, renamed, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import MAX_TOP_LOGPROBS, ChatRequest, ResponseFormat

__all__ = ["History", "ResponseBody", "ResponseCall", "parse_response"]

History = Callable[[str], Sequence[Item]]
"""Returns the items of a stored response and of those before it, by its id; or raises."""

_MAX_METADATA = 16


class _Reasoning(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset({"context", "mode"})

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class _TextConfig(Strict):
    # `read_text_format` reads it.
    format: SkipValidation[FlatFormat | None] = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseBody(Common):
    """A body of `/v1/responses`."""

    ignored: ClassVar[frozenset[str]] = frozenset({*Common.ignored, "max_tool_calls"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **CHAT_NOOP,
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "messages": ([],),
        "prompt": (),
    }
    instead: ClassVar[Mapping[str, str]] = RESPONSE_INSTEAD

    # `read_items` reads it.
    input: SkipValidation[str | list[InputItem] | None] = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    include: list[str] | None = None
    max_output_tokens: Integer | None = None
    text: _TextConfig | None = None
    reasoning: _Reasoning | None = None
    # `read_tools` and `read_tool_choice` read them: their errors are clearer.
    tools: SkipValidation[list[FlatTool] | None] = None
    tool_choice: SkipValidation[FlatChoice | None] = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Integer | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A parsed body.

    Attributes:
        request: The request.
        options: The reply's format.
        items: The input's items, without those of earlier responses.
        previous: Id of the response that it follows.
        store: Keep the response.
        summary: Give the reasoning as a summary.
        sealed: Give the reasoning as `encrypted_content` too.
        settings: Fields that the response repeats.
    """

    request: ChatRequest
    options: ReplyOptions
    items: Sequence[Item]
    previous: str | None
    store: bool
    summary: bool
    sealed: bool
    settings: Mapping[str, Any]


def parse_response(
    data: bytes,
    *,
    request_id: str,
    client: str,
    history: History,
    find: Callable[[str], Item | None],
    stores: bool = True,
) -> ResponseCall:
    """Parse a body of `/v1/responses`.

    Args:
        data: The body.
        request_id: Becomes `ChatRequest.id`.
        client: Becomes `ChatRequest.client`.
        history: Returns the items of a stored response.
        find: Returns a stored item.
        stores: Responses are kept, unless `store` is false.

    Raises:
        RequestError: `invalid_request` or `unsupported_parameter`; `param` names the field.
    """
    body = read(ResponseBody, decode(data))
    reasoning, include = body.reasoning or _Reasoning(), body.include or []
    if body.metadata and len(body.metadata) > _MAX_METADATA:
        raise RequestError(f"`metadata` takes at most {_MAX_METADATA} pairs", param="metadata")
    if body.n not in (None, 1):
        raise unsupported("n", hint="send several requests")
    items = read_items(body.input, find)
    before = history(body.previous_response_id) if body.previous_response_id is not None else ()
    choice, tools = read_tool_choice(body.tool_choice, read_tools(body.tools, flat=True), flat=True)
    text_format = None if body.text is None else read_text_format(body.text.format)
    shared = common(body)
    if text_format is not None and shared["response_format"] is not None:
        raise RequestError("`text.format` and another field set the response format", param="text.format")
    with renamed(max_tokens_name(body, "max_output_tokens", "n_predict")):
        request = ChatRequest(
            id=request_id,
            client=client,
            messages=read_turns(body.instructions, before, items),
            max_tokens=max_tokens(
                max_output_tokens=body.max_output_tokens, max_tokens=body.max_tokens, n_predict=body.n_predict
            ),
            logprobs=_logprobs(body.top_logprobs, include),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            truncation=body.truncation or "disabled",
            template_arguments=template_arguments(body.chat_template_kwargs, reasoning.effort, "reasoning.effort"),
            **{**shared, "response_format": text_format or shared["response_format"]},
        )
    store = stores and body.store is not False
    return ResponseCall(
        request,
        options(body),
        items,
        body.previous_response_id,
        store=store,
        summary=bool(reasoning.summary or reasoning.generate_summary),
        sealed="reasoning.encrypted_content" in include,
        settings=_settings(body, request, store=store),
    )


def _logprobs(top_logprobs: int | None, include: Sequence[str]) -> int | None:
    if top_logprobs is not None and not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")
    wanted = top_logprobs or "message.output_text.logprobs" in include
    return (top_logprobs or 0) if wanted else None


def _flat_format(enforced: ResponseFormat | None) -> dict[str, Any]:
    """Return the format of another field, such as `response_format`, as `text.format`."""
    if enforced is None:
        return {"type": "text"}
    if enforced.kind == "json_schema":
        return {"type": "json_schema", "name": enforced.name, "schema": enforced.value}
    return {"type": enforced.kind, **({} if enforced.value is None else {enforced.kind: enforced.value})}


def _settings(body: ResponseBody, request: ChatRequest, *, store: bool) -> dict[str, Any]:
    """Return the fields that a response repeats, with their defaults."""
    reasoning, text = body.reasoning or _Reasoning(), body.text or _TextConfig()
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": store,
        "temperature": body.temperature,
        "text": {
            "format": text.format or _flat_format(request.response_format),
            "verbosity": text.verbosity or "medium",
        },
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [
            {"strict": None, "description": None, **tool}
            for tool in cast("list[dict[str, Any]]", body.tools or [])
            if tool.get("type") == "function"
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": request.truncation,
        "user": body.user,
    }
