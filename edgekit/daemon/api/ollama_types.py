"""Types of Ollama's reply bodies, and of edgekit's additions to them; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from edgekit.daemon.api.openai_types import TokenLogprobBody

__all__ = [
    "ListedModel",
    "ModelDetails",
    "ModelName",
    "OllamaCall",
    "OllamaChunk",
    "OllamaEnd",
    "OllamaError",
    "OllamaMessageBody",
    "OllamaVersion",
    "PullStatus",
    "RunningList",
    "RunningModel",
    "ShownModel",
    "Tags",
]


class OllamaError(TypedDict):
    """An error in Ollama's format, with edgekit's `code`."""

    error: str
    code: str


class ModelName(TypedDict, total=False):
    """A body that names a model; `name` is the older spelling of `model`."""

    model: str
    name: str
    stream: bool
    insecure: bool
    verbose: bool


class OllamaFunction(TypedDict):
    """A function call."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(TypedDict):
    """A tool call."""

    id: str
    function: OllamaFunction


class OllamaMessageBody(TypedDict):
    """An answer, or a part of it."""

    role: Literal["assistant"]
    content: str
    tool_calls: NotRequired[list[OllamaCall]]
    thinking: NotRequired[str]


class OllamaEnd(TypedDict, total=False):
    """What the last object of an answer has besides: reason, counts, and durations in nanoseconds."""

    done: bool
    done_reason: Literal["stop", "length", "cancelled", "load", "unload"]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    left_out_messages: int
    context: list[int]
    warnings: list[str]


class OllamaChunk(OllamaEnd):
    """An answer, or a line of a streamed one: `message` is of `/api/chat`, `response` of `/api/generate`."""

    model: str
    created_at: str
    message: NotRequired[OllamaMessageBody]
    response: NotRequired[str]
    thinking: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprobBody]]


class OllamaVersion(TypedDict):
    """The version of Ollama whose API this is, and edgekit's."""

    version: str
    edgekit: str


class ModelDetails(TypedDict):
    """What the model is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class RunningModel(TypedDict):
    """The served model."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int


class ListedModel(TypedDict):
    """The served model."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class Tags(TypedDict):
    """The reply of `/api/tags`."""

    models: list[ListedModel]


class RunningList(TypedDict):
    """The reply of `/api/ps`."""

    models: list[RunningModel]


class ShownModel(TypedDict):
    """The reply of `/api/show`."""

    license: str
    modelfile: str
    parameters: str
    template: str
    modified_at: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class PullStatus(TypedDict):
    """A line of a pull's progress."""

    status: str
    digest: NotRequired[str]
    total: NotRequired[int]
    completed: NotRequired[int]
