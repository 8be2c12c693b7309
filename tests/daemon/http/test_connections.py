"""Limits on connections, with plain sockets: slow ones, many, and clients that do not read."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http import connections, events
from edgekit.daemon.http import server as server_module
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.types import Delta, TokenLogprob
from tests.daemon.http.conftest import ASK, MODEL
from tests.daemon.mqtt.conftest import eventually
from tests.daemon.mqtt.scripted import WORDS, Playing, ScriptedWorker, finish, speak

pytestmark = pytest.mark.serial
pytest_plugins = ("tests.serving",)

CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"

Start = Callable[..., HttpServer]


@pytest.fixture
def start(worker: ScriptedWorker) -> Iterator[Start]:
    running = []

    def begin(**config: Any) -> HttpServer:
        server = HttpServer(HttpConfig(port=0, **config), worker, MODEL, Metrics())  # type: ignore[arg-type]
        server.start()
        running.append(server)
        return server

    yield begin
    worker.stop()
    for server in running:
        server.stop()


@contextlib.contextmanager
def connected(server: HttpServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        yield client


def request(**fields: Any) -> bytes:
    body = json.dumps({**ASK, **fields}).encode()
    return f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body


def rest(client: socket.socket) -> bytes:
    """Everything until the server closes the connection, also by resetting it."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65_536):
            received += data
    return received


