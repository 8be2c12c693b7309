"""Users in topics: bound by a real broker's access list, kept apart by the daemon, limited by keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgekit.config import AccessConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.access.key_file import add_key
from edgekit.daemon.access.keys import timestamp
from edgekit.daemon.mqtt.topics import Topics, reply_roots
from edgekit.errors import RequestError
from tests.broker import Broker, Caller
from tests.daemon.access.test_key_file import make
from tests.daemon.mqtt.conftest import CANCEL, REQUEST, MakeService, chat, eventually
from tests.daemon.mqtt.scripted import WORDS, ScriptedWorker, wait_for_cancel

pytestmark = pytest.mark.broker

ANSWER = "".join(WORDS)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def access(tmp_path: Path, keys: Path) -> Iterator[Access]:
    made = Access(AccessConfig(keys_file=keys, audit="file", audit_file=tmp_path / "audit.jsonl"))
    made.start()
    yield made
    made.stop()


def test_a_users_requests_are_its_own_and_answered_below_its_name(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    make_service()
    with Caller(broker.port, "replies/#", "edgekit/box/chat/refused") as caller:
        caller.publish(f"{REQUEST}/ann", chat(id="1"), ResponseTopic="replies/ann/1")
        assert caller.next()["message"]["content"] == ANSWER
        request = worker.played[-1].request
        assert (request.tenant, request.client) == ("mqtt:ann", "mqtt:ann")
        for topic in ("replies/bob/1", "replies/annx", "replies", "other/ann", "replies/ann/../bob"[:7] + "bob"):
            caller.publish(f"{REQUEST}/ann", chat(id="2", reply_to=topic))
            refused = caller.next()
            assert (refused["type"], refused["error"]["code"]) == ("refused", "reply_topic_refused"), topic
        for user in ("", "a b", "x" * 65, "$a"):
            caller.publish(f"{REQUEST}/{user}", chat(id="2"), ResponseTopic="replies/ann/1")
            assert caller.next()["error"]["code"] == "invalid_user", user
        assert len(worker.played) == 1
        # Without a user all is as before.
        caller.publish(REQUEST, chat(id="3", priority=-7), ResponseTopic="replies/anyone")
        assert caller.next()["message"]["content"] == ANSWER
        anonymous = worker.played[-1].request
        assert (anonymous.tenant, anonymous.client, anonymous.priority) == ("", "replies/anyone", -7)
        # A user cannot jump the queue.
        caller.publish(f"{REQUEST}/ann", chat(id="4", priority=-7), ResponseTopic="replies/ann/1")
        caller.next()
        assert worker.played[-1].request.priority == 0


def test_a_request_of_one_sender_is_neither_repeated_nor_cancelled_by_another(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    make_service()
    worker.script = wait_for_cancel
    with Caller(broker.port, "replies/#") as caller:
        caller.publish(f"{REQUEST}/ann", chat(id="1"), ResponseTopic="replies/ann/1")
        assert eventually(lambda: len(worker.played) == 1)
        # The same topic, id and body without a user is another request.
        caller.publish(REQUEST, chat(id="1"), ResponseTopic="replies/ann/1")
        assert eventually(lambda: len(worker.played) == 2)
        for topic in (CANCEL, f"{CANCEL}/bob"):
            caller.publish(topic, {"id": "1", "reply_to": "replies/ann/1"})
        assert eventually(worker.played[1].cancelled.is_set)
        assert caller.next()["finish_reason"] == "cancelled"
        assert not worker.played[0].cancelled.is_set()
        caller.publish(f"{CANCEL}/ann", {"id": "1", "reply_to": "replies/ann/1"})
        assert caller.next()["finish_reason"] == "cancelled"


def test_a_device_may_answer_users_only_and_says_so(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    make_service(require_user=True)
    with Caller(broker.port, "replies/#", "edgekit/box/info") as caller:
        assert caller.next()["user_required"] is True
        caller.publish(REQUEST, chat(id="1"), ResponseTopic="replies/1")
        error = caller.next()["error"]
        assert (error["code"], f"{REQUEST}/USER" in error["hint"]) == ("user_required", True)
        assert not worker.played
        caller.publish(f"{REQUEST}/ann", chat(id="1"), ResponseTopic="replies/ann/1")
        assert caller.next()["message"]["content"] == ANSWER


def test_the_key_of_a_users_name_limits_the_user(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker, access: Access, keys: Path
) -> None:
    make_service(access=access)
    past = timestamp(datetime.now(timezone.utc) - timedelta(hours=1))
    ann, _ = make("ann", requests_per_minute=1, priority=3, share=2.0)
    for key in (
        ann,
        make("old", expires=past)[0],
        make("prom", scopes=("metrics",))[0],
        make("qwen", models=("qwen",))[0],
    ):
        add_key(keys, key)
    with Caller(broker.port, "replies/#") as caller:

        def ask(user: str) -> dict[str, object]:
            caller.publish(f"{REQUEST}/{user}", chat(), ResponseTopic=f"replies/{user}/1")
            reply = caller.next()
            return dict(reply.get("error") or reply)

        assert ask("ann")["finish_reason"] == "stop"
        request = worker.played[-1].request
        assert (request.client, request.priority, request.share) == (f"key:{ann.id}", 3, 2.0)
        refused = ask("ann")
        assert (refused["code"], refused["type"]) == ("rate_limited", "rate_limit_error")
        assert 0 < float(str(refused["retry_after_s"])) <= 60
        codes = [ask(user).get("code") for user in ("old", "prom", "qwen", "bob")]
        assert codes == ["api_key_expired", "scope_missing", "model_not_allowed", None]


def test_requests_over_mqtt_are_in_the_audit_log(
    tmp_path: Path, broker: Broker, make_service: MakeService, access: Access, keys: Path
) -> None:
    make_service(access=access, require_user=True)
    add_key(keys, make("ann")[0])
    with Caller(broker.port, "replies/#", "edgekit/box/chat/refused") as caller:
        for topic, reply in (
            (f"{REQUEST}/ann", "replies/ann"),
            (f"{REQUEST}/bob", "replies/bob"),
            (f"{REQUEST}/ann", "replies/ann"),
            (f"{REQUEST}/bob", "replies/ann"),
            (REQUEST, "replies/x"),
        ):
            caller.publish(topic, chat(id="job"), ResponseTopic=reply)
            caller.next()
    file = tmp_path / "audit.jsonl"
    assert eventually(lambda: len(file.read_text().splitlines()) == 5)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["name"], line["outcome"], line["completion_tokens"]) for line in lines] == [
        ("ann", "stop", 8),
        ("mqtt:bob", "stop", 8),
        ("ann", "repeated", 0),
        ("mqtt:bob", "reply_topic_refused", 0),
        ("anonymous", "user_required", 0),
    ]
    assert {(line["transport"], line["status"], line["request"]) for line in lines} == {("mqtt", None, "job")}
    assert "capital" not in file.read_text()
    assert "Paris" not in file.read_text()


def test_a_topic_has_one_users_name_or_none() -> None:
    topics = Topics("site/edgekit", "box")
    assert topics.user_of("site/edgekit/box/chat/request") is None
    assert topics.user_of("site/edgekit/box/chat/request/ann") == "ann"
    assert topics.user_of("site/edgekit/box/chat/cancel/ann@example.com") == "ann@example.com"
    for user in ("", "a/b", "a\tb", "+", "#", "a\x00"):
        with pytest.raises(RequestError, match="name"):
            topics.user_of(f"site/edgekit/box/chat/request/{user}")


def test_a_users_replies_are_below_each_allowed_prefix() -> None:
    assert reply_roots("ann", ()) == ("replies/ann",)
    assert reply_roots("ann", ("replies/", "app/out")) == ("replies/ann", "app/out/ann")
    assert reply_roots(None, ("replies",)) == ("replies",)


def test_edgekit_asks_as_the_user_that_it_logs_in_as(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker
) -> None:
    from edgekit.client import ask_mqtt, describe_mqtt
    from edgekit.generation.types import Delta, Message

    make_service(require_user=True)
    events = ask_mqtt("127.0.0.1", broker.port, "box", [Message("user", "Hello")], username="ann")
    assert "".join(event.text for event in events if isinstance(event, Delta)) == ANSWER
    assert worker.played[-1].request.tenant == "mqtt:ann"
    assert describe_mqtt("127.0.0.1", broker.port, "box", username="ann")["id"] == "tiny-instruct"
