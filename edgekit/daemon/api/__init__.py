"""Request and response bodies that HTTP and MQTT share: bytes or a decoded object in, a `ChatRequest` out."""

from edgekit.daemon.api.body import ReplyOptions
from edgekit.daemon.api.chat import parse_chat
from edgekit.daemon.api.collect import CollectedChoice, CollectedReply
from edgekit.daemon.api.completion import Completions, parse_completion, parse_completions
from edgekit.daemon.api.responses import (
    call_delta_body,
    error_body,
    logprobs_body,
    message_body,
    reasons,
    timings_body,
    usage_body,
)
from edgekit.daemon.api.served_model import check_model

__all__ = [
    "CollectedChoice",
    "CollectedReply",
    "Completions",
    "ReplyOptions",
    "call_delta_body",
    "check_model",
    "error_body",
    "logprobs_body",
    "message_body",
    "parse_chat",
    "parse_completion",
    "parse_completions",
    "reasons",
    "timings_body",
    "usage_body",
]