def answer(client: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next reply."""
    reply = http.client.HTTPResponse(client)
    reply.begin()
    return reply.status, reply.read()


def drip(client: socket.socket, data: bytes, every_s: float) -> float:
    """Send a byte at a time until the server closes the connection; returns how long that took."""
    began = time.monotonic()
    client.setblocking(False)  # noqa: FBT003
    for number in range(len(data)):
        try:
            client.send(data[number : number + 1])
            if client.recv(65_536, socket.MSG_PEEK) == b"" or number > 2000:
                break
        except BlockingIOError:
            time.sleep(every_s)
        else:
            break
    client.setblocking(True)  # noqa: FBT003
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"P", HEAD.encode()])
def test_headers_that_do_not_come_end_the_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    with connected(start()) as client:
        client.sendall(sent)
        began = time.monotonic()
        reply = rest(client)
        assert time.monotonic() - began < 9, "the limit is 10 s by default"
    assert reply.startswith(b"HTTP/1.1 408 ") if sent else reply == b""


def test_headers_that_come_byte_by_byte_end_the_connection(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    with connected(start()) as client:
        assert drip(client, HEAD.encode() + b"X-Slow: " + b"x" * 1000, 0.02) < 3
        assert rest(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("silent_s", "total_s"), [(0.5, 60.0), (60.0, 0.5)])
def test_a_body_that_comes_slowly_ends_the_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch, silent_s: float, total_s: float
) -> None:
    monkeypatch.setattr(connections, "BODY_SILENT_S", silent_s)
    monkeypatch.setattr(connections, "BODY_S", total_s)
    with connected(start()) as client:
        client.sendall(f"{HEAD}Content-Length: 5000\r\n\r\n".encode())
        if total_s < silent_s:
            assert drip(client, b" " * 5000, 0.02) < 3
        assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_takes_a_while_is_served(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of headers, which is short here, no longer counts once they are there."""
    monkeypatch.setattr(connections, "HEADER_S", 1.0)
    whole = request()
    with connected(start()) as client:
        for part in (whole[:-20], whole[-20:-10], whole[-10:]):
            client.sendall(part)
            time.sleep(0.7)
        assert answer(client)[0] == 200


def test_a_slow_answer_is_not_a_slow_client(
    start: Start, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEADER_S", "BODY_SILENT_S", "BODY_S", "STALLED_S"):
        monkeypatch.setattr(connections, name, 0.5)

    def slow(playing: Playing) -> None:
        playing.cancelled.wait(3)
        speak(playing)

    worker.script = slow
    with connected(start()) as client:
        for _ in range(2):
            client.sendall(request())
            assert answer(client)[0] == 200


@pytest.mark.parametrize("limits", [{"max_connections": 8}, {"max_connections_per_client": 8}])
def test_a_connection_too_many_is_refused_and_the_others_go_on(
    start: Start, limits: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    server = start(**limits)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(8)]
        for _ in range(20):
            with connected(server) as another:
                assert rest(another).startswith(b"HTTP/1.1 503 ")
        for client in clients:
            client.sendall(request())
            assert answer(client)[0] == 200
    assert caplog.text.count("refused a connection") == 1
    assert eventually(lambda: not server._connections._open)
    with connected(server) as client:
        client.sendall(request())
        assert answer(client)[0] == 200


def check_in(server: HttpServer, seconds: float) -> None:
    """Have the server's connections checked as if that much time had passed."""
    checked = threading.Event()

    def check() -> None:
        for one in [*server._connections._open]:
            one.check(time.monotonic() + seconds)
        checked.set()

    next(iter(server._connections._open)).loop.call_soon_threadsafe(check)
    assert checked.wait(20)


def test_an_idle_connection_is_kept_longer_than_clients_and_proxies_keep_theirs(start: Start) -> None:
    # httpx, Node.js, aiohttp, nginx and AWS's load balancers, Go.
    longest_pool_s = max(5, 5, 15, 60, 90)
    assert longest_pool_s < connections.KEEP_ALIVE_S
    server = start()
    with connected(server) as client:
        for _ in range(2):
            client.sendall(request())
            assert answer(client)[0] == 200
            check_in(server, longest_pool_s + 5)
        check_in(server, connections.KEEP_ALIVE_S + 1)
        assert rest(client) == b""
    with connected(server) as client:
        # One that has sent nothing yet does not have that time.
        assert eventually(lambda: len(server._connections._open) == 1)
        check_in(server, connections.HEADER_S + 1)
        assert rest(client) == b""


@pytest.mark.parametrize("limits", [{"max_connections": 8}, {"max_connections_per_client": 8}])
def test_the_connection_that_is_idle_longest_makes_room_for_another(start: Start, limits: dict[str, int]) -> None:
    server = start(**limits)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(8)]
        # The last two have not asked: they are not idle but slow.
        for client in clients[:6]:
            client.sendall(request())
            assert answer(client)[0] == 200
        for gone in clients[:6]:
            another = stack.enter_context(connected(server))
            another.sendall(request(stream=True))
            assert another.recv(12) == b"HTTP/1.1 200"
            assert rest(gone) == b""
            clients.append(another)
        for client in clients[6:8]:
            client.sendall(request())
            assert answer(client)[0] == 200


def test_a_connection_whose_reply_has_not_left_keeps_its_place_and_its_limit(
    start: Start, worker: ScriptedWorker
) -> None:
    def long(playing: Playing) -> None:
        playing.on_event(Delta(0, "x" * 8_000_000))
        playing.on_event(finish())

    worker.script = long
    server = start(max_connections_per_client=3)
    opened = server._connections._open
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(3)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(request())
        assert eventually(lambda: sum(one._awaiting for one in [*opened]) == 3)
        for _ in range(3):
            with connected(server) as another:
                assert rest(another).startswith(b"HTTP/1.1 503 ")
        # What is being read is not idle, however long that takes.
        check_in(server, 0)
        check_in(server, connections.STALLED_S - 5)
        assert len(opened) == 3
        assert not any(one.transport.is_closing() for one in opened)

        def closed() -> bool:
            if opened:
                check_in(server, connections.STALLED_S + 5)
            return not opened

        assert eventually(closed)


def test_what_is_not_http_is_logged_once_in_a_while(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start()
    for _ in range(20):
        with connected(server) as client:
            client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            assert rest(client).startswith(b"HTTP/1.1 400 ")
    assert caplog.text.count("Invalid HTTP request") <= 1


def test_bodies_being_received_are_limited_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_BODIES_BYTES", 0)
    server = start(max_body_bytes=2048)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(4)]
        for client in slow:
            client.sendall(f"{HEAD}Content-Length: 2000\r\n\r\n".encode() + b" " * 1999)
        assert eventually(lambda: server._bodies._used == 4 * 1999)
        with connected(server) as client:
            client.sendall(f"{HEAD}Content-Length: 2000\r\n\r\n".encode() + b" " * 1999)
            status, body = answer(client)
            assert (status, json.loads(body)["error"]["code"]) == (429, "overloaded")
        for client in slow:
            client.sendall(b" ")
            assert answer(client)[0] == 400
    with connected(server) as client:
        client.sendall(request())
        assert answer(client)[0] == 200


HOG = """
import os, resource, sys, threading, time
from edgekit.config import HttpConfig
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
import logging
logging.basicConfig(level="INFO")
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
server = HttpServer(HttpConfig(port=0), None, None, Metrics())
server.start()
files = []
try:
    while True:
        files.append(open(os.devnull))
except OSError:
    pass
print(server.port, flush=True)
time.sleep(4)
for file in files:
    file.close()
print("released", flush=True)
time.sleep(20)
"""


def test_without_file_descriptors_the_log_stays_short_and_the_server_recovers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", HOG], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=Path(__file__).parents[3]
        ) as daemon,
    ):
        try:
            assert daemon.stdout is not None
            port = int(daemon.stdout.readline())
            waiting = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(20)]
            assert daemon.stdout.readline() == "released\n"
            for client in waiting:
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert answer(client)[0] == 503, "no model: not ready"
                client.close()
        finally:
            daemon.kill()
    assert b"cannot accept connections" in log.read_bytes()
    assert log.stat().st_size < 4000


