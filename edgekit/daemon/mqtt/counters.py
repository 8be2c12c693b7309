"""What the MQTT door counts for itself, beside the metrics that both doors share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """What happened since the start; written by the door's thread only.

    Attributes:
        requests: Requests received, of any fate.
        answered: Final messages, given from the record or anew.
        errors: Error messages.
        refused: Requests that could not be answered, for want of a response topic that may be used.
        repeated: Requests that were under way or answered already.
        cancelled: Cancellations that met a request under way.
        unheard: Requests cancelled because nobody was subscribed to their response topic.
    """

    requests: int = 0
    answered: int = 0
    errors: int = 0
    refused: int = 0
    repeated: int = 0
    cancelled: int = 0
    unheard: int = 0
