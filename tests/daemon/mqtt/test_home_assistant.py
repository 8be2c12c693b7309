"""The announcement to Home Assistant, through a real mosquitto; `test_home_assistant_real.py` has the real thing."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import pytest
import yaml

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt import home_assistant
from edgekit.daemon.mqtt.discovery import Asking, DiscoveredDevice, discovery, discovery_topic
from edgekit.daemon.mqtt.home_assistant import HomeAssistant, announced_topic, asking_of
from edgekit.daemon.mqtt.removal import remove_device
from edgekit.daemon.mqtt.topics import Topics
from edgekit.daemon.readings import Sensors
from edgekit.errors import EdgekitError
from tests.broker import Broker, Caller, free_port, tool
from tests.daemon.machine_at_work import WorkerDouble, nano_readings, plain_readings
from tests.daemon.mqtt.conftest import MakeService, chat
from tests.daemon.mqtt.scripted import WORDS, ScriptedWorker

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "home-assistant.md").read_text(encoding="utf-8")
MQTT_PAGE = (DOCS / "mqtt.md").read_text(encoding="utf-8")
CONFIG = "homeassistant/device/edgekit_box/config"
SENSORS = Sensors(500.0, 4000.0, 52.5, 6.0, 3.0)
ASKING = Asking("edgekit/box/chat/request", "replies/home-assistant/box")
DEVICE = DiscoveredDevice(Topics("edgekit", "box"), "Orin", SENSORS, ASKING)

# The rules of homeassistant/components/mqtt/{schemas,sensor,binary_sensor,notify,text}.py, 2026.2.3. It ignores keys
# that it does not know; here they are mistakes.
TOPIC = {"type": "string", "pattern": "^[^#+\\u0000]+$"}
TEXT = {"type": "string", "minLength": 1}
AVAILABILITY = {
    "type": "array",
    "items": {
        "required": ["topic"],
        "properties": {"topic": TOPIC, "value_template": TEXT},
        "additionalProperties": False,
    },
}
COMMON = {
    "platform": TEXT,
    "unique_id": {"type": "string", "pattern": "^edgekit_box_([a-z_]+)$"},
    "name": TEXT,
    "icon": {"type": "string", "pattern": "^mdi:[a-z-]+$"},
    "qos": {"const": 1},
    "entity_category": {"enum": ["diagnostic"]},
    "availability": AVAILABILITY,
}
READ = {"state_topic": TOPIC, "value_template": TEXT}
SENT = {"command_topic": TOPIC, "command_template": TEXT}
UNITS = {"temperature": ["°C"], "power": ["W"], "energy": ["Wh"], "data_size": ["MiB"]}


def platform(name: str, required: list[str], properties: dict[str, Any], **rules: Any) -> dict[str, Any]:
    return {
        "if": {"properties": {"platform": {"const": name}}, "minProperties": 2},
        "then": {
            "required": ["unique_id", "name", *required],
            "properties": {**COMMON, **properties},
            "additionalProperties": False,
            **rules,
        },
    }


SENSOR_RULES = [
    # `options` are for enumerations, and those are not measured.
    {
        "if": {"required": ["options"]},
        "then": {"properties": {"device_class": {"const": "enum"}, "state_class": False}},
    },
    {
        "if": {"properties": {"device_class": {"const": "enum"}}, "required": ["device_class"]},
        "then": {"required": ["options"]},
    },
    # A total of energy is no measurement.
    {
        "if": {"properties": {"device_class": {"const": "energy"}}, "required": ["device_class"]},
        "then": {"properties": {"state_class": {"enum": ["total", "total_increasing"]}}},
    },
    *(
        {
            "if": {"properties": {"device_class": {"const": kind}}, "required": ["device_class"]},
            "then": {"required": ["unit_of_measurement"], "properties": {"unit_of_measurement": {"enum": units}}},
        }
        for kind, units in UNITS.items()
    ),
]
COMPONENT = {
    "required": ["platform"],
    "properties": {"platform": {"enum": ["sensor", "binary_sensor", "notify", "text"]}},
    "allOf": [
        platform(
            "sensor",
            ["state_topic"],
            {
                **READ,
                "device_class": {"enum": ["enum", *UNITS]},
                "state_class": {"enum": ["measurement", "total", "total_increasing"]},
                "unit_of_measurement": TEXT,
                "suggested_display_precision": {"type": "integer", "minimum": 0},
                "options": {"type": "array", "minItems": 1, "items": TEXT, "uniqueItems": True},
                "force_update": {"type": "boolean"},
                "json_attributes_topic": TOPIC,
                "json_attributes_template": TEXT,
            },
            allOf=SENSOR_RULES,
        ),
        platform("binary_sensor", ["state_topic"], {**READ, "device_class": {"const": "connectivity"}}),
        platform("notify", ["command_topic"], SENT),
        platform("text", ["command_topic"], {**SENT, "min": {"minimum": 0}, "max": {"maximum": 255}}),
    ],
}
MESSAGE = {
    "required": ["device", "origin", "components", "availability"],
    "properties": {
        "device": {
            "required": ["identifiers"],
            "properties": {
                "identifiers": {"type": "array", "minItems": 1, "items": TEXT},
                **dict.fromkeys(("name", "manufacturer", "model", "sw_version", "serial_number"), TEXT),
            },
            "additionalProperties": False,
        },
        "origin": {
            "required": ["name"],
            "properties": {"name": TEXT, "sw_version": TEXT, "support_url": {"type": "string", "pattern": "^https://"}},
            "additionalProperties": False,
        },
        "availability": AVAILABILITY,
        "components": {"type": "object", "minProperties": 1, "additionalProperties": COMPONENT},
    },
    "additionalProperties": False,
}


def render(template: str, **variables: Any) -> str:
    """As Home Assistant renders a template: Jinja with its `to_json`."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701  no HTML
    environment.filters["to_json"] = json.dumps
    return environment.from_string(template).render(**variables)


