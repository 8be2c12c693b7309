"""What Home Assistant is told of a device: the payload of its MQTT device discovery.

Source: Home Assistant, "MQTT" integration, "Device discovery payload"; `homeassistant/components/mqtt/schemas.py` of
2026.2.3.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from edgekit import __version__
from edgekit.daemon.mqtt.topics import Topics
from edgekit.daemon.readings import ANSWERING, Sensors

__all__ = ["STATES", "Asking", "DiscoveredDevice", "discovery", "discovery_topic"]

STATES = (*ANSWERING, "updating")
"""The options of the state entity; `updating` is reserved."""

_SUPPORT_URL = "https://github.com/edgekit-llm/edgekit"
_DEADLINE_S = 120
"""Deadline of a question: an answer that comes later is of no use to an automation."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How Home Assistant asks.

    Attributes:
        request: Topic for requests.
        reply_to: Topic for the replies.
    """

    request: str
    reply_to: str


@dataclass(frozen=True, slots=True)
class DiscoveredDevice:
    """A device, as it is announced.

    Attributes:
        topics: Its topics.
        model: The hardware, such as the board's name.
        sensors: A reading: what is unknown in it gets no entity.
        asking: How to ask; None gets no entities for that.
    """

    topics: Topics
    model: str
    sensors: Sensors
    asking: Asking | None

    @property
    def id(self) -> str:
        """An identifier that is unique at the broker, of letters, digits, `-` and `_` only."""
        name = f"{self.topics.prefix}_{self.topics.device}"
        if re.fullmatch(r"[A-Za-z0-9_-]+", name):
            return name
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
        return f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def discovery_topic(prefix: str, device: DiscoveredDevice) -> str:
    """Return the topic of a device's discovery message.

    Args:
        prefix: Home Assistant's discovery prefix.
        device: The device.
    """
    return f"{prefix}/device/{device.id}/config"


def discovery(device: DiscoveredDevice) -> dict[str, Any]:
    """Return the discovery message. A component that is only a `platform` removes an entity of an earlier message."""
    topics = device.topics
    components = {**_presence(topics), **_sensors(device), **_asking(device)}
    for key, component in components.items():
        if len(component) > 1:
            component["unique_id"] = f"{device.id}_{key}"
    return {
        "device": {
            "identifiers": [device.id],
            "name": topics.device,
            "manufacturer": "edgekit",
            "model": device.model,
            "sw_version": __version__,
            "serial_number": topics.device,
        },
        "origin": {"name": "edgekit", "sw_version": __version__, "support_url": _SUPPORT_URL},
        "availability": [{"topic": topics.status, "value_template": "{{ value_json.state }}"}],
        "components": components,
    }


def _presence(topics: Topics) -> dict[str, dict[str, Any]]:
    return {
        "connectivity": {
            "platform": "binary_sensor",
            "name": "Connectivity",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topics.status,
            "value_template": "{{ 'ON' if value_json.state == 'online' else 'OFF' }}",
            "qos": 1,
            # Without the device's availability: it says that the device is offline when it is.
            "availability": [],
        }
    }


def _sensors(device: DiscoveredDevice) -> dict[str, dict[str, Any]]:
    """The entities of the state topic."""
    topic, sensors = device.topics.state, device.sensors

    def sensor(name: str, field: str, **more: Any) -> dict[str, Any]:
        template = f"{{{{ value_json.{field} }}}}"
        return {"platform": "sensor", "name": name, "state_topic": topic, "value_template": template, "qos": 1, **more}

    def measurement(name: str, field: str, **more: Any) -> dict[str, Any]:
        return sensor(name, field, state_class="measurement", **more)

    found = {
        "state": sensor("State", "state", device_class="enum", options=list(STATES)),
        "model": sensor("Model", "model", icon="mdi:brain"),
        "rate": measurement(
            "Tokens per second",
            "decode_tokens_per_s",
            unit_of_measurement="tokens/s",
            icon="mdi:speedometer",
            suggested_display_precision=1,
        ),
        "running": measurement("Running", "running", icon="mdi:play"),
        "queue": measurement("Queue", "queue", icon="mdi:tray-full"),
        "tokens": sensor(
            "Tokens generated",
            "completion_tokens_total",
            state_class="total_increasing",
            unit_of_measurement="tokens",
            icon="mdi:counter",
        ),
    }
    size = {
        "device_class": "data_size",
        "unit_of_measurement": "MiB",
        "entity_category": "diagnostic",
        "suggested_display_precision": 0,
    }
    measured = {
        "memory": (sensors.memory_mib, measurement("Memory used", "memory_mib", **size)),
        "memory_available": (
            sensors.memory_available_mib,
            measurement("Memory available", "memory_available_mib", **size),
        ),
        "temperature": (
            sensors.temperature_c,
            measurement(
                "Temperature",
                "temperature_c",
                unit_of_measurement="°C",
                device_class="temperature",
                entity_category="diagnostic",
                suggested_display_precision=1,
            ),
        ),
        "power": (
            sensors.power_w,
            measurement(
                "Power", "power_w", unit_of_measurement="W", device_class="power", suggested_display_precision=1
            ),
        ),
        "energy": (
            sensors.energy_wh,
            sensor(
                "Energy",
                "energy_wh",
                device_class="energy",
                state_class="total_increasing",
                unit_of_measurement="Wh",
                suggested_display_precision=1,
            ),
        ),
    }
    for key, (value, component) in measured.items():
        found[key] = {"platform": "sensor"} if value is None else component
    return found


def _asking(device: DiscoveredDevice) -> dict[str, dict[str, Any]]:
    """Two entities that publish a request, for automations and for a dashboard, and one that shows the reply."""
    asking = device.asking
    if asking is None:
        return {"ask": {"platform": "notify"}, "question": {"platform": "text"}, "answer": {"platform": "sensor"}}
    request = (
        '{"messages": [{"role": "user", "content": {{ value | to_json }}}], '
        f'"reply_to": {_literal(asking.reply_to)}, "deadline_s": {_DEADLINE_S}}}'
    )
    said = (
        "{{ (value_json.error.message if value_json.error is defined else value_json.message.content or '-')"
        " | truncate(255, true, '…', 0) }}"
    )
    # A state has 255 characters at most; the attributes have all of it.
    attributes = (
        "{{ {'answer': value_json.get('message', {}).get('content'), 'error': value_json.get('error', {}).get('code'),"
        " 'finish_reason': value_json.get('finish_reason'), 'request_id': value_json.id} | to_json }}"
    )
    sent = {"command_topic": asking.request, "command_template": request, "qos": 1}
    return {
        "ask": {"platform": "notify", "name": "Ask", "icon": "mdi:chat-question", **sent},
        "question": {"platform": "text", "name": "Question", "icon": "mdi:chat-question", "min": 1, "max": 255, **sent},
        "answer": {
            "platform": "sensor",
            "name": "Last answer",
            "icon": "mdi:chat",
            "state_topic": asking.reply_to,
            "value_template": said,
            "json_attributes_topic": asking.reply_to,
            "json_attributes_template": attributes,
            # The same words as before are an answer, too.
            "force_update": True,
            "qos": 1,
            # It is what it was while the device is offline; and coming back is no new answer.
            "availability": [],
        },
    }


def _literal(text: str) -> str:
    """A string of JSON that no template language reads anything into."""
    return json.dumps(text).replace("{", "\\u007b")
