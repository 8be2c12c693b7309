"""Asking a running daemon, over either door, as a stranger would: nothing here is shared with the daemon's own code.

Both functions yield the events of `generation.request` (`Delta` …, then one `Finish`) and raise `EdgekitError`.
Closing the iterator early, or Ctrl-C, takes the request back.
"""

from edgekit.client.http import ask_http
from edgekit.client.mqtt import ask_mqtt

__all__ = ["ask_http", "ask_mqtt"]
