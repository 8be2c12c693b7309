"""The parameters of `Model.chat` and `Model.complete`: those of the HTTP API (docs/http.md), as types and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from edgekit.errors import RequestError, field_path

__all__ = ["ChatParameters", "CompletionParameters", "Messages", "Parameters", "as_json"]

# Far more than a parameter needs, and less than the interpreter's stack.
_MAX_DEPTH = 200

Messages = str | Sequence[Mapping[str, Any]]
"""A user's message, or a conversation in the OpenAI API's form: `{"role": …, "content": …}`."""


class Parameters(TypedDict, total=False):
    """Parameters of chats and completions alike.

    The first group are the OpenAI API's, the second those of vLLM, llama.cpp and edgekit. None is the default.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    response_format: Mapping[str, Any] | None

    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    repeat_last_n: int | None
    regex: str | None
    json_schema: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    priority: int | None
    cache_prompt: bool | None
    speculation: bool | None
    deadline_s: float | None


class ChatParameters(Parameters, total=False):
    """Parameters of chats."""

    logprobs: bool | None
    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    truncation: Literal["auto", "disabled"] | None
    chat_template_kwargs: Mapping[str, Any] | None
    reasoning_format: Literal["auto", "deepseek", "none"] | None
    continue_final_message: bool | None


class CompletionParameters(Parameters, total=False):
    """Parameters of completions."""

    suffix: str | None
    echo: bool | None
    logprobs: int | None


def as_json(value: object, path: tuple[str | int, ...] = ()) -> Any:
    """Return a value in the types that JSON has: mappings as dictionaries, sequences as lists.

    Args:
        value: The value of a parameter, or all parameters by name.
        path: Its path among the parameters.

    Raises:
        RequestError: Something in it has no form in JSON; `param` is its path.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if len(path) > _MAX_DEPTH:
        raise RequestError(f"`{path[0]}` is nested too deeply", param=str(path[0]))
    if isinstance(value, Mapping):
        return {_key(key, path): as_json(item, (*path, _key(key, path))) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [as_json(item, (*path, index)) for index, item in enumerate(value)]
    where = field_path(path)
    raise RequestError(f"`{where}` has no form in JSON: it is of type {type(value).__name__}", param=where)


def _key(key: object, path: tuple[str | int, ...]) -> str:
    """Return a key as JSON's objects have it; the token ids of `logit_bias` are numbers in Python."""
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    where = field_path(path)
    raise RequestError(f"a key of `{where}` has no form in JSON: it is of type {type(key).__name__}", param=where)