def entities(message: dict[str, Any]) -> set[str]:
    return {key for key, component in message["components"].items() if len(component) > 1}


@pytest.mark.parametrize("sensors", [SENSORS, Sensors()])
@pytest.mark.parametrize("asking", [ASKING, None])
def test_the_announcement_keeps_home_assistants_rules(sensors: Sensors, asking: Asking | None) -> None:
    jsonschema.validate(discovery(replace(DEVICE, sensors=sensors, asking=asking)), MESSAGE)


def test_entities_are_those_of_the_page_less_those_without_a_sensor_or_a_way_to_ask() -> None:
    complete = discovery(DEVICE)["components"]
    slugs = {
        f"{component['platform']}.kitchen_{component['name'].lower().replace(' ', '_')}"
        for component in complete.values()
    }
    assert slugs == set(re.findall(r"`(\w+\.kitchen_\w+)`", PAGE.split("## Entities")[1].split("##")[0]))
    measured = {"memory", "memory_available", "temperature", "power", "energy"}
    assert set(complete) - entities(discovery(replace(DEVICE, sensors=Sensors()))) == measured
    assert set(complete) - entities(discovery(replace(DEVICE, asking=None))) == {"ask", "question", "answer"}
    # What is left out is named by its platform alone, which removes the entity of an earlier announcement.
    gone = discovery(replace(DEVICE, sensors=Sensors(), asking=None))["components"]
    assert set(gone) == set(complete)
    assert all(gone[key]["platform"] == complete[key]["platform"] for key in complete)


@pytest.mark.parametrize(
    ("prefix", "device", "topic"),
    [
        ("edgekit", "kitchen-1_a", "homeassistant/device/edgekit_kitchen-1_a/config"),
        ("home/llm", "küche.1", "homeassistant/device/home_llm_k_che_1_7b8b6f0d/config"),
    ],
)
def test_the_topic_has_only_characters_that_home_assistant_takes(prefix: str, device: str, topic: str) -> None:
    found = discovery_topic("homeassistant", replace(DEVICE, topics=Topics(prefix, device)))
    assert re.sub(r"_[0-9a-f]{8}/", "_HASH/", found) == re.sub(r"_[0-9a-f]{8}/", "_HASH/", topic)
    assert re.fullmatch(r"homeassistant/device/[A-Za-z0-9_-]+/config", found)
    assert found == announced_topic(MqttConfig(prefix=prefix), device)


def test_names_that_are_shortened_alike_stay_apart() -> None:
    names = ("küche", "k.che", "k_che")
    assert len({replace(DEVICE, topics=Topics("edgekit", name)).id for name in names}) == 3


