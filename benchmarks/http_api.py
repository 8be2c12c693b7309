"""What the HTTP API adds to the generation core: time, memory, start; and how many requests it takes.

    scripts/bench http_api [BUNDLE] [--rounds 60] [--tokens 64] [--streams 200] [--starts 5]

The same requests are answered in turn by `edgekit.load` in this process and by a daemon over an open HTTP connection.
Each answer's `timings` say how long the core took for it, so what each way adds is known for every request, and the
speed of the model cancels out. BUNDLE's default is SmolLM2-135M; requests per second are those of a tiny model with
random weights, whose answers take hardly any time. Processor time stands beside each time: on a busy machine it says
more. The daemon runs from compiled modules, as pip installs it, whatever PYTHONDONTWRITEBYTECODE says here. Linux only:
memory is read from /proc.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from inputs.bundles import exported, tiny_bundle
from load.daemon import Daemon, free_port
from quick import parse

import edgekit

_PROMPT = "Write a long story about a lighthouse."
_CLIENTS = 8
_MIB = 1 << 20
# What is to be reached with SmolLM2-135M: label, unit and maximum.
_AIMS = {"request": ("added to the first token", "ms", 1.0), "start": ("start to ready", "s", 0.5)}
_AIMS["memory"] = ("memory beside the weights", "MiB", 100.0)
# The daemon prepares grammars once it is ready, and trims its memory.
_SETTLED_S = 15.0


@dataclass(frozen=True)
class Added:
    """What one way of asking added to the core's own time for one answer.

    Attributes:
        first_ms: Until the first token.
        token_ms: For each further token.
    """

    first_ms: float
    token_ms: float


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=60, help="streamed answers each way")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--streams", type=int, default=200, help="open connections and streams that wait")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="time to count requests for")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the bundle")
    options = parse(parser, {"rounds": 2, "tokens": 4, "streams": 10, "starts": 1, "seconds": 0.5})
    if not sys.platform.startswith("linux"):
        sys.exit("error: this benchmark reads /proc, which only Linux has")
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        tiny = tiny_bundle(folder, "onnx")
        bundle = options.bundle or (tiny if options.quick else exported(options.work))
        _measure(bundle, tiny, folder, options)


def _measure(bundle: Path, tiny: Path, folder: Path, options: argparse.Namespace) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    reached: dict[str, float] = {}
    _start(bundle, folder)  # compiles the modules, and checks the files
    starts = [_start(bundle, folder) for _ in range(options.starts)]
    wall, cpu = (statistics.median(column) for column in zip(*starts, strict=True))
    reached["start"] = wall
    print(f"start to ready                {wall:8.2f} s, {cpu:.2f} s of processor time")
    with _daemon(bundle, folder) as daemon:
        over_http, in_process = _compare(daemon, bundle, options)
        for label, value in (
            ("time to first token", lambda one: one.first_ms),
            ("time of a further token", lambda one: one.token_ms),
        ):
            ours, base = (statistics.median(map(value, ways)) for ways in (over_http, in_process))
            print(f"{label:<30}{ours:8.2f} ms over HTTP, {base:.2f} in process: {ours - base:+.2f}")
            reached.setdefault("request", ours - base)
    with _daemon(bundle, folder) as daemon:
        reached["memory"] = _show_memory(daemon, bundle, options)
    with _daemon(tiny, folder) as daemon:
        for label, streamed in (("complete", False), ("streamed", True)):
            rate, cpu_ms = _rate(daemon, options.seconds, stream=streamed)
            print(
                f"trivial requests, {label:<12}{rate:8.0f} /s from {_CLIENTS} connections; {cpu_ms:.2f} ms of processor"
            )
    for name, (label, unit, aim) in _AIMS.items():
        verdict = "met" if reached[name] <= aim else "missed"
        print(f"aim: {label:<25}{reached[name]:8.2f} {unit}, aim {aim:g}: {verdict}")


@contextmanager
def _daemon(bundle: Path, folder: Path, *options: str) -> Iterator[Daemon]:
    config = folder / "edgekit.yaml"
    config.write_text("generation: {max_queue: 1000}\nhttp: {max_connections_per_client: 1024}\n", encoding="utf-8")
    daemon = Daemon(bundle, config, folder, broker=None, options=list(options))
    try:
        yield daemon
    finally:
        daemon.stop()


def _start(bundle: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds from starting the program until it accepts requests, and those of processor time."""
    port = free_port()
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--port", str(port)]
    started = time.monotonic()
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while not _ready(port):
            if process.poll() is not None:
                sys.exit(f"the daemon ended with {process.returncode}: {(folder / 'start.log').read_text()}")
            time.sleep(0.005)
        return time.monotonic() - started, _cpu_s(process.pid)
    finally:
        process.terminate()
        process.wait()