TOKEN = TokenLogprob(1, b"token", -1.0, top=tuple((number, b"alternative", -1.0) for number in range(20)))


def flood(playing: Playing) -> None:
    """Send 40,000 tokens with their alternatives, unless cancelled: 200 MB of JSON."""
    for seq in range(40_000):
        playing.on_event(Delta(seq, "token", logprobs=(TOKEN,)))
        if playing.cancelled.is_set():
            playing.on_event(finish("cancelled", seq))
            return
        if seq % 200 == 0:
            time.sleep(0.005)
    playing.on_event(finish())


def test_a_client_that_does_not_read_its_stream_fails_it_and_costs_little(start: Start, worker: ScriptedWorker) -> None:
    worker.script = flood
    server = start()
    with connected(server) as client:
        client.sendall(request(stream=True, logprobs=True, top_logprobs=20))
        assert eventually(lambda: bool(worker.played) and worker.played[0].cancelled.is_set())
        assert eventually(lambda: worker.queue_length() == 0)
        client.shutdown(socket.SHUT_WR)
        received = rest(client)
    assert b'"client_too_slow"' in received
    assert received.count(b"data: ") * event_size() < 2 * events.MAX_WAITING_BYTES + (8 << 20)


def event_size() -> int:
    """Memory of one of the flood's events, as the server estimates it."""
    return events._size(Delta(0, "token", logprobs=(TOKEN,)))


def test_a_client_that_reads_its_stream_gets_all_of_it(start: Start, worker: ScriptedWorker) -> None:
    def steady(playing: Playing) -> None:
        for seq in range(3000):
            playing.on_event(Delta(seq, "token ", logprobs=(TOKEN,)))
            if seq % 20 == 0:
                time.sleep(0.02)
        playing.on_event(finish())

    worker.script = steady
    url = f"{start().url}{CHAT}"
    with httpx.stream("POST", url, json={**ASK, "stream": True, "logprobs": True}, timeout=60) as reply:
        lines = [line for line in reply.iter_lines() if '"content":"token "' in line]
    assert len(lines) == 3000


def test_a_client_that_reads_nothing_for_long_is_disconnected(
    start: Start, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALLED_S", 1.0)

    def huge(playing: Playing) -> None:
        playing.on_event(Delta(0, "x" * 20_000_000))
        playing.on_event(finish())

    worker.script = huge
    server = start()
    with connected(server) as client:
        client.sendall(request())
        time.sleep(0.5)
        assert eventually(lambda: not server._connections._open)
        assert len(rest(client)) < 20_000_000


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_closed_its_sending_side_is_answered(
    start: Start, worker: ScriptedWorker, *, stream: bool
) -> None:
    def slow(playing: Playing) -> None:
        playing.cancelled.wait(2.5)
        speak(playing)

    worker.script = slow
    with connected(start()) as client:
        client.sendall(request(stream=stream))
        client.shutdown(socket.SHUT_WR)
        reply = rest(client)
    assert b"HTTP/1.1 200 " in reply
    assert WORDS[-1].encode() in reply or json.dumps(WORDS[-1])[1:-1].encode() in reply


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_closed_both_sides_cancels_its_request(
    start: Start, worker: ScriptedWorker, *, stream: bool
) -> None:
    def wait(playing: Playing) -> None:
        playing.cancelled.wait(20)
        playing.on_event(finish("cancelled"))

    worker.script = wait
    with connected(start()) as client:
        client.sendall(request(stream=stream))
        assert eventually(lambda: len(worker.played) == 1)
    assert eventually(worker.played[0].cancelled.is_set, 2.5 if stream else 0.9)
