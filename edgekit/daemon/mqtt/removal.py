"""Removes a device from Home Assistant, from outside the daemon: when its service is uninstalled."""

from __future__ import annotations

import queue
import ssl
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.home_assistant import announced_topic
from edgekit.errors import EdgekitError

__all__ = ["remove_device"]

_TIMEOUT_S = 10.0


def remove_device(config: MqttConfig, device: str) -> None:
    """Withdraw a device's announcement at the configured broker.

    Args:
        config: The configuration; `host` must be set.
        device: The device's id.

    Raises:
        EdgekitError: `home_assistant_not_removed`: the broker cannot be reached, or refuses it.
    """
    topic = announced_topic(config, device)
    address = f"{config.host}:{config.port}"
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Another session than the daemon's, which would be taken over.
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
    client.on_connect = lambda _client, _data, _flags, reason, _properties: events.put(reason)
    client.on_publish = lambda _client, _data, _mid, reason, _properties: events.put(reason)
    try:
        if config.username is not None:
            file = config.password_file
            password = None if file is None else file.read_text(encoding="utf-8").rstrip("\r\n")
            client.username_pw_set(config.username, password)
        if config.tls:
            client.tls_set_context(
                ssl.create_default_context(cafile=None if config.ca_file is None else str(config.ca_file))
            )
        client.connect(config.host or "", config.port)
    except (OSError, ValueError) as error:
        raise _failed(topic, f"cannot reach the broker at {address}: {error}") from error
    client.loop_start()
    try:
        _expect(events, topic, f"the broker at {address} refused the connection")
        if client.publish(topic, b"", qos=1, retain=True).rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise _failed(topic, f"lost the broker at {address}")
        _expect(events, topic, f"the broker at {address} refused the message")
        client.disconnect()
    finally:
        client.loop_stop()


def _expect(events: queue.SimpleQueue[Any], topic: str, refused: str) -> None:
    try:
        reason = events.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise _failed(topic, f"the broker did not answer within {_TIMEOUT_S:.0f} s") from None
    if reason.is_failure:
        raise _failed(topic, f"{refused}: {reason}")


def _failed(topic: str, why: str) -> EdgekitError:
    return EdgekitError(
        f"the device was not removed from Home Assistant: {why}",
        hint=f"publish an empty retained message there: mosquitto_pub -r -n -t {topic}",
        code="home_assistant_not_removed",
    )
