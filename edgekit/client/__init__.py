"""Clients of a running daemon over HTTP and MQTT, independent of the daemon's own code.

`ask_http` and `ask_mqtt` yield the events of `generation.types` (`Delta` and `ToolCallDelta` …, then one `Finished`)
and raise `EdgekitError`. Over MQTT a `Restarted` may come in between, after which the answer begins again.
Closing the iterator early, or Ctrl-C, cancels the request.
"""

from edgekit.client.http import ask_http, describe_http
from edgekit.client.mqtt import ask_mqtt, describe_mqtt
from edgekit.generation.types import Restarted

__all__ = ["Restarted", "ask_http", "ask_mqtt", "describe_http", "describe_mqtt"]
