"""Callers over MQTT: each sends one request to a topic of its own, and the ledger hears how it ended."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import paho.mqtt.client as paho
from load.bodies import CANARY, Bodies
from load.ledger import Ledger
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["MqttCallers"]

_PATIENCE_S = 120.0
_DOOR = "mqtt"
_REPLIES = "soak"


class MqttCallers:
    """All kinds of MQTT callers, over one connection.

    Args:
        port: The broker's, on loopback.
        device: The daemon's device id.
    """

    def __init__(self, port: int, device: str, bodies: Bodies, ledger: Ledger) -> None:
        self._bodies = bodies
        self._ledger = ledger
        self._topic = f"edgekit/{device}/chat"
        self._canary: str | None = None
        self._inboxes: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self._online = asyncio.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self._loop.call_soon_threadsafe(self._take, message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe([(f"{_REPLIES}/#", 1), (f"edgekit/{device}/status", 1)])
        self.kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "whole": (8, lambda: self._send("whole", self._bodies.chat())),
            "stream": (8, lambda: self._send("stream", self._bodies.chat(stream=True))),
            "cancel": (5, self.cancel),
            "deadline": (4, self.deadline),
            "canary": (2, self.canary),
            "wrong": (2, self.wrong),
        }
        """Name to weight and caller."""

    async def online(self) -> None:
        """Wait until the daemon is there."""
        await asyncio.wait_for(self._online.wait(), 60)

    async def canary(self) -> None:
        """The question that is always answered alike."""
        last = await self._send("canary", dict(CANARY))
        if last.get("type") != "final":
            return
        content = last["message"]["content"]
        self._canary = self._canary if self._canary is not None else content
        if content != self._canary:
            self._ledger.violated(f"the canary was told {content!r} instead of {self._canary!r}")

    async def cancel(self) -> None:
        """One who takes it back."""
        wait_s = self._bodies.random.choice((0.0, 0.01, 0.1, 0.5))
        await self._send("cancel", self._bodies.chat(stream=True, max_tokens=64), cancel_after_s=wait_s)

    async def deadline(self) -> None:
        """One who will not wait for long."""
        wait_s = self._bodies.random.choice((0.001, 0.05, 0.5))
        await self._send("deadline", self._bodies.chat(deadline_s=wait_s, max_tokens=64))

    async def wrong(self) -> None:
        """One who is refused."""
        last = await self._send("wrong", self._bodies.wrong())
        if last.get("type") == "final":
            self._ledger.violated("a wrong request was answered over MQTT")

    async def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def _send(
        self, kind: str, body: dict[str, Any] | bytes, cancel_after_s: float | None = None
    ) -> dict[str, Any]:
        name = uuid.uuid4().hex
        reply = f"{_REPLIES}/{name}"
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inboxes[reply] = inbox
        payload = body if isinstance(body, bytes) else json.dumps({"id": name, **body}).encode()
        self._publish("request", payload, reply, name)
        canceller = None
        if cancel_after_s is not None:
            canceller = self._loop.call_later(cancel_after_s, self._publish, "cancel", b"", reply, name)
        text, seq = "", 0
        try:
            while True:
                message = await asyncio.wait_for(inbox.get(), _PATIENCE_S)
                if message["type"] != "delta":
                    break
                if message["seq"] != seq:
                    self._ledger.violated(f"{_DOOR} {kind}: delta {message['seq']} came in place of {seq}")
                text, seq = text + message["text"], seq + 1
        except asyncio.TimeoutError:
            self._ledger.left(_DOOR, kind)
            self._ledger.violated(f"{_DOOR} {kind}: no answer")
            return {}
        finally:
            if canceller:
                canceller.cancel()
        if message["type"] == "final":
            outcome = message["finish_reason"]
            if seq and text != message["message"]["content"]:
                self._ledger.violated(f"{_DOOR} {kind}: the deltas and the final message differ")
        else:
            outcome = message["error"]["code"]
        self._ledger.answered(_DOOR, kind, outcome)
        # Whatever comes after the last message finds no inbox.
        del self._inboxes[reply]
        return message

    def _publish(self, verb: str, payload: bytes, reply: str, name: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = reply
        properties.CorrelationData = name.encode()
        self._client.publish(f"{self._topic}/{verb}", payload, qos=1, properties=properties)

    def _take(self, message: paho.MQTTMessage) -> None:
        content = json.loads(message.payload)
        if content["type"] == "status":
            if content["state"] == "online":
                self._online.set()
        elif message.topic in self._inboxes:
            self._inboxes[message.topic].put_nowait(content)
        else:
            self._ledger.violated(f"{_DOOR}: a message after the last: {str(content)[:80]}")
