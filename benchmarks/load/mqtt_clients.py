"""MQTT clients: each sends one request with its own response topic and records its outcome in the ledger."""

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

__all__ = ["MqttClients"]

_TIMEOUT_S = 120.0
_TRANSPORT = "mqtt"
_REPLIES = "soak"


class MqttClients:
    """All kinds of MQTT clients, over one connection.

    Args:
        port: The broker's port on loopback.
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
            "full": (8, lambda: self._send("full", self._bodies.chat())),
            "stream": (8, lambda: self._send("stream", self._bodies.chat(stream=True))),
            "cancel": (5, self.cancel),
            "deadline": (4, self.deadline),
            "canary": (2, self.canary),
            "invalid": (2, self.invalid),
        }
        """Weight and function by name."""

    async def online(self) -> None:
        """Wait until the daemon is online."""
        await asyncio.wait_for(self._online.wait(), 60)

    async def canary(self) -> None:
        """The request whose answer is always the same."""
        last = await self._send("canary", dict(CANARY))
        if last.get("type") != "final":
            return
        content = last["message"]["content"]
        self._canary = self._canary if self._canary is not None else content
        if content != self._canary:
            self._ledger.violated(f"the canary got {content!r} instead of {self._canary!r}")

    async def cancel(self) -> None:
        """A request that is cancelled."""
        wait_s = self._bodies.random.choice((0.0, 0.01, 0.1, 0.5))
        await self._send("cancel", self._bodies.chat(stream=True, max_tokens=64), cancel_after_s=wait_s)

    async def deadline(self) -> None:
        """A request with a short deadline."""
        wait_s = self._bodies.random.choice((0.001, 0.05, 0.5))
        await self._send("deadline", self._bodies.chat(deadline_s=wait_s, max_tokens=64))

    async def invalid(self) -> None:
        """A request that must be rejected."""
        await self._invalid(self._bodies.random.choice(self._bodies.invalid()))

    async def every_invalid(self) -> None:
        """Each of the requests that must be rejected, one after the other."""
        for body in self._bodies.invalid():
            await self._invalid(body)

    async def _invalid(self, body: dict[str, Any] | bytes) -> None:
        last = await self._send("invalid", body)
        if last.get("type") == "final":
            self._ledger.violated(f"an invalid request was answered over MQTT: {str(body)[-80:]}")

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
                message = await asyncio.wait_for(inbox.get(), _TIMEOUT_S)
                if message["type"] != "delta":
                    break
                if message["seq"] != seq:
                    self._ledger.violated(f"{_TRANSPORT} {kind}: got delta {message['seq']} instead of {seq}")
                text, seq = text + message["text"], seq + 1
        except asyncio.TimeoutError:
            self._ledger.left(_TRANSPORT, kind)
            self._ledger.violated(f"{_TRANSPORT} {kind}: no answer")
            return {}
        finally:
            if canceller:
                canceller.cancel()
        if message["type"] == "final":
            outcome = message["finish_reason"]
            if seq and text != message["message"]["content"]:
                self._ledger.violated(f"{_TRANSPORT} {kind}: the deltas and the final message differ")
        else:
            outcome = message["error"]["code"]
        self._ledger.answered(_TRANSPORT, kind, outcome)
        # Any message after the last one then finds no inbox, which is a violation.
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
            self._ledger.violated(f"{_TRANSPORT}: a message after the last: {str(content)[:80]}")
