"""The device's status, and its repair after a late Will Message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit import __version__
from edgekit.daemon.mqtt import presence as presence_module
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.presence import REFRESH_S, Presence
from edgekit.daemon.mqtt.topics import Topics
from edgekit.generation.model import ModelInfo
from edgekit.runners import Rejected

TOPICS = Topics("edgekit", "orin-1")
MODEL = ModelInfo("tiny", 0, 2048, runner="cpu (avx2)", rejected=(Rejected("cuda", "there is no GPU"),))


def content(message: Outgoing) -> dict[str, Any]:
    """The content of a presence message: retained, and sent by no other connection."""
    assert (message.retain, message.durable, message.content_type) == (True, False, "application/json")
    return json.loads(message.payload)  # type: ignore[no-any-return]


def test_every_connection_has_a_session_of_its_own_and_its_will_names_it() -> None:
    presence = Presence(TOPICS, MODEL)
    presence.begin()
    online, offline = content(presence.online()), content(presence.offline())
    assert presence.online().topic == presence.offline().topic == TOPICS.status
    assert (online["state"], offline["state"]) == ("online", "offline")
    assert online["session"] == offline["session"]
    assert online["since"].endswith("Z")
    assert (online["model"], online["edgekit"]) == ("tiny", __version__)
    presence.begin()
    assert content(presence.online())["session"] != online["session"]
    other = Presence(TOPICS, MODEL)
    other.begin()
    assert content(other.online())["session"] != online["session"]


def test_the_status_names_the_runner_and_why_it_is_no_better_one() -> None:
    online = content(Presence(TOPICS, MODEL).online())
    assert online["runner"] == "cpu (avx2)"
    assert online["rejected_runners"] == [{"runner": "cuda", "reason": "there is no GPU"}]


def test_the_info_names_the_model_and_the_topics() -> None:
    info = content(Presence(TOPICS, MODEL).info(1000))
    assert info["model"] == {"id": "tiny", "context_length": 2048}
    assert info["topics"] == {
        "request": TOPICS.request,
        "cancel": TOPICS.cancel,
        "status": TOPICS.status,
        "state": TOPICS.state,
        "refused": TOPICS.refused,
    }
    assert (info["device"], info["max_payload_bytes"]) == ("orin-1", 1000)


class Clock:
    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


def test_another_status_than_its_own_is_repaired_after_a_second_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "time", Clock)
    presence = Presence(TOPICS, MODEL)
    presence.begin()
    late_will = presence.offline().payload
    presence.begin()
    due: list[float | None] = []
    for now, payload in ((10.0, presence.online().payload), (20.0, late_will), (30.0, b"")):
        Clock.now = now
        presence.on_status(payload)
        due.append(presence.publish_due)
    # The third does not put it off.
    assert due == [None, 21.0, 21.0]
    presence.online()
    assert presence.publish_due is None


def test_a_board_and_its_sensors_are_in_online_only_and_read_anew_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "time", Clock)
    readings = iter([{"temperature_c": 50.0}, {"temperature_c": 51.0}])
    presence = Presence(TOPICS, MODEL, device=lambda: next(readings))
    presence.begin()
    Clock.now = 100.0
    first = presence.online()
    assert content(first)["device"] == {"temperature_c": 50.0}
    assert "device" not in content(presence.offline())
    assert presence.publish_due == 100.0 + REFRESH_S
    # The message of a minute ago may come back from the broker after the next one was made.
    second = presence.online()
    presence.on_status(first.payload)
    presence.on_status(second.payload)
    assert presence.publish_due == 100.0 + REFRESH_S
    presence.on_status(presence.offline().payload)
    assert presence.publish_due == 101.0
