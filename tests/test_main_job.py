"""The main job on the real model: export, verify, run, and serve over HTTP and MQTT at the same time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import openai
import pytest

from tests.broker import Broker, Caller, free_port, tool
from tests.conftest import LARGE, Export, edgekit, edgekit_command
from tests.daemon.manager import Manager
from tests.daemon.mqtt.conftest import eventually

pytestmark = pytest.mark.serial

QUESTION = "What is the capital of France?"
# Without it this small model's first token is a near tie (0.08 in float32 logits) that rounding can tip.
SYSTEM = "Answer in one sentence."
ASK = (QUESTION, "--system", SYSTEM, "--max-tokens", "32", "--temperature", "0")
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


class Served:
    """A daemon in a separate process."""

    def __init__(self, bundle: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        command = edgekit_command("serve", bundle)
        command += ["--port", str(self.port), *options]
        environment = {**os.environ, **(env or {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            if self.process.poll() is not None:
                assert self.process.stderr
                pytest.fail(f"the daemon ended with {self.process.returncode}:\n{self.process.stderr.read()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        pytest.fail("the daemon was not ready after a minute")

    def connected(self) -> bool:
        """Whether it is connected to its broker."""
        return "edgekit_mqtt_connected 1.0" in httpx.get(f"{self.url}/metrics", timeout=10).text

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=60)
        return log


@pytest.fixture(scope="module")
def cpu(export: Export) -> Path:
    return export("cpu")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def served(cpu: Path, broker: Broker) -> Iterator[Served]:
    daemon = Served(cpu, "--mqtt", f"127.0.0.1:{broker.port}", "--device", "kitchen")
    assert eventually(daemon.connected, 60)
    yield daemon
    log = daemon.stop()
    assert daemon.process.returncode == 0, log
    assert "Traceback" not in log, log


def test_the_cpu_bundle_answers_paris(cpu: Path) -> None:
    assert "Paris" in edgekit("run", cpu, *ASK).stdout


def test_a_fixed_seed_gives_the_same_answer_twice_and_another_seed_another(cpu: Path) -> None:
    def story(seed: int) -> str:
        options = ("--temperature", "0.9", "--max-tokens", "24", "--seed", str(seed))
        return edgekit("run", cpu, "Tell me a story about a robot.", *options).stdout

    first = story(7)
    assert story(7) == first
    assert story(8) != first


def test_info_and_verify_describe_the_bundle(cpu: Path) -> None:
    assert "smollm2-135m-instruct" in edgekit("info", cpu).stdout
    manifest = json.loads(edgekit("info", cpu, "--json").stdout)
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["compatible"] == ["cpu"]
    assert "is sound" in edgekit("verify", cpu).stdout


@pytest.mark.broker
def test_the_openai_sdk_and_mosquitto_rr_are_answered_at_the_same_time(served: Served, broker: Broker) -> None:
    answers: dict[str, str] = {}
    body = {"messages": MESSAGES, "max_tokens": 32, "temperature": 0}

    def over_http() -> None:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
        model = client.models.list().data[0].id
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
            max_tokens=32,
            temperature=0,
        )
        answers["http"] = reply.choices[0].message.content or ""

    def over_mqtt() -> None:
        command = [tool("mosquitto_rr"), "-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-W", "60"]
        command += ["-t", "edgekit/kitchen/chat/request", "-e", "callers/one", "-m", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        answers["mqtt"] = json.loads(done.stdout)["message"]["content"]

    threads = [threading.Thread(target=over_http), threading.Thread(target=over_mqtt)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(answers) == {"http", "mqtt"}
    assert "Paris" in answers["http"]
    assert answers["mqtt"] == answers["http"]


@pytest.mark.broker
def test_ask_streams_the_same_answer_over_http_and_mqtt(served: Served, broker: Broker) -> None:
    common = (*ASK, "--stats")
    http = edgekit("ask", "--http", served.url, *common)
    mqtt = edgekit("ask", "--mqtt", f"127.0.0.1:{broker.port}", "--device", "kitchen", *common)
    assert "Paris" in http.stdout
    assert mqtt.stdout == http.stdout
    for done in (http, mqtt):
        assert re.search(r"decode \d+ tokens/s", done.stderr), done.stderr


@pytest.mark.broker
def test_the_state_topic_counts_the_answers_of_both_transports(served: Served, broker: Broker) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4}
    with Caller(broker.port, "edgekit/kitchen/state") as caller:
        before = caller.next()
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
        tokens = reply["usage"]["completion_tokens"]
        state = caller.next(60)
        # `before` may be from before the last answers of other tests.
        while state["completion_tokens_total"] < before["completion_tokens_total"] + tokens:
            state = caller.next(60)
    assert (state["state"], state["model"], state["decode_tokens_per_s"] > 0) == ("ready", reply["model"], True)


def test_a_busy_port_is_one_line_and_a_hint(served: Served, cpu: Path) -> None:
    done = edgekit("serve", cpu, "--port", str(served.port), check=False)
    assert done.returncode == 1
    assert f"{served.port}" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.broker
def test_without_a_broker_at_start_http_serves_and_mqtt_connects_later(cpu: Path, tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    daemon = Served(cpu, "--mqtt", f"127.0.0.1:{broker.port}", "--device", "hall")
    try:
        assert "Paris" in edgekit("ask", "--http", daemon.url, *ASK).stdout
        broker.start()
        for _ in range(30):
            address = f"127.0.0.1:{broker.port}"
            done = edgekit("ask", "--mqtt", address, "--device", "hall", *ASK, check=False)
            if done.returncode == 0:
                break
            time.sleep(1)
        assert "Paris" in done.stdout, done.stderr
    finally:
        log = daemon.stop()
        broker.stop()
    assert "Traceback" not in log


def test_the_service_manager_is_notified_of_ready_watchdog_and_stopping(cpu: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    try:
        daemon = Served(cpu, env={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "2000000"})
        lines: list[str] = []
        while "READY=1" not in lines:
            lines += manager.receive().splitlines()
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in lines)
        # While it answers: the heartbeat comes from the decode loop.
        caller = threading.Thread(target=edgekit, args=("ask", "--http", daemon.url, *ASK))
        caller.start()
        assert manager.count("WATCHDOG=1", 3.5) in {3, 4}
        caller.join()
        daemon.stop()
        assert daemon.process.returncode == 0
        assert manager.count("STOPPING=1", 1) == 1
    finally:
        manager.close()


def test_the_m2_bundle_opens_unmodified_in_mlx_lm_and_answers_paris(export: Export) -> None:
    pytest.importorskip("mlx.core")
    folder = export("m2")
    # In a separate process: mlx_lm changes limits of the process that imports it.
    program = f"""
