"""Types of the reply bodies of llama-server's, vLLM's and LM Studio's endpoints, for the OpenAPI document too."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

from edgekit.daemon.api.openai_types import ErrorDetails

__all__ = [
    "Detokenized",
    "Health",
    "LlamaChunk",
    "LlamaCompletion",
    "LmStudioList",
    "LmStudioModel",
    "Piece",
    "Props",
    "Rendered",
    "Slot",
    "Tokenized",
    "Version",
    "VllmTokenized",
]


class Piece(TypedDict):
    """A token; its bytes if they are not whole characters."""

    id: int
    piece: str | list[int]


class Tokenized(TypedDict):
    """llama-server's reply of `/tokenize`."""

    tokens: list[int] | list[Piece]


class VllmTokenized(TypedDict):
    """vLLM's reply of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """The text, by llama-server's name and by vLLM's."""

    content: str
    prompt: str


class Rendered(TypedDict):
    """The text of a chat's prompt."""

    prompt: str


class Health(TypedDict):
    """Whether requests are served."""

    status: Literal["ok", "error"]
    error: NotRequired[ErrorDetails]


class Version(TypedDict):
    """edgekit's version."""

    version: str


class GenerationSettings(TypedDict):
    """Defaults of a request."""

    n_ctx: int
    params: dict[str, float | bool]


class Props(TypedDict):
    """The reply of `/props`."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    modalities: dict[str, bool]
    chat_template: str
    chat_template_caps: dict[str, bool]
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool


class Slot(TypedDict):
    """A sequence slot."""

    id: int
    n_ctx: int
    is_processing: bool


class LmStudioModel(TypedDict):
    """The served model, as LM Studio describes it."""

    id: str
    object: Literal["model"]
    type: Literal["llm"]
    publisher: str
    arch: str
    compatibility_type: str
    quantization: str
    state: Literal["loaded"]
    max_context_length: int
    loaded_context_length: int
    capabilities: list[str]


class LmStudioList(TypedDict):
    """The reply of `/api/v0/models`."""

    object: Literal["list"]
    data: list[LmStudioModel]


class LlamaSettings(TypedDict):
    """What a completion was generated with."""

    n_ctx: int
    n_predict: int


class LlamaChunk(TypedDict):
    """A part of a streamed completion."""

    index: int
    content: str
    tokens: list[int]
    stop: Literal[False]


class LlamaCompletion(TypedDict):
    """A completion of `/completion` or `/infill`, or the last event of a streamed one."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: LlamaSettings
    has_new_line: bool
    truncated: bool
    stop_type: Literal["limit", "eos", "word"]
    stopping_word: str
    tokens_cached: int
    timings: dict[str, float]
