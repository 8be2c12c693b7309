"""The device in a real Home Assistant, with a real model: entities, the page's automations, Ollama's integration."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.jetson.thermal import find_thermal
from tests.broker import Broker, Caller, free_port
from tests.conftest import Export, edgekit_command
from tests.home_assistant import HomeAssistantServer, home_assistant_root

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(1800)]

PAGE = (Path(__file__).parents[3] / "docs/home-assistant.md").read_text(encoding="utf-8")
MODEL = "smollm2-135m-instruct"
# Its logs name what it does not like of a discovery message, of an automation or of a template.
COMPLAINTS = re.compile(
    r"^.*(?:WARNING|ERROR).*(?:mqtt|automation|script|template|ollama|edgekit|kitchen).*$", re.MULTILINE
)


# Notifications are read over a WebSocket only; this one tells them to the test.
TELL = """
automation tell:
  - alias: Tell
    mode: queued
    triggers:
      - trigger: persistent_notification
        update_type: [added, updated]
    conditions: "{{ trigger.notification.notification_id in ('kitchen', 'reply') }}"
    actions:
      - action: mqtt.publish
        data:
          topic: test/notification
          payload: >-
            {{ {"id": trigger.notification.notification_id, "title": trigger.notification.title,
                "message": trigger.notification.message} | to_json }}
"""


class Daemon:
    """A daemon in a process of its own, announced to Home Assistant."""

    def __init__(self, bundle: Path, broker: Broker, folder: Path) -> None:
        self.port = free_port()
        config = folder / "edgekit.yaml"
        config.write_text(
            f"http: {{port: {self.port}}}\n"
            f"mqtt: {{host: 127.0.0.1, port: {broker.port}, device_id: kitchen, home_assistant: true,"
            " state_interval_s: 1}\n"
        )
        self._command = edgekit_command("serve", bundle, "--config", config)
        self._environment = {**os.environ, "EDGEKIT_STATE": str(folder / "state")}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        self._process = subprocess.Popen(self._command, env={**self._environment, **environment})
        deadline = time.monotonic() + 300
        while True:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz").is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def daemon(export: Export, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(export("cpu"), broker, tmp_path_factory.mktemp("daemon"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def house(daemon: Daemon, broker: Broker) -> Iterator[HomeAssistantServer]:
    del daemon  # first announced, then found
    greeting, script = (
        block for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "alias:" in block
    )
    # A morning would be long in coming. Both blocks have `automation:`, which one file has once: a label makes two.
    configuration = greeting.replace(
        'trigger: time\n        at: "07:00:00"', "trigger: event\n        event_type: morning"
    )
    assert "event_type: morning" in configuration
    configuration += script.replace("automation:", "automation second:") + TELL
    with HomeAssistantServer(home_assistant_root()) as server:
        server.integrate("mqtt", broker="127.0.0.1", port=broker.port)
        server.configure(configuration)
        yield server


def kitchen(house: HomeAssistantServer) -> dict[str, dict[str, Any]]:
    return {name: state for name, state in house.states().items() if ".kitchen_" in name}


def complaints(house: HomeAssistantServer) -> list[str]:
    return COMPLAINTS.findall(house.log())


def expected_entities() -> set[str]:
    """Those of the page's table that this machine has a sensor for."""
    table = PAGE.split("## Entities")[1].split("##")[0]
    entities = set(re.findall(r"`(\w+\.kitchen_\w+)`", table))
    gone = {"sensor.kitchen_power", "sensor.kitchen_energy"}
    if find_thermal().temperatures() == {}:
        gone.add("sensor.kitchen_temperature")
    return entities - gone


def test_every_entity_of_the_page_is_registered_and_has_a_value(house: HomeAssistantServer) -> None:
    expected = expected_entities()
    house.wait_for(lambda: expected <= set(kitchen(house)), "the entities")
    states = kitchen(house)
    assert set(states) == expected
    unanswered = {f"{name}.kitchen_{of}" for name, of in (("notify", "ask"), ("text", "question"))}
    unanswered |= {"sensor.kitchen_last_answer", "sensor.kitchen_tokens_per_second"}

    def unknown() -> set[str]:
        return {name for name, state in kitchen(house).items() if state["state"] in {"unknown", "unavailable"}}

    house.wait_for(lambda: unknown() <= unanswered, "their values")
    states = kitchen(house)
    assert states["binary_sensor.kitchen_connectivity"]["state"] == "on"
    assert states["sensor.kitchen_state"]["state"] == "ready"
    assert states["sensor.kitchen_model"]["state"] == MODEL
    assert float(states["sensor.kitchen_memory_used"]["state"]) > 50
    assert states["sensor.kitchen_memory_used"]["attributes"]["unit_of_measurement"] == "MiB"
    assert states["notify.kitchen_ask"]["state"] == "unknown"