@pytest.mark.parametrize(
    ("settings", "asking"),
    [
        ({}, ("edgekit/box/chat/request", "replies/home-assistant/box")),
        ({"reply_prefixes": ("home/",)}, ("edgekit/box/chat/request", "home/home-assistant/box")),
        ({"home_assistant_user": "ha"}, ("edgekit/box/chat/request/ha", "replies/ha/home-assistant/box")),
        (
            {"home_assistant_user": "ha", "require_user": True, "reply_prefixes": ("r",)},
            ("edgekit/box/chat/request/ha", "r/ha/home-assistant/box"),
        ),
        ({"require_user": True}, None),
        ({"reply_prefixes": ("edgekit/replies",)}, None),
    ],
)
def test_it_asks_where_it_may(settings: dict[str, Any], asking: tuple[str, str] | None) -> None:
    found = asking_of(MqttConfig(home_assistant=True, **settings), Topics("edgekit", "box"))
    assert found == (None if asking is None else Asking(*asking))


@pytest.mark.parametrize("title", ["conf", "yaml"])
def test_the_blocks_of_the_page_are_what_they_say(title: str) -> None:
    found = re.findall(rf"^ *```{title}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    if title == "conf":
        assert found[0].splitlines()[:2] == ["user kitchen", "topic readwrite edgekit/kitchen/#"]
        return
    parsed = [yaml.safe_load(block) for block in found]
    automations = [one for block in parsed for one in block.get("automation", [])]
    assert [one["id"] for one in automations] == ["kitchen_asks", "kitchen_answers", "kitchen_capital"]
    assert all({"triggers", "actions", "alias"} <= set(one) for one in automations)
    (script,) = [block["script"]["ask_kitchen"] for block in parsed if "script" in block]
    publish = script["sequence"][1]["data"]
    question = 'What is "it"?\n{{ 1 }}'
    body = json.loads(render(publish["payload"], request_id="ha-1", question=question))
    # What the page publishes by itself is what the announcement publishes, and more.
    kitchen = DiscoveredDevice(
        Topics("edgekit", "kitchen"), "Orin", SENSORS, asking_of(MqttConfig(), Topics("edgekit", "kitchen"))
    )
    components = discovery(kitchen)["components"]
    announced = json.loads(render(components["ask"]["command_template"], value=question))
    assert publish["topic"] == components["ask"]["command_topic"]
    assert body["messages"][1:] == announced["messages"]
    assert {name: body[name] for name in ("reply_to", "deadline_s")} == {
        name: announced[name] for name in ("reply_to", "deadline_s")
    }


@pytest.fixture
def birth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_assistant, "JITTER_S", 0.0)
    monkeypatch.setattr(home_assistant, "GAP_S", 0.0)


