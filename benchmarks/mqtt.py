"""What MQTT adds to a request, and what durable requests add to that.

A real mosquitto on loopback, with TCP_NODELAY, and the real engine with a runner that writes one token at once:

    scripts/bench mqtt --folder /var/lib/edgekit     # on the disk that the daemon would use

Measured from the caller's publishing to the last message, against the same request to the engine in the process:
medians of `--requests` one after the other, then requests per second of as many at once, with `durable` off and on.
Then the writes per request: bytes by /proc/self/io, syncs by strace, if it is installed. The broker stores nothing.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from load.daemon import Broker
from paho.mqtt.enums import CallbackAPIVersion
from quick import parse

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.service import MqttService
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.types import ChatRequest, Failure, Finished, Message
from tests.generation.tiny import echo_model

REQUEST = "edgekit/bench/chat/request"
QUICK = {"requests": 20}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=1000, help="size of a question")
    parser.add_argument("--folder", type=Path, help="where the file of durable requests is [a temporary folder]")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, QUICK)
    program = Broker.program()
    if program is None:
        sys.exit("mosquitto is not installed")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report = _measure(program, Path(name), arguments.requests, "x" * arguments.bytes)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{'':12}{'ms added':>10}{'one by one/s':>14}{'at once/s':>11}{'KiB written':>14}{'syncs':>12}  per request")
    for label, row in report.items():
        print(
            f"{label:12}{row['added_ms']:10.2f}{row['one_by_one_per_s']:14.0f}{row['at_once_per_s']:11.0f}"
            f"{_pair(row['written_kib']):>14}{_pair(row['syncs']):>12}"
        )
    print("written and synced: one by one / at once")


def _pair(values: list[float | None]) -> str:
    return "/".join("-" if value is None else f"{value:.3g}" for value in values)


def _measure(program: str, folder: Path, count: int, question: str) -> dict[str, Any]:
    broker = Broker(program, folder)
    report: dict[str, Any] = {}
    worker = EngineWorker(echo_model("x", sequence_slots=8, context_length=8192))
    try:
        core_s = statistics.median([_seconds(lambda: _ask_core(worker, question)) for _ in range(count)])
        for label, durable in (("durable off", False), ("durable on", True)):
            config = MqttConfig(host="127.0.0.1", port=broker.port, device_id="bench", durable=durable)
            service = MqttService(config, worker, worker.info, state=folder)
            service.start()
            caller = _Caller(broker.port)
            try:
                while not service.connected:
                    time.sleep(0.01)
                caller.ask(question, 20)
                each = [_seconds(lambda caller=caller: caller.ask(question, 1)) for _ in range(count)]
                all_s = _seconds(lambda caller=caller: caller.ask(question, count))
                # Again: strace slows them down.
                with _writes() as one:
                    for _ in range(count):
                        caller.ask(question, 1)
                with _writes() as many:
                    caller.ask(question, count)
                    time.sleep(1.0)  # what is forgotten is written, too
            finally:
                caller.close()
                service.stop()
            report[label] = {
                "added_ms": 1000 * (statistics.median(each) - core_s),
                "one_by_one_per_s": count / sum(each),
                "at_once_per_s": count / all_s,
                "written_kib": [one.kib / count, many.kib / count],
                "syncs": [None if writes.syncs is None else writes.syncs / count for writes in (one, many)],
            }
    finally:
        worker.stop()
        broker.stop()
    return report


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def _ask_core(worker: EngineWorker, question: str) -> None:
    ended = threading.Event()
    request = ChatRequest(id="1", messages=(Message("user", question),), max_tokens=1)
    worker.submit(request, lambda event: ended.set() if isinstance(event, Finished | Failure) else None)
    ended.wait()


class _Caller:
    def __init__(self, port: int) -> None:
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.max_inflight_messages_set(0)
        self._client.on_message = lambda _client, _data, message: self._inbox.put(json.loads(message.payload))
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        sock: Any = self._client.socket()
        sock.setsockopt(6, 1, 1)  # TCP_NODELAY
        self._client.loop_start()
        self._client.subscribe("replies/bench", 1)
        subscribed.wait()
        self._number = 0

    def ask(self, question: str, count: int) -> None:
        for _ in range(count):
            self._number += 1
            body = {
                "id": f"{id(self)}-{self._number}",
                "reply_to": "replies/bench",
                "max_tokens": 1,
                "messages": [{"role": "user", "content": question}],
            }
            self._client.publish(REQUEST, json.dumps(body), qos=1)
        for _ in range(count):
            answer = self._inbox.get(timeout=60)
            if answer["type"] != "final":
                sys.exit(f"not answered: {answer}")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class _Written:
    kib = 0.0
    syncs: int | None = None


@contextmanager
def _writes() -> Iterator[_Written]:
    """Count what this process writes to files meanwhile."""
    written = _Written()
    program = shutil.which("strace")
    tracer = None
    with tempfile.NamedTemporaryFile() as trace:
        if program is not None:
            command = [program, "-f", "-e", "trace=fdatasync,fsync", "-o", trace.name, "-p", str(_pid())]
            tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(0.5)
        before = _write_bytes()
        yield written
        written.kib = (_write_bytes() - before) / 1024
        if tracer is not None:
            tracer.terminate()
            tracer.wait()
            lines = Path(trace.name).read_text(encoding="utf-8").splitlines()
            written.syncs = sum("sync(" in line for line in lines)


def _pid() -> int:
    return int(Path("/proc/self").resolve().name)


def _write_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


if __name__ == "__main__":
    main()