def test_an_automation_asks_and_another_one_gets_the_answer(house: HomeAssistantServer, broker: Broker) -> None:
    with Caller(broker.port, "test/notification") as notified:
        house.post("/api/events/morning", {})
        seen = notified.next(120)
        assert (seen["id"], seen["title"]) == ("kitchen", "kitchen")
    answer = kitchen(house)["sensor.kitchen_last_answer"]
    assert answer["attributes"]["answer"] == seen["message"] != ""
    assert answer["state"] == seen["message"][:254] + "…" if len(seen["message"]) > 255 else seen["message"]
    assert answer["attributes"]["finish_reason"] in {"stop", "length"}
    # The counters follow at the next state message.
    house.wait_for(lambda: float(kitchen(house)["sensor.kitchen_tokens_generated"]["state"]) > 0, "tokens")
    house.wait_for(lambda: float(kitchen(house)["sensor.kitchen_tokens_per_second"]["state"]) > 0, "tokens/s")


def test_the_script_of_the_page_returns_the_answer_to_its_own_question(
    house: HomeAssistantServer, broker: Broker
) -> None:
    with Caller(broker.port, "test/notification") as notified:
        house.post("/api/events/edgekit_ask", {"question": 'What is the capital of France? Say "it is …".'})
        # The other automation sees the answer, too.
        seen = {(told := notified.next(120))["id"]: told["message"] for _ in range(2)}
    assert set(seen) == {"kitchen", "reply"}
    assert "Paris" in seen["reply"]


def test_the_dashboards_text_asks_too(house: HomeAssistantServer) -> None:
    before = kitchen(house)["sensor.kitchen_last_answer"]["attributes"].get("request_id")
    house.act("text.set_value", entity_id="text.kitchen_question", value="What is the capital of France?")

    def answered() -> str | None:
        attributes = kitchen(house)["sensor.kitchen_last_answer"]["attributes"]
        return None if attributes.get("request_id") == before else str(attributes["answer"])

    assert "Paris" in house.wait_for(answered, "an answer")
    assert kitchen(house)["text.kitchen_question"]["state"] == "What is the capital of France?"


def test_ollamas_integration_is_a_conversation_agent_on_the_device(house: HomeAssistantServer, daemon: Daemon) -> None:
    entry = house.integrate("ollama", url=f"http://127.0.0.1:{daemon.port}")
    model = f"{MODEL}:latest"
    options = {"name": "Agent", "model": model, "num_ctx": 8192, "max_history": 20, "keep_alive": -1}
    house.integrate_below(entry, "conversation", **options, think=False, prompt="Answer in one sentence.")
    (agent,) = house.wait_for(
        lambda: [name for name in house.states() if name.startswith("conversation.agent")], "the agent"
    )
    question = {"text": "What is the capital of France?", "agent_id": agent, "language": "en"}
    said = house.post("/api/conversation/process", question)["response"]["speech"]["plain"]["speech"]
    assert "Paris" in said


def test_a_killed_daemon_is_unavailable_and_its_return_is_seen(house: HomeAssistantServer, daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)
    house.wait_for(lambda: kitchen(house)["binary_sensor.kitchen_connectivity"]["state"] == "off", "off")
    assert kitchen(house)["sensor.kitchen_model"]["state"] == "unavailable"
    daemon.start()
    house.wait_for(lambda: kitchen(house)["sensor.kitchen_model"]["state"] == MODEL, "its return")


def test_home_assistant_has_complained_of_nothing(house: HomeAssistantServer) -> None:
    assert complaints(house) == []


def test_switched_off_the_device_leaves_home_assistant(house: HomeAssistantServer, daemon: Daemon) -> None:
    assert kitchen(house)
    daemon.stop()
    daemon.start(EDGEKIT_MQTT_HOME_ASSISTANT="false")
    house.wait_for(lambda: not kitchen(house), "the removal of its entities")
    assert complaints(house) == []
