"""Thousands of requests with every kind of wrong key and malformed header: none is answered."""

from __future__ import annotations

import http.client
import random
import socket
import string
from pathlib import Path

import pytest

from tests.daemon.access.served import Guarded, guarded

TARGETS = (
    "GET /v1/models",
    "GET /v1/models/tiny",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/messages",
    "POST /v1/responses",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/show",
    "GET /api/tags",
    "GET /metrics",
    "GET /metrics/",
    "GET //metrics",
    "GET /healthz/../metrics",
    "GET /healthz%2f..%2fmetrics",
    "GET /%2e%2e/metrics",
    "GET /METRICS",
    "GET /healthz;/metrics",
    "GET http://127.0.0.1/metrics",
    "HEAD /metrics",
    "OPTIONS /v1/models",
    "PUT /v1/models",
    "DELETE /api/delete",
)
REFUSED = {400, 401, 403, 429, 431}
BODY = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello"}'


class Intruder:
    """Sends raw requests over one connection after the other."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._socket: socket.socket | None = None

    def send(self, target: str, header: bytes) -> int:
        """Return the status; 0 if the connection was closed without one."""
        address = f"10.{self._chance.randrange(256)}.{self._chance.randrange(256)}.{self._chance.randrange(256)}"
        head = f"{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {address}\r\n".encode()
        data = head + header + b"\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        try:
            self._socket.sendall(data)
            response = http.client.HTTPResponse(self._socket, method=target.split(maxsplit=1)[0])
            response.begin()
            response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return 0
        if response.will_close:
            self.close()
        return response.status

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def forged(served: Guarded, chance: random.Random, right: str, foreign: str) -> bytes:
    """A header with a key that must not be accepted for inference or metrics."""
    alphabet = string.ascii_letters + string.digits + "-_"
    position = chance.randrange(3, len(right))
    changed = right[:position] + chance.choice(alphabet.replace(right[position], "")) + right[position + 1 :]
    (stored,) = (key.digest.hex() for key in served.access.keys.current().keys if key.name == "ann")
    secret = chance.choice(
        [
            "".join(chance.choices(alphabet, k=chance.randrange(80))),
            "ek-" + "".join(chance.choices(alphabet, k=43)),
            changed,
            right[:position],
            right[:-1],
            right + chance.choice(alphabet),
            right.swapcase(),
            right[::-1],
            f"{right},{right}",
            f"{right} {right}",
            stored,
            foreign,
            "null",
            "",
            "ann",
        ]
    ).encode()
    garbage = (
        bytes(chance.randrange(1, 256) for _ in range(chance.randrange(1, 40))).replace(b"\r", b"").replace(b"\n", b"")
    )
    name, value = chance.choice(
        [
            (b"Authorization", b"Bearer " + secret),
            (b"Authorization", b"bearer\t" + secret),
            (b"Authorization", b"Basic " + secret),
            (b"Authorization", b"Bearer Bearer " + right.encode()),
            (b"Authorization", b"Token " + right.encode()),
            (b"Authorization", secret),
            (b"Authorization", garbage),
            (b"Authorization", b"Bearer " + garbage),
            (b"Authorization", b"Bearer " + right.encode() + b"\x00"),
            (b"Authorization", b"Bearer " + b"A" * chance.choice([600, 20_000, 70_000])),
            (b"x-api-key", secret),
            (b"api-key", secret),
            (b"X-Api-Key", garbage),
            (b"Cookie", b"key=" + right.encode()),
            (b"Proxy-Authorization", b"Bearer " + right.encode()),
            (b"Authorization ", b"Bearer " + right.encode()),
            (b"Authorization", b"Bearer " + secret + b"\r\nAuthorization: Bearer " + secret),
        ]
    )
    return name + b": " + value


def intrude(folder: Path, count: int) -> dict[int, int]:
    chance = random.Random(7)  # noqa: S311  the same requests every time
    seen: dict[int, int] = {}
    with guarded(folder, trusted_proxies=("127.0.0.1",)) as served:
        right, foreign = served.add("ann"), served.add("admin", scopes=("admin",))
        assert served.ask(right).status_code == 200
        served.worker.played.clear()
        intruder = Intruder(served.server.port, chance)
        for number in range(count):
            target = chance.choice([one for one in TARGETS if one != "DELETE /api/delete"])
            header = forged(served, chance, right, foreign) if number % 20 else b"X-Nothing: here"
            status = intruder.send(target, header)
            assert status in REFUSED | {0}, (target, header, status)
            seen[status] = seen.get(status, 0) + 1
        intruder.close()
        assert not served.worker.played
        # It still answers.
        assert served.ask(right).status_code == 200
    return seen


def test_no_forged_key_gets_in(tmp_path: Path) -> None:
    seen = intrude(tmp_path, 600)
    assert min(seen.get(status, 0) for status in (400, 401, 403)) > 10


@pytest.mark.slow
def test_no_forged_key_of_ten_thousand_gets_in(tmp_path: Path) -> None:
    seen = intrude(tmp_path, 10_000)
    assert seen[401] > 5000