def _cpu_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _compare(daemon: Daemon, bundle: Path, options: argparse.Namespace) -> tuple[list[Added], list[Added]]:
    """Answer the same requests both ways, in turn."""
    over_http: list[Added] = []
    in_process: list[Added] = []
    cpu_s = [0.0, 0.0]
    with edgekit.load(bundle) as model:
        ways: tuple[tuple[list[Added], Callable[[str, int], Added]], ...] = (
            (over_http, partial(_over_http, daemon)),
            (in_process, partial(_in_process, model)),
        )
        for index in range(options.rounds + 1):
            for found, ask in ways if index % 2 else ways[::-1]:
                pid = daemon.pid if found is over_http else os.getpid()
                used = _cpu_s(pid)
                added = ask(f"{_PROMPT} Chapter {index}.", options.tokens)
                if index:  # the first one loads the weights
                    found.append(added)
                    cpu_s[found is in_process] += _cpu_s(pid) - used
    ours, base = (total * 1e3 / max(1, options.rounds) for total in cpu_s)
    ratio = f": {ours / base:.2f} times" if base else ""
    print(f"processor time of an answer   {ours:8.1f} ms in the daemon, {base:.1f} in process{ratio}")
    return over_http, in_process


def _over_http(daemon: Daemon, question: str, tokens: int) -> Added:
    # Opened anew: the daemon closes connections on which nothing is asked for seconds.
    connection = _Connection(daemon)
    try:
        return connection.added(question, tokens)
    finally:
        connection.close()


def _in_process(model: edgekit.Model, question: str, tokens: int) -> Added:
    started = time.perf_counter()
    first = 0.0
    stream = model.chat(question, max_tokens=tokens, stream=True, speculation=False)
    for _ in stream:
        first = first or time.perf_counter()
    ended = time.perf_counter()
    reply = stream.reply()
    timings, count = reply.timings, reply.usage.completion_tokens
    first_s = timings.queue_s + timings.prefill_s
    return _added(first - started - first_s, ended - first - timings.decode_s, count)


def _added(first_s: float, rest_s: float, tokens: int) -> Added:
    return Added(first_s * 1e3, rest_s * 1e3 / max(1, tokens - 1))


class _Connection:
    """An open connection; the client does as little as it can."""

    def __init__(self, daemon: Daemon) -> None:
        host, port = daemon.url.removeprefix("http://").split(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=120)
        self._http.connect()

    def added(self, question: str, tokens: int) -> Added:
        """Stream an answer."""
        body = {"stream": True, "max_tokens": tokens, "speculation": False}
        started = time.perf_counter()
        self.ask({"messages": [{"role": "user", "content": question}], **body})
        first, last = 0.0, b""
        for line in self.response:
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter()
            if line.startswith(b"data: {"):
                last = line
        ended = time.perf_counter()
        chunk = json.loads(last.removeprefix(b"data: "))
        timings = chunk["timings"]
        count = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
        first = first or ended
        return _added(first - started - timings["first_token_s"], ended - first - timings["decode_s"], count)

    def ask(self, body: dict[str, Any]) -> None:
        """Send a request and read the reply's head into `response`."""
        data = json.dumps(body)
        self._http.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
        self.response = self._http.getresponse()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def _show_memory(daemon: Daemon, bundle: Path, options: argparse.Namespace) -> float:
    """Print the memory beside the weights, in MiB: ready, after one answer, and with streams that wait.

    Returns:
        That after an answer.
    """
    weights = sum(path.stat().st_size for path in bundle.glob("model.*"))
    process = psutil.Process(daemon.pid)

    def beside() -> float:
        # Resident, not proportional: on a device no other process shares the libraries.
        return float(process.memory_info().rss - weights) / _MIB

    time.sleep(0.0 if options.quick else _SETTLED_S)
    ready = beside()
    _over_http(daemon, _PROMPT, 16)
    answered = beside()
    print(f"memory beside the weights     {ready:8.0f} MiB ready, {answered:.0f} after an answer")
    waiting = [_Connection(daemon) for _ in range(options.streams)]
    body = {"messages": [{"role": "user", "content": _PROMPT}], "stream": True, "max_tokens": 2}
    for connection in waiting:
        connection.ask({**body, "max_tokens": 200})
    opened = beside()
    for connection in waiting:
        connection.close()
    each = (opened - answered) * 1024 / max(1, options.streams)
    label = f"{options.streams} open streams"
    print(f"{label:<30}{opened:8.0f} MiB, {each:.0f} KiB each")
    return answered


def _rate(daemon: Daemon, seconds: float, *, stream: bool) -> tuple[float, float]:
    """Return the requests per second that the daemon answers with one token, and its processor time for one, in ms."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": stream}
    counts = [0] * _CLIENTS
    until = time.monotonic() + seconds

    def ask(index: int) -> None:
        connection = _Connection(daemon)
        while time.monotonic() < until:
            connection.ask(body)
            connection.response.read()
            counts[index] += 1

    before = _cpu_s(daemon.pid)
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds, (_cpu_s(daemon.pid) - before) * 1e3 / max(1, sum(counts))


if __name__ == "__main__":
    main()
