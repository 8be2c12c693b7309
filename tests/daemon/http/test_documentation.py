"""`docs/http.md` agrees with the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.api import chat, completion, ollama, parse_chat
from edgekit.daemon.api.other_fields import CHAT_NOOP, COMPLETION_NOOP, IGNORED
from edgekit.daemon.device import device_metrics
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics, MqttStats
from edgekit.generation.engine.engine import EngineStats
from edgekit.generation.model import ModelInfo
from edgekit.generation.prefix import DiskStats, PrefixStats
from edgekit.generation.types import Finished
from edgekit.generation.usage import Timings, Usage
from edgekit.jetson.device import find_jetson
from tests.daemon.http.conftest import MODEL, Played
from tests.daemon.mqtt.scripted import WORDS
from tests.jetson.tree import write_nano

PAGE = (Path(__file__).parents[3] / "docs" / "http.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"\n#{2,3} ", PAGE.split(f"# {title}\n", 1)[1])[0]


def rows(title: str) -> set[str]:
    """The names in the first column of a section's tables."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}


@pytest.mark.parametrize("number", [0, 1])
def test_the_python_examples_print_the_answer(played: Played, number: int) -> None:
    example = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]
    assert "http://127.0.0.1:8090" in example
    example = example.replace("http://127.0.0.1:8090", played.server.url).replace("smollm2-135m-instruct", MODEL.name)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == "".join(WORDS) + "\n"


def test_every_parameter_of_a_chat_is_on_the_page_and_no_other() -> None:
    assert rows("Request parameters") == set(chat.ChatBody.model_fields)


def test_every_parameter_of_a_completion_is_on_the_page_and_no_other() -> None:
    own = set(completion.CompletionBody.model_fields) - set(chat.ChatBody.model_fields)
    assert own | {"max_tokens", "logprobs"} == rows("Completions")


def test_every_field_of_other_servers_is_on_the_page_and_no_other() -> None:
    named = set(re.findall(r"`(\w+)`", section("Fields of other servers")))
    others = {"unsupported_parameter", "functions", "function_call", "tools", "tool_choice"}
    assert named == {*IGNORED, *CHAT_NOOP, *COMPLETION_NOOP} | others


def test_every_option_of_ollama_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", section("Ollama API")))
    assert set(ollama.OllamaOptions.model_fields) <= named
    assert (set(ollama.OllamaChatBody.model_fields) | set(ollama.OllamaGenerateBody.model_fields)) - {
        "model",
        "messages",
    } <= named


def test_every_format_of_the_page_is_parsed() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", section("Response formats"), re.MULTILINE | re.DOTALL)
    messages = [{"role": "user", "content": "Hello"}]
    kinds = [
        parse_chat({"messages": messages, "response_format": given}, request_id="r")[0].response_format
        for given in json.loads(block)
    ]
    assert [kind and kind.kind for kind in kinds] == [None, "json_object", "json_schema", "regex", "choice", "grammar"]


def test_every_path_of_the_page_is_served_and_no_other() -> None:
    server = HttpServer(HttpConfig(), None, None, Metrics())
    served = {route.path.split("/{")[0] for route in server._application().routes}  # type: ignore[attr-defined]
    table = PAGE.split("| Path | Purpose |", 1)[1].split("\n\n", 1)[0]
    assert served == {path.removesuffix("/NAME") for path in re.findall(r"(/[a-z0-9./_-]*(?:/NAME)?)[`,]", table)}


def test_the_paths_that_need_no_key_are_on_the_page_and_no_other() -> None:
    operations = HttpServer(HttpConfig(), None, None, Metrics())._operations()
    keyless = {one.path for one in operations if one.scope is None}
    for title, sentence in (
        ("API keys", r"every request needs a key.*?except ([^.]*)\."),
        ("Audit log", r"not for ([^.]*)\."),
    ):
        found = re.search(sentence, section(title), re.DOTALL)
        assert found is not None
        assert set(re.findall(r"(/[a-z0-9/]*)`", found[1])) == keyless


STATE = EngineStats(0, 0, 0, 0, 0, 0, PrefixStats(0, 0, 0, 0, 0, 0, 0, DiskStats(0, 0, 0, 0, 0, 0, 0)))
MQTT = MqttStats(
    connected=True, reconnects=0, unacknowledged=0, dropped=0, repeated=0, no_subscribers=0, unanswered=0, unsent=0
)


def test_every_metric_is_on_the_page_and_no_other(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.watch(ModelInfo("m", 0, 64), queue_length=lambda: 0, heartbeat_age=lambda: 0.0, stats=lambda: STATE)
    metrics.watch_mqtt(lambda: MQTT)
    jetson = find_jetson(write_nano(tmp_path))
    assert jetson is not None
    metrics.watch_device(lambda: device_metrics(jetson))
    metrics.watch_energy()
    metrics.watch_build(lambda: None)
    metrics.track("http", lambda _: None)(Finished("stop", Usage(1, 1), Timings(0, 0, 0)))
    shown = set(re.findall(r"^# TYPE (\w+)", metrics.render()[0].decode(), re.MULTILINE))
    assert {name for name in shown if not name.endswith("_created")} == rows("Metrics")