@pytest.mark.broker
@pytest.mark.usefixtures("birth")
def test_a_device_is_announced_asked_and_announced_again_when_home_assistant_starts(
    broker: Broker, make_service: MakeService, worker: ScriptedWorker, tmp_path: Path
) -> None:
    make_service(home_assistant=True, readings=nano_readings(tmp_path / "nano", WorkerDouble()))
    with Caller(broker.port, CONFIG) as caller:
        caller.message()  # the last of those that a connection begins with
    with Caller(broker.port, "homeassistant/#", "edgekit/box/status", "edgekit/box/state") as caller:
        messages = {(message := caller.message()).topic: message for _ in range(3)}
        announced = messages[CONFIG]
        assert announced.retain
        found = json.loads(announced.payload)
        jsonschema.validate(found, MESSAGE)
        assert found["device"]["model"].startswith("NVIDIA Jetson Orin Nano")
        # Every template reads the real message of its topic.
        state = {topic: json.loads(message.payload) for topic, message in messages.items()}
        values = {
            key: render(component["value_template"], value_json=state[component["state_topic"]])
            for key, component in found["components"].items()
            if component.get("state_topic") in state
        }
        assert float(values.pop("memory")) > 0
        assert 2.9 < float(values.pop("energy")) < 3.1
        assert values == {
            "connectivity": "ON", "state": "ready", "model": "tiny-instruct", "rate": "None", "running": "2",
            "queue": "1", "tokens": "0", "memory_available": "4096.0", "temperature": "52.5", "power": "6.0",
        }  # fmt: skip
        (available,) = found["availability"]
        assert render(available["value_template"], value_json=state[available["topic"]]) == "online"
        caller.publish("homeassistant/status", b"online")
        caller.publish("homeassistant/status", b"offline")
        again = [caller.message() for _ in range(5)]
        assert sorted(message.topic for message in again) == [
            "edgekit/box/state", "edgekit/box/status", CONFIG, "homeassistant/status", "homeassistant/status",
        ]  # fmt: skip
        assert caller.silent(0.3)
    # Its entities ask, with any text, and read the answer.
    components = found["components"]
    with Caller(broker.port, components["answer"]["state_topic"]) as caller:
        for key in ("ask", "question"):
            text = f'{key}: "quoted" {{{{ 7 }}}} \\ \n 法国?'
            request = render(components[key]["command_template"], value=text).encode()
            caller.publish(components[key]["command_topic"], request)
            answer = caller.next()
            assert worker.played[-1].request.messages[0].content == text
            assert render(components["answer"]["value_template"], value_json=answer) == "".join(WORDS)
            attributes = json.loads(render(components["answer"]["json_attributes_template"], value_json=answer))
            assert attributes == {
                "answer": "".join(WORDS), "error": None, "finish_reason": "stop", "request_id": answer["id"],
            }  # fmt: skip
        # An error is an answer, too, and a long one is cut to what a state can hold.
        reply_to = components["answer"]["state_topic"]
        caller.publish(components["ask"]["command_topic"], chat(temperature=7, reply_to=reply_to))
        answer = caller.next()
        assert "temperature" in render(components["answer"]["value_template"], value_json=answer)
        attributes = json.loads(render(components["answer"]["json_attributes_template"], value_json=answer))
        assert (attributes["answer"], attributes["error"]) == (None, "invalid_request")
        long = {"id": "1", "message": {"content": "x" * 256}}
        assert len(render(components["answer"]["value_template"], value_json=long)) == 255


