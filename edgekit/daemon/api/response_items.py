"""Items of the Responses API: reads those of a request's input, and forms those of an answer.

An item has the same form wherever it is: in an input, in an answer, and stored. Messages of a chat are made from items.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from edgekit.daemon.api.responses import logprobs_body
from edgekit.daemon.api.validation import Strict, printable, read, unsupported
from edgekit.errors import RequestError
from edgekit.generation.types import TokenLogprob, ToolCall

__all__ = ["InputItem", "Item", "call_item", "message_item", "new_id", "read_items", "reasoning_item", "reasoning_text"]

Item = dict[str, Any]

Status = Literal["in_progress", "completed", "incomplete"]

# What `encrypted_content` begins with here. It hides nothing: it carries the text for clients that keep nothing else.
_SEALED = "edgekit:"
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_HOSTED = "edgekit runs no tools itself; only function calls are supported"


def new_id(prefix: str) -> str:
    """Return a new id of 192 random bits."""
    return f"{prefix}_{secrets.token_hex(24)}"


def message_item(
    item_id: str, text: str | None, status: Status, logprobs: Sequence[TokenLogprob] | None = None
) -> Item:
    """Return an answer's message; without text it has no content yet."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: Sequence[TokenLogprob] | None = None) -> Item:
    """Return the text of an answer's message."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [] if logprobs is None else logprobs_body(logprobs)["content"],
    }


def call_item(item_id: str, call: ToolCall, status: Status) -> Item:
    """Return a function call."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def reasoning_item(item_id: str, text: str | None, status: Status, *, summary: bool, sealed: bool) -> Item:
    """Return the model's reasoning; without text it has none yet.

    Args:
        item_id: The item's id.
        text: The reasoning.
        status: The item's status.
        summary: The client asked for a summary: it gets the reasoning in its place, and otherwise as it is.
        sealed: The client asked for `encrypted_content`.
    """
    item: Item = {"id": item_id, "type": "reasoning", "status": status, "summary": []}
    if text is not None:
        if summary:
            item["summary"] = [{"type": "summary_text", "text": text}]
        else:
            item["content"] = [{"type": "reasoning_text", "text": text}]
        if sealed:
            item["encrypted_content"] = _SEALED + base64.b64encode(text.encode()).decode()
    return item


def reasoning_text(item: Item) -> str:
    """Return the text of a reasoning item; "" for one that another server encrypted."""
    parts = item.get("content") or item.get("summary") or []
    text = "\n".join(part["text"] for part in parts)
    sealed = item.get("encrypted_content")
    if not text and isinstance(sealed, str) and sealed.startswith(_SEALED):
        try:
            text = base64.b64decode(sealed[len(_SEALED) :], validate=True).decode()
        except ValueError:
            return ""
    return text


def read_items(given: object, find: Callable[[str], Item | None]) -> list[Item]:
    """Return the items of an input: a string is a user's message.

    Args:
        given: The input.
        find: Returns a stored item by its id, for references.

    Raises:
        RequestError: An item is invalid or not supported; `param` is its path.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise RequestError("`input` must be a string or a list of items, and not empty", param="input")
    return [_item(item, f"input[{number}]", find) for number, item in enumerate(given)]


def _parts(value: object) -> object:
    """Return the text of a string or a list of parts, which become one."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        name = "refusal" if kind == "refusal" else "text"
        if isinstance(kind, str) and kind not in (*_TEXT_PARTS, "refusal"):
            raise PydanticCustomError("unsupported", "of this type is not supported; send text")
        if kind is None or not isinstance(part.get(name), str):
            raise PydanticCustomError(
                "content", 'must be a string, or a list of parts with `type` "input_text" and a `text`'
            )
        texts.append(part[name])
    return "\n".join(texts)


_PARTS = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"enum": [*_TEXT_PARTS, "refusal"]},
                    "text": {"type": "string"},
                    "refusal": {"type": "string"},
                },
                "required": ["type"],
            },
        },
    ]
}
_Text = Annotated[str, BeforeValidator(_parts), WithJsonSchema(_PARTS)]


class _Common(Strict):
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "cache_control", "created_by", "internal_chat_message_metadata_passthrough", "phase"}
    )

    id: str | None = None
    status: str | None = None


class _Message(_Common):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text


class _Call(_Common):
    ignored: ClassVar[frozenset[str]] = frozenset({*_Common.ignored, "caller", "parsed_arguments"})
    noop: ClassVar[Mapping[str, tuple[object, ...]]] = {"namespace": ("",)}

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class _Output(_Common):
    ignored: ClassVar[frozenset[str]] = frozenset({*_Common.ignored, "caller"})

    type: Literal["function_call_output"]
    call_id: str
    output: _Text


class _Reasoning(_Common):
    type: Literal["reasoning"]
    summary: _Text | None = None
    content: _Text | None = None
    encrypted_content: str | None = None


class _Reference(Strict):
    type: Literal["item_reference"] = "item_reference"
    id: str


InputItem = _Message | _Call | _Output | _Reasoning | _Reference
"""An item of a request's input."""


def _item(given: object, at: str, find: Callable[[str], Item | None]) -> Item:
    if not isinstance(given, Mapping):
        raise RequestError(f"`{at}` must be an object", param=at)
    kind = given.get("type")
    if kind is None:
        kind = "message" if "role" in given else "item_reference"
    if kind == "message":
        message = read(_Message, given, at=at)
        part = "output_text" if message.role == "assistant" else "input_text"
        content = [text_part(message.content) if part == "output_text" else {"type": part, "text": message.content}]
        return {**_head(message, "message", "msg"), "role": message.role, "content": content}
    if kind == "function_call":
        call = read(_Call, given, at=at)
        fields = {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}
        return {**_head(call, "function_call", "fc"), **fields}
    if kind == "function_call_output":
        output = read(_Output, given, at=at)
        return {**_head(output, kind, "fco"), "call_id": output.call_id, "output": output.output}
    if kind == "reasoning":
        reasoning = read(_Reasoning, given, at=at)
        item: Item = {**_head(reasoning, "reasoning", "rs"), "summary": []}
        if reasoning.summary:
            item["summary"] = [{"type": "summary_text", "text": reasoning.summary}]
        if reasoning.content:
            item["content"] = [{"type": "reasoning_text", "text": reasoning.content}]
        if reasoning.encrypted_content:
            item["encrypted_content"] = reasoning.encrypted_content
        return item
    if kind == "item_reference":
        reference = read(_Reference, given, at=at).id
        found = find(reference)
        if found is None:
            raise RequestError(
                f"`{at}`: there is no stored item `{printable(reference)}`",
                hint="send the item itself",
                code="not_found",
                param=f"{at}.id",
            )
        return found
    raise unsupported(f"{at}.type", hint=_HOSTED, what="of this type is not supported")


def _head(item: _Common, kind: str, prefix: str) -> Item:
    return {"id": item.id or new_id(prefix), "type": kind, "status": item.status or "completed"}
