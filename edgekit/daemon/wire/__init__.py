"""What both doors say on the wire: bodies in, answers, errors, usage and timings out.

It knows no transport: a door hands over bytes or a decoded object and gets the one `ChatRequest`.
"""

from edgekit.daemon.wire.body import WireOptions
from edgekit.daemon.wire.chat import parse_chat
from edgekit.daemon.wire.completion import parse_completion
from edgekit.daemon.wire.gather import Gathered, Written
from edgekit.daemon.wire.reading import printable
from edgekit.daemon.wire.replies import (
    call_delta_body,
    error_body,
    logprobs_body,
    message_body,
    reasons,
    timings_body,
    usage_body,
)

__all__ = [
    "Gathered",
    "WireOptions",
    "Written",
    "call_delta_body",
    "error_body",
    "logprobs_body",
    "message_body",
    "parse_chat",
    "parse_completion",
    "printable",
    "reasons",
    "timings_body",
    "usage_body",
]
