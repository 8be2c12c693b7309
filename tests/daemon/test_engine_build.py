"""The daemon builds an engine with NVIDIA's real builder, in a process of its own; there is no GPU to load it onto."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from edgekit.runners.tensorrt.build_record import FILE
from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit
from tests.daemon.manager import Manager
from tests.daemon.mqtt.conftest import REQUEST, STATUS, eventually
from tests.models import tiny_checkpoint

pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")
pytestmark = pytest.mark.broker

WITHIN_S = 240.0

# `edgekit serve`, on a machine with a card. Its driver is missing, which is only found when the engine is loaded: the
# builder needs none.
SERVE = """
import logging, os, sys
from dataclasses import replace
from pathlib import Path
from edgekit.config import load_config
from edgekit.daemon.app import Daemon
from edgekit.generation import first_build
from edgekit.generation.engine_wanted import this_target
first_build.check_driver = lambda: None
card = lambda: replace(this_target(), compute_capability="8.6")
logging.basicConfig(level="INFO")
Daemon(load_config(Path(sys.argv[1]), env=os.environ, overrides={}), find_target=card).run()
"""


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtx")
    edgekit("export", tiny_checkpoint(folder / "hf", layers=3), "--target", "rtx", "-o", folder / "bundle")
    return folder / "bundle"


class Machine:
    """A machine with a broker, on which a daemon is started and ended."""

    def __init__(self, folder: Path, bundle: Path, broker: Broker) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = folder / "cache" / "engines"
        self.record = folder / "state" / FILE
        self.log = folder / "log"
        self._config = folder / "edgekit.yaml"
        self._config.write_text(
            f"bundle: {bundle}\nhttp:\n  port: {self.port}\nmqtt:\n  host: 127.0.0.1\n  port: {broker.port}\n"
            "  device_id: box\ngeneration:\n  threads: 1\n  context_length: 64\n  ignore_compatible: true\n"
        )

    @contextmanager
    def serve(self, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        folders = {"EDGEKIT_CACHE": str(self.folder / "cache"), "EDGEKIT_STATE": str(self.folder / "state")}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self._config)], env={**os.environ, **folders, **env}, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def ready(self) -> str:
        """What `/readyz` says; empty while nothing listens."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30).text
        except httpx.TransportError:
            return ""

    def ask(self) -> None:
        reply = httpx.post(f"{self.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 2}, timeout=WITHIN_S)
        assert reply.status_code == 200, reply.text

    def builds(self) -> bool:
        """Whether the builder's process writes an engine now."""
        return "building the TensorRT engine" in self.ready() and (self.store / "building").exists()

    def engines(self) -> list[str]:
        return [path.name for path in self.store.iterdir() if path.is_dir()]


@pytest.fixture
def machine(tmp_path: Path, rtx: Path) -> Iterator[Machine]:
    (tmp_path / "broker").mkdir()
    with Broker(tmp_path / "broker") as broker:
        yield Machine(tmp_path, rtx, broker)


def test_answers_come_from_the_cpu_kernels_while_the_engine_is_built_and_after_it_could_not_be_loaded(
    machine: Machine, tmp_path: Path
) -> None:
    port = int((tmp_path / "broker" / "mosquitto.conf").read_text().split()[1])
    with (
        closing(Manager(str(tmp_path / "notify"))) as manager,
        Caller(port, STATUS, "replies/a") as caller,
        machine.serve(NOTIFY_SOCKET=manager.name),
    ):
        assert eventually(machine.builds, WITHIN_S), machine.log.read_text()
        machine.ask()
        caller.publish(REQUEST, {"prompt": "Hello", "max_tokens": 2, "reply_to": "replies/a"})
        messages = [caller.next(WITHIN_S)]
        while messages[-1]["type"] != "final":
            messages.append(caller.next(WITHIN_S))
        status = next(message for message in messages if message["type"] == "status")
        assert status["engine"]["phase"] == "building"
        assert status["runner"].startswith("cpu")
        assert "edgekit_engine_build_ratio" in httpx.get(f"{machine.url}/metrics", timeout=30).text
        # It is loaded after it was built, which fails: no driver here.
        assert eventually(
            lambda: not {"built", "building", "loading"} & set(re.findall("[a-z]+", machine.ready())), WITHIN_S
        ), machine.log.read_text()
        # No driver here: the engine stays, for a machine that has one.
        assert "not on tensorrt: " in machine.ready()
        assert "its engine is being built" not in machine.ready()
        machine.ask()
        assert len(machine.engines()) == 1
        # A status between the end of the build and the reason for the runner may still have the old one.
        reasons = {"tensorrt": "its engine is being built"}
        while reasons.get("tensorrt") == "its engine is being built":
            status = caller.next(WITHIN_S)
            if status["type"] == "status" and "engine" not in status:
                reasons = {one["runner"]: one["reason"] for one in status["rejected_runners"]}
        assert "driver" in reasons["tensorrt"].lower() or "cuda" in reasons["tensorrt"].lower()
        said = [manager.receive()]
        while "STATUS=serving" not in said[-1] or "building" in said[-1]:
            said.append(manager.receive())
        assert any("READY=1" in one for one in said)
        assert any("; building the TensorRT engine, " in one for one in said)
    assert json.loads(machine.record.read_text()) == {}
    # The next start finds it, builds nothing, and says the same.
    with machine.serve():
        assert eventually(lambda: machine.ready().startswith("ready, on cpu ("), WITHIN_S)
        assert "build" not in machine.ready()
        assert f"not on tensorrt: {reasons['tensorrt']}" in machine.ready()


@pytest.mark.slow
def test_sigterm_ends_a_build_at_once_and_a_killed_daemon_builds_again_when_it_is_restarted(machine: Machine) -> None:
    with machine.serve() as process:
        assert eventually(machine.builds, WITHIN_S), machine.log.read_text()
        process.kill()
        process.wait()
    assert (machine.store / "building").exists()
    with machine.serve() as process:
        assert eventually(machine.builds, WITHIN_S), machine.log.read_text()
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
        psutil.wait_procs(children, timeout=30)
        assert not any(child.is_running() for child in children)
    assert machine.engines() == []
    # The killed build counts, the cancelled one does not.
    assert [record["unfinished"] for record in json.loads(machine.record.read_text()).values()] == [1]
    with machine.serve() as process:
        assert eventually(lambda: len(machine.engines()) == 1 and "building" not in machine.engines(), WITHIN_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
    assert json.loads(machine.record.read_text()) == {}
    assert "Traceback" not in machine.log.read_text()