import mlx.core as mx
from mlx_lm import generate, load
model, tokenizer = load({str(folder)!r})
model.set_dtype(mx.float32)
messages = {MESSAGES!r}
print(generate(model, tokenizer, tokenizer.apply_chat_template(messages, add_generation_prompt=True), max_tokens=12))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert "Paris" in done.stdout, done.stderr


def test_the_m2_bundle_keeps_every_weight_of_the_checkpoint(export: Export) -> None:
    recipe = json.loads(edgekit("info", export("m2"), "--json").stdout)["recipe"]
    assert set(recipe["matrices"]) == {"exact 4-bit, group 32", "exact 8-bit, group 32"}


def test_the_orin_bundle_is_built_by_nvidias_builder_with_int4_kept(export: Export) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")
    report = json.loads(edgekit("verify", export("orin"), "--build", "--json").stdout)["build"]
    assert report["int4_kept"]
    assert report["engine_bytes"] < 1.5 * report["graph_bytes"]
    # Seven matrices in each of 30 layers, and the head's two halves.
    assert (report["decode"]["int4"], report["decode"]["expanded"]) == (212, [])
    assert report["decode"]["cache_copies"] == report["prefill"]["cache_copies"] == []
    assert report["decode"]["kernels"] <= 700


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_headline_architecture_writes_correct_code_and_valid_chinese(export: Export) -> None:
    folder = export("cpu", LARGE)
    prompt = (
        "Write a Python function `solve(numbers)` that returns the sum of the squares of the even numbers of a list. "
        "Answer with the code alone."
    )
    answer = edgekit("run", folder, prompt, "--max-tokens", "300").stdout
    code = re.search(r"```(?:python)?\n(.*?)```", answer, re.DOTALL)
    program = (code[1] if code else answer) + "\nprint(solve([1, 2, 3, 4, -6]), solve([]), solve([7]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "56 0 0\n", answer + done.stderr
    chinese = edgekit("run", folder, "中国的首都是哪里？请用一句话回答。", "--max-tokens", "60").stdout
    assert "北京" in chinese
    assert "\ufffd" not in chinese


def test_the_daemon_needs_neither_torch_nor_export_only_libraries(cpu: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from edgekit.daemon import app
from edgekit.generation.model import load_model
load_model(Path({str(cpu)!r})).close()
heavy = {{"torch", "transformers", "onnx", "huggingface_hub", "edgekit.export"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interrupted_export_leaves_nothing_behind(tmp_path: Path, cpu: Path) -> None:
    assert cpu.exists()  # the model is in the cache by now, so that the interrupt comes during the export
    command = edgekit_command("export", "smollm2-135m-instruct")
    options = ("--target", "orin", "--recipe", "lsq", "-o", str(tmp_path / "half"))
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not any(path.suffix == ".data" and path.stat().st_size for path in tmp_path.rglob("*")):
                assert time.monotonic() < deadline, "the export never began to write"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, log
    assert "Traceback" not in log
    assert os.listdir(tmp_path) == []  # noqa: PTH208  hidden files count
