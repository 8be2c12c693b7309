"""The types of all bodies that the table of endpoints names; only the OpenAPI document imports them."""

from __future__ import annotations

from typing import Any

from edgekit.daemon.api.anthropic import MessagesBody
from edgekit.daemon.api.anthropic_types import AnthropicModel, AnthropicModels, MessageBody, MessageEvent, TokenCount
from edgekit.daemon.api.chat import ChatBody
from edgekit.daemon.api.completion import CompletionBody
from edgekit.daemon.api.llama_server import InfillBody, LlamaCompletionBody
from edgekit.daemon.api.ollama import OllamaChatBody, OllamaGenerateBody
from edgekit.daemon.api.ollama_types import (
    ModelName,
    OllamaChunk,
    OllamaVersion,
    PullStatus,
    RunningList,
    ShownModel,
    Tags,
)
from edgekit.daemon.api.openai_types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    ModelBody,
    ModelList,
)
from edgekit.daemon.api.response_request import ResponseBody
from edgekit.daemon.api.response_types import DeletedResponse, InputTokens, ItemList, ResponseEvent, ResponseObject
from edgekit.daemon.api.utilities import ContentBody, PromptBody, TokensBody
from edgekit.daemon.api.utility_types import (
    Detokenized,
    Health,
    LlamaChunk,
    LlamaCompletion,
    LmStudioList,
    LmStudioModel,
    Props,
    Rendered,
    Slot,
    Tokenized,
    Version,
    VllmTokenized,
)

__all__ = [
    "AnyObject",
    "ChatBody",
    "ChatChunk",
    "ChatCompletion",
    "Completion",
    "CompletionBody",
    "CompletionChunk",
    "ContentBody",
    "DeletedResponse",
    "Detokenized",
    "Health",
    "InfillBody",
    "InputTokens",
    "ItemList",
    "LlamaChunk",
    "LlamaCompletion",
    "LlamaCompletionBody",
    "LlamaEvent",
    "LlamaReply",
    "LmStudioList",
    "LmStudioModel",
    "MessageBody",
    "MessageEvent",
    "MessagesBody",
    "Model",
    "ModelName",
    "Models",
    "OllamaChatBody",
    "OllamaChunk",
    "OllamaGenerateBody",
    "OllamaVersion",
    "PromptBody",
    "Props",
    "PullStatus",
    "Rendered",
    "ResponseBody",
    "ResponseEvent",
    "ResponseObject",
    "RunningList",
    "ShownModel",
    "Slot",
    "Slots",
    "Tags",
    "Text",
    "TokenCount",
    "TokenizeBody",
    "Tokenized",
    "TokenizedReply",
    "TokensBody",
    "Version",
    "VllmTokenized",
]

AnyObject = dict[str, Any]
LlamaEvent = LlamaChunk | LlamaCompletion
LlamaReply = LlamaCompletion | list[LlamaCompletion]
Model = ModelBody | AnthropicModel
Models = ModelList | AnthropicModels
Slots = list[Slot]
Text = str
TokenizeBody = ContentBody | PromptBody | ChatBody
TokenizedReply = Tokenized | VllmTokenized
