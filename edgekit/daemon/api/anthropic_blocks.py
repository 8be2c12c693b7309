"""Reads the content blocks of Anthropic's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import SkipValidation

from edgekit.daemon.api.validation import Strict, read, unsupported
from edgekit.errors import RequestError

__all__ = [
    "ANSWER_BLOCKS",
    "Block",
    "ServerBlock",
    "TextBlockParam",
    "ThinkingBlockParam",
    "ToolReferenceBlockParam",
    "ToolResultBlockParam",
    "ToolUseBlockParam",
    "read_blocks",
]

_DECORATION = frozenset({"cache_control", "citations"})


class TextBlockParam(Strict):
    """Text."""

    ignored: ClassVar[frozenset[str]] = _DECORATION

    type: Literal["text"]
    text: str


class ToolReferenceBlockParam(Strict):
    """A tool that a search for tools has found."""

    ignored: ClassVar[frozenset[str]] = _DECORATION

    type: Literal["tool_reference"]
    tool_name: str


class ToolResultBlockParam(Strict):
    """A tool's result."""

    ignored: ClassVar[frozenset[str]] = frozenset({*_DECORATION, "is_error"})

    type: Literal["tool_result"]
    tool_use_id: str
    # `read_blocks` reads it.
    content: SkipValidation[str | list[TextBlockParam | ToolReferenceBlockParam] | None] = None


class ToolUseBlockParam(Strict):
    """A tool call."""

    ignored: ClassVar[frozenset[str]] = frozenset({*_DECORATION, "caller"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingBlockParam(Strict):
    """The model's reasoning."""

    ignored: ClassVar[frozenset[str]] = frozenset({*_DECORATION, "signature"})

    type: Literal["thinking"]
    thinking: str


class ServerBlock(Strict):
    """What is ignored: hidden reasoning, and tools that Anthropic's servers ran, in a conversation that began there."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {*_DECORATION, "caller", "content", "data", "file_id", "id", "input", "is_error", "name", "server_name"}
        | {"tool_use_id"}
    )

    type: Literal[
        "bash_code_execution_tool_result",
        "code_execution_tool_result",
        "compaction",
        "container_upload",
        "mcp_tool_result",
        "mcp_tool_use",
        "redacted_thinking",
        "server_tool_use",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "web_fetch_tool_result",
        "web_search_tool_result",
    ]


Block = TextBlockParam | ToolResultBlockParam | ToolUseBlockParam | ThinkingBlockParam | ServerBlock
"""A block of a message's content."""

ANSWER_BLOCKS = (TextBlockParam, ThinkingBlockParam, ToolUseBlockParam, ServerBlock)
"""The blocks that an answer may have."""

B = TypeVar("B", bound=Strict)


def read_blocks(given: object, at: str, known: Sequence[type[B]]) -> list[B]:
    """Return content as a list of blocks; a string is one of text.

    Args:
        given: The content.
        at: Its path in the body.
        known: The blocks that it may have, `TextBlockParam` among them.

    Raises:
        RequestError: A block is of another type, or not valid.
    """
    models = {kind: model for model in known for kind in model.model_fields["type"].annotation.__args__}  # type: ignore[union-attr]
    if isinstance(given, str):
        return [cast("B", TextBlockParam.model_construct(type="text", text=given))]
    if not isinstance(given, list):
        raise RequestError(f"`{at}` must be a string or a list of blocks", param=at)
    blocks = []
    for number, block in enumerate(given):
        where = f"{at}[{number}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if not isinstance(kind, str):
            raise RequestError(f"`{where}` must be an object with a `type`", param=where)
        if kind not in models:
            raise unsupported(f"{where}.type", hint="send text", what="of this type is not supported here")
        blocks.append(read(models[kind], block, at=where))
    return blocks
