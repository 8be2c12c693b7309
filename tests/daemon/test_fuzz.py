"""Hostile requests to a real daemon, over both APIs: each is answered or refused, and none is the daemon's fault."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit_command
from tests.daemon.fuzzing import Case, cases
from tests.generation.bundles import tiny_bundle

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.broker, pytest.mark.serial]

# Shows tools by their names, as the context is short; fails where a caller's variable has the wrong type.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if mood %}{{ mood + 1 }}{% endif %}<|im_start|>assistant\n"
    '{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{# "arguments" #}'
)
# Outcomes that are the daemon's fault, whatever it was sent.
FAULTS = {"internal_error", "runner_failed", "generation_failed", "bundle_invalid", "grammar_failed"}
FAULTS |= {"grammar_unavailable", "export_failed", "update_failed", "config_invalid", "overloaded", "not_ready"}
# Longer than any request takes, with 16 choices of a full context on a busy machine.
HANG_S = 60.0


class FuzzedDaemon:
    """`edgekit serve` in a process of its own, with a client of each API."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        bundle = tiny_bundle(folder, "onnx", template=TEMPLATE)
        self._log = folder / "log"
        port = free_port()
        command = edgekit_command("serve", bundle, "--port", str(port), "--threads", "1")
        command += ["--mqtt", f"127.0.0.1:{broker.port}", "--device", "box"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S)
        self.mqtt = Caller(broker.port, "fuzz/#", "edgekit/box/status")
        self._number = 0
        until = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)
        while json.loads(self.mqtt.message(60).payload).get("state") != "online":
            pass

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, case: Case) -> str:
        """Send a request, read all of the answer, and return the outcome: `ok`, or an error's code."""
        return self._ask_http(case) if case.transport == "http" else self._ask_mqtt(case)

    def _ask_http(self, case: Case) -> str:
        method = "GET" if case.body is None else "POST"
        reply = self.http.request(method, case.path, content=case.body, headers=dict(case.headers))
        lines = [line.removeprefix("data: ") for line in reply.text.split("\n") if line not in ("", "data: [DONE]")]
        parts = [_strict(line) for line in lines if not line.startswith(":")]
        assert parts, reply
        # Several completions are a list.
        parts = [one for part in parts for one in (part if isinstance(part, list) else [part])]
        errors = [part["error"] for part in parts if "error" in part]
        if errors:
            assert parts[-1].get("error") == errors[0]
            shown = errors[0] if isinstance(errors[0], dict) else {"message": errors[0], "code": parts[-1]["code"]}
            _check_shown(shown)
            assert reply.status_code in {200, 400, 403, 404, 413, 504}, (reply.status_code, shown)
            return str(shown["code"])
        assert reply.status_code == 200
        if "event-stream" in reply.headers["content-type"]:
            # llama-server's own streams end with an object that says so.
            ended = reply.text.endswith("data: [DONE]\n\n")
            assert parts[-1]["stop"] if case.path in ("/completion", "/infill") else ended
        return "ok"

    def _ask_mqtt(self, case: Case) -> str:
        assert case.body is not None
        if not case.reply:
            self.mqtt.publish(f"edgekit/box/{case.path}", case.body)
            return "ok"
        self._number += 1
        topic = f"fuzz/{self._number}"
        self.mqtt.publish(f"edgekit/box/{case.path}", case.body, ResponseTopic=topic)
        while True:
            message = self.mqtt.message(HANG_S)
            body = _strict(message.payload.decode())
            # Requests by their own reply topic, and not by this one, end elsewhere.
            if message.topic == topic and body["type"] in {"final", "error"}:
                break
        if body["type"] == "final":
            return "ok"
        _check_shown(body["error"])
        return str(body["error"]["code"])

    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def prefix_cache_mib(self) -> float:
        """Size of the prefix cache, which grows up to its own limit."""
        text = self.http.get("/metrics").text
        return float(re.findall(r'edgekit_prefix_cache_bytes\{where="memory"\} (\S+)', text)[0]) / 2**20

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self.mqtt.close()
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log()


def _strict(text: str) -> Any:
    """Parse JSON, without the constants that only Python takes for JSON."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _check_shown(error: dict[str, Any]) -> None:
    assert error["message"]
    assert "\n" not in error["message"]
    assert error["code"] not in FAULTS, error


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FuzzedDaemon]:
    with Broker(tmp_path) as broker:
        started = FuzzedDaemon(tmp_path, broker)
        yield started
        started.stop()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "count"),
    [pytest.param(1, 500, id="500 requests"), pytest.param(2, 10_000, id="10,000 requests", marks=pytest.mark.slow)],
)
def test_no_request_is_answered_with_a_fault_or_not_at_all(daemon: FuzzedDaemon, seed: int, count: int) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    faults, memory, slowest = [], [], (0.0, "")
    for number, case in enumerate(cases(seed, count)):
        began = time.monotonic()
        try:
            outcome = daemon.ask(case)
        except (AssertionError, ValueError, httpx.HTTPError, pytest.fail.Exception) as error:
            faults.append(
                f"{number}: {case.path} {case.headers} {(case.body or b'')[:600]!r}: {type(error).__name__} {error}"
            )
            outcome = "fault"
            assert len(faults) < 50, "\n".join(faults)
        outcomes[case.path, outcome] += 1
        slowest = max(slowest, (time.monotonic() - began, f"{number}: {case.path} {(case.body or b'')[:300]!r}"))
        if number % (count // 20) == 0:
            memory.append(daemon.memory_mib() - daemon.prefix_cache_mib())
    summary = f"{dict(outcomes)}\nslowest: {slowest}\nmemory besides the prefix cache: {memory} MiB"
    logger.info(summary)
    assert not faults, "\n".join([*faults, summary])
    assert "Traceback" not in daemon.log()
    # Both kinds occur everywhere, or nothing was tested.
    for path in ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "chat/request"):
        assert outcomes[path, "ok"] > count / 100
        assert outcomes[path, "invalid_request"] > count / 100
    assert daemon.http.get("/healthz").status_code == 200
    assert "edgekit_running_sequences 0.0" in daemon.http.get("/metrics").text
    assert "edgekit_waiting_requests 0.0" in daemon.http.get("/metrics").text
    if count > 5000:
        # The other caches are full after the first half; a leak of a kilobyte per request would show.
        assert statistics.median(memory[-3:]) < statistics.median(memory[9:12]) + 4, summary


def test_the_same_seed_gives_the_same_requests() -> None:
    assert list(cases(3, 50)) == list(cases(3, 50))
    assert list(cases(3, 50)) != list(cases(4, 50))
    assert all(os.fsencode(case.path) for case in cases(3, 50))
