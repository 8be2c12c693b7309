"""The wired daemon, in this process: a real bundle behind the HTTP server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig, MqttConfig
from edgekit.daemon.app import Daemon
from edgekit.daemon.not_ready import expected_info
from edgekit.generation import startup
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import TextModel
from edgekit.machine import state_folder
from tests.broker import Broker
from tests.daemon.manager import Manager
from tests.daemon.mqtt.conftest import eventually
from tests.generation.bundles import tiny_bundle

# As under launchd, which needs the guard.
_GUARDED = """
import sys
from pathlib import Path
from edgekit.cli import main
from edgekit.daemon import app
from edgekit.daemon.crash_loop import CrashLoop
record = Path(sys.argv.pop(1))
app._crash_loop = lambda: CrashLoop(record)
main()
"""
FORM = {"type": "choice", "choice": ["yes", "no"]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    config = DaemonConfig(
        bundle=tiny_bundle(tmp_path, "onnx"),
        aliases=("gpt-4o",),
        http=HttpConfig(port=0),
        generation=GenerationConfig(threads=1),
    )
    made = Daemon(config)
    yield made
    made.stop()


def _model(daemon: Daemon) -> TextModel:
    assert daemon._worker is not None
    return daemon._worker.model


def _names(daemon: Daemon) -> list[str]:
    assert daemon._http is not None
    return [model["id"] for model in httpx.get(f"{daemon._http.url}/v1/models", timeout=30).json()["data"]]


def _ask(daemon: Daemon) -> str:
    assert daemon._http is not None
    body = {"messages": [{"role": "user", "content": "Hello"}], "response_format": FORM}
    reply = httpx.post(f"{daemon._http.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_grammars_are_prepared_before_the_first_request(daemon: Daemon) -> None:
    daemon.start()
    grammars = _model(daemon).grammars
    assert eventually(lambda: grammars.prepared)
    vocabulary = grammars._prepared()[0]
    assert _ask(daemon) in FORM["choice"]
    assert grammars._prepared()[0] is vocabulary


def test_aliases_are_served_before_and_after_a_switch_to_an_engine(daemon: Daemon) -> None:
    # Before the model is loaded, and after a switch, there is another description of it.
    names = list(expected_info(open_bundle(daemon._bundle), daemon._config).names)
    assert names[1:] == ["gpt-4o"]
    daemon.start()
    assert _names(daemon) == names
    daemon._on_switched(replace(_model(daemon).info, runner="tensorrt"))
    assert _names(daemon) == names


def test_if_the_kv_cache_needs_all_memory_grammars_are_prepared_on_request(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if this machine had so little memory left; the requirement it is compared with is real.
    monkeypatch.setattr(startup, "available_bytes", lambda: 100_000)
    daemon.start()
    grammars = _model(daemon).grammars
    assert not eventually(lambda: grammars.prepared, 1.0)
    assert _ask(daemon) in FORM["choice"]
    assert grammars.prepared


@pytest.fixture
def on_both(tmp_path: Path) -> Iterator[Daemon]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with Broker(folder) as broker:
        made = Daemon(
            DaemonConfig(
                bundle=tiny_bundle(tmp_path, "onnx"),
                http=HttpConfig(port=0),
                mqtt=MqttConfig(host="127.0.0.1", port=broker.port, device_id="box"),
                generation=GenerationConfig(threads=1),
            )
        )
        made.start()
        yield made
        made.stop()


@pytest.mark.broker
def test_a_thread_that_hangs_makes_the_daemon_unhealthy(on_both: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    http, mqtt, worker = on_both._http, on_both._mqtt, on_both._worker
    assert http is not None
    assert mqtt is not None
    assert worker is not None
    assert eventually(lambda: mqtt.connected)
    state = state_folder()
    assert state is not None
    assert state.joinpath("mqtt", "edgekit-box").is_dir()
    health = on_both._watchdog
    monkeypatch.setattr(health, "_limit_s", 4.0)
    time.sleep(4.5)
    assert health.problem is None

    def healthz() -> tuple[int, str]:
        reply = httpx.get(f"{http.url}/healthz", timeout=20)
        return reply.status_code, reply.text

    release = threading.Event()
    with monkeypatch.context() as hang:
        hang.setattr(mqtt, "_run_once", lambda _: release.wait(30))
        assert eventually(lambda: healthz()[0] == 503)
        assert healthz()[1].startswith("the MQTT service has been stalled for ")
    release.set()
    assert eventually(lambda: health.problem is None)
    release.clear()
    with monkeypatch.context() as hang:
        hang.setattr(worker.model.tokenizer, "encode", lambda *_, **__: release.wait(30) and [1])
        asking = threading.Thread(target=_ask, args=(on_both,))
        asking.start()
        assert eventually(lambda: healthz()[0] == 503)
        assert healthz()[1].startswith("the preparation of a request has been stalled for ")
        release.set()
        asking.join()
    assert eventually(lambda: health.problem is None)
    release.clear()
    with monkeypatch.context() as hang:
        # Called on the event loop, for `/readyz` alone.
        hang.setattr(EngineWorker, "accepting", property(lambda _: release.wait(30)))
        asking = threading.Thread(target=httpx.get, args=(f"{http.url}/readyz",), kwargs={"timeout": 30})
        asking.start()
        assert eventually(lambda: (health.problem or "").startswith("the HTTP server has been stalled for "))
        release.set()
        asking.join()
    assert eventually(lambda: health.problem is None)


@pytest.mark.parametrize(("number", "status", "recorded"), [(signal.SIGTERM, 0, False), (signal.SIGKILL, -9, True)])
def test_only_a_clean_end_clears_the_record_of_starts(
    tmp_path: Path, number: signal.Signals, status: int, recorded: bool
) -> None:
    record = tmp_path / "starts"
    bundle = tiny_bundle(tmp_path, "onnx")
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        process = subprocess.Popen(
            [sys.executable, "-c", _GUARDED, str(record), "serve", str(bundle), "--port", "0", "--threads", "1"],
            env={**os.environ, "NOTIFY_SOCKET": manager.name},
        )
        try:
            while "READY=1" not in manager.receive().splitlines():
                pass
            assert record.exists()
            process.send_signal(number)
            assert process.wait(20) == status
        finally:
            process.kill()
            process.wait()
    assert record.exists() is recorded


@pytest.mark.parametrize("manifest", [None, "{"])
def test_a_start_that_fails_is_recorded_unless_another_may_succeed(tmp_path: Path, manifest: str | None) -> None:
    record = tmp_path / "starts"
    bundle = tmp_path / "bundle"
    if manifest is not None:
        bundle.mkdir()
        (bundle / "manifest.json").write_text(manifest)
    command = [sys.executable, "-c", _GUARDED, str(record), "serve", str(bundle), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # A missing bundle may be on a disk that is mounted later.
    assert record.exists() is (manifest is not None)