@pytest.mark.broker
def test_without_the_setting_nothing_is_published_for_home_assistant(
    broker: Broker, make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service(readings=plain_readings(tmp_path / "root", WorkerDouble()), state=tmp_path / "state")
    with Caller(broker.port, "homeassistant/#") as caller:
        caller.publish("homeassistant/status", b"online")
        assert caller.message().payload == b"online"
        service.stop()
        assert caller.silent(0.2)
    assert not (tmp_path / "state/mqtt/edgekit-box/home-assistant").exists()


@pytest.mark.broker
def test_switched_off_or_moved_the_device_is_withdrawn_at_the_next_start(
    broker: Broker, make_service: MakeService, tmp_path: Path
) -> None:
    readings, state = plain_readings(tmp_path / "root", WorkerDouble()), tmp_path / "state"
    make_service(home_assistant=True, readings=readings, state=state).stop()
    make_service(home_assistant=True, home_assistant_prefix="ha", readings=readings, state=state).stop()
    moved = CONFIG.replace("homeassistant", "ha")
    with Caller(broker.port, "homeassistant/#", "ha/#") as caller:
        assert caller.message().topic == moved
        make_service(readings=readings, state=state).stop()
        gone = caller.message()
        assert (gone.topic, gone.payload) == (moved, b"")
        assert caller.silent(0.2)
    with Caller(broker.port, "homeassistant/#", "ha/#") as caller:
        assert caller.silent(0.2)


def test_births_in_a_row_are_one_announcement_and_the_next_waits(tmp_path: Path) -> None:
    now = [100.0]
    readings = plain_readings(tmp_path, None)
    config = MqttConfig(home_assistant=True)
    found = HomeAssistant(config, Topics("edgekit", "box"), readings, None, clock=lambda: now[0])
    assert len(found.announcement()) == 1
    due: list[float | None] = []
    heard = []
    for topic, payload in (
        ("edgekit/box/status", b"online"),
        ("homeassistant/status", b"offline"),
        ("homeassistant/status", b"online"),
        ("homeassistant/status", b"online"),
    ):
        heard.append(found.receive(topic, payload))
        due.append(found.due)
    assert (heard, due) == ([False, True, True, True], [None, None, 105.0, 105.0])
    now[0] = 200.0
    found.announcement()
    now[0] = 300.0
    found.receive("homeassistant/status", b"online")
    assert 300.0 <= (found.due or 0.0) <= 302.0


def test_a_sensor_that_fails_for_a_while_keeps_its_entity(tmp_path: Path) -> None:
    readings = nano_readings(tmp_path, None)
    config = MqttConfig(home_assistant=True)
    found = HomeAssistant(config, Topics("edgekit", "box"), readings, None)
    before = json.loads(found.announcement()[0].payload)
    (tmp_path / "proc/self/statm").unlink()
    assert readings.sensors().memory_mib is None
    assert json.loads(found.announcement()[0].payload) == before


@pytest.mark.broker
def test_a_device_is_removed_from_outside_and_its_daemon_keeps_its_session(
    broker: Broker, make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service(home_assistant=True, readings=plain_readings(tmp_path / "root", WorkerDouble()))
    with Caller(broker.port, CONFIG) as caller:
        assert caller.message().payload
        remove_device(MqttConfig(host="127.0.0.1", port=broker.port, home_assistant=True), "box")
        assert caller.message().payload == b""
    assert service.connected
    assert service.stats().reconnects == 0


@pytest.mark.broker
def test_a_removal_that_fails_says_why_and_what_to_do_instead(tmp_path: Path) -> None:
    config = MqttConfig(host="127.0.0.1", port=free_port(), home_assistant=True)
    with pytest.raises(EdgekitError, match="cannot reach the broker") as caught:
        remove_device(config, "box")
    assert (caught.value.code, (caught.value.hint or "").split(" -t ")[1]) == ("home_assistant_not_removed", CONFIG)
    with pytest.raises(EdgekitError, match="No such file"):
        remove_device(replace(config, username="box", password_file=tmp_path / "gone"), "box")
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    with (
        Broker(tmp_path, config=["allow_anonymous false", f"password_file {passwords}"]) as broker,
        pytest.raises(EdgekitError, match="refused the connection: Not authorized"),
    ):
        remove_device(replace(config, port=broker.port), "box")


@pytest.mark.broker
@pytest.mark.usefixtures("birth")
def test_with_the_access_lists_of_the_pages_home_assistant_asks_as_a_user(
    tmp_path: Path, make_service: MakeService, worker: ScriptedWorker
) -> None:
    _, users = re.findall(r"^```conf\n(.*?)^```", MQTT_PAGE, re.MULTILINE | re.DOTALL)
    (ours,) = re.findall(r"^```conf\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "acl").write_text(f"{users}\n{ours}")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    for name in ("kitchen", "homeassistant", "bob"):
        subprocess.run([tool("mosquitto_passwd"), "-b", str(passwords), name, name], check=True, capture_output=True)
    (tmp_path / "acl").chmod(0o600)
    (tmp_path / "password").write_text("kitchen")
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    config = ["allow_anonymous false", f"password_file {passwords}", f"acl_file {tmp_path / 'acl'}"]
    with Broker(folder, config=config) as broker:
        service = make_service(
            port=broker.port,
            device_id="kitchen",
            username="kitchen",
            password_file=tmp_path / "password",
            require_user=True,
            home_assistant=True,
            home_assistant_user="homeassistant",
            readings=plain_readings(tmp_path / "root", WorkerDouble()),
        )
        topics = ("homeassistant/device/+/config", "edgekit/+/status", "edgekit/+/state", "replies/homeassistant/#")
        with (
            Caller(broker.port, *topics, user="homeassistant") as house,
            Caller(broker.port, "#", user="bob") as bob,
        ):
            first = {(message := house.message()).topic: message.payload for _ in range(3)}
            assert set(first) == {
                "homeassistant/device/edgekit_kitchen/config", "edgekit/kitchen/status", "edgekit/kitchen/state",
            }  # fmt: skip
            components = json.loads(first["homeassistant/device/edgekit_kitchen/config"])["components"]
            ask = components["ask"]
            # Bob cannot ask in its name.
            request = render(ask["command_template"], value="What is the capital of France?").encode()
            bob.publish(ask["command_topic"], request)
            house.publish(ask["command_topic"], request)
            answer = house.message()
            assert answer.topic == components["answer"]["state_topic"]
            assert json.loads(answer.payload)["message"]["content"] == "".join(WORDS)
            assert [playing.request.client for playing in worker.played] == ["mqtt:homeassistant"]
            house.publish("homeassistant/status", b"online")
            assert house.message(30).topic == "edgekit/kitchen/status"
        service.stop()
