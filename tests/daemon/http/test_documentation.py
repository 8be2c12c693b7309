"""What `docs/http.md` names is what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.door import HttpDoor
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.wire import chat, completion, ollama, parse_chat
from edgekit.generation.engine import EngineStats
from edgekit.generation.model import ModelInfo
from edgekit.generation.prefix import DiskStats, PrefixStats
from edgekit.generation.request import Finish, Timings, Usage
from tests.daemon.http.conftest import MODEL, Played
from tests.daemon.mqtt.scripted import WORDS

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
    example = example.replace("http://127.0.0.1:8090", played.door.url).replace("smollm2-135m-instruct", MODEL.name)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == "".join(WORDS) + "\n"


def test_every_field_of_a_chat_is_on_the_page_and_no_other() -> None:
    assert rows("What may be asked") == set(chat._Body.model_fields)


def test_every_field_of_a_completion_is_on_the_page_and_no_other() -> None:
    own = set(completion._Body.model_fields) - set(chat._Body.model_fields)
    assert own | {"max_tokens", "logprobs"} | set(completion._NEUTRAL) == rows("Completions")


def test_every_option_of_ollamas_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", section("Ollama")))
    assert set(ollama._Options.model_fields) <= named
    assert (set(ollama._Chat.model_fields) | set(ollama._Generate.model_fields)) - {"model", "messages"} <= named


def test_every_format_of_the_page_is_understood() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", section("Formats"), re.MULTILINE | re.DOTALL)
    messages = [{"role": "user", "content": "Hello"}]
    kinds = [
        parse_chat({"messages": messages, "response_format": given}, request_id="r")[0].response_format
        for given in json.loads(block)
    ]
    assert [kind and kind.kind for kind in kinds] == [None, "json_object", "json_schema", "regex", "choice", "grammar"]


def test_every_path_of_the_page_is_served_and_no_other() -> None:
    door = HttpDoor(HttpConfig(), None, None, Metrics())
    served = {route.path.split("/{")[0] for route in door._application().routes}  # type: ignore[attr-defined]
    table = PAGE.split("| Path | What |", 1)[1].split("\n\n", 1)[0]
    assert served == {path.removesuffix("/NAME") for path in re.findall(r"(/[a-z0-9/]+(?:/NAME)?)[`,]", table)}


STATE = EngineStats(0, 0, 0, 0, 0, 0, PrefixStats(0, 0, 0, 0, 0, 0, 0, DiskStats(0, 0, 0, 0, 0, 0, 0)))


def test_every_metric_is_on_the_page_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch(ModelInfo("m", 0, 64), queue_length=lambda: 0, heartbeat_age=lambda: 0.0, stats=lambda: STATE)
    metrics.track("http", lambda _: None)(Finish("stop", Usage(1, 1), Timings(0, 0, 0)))
    shown = set(re.findall(r"^# TYPE (\w+)", metrics.render()[0].decode(), re.MULTILINE))
    assert {name for name in shown if not name.endswith("_created")} == rows("Metrics")
