"""The Unix socket, through httpx."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit.client import ask_http, describe_http
from edgekit.errors import ConfigError, EdgekitError
from edgekit.generation.types import Delta, Message
from tests.daemon.access.served import guarded
from tests.daemon.http.conftest import MODEL
from tests.daemon.http.test_tls import make
from tests.daemon.mqtt.scripted import WORDS


def get(path: Path, url: str = "http://localhost/v1/models", **headers: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get(url, headers=headers)


def test_httpx_asks_over_the_socket_beside_the_port(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with guarded(tmp_path, keys=False, socket=path, socket_mode="0600", trusted_proxies=("10.0.0.1",)) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert get(path).json()["data"][0]["id"] == MODEL.name
        # No name can be rebound to a socket.
        assert get(path, "http://edgekit/v1/models").status_code == 200
        assert get(path, Origin="https://evil.example").status_code == 403
        assert served.http.get("/v1/models").status_code == 200
        # Keys hold here too.
        secret = served.add("ann")
        assert get(path).status_code == 401
        assert get(path, Authorization=f"Bearer {secret}").status_code == 200
    assert not path.exists()


def test_the_socket_may_be_the_only_way_in_and_is_not_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    certificate, key = make(tmp_path, "one")
    tls: dict[str, Any] = {"tls_certificate": certificate, "tls_key": key}
    with guarded(tmp_path, keys=False, tcp=False, host="0.0.0.0", socket=path, **tls):  # noqa: S104  not bound
        assert get(path, "http://localhost/healthz").text == "ok\n"
        assert describe_http(f"unix:{path}")["id"] == MODEL.name
        events = ask_http(f"unix:{path}", [Message("user", "Hello")])
        assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(WORDS)


def test_a_socket_left_behind_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.is_socket()
    with guarded(tmp_path, keys=False, socket=path):
        assert get(path).status_code == 200


def test_what_is_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not a socket"), guarded(tmp_path, keys=False, socket=path):
        pass
    assert path.read_text() == "mine"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(EdgekitError, match="another program") as caught, guarded(tmp_path, keys=False, socket=path):
            pass
    assert (caught.value.code, path.is_socket()) == ("address_unavailable", True)


def test_a_daemon_that_stops_leaves_the_socket_of_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    (tmp_path / "second").mkdir()
    with contextlib.ExitStack() as first:
        first.enter_context(guarded(tmp_path, keys=False, socket=path))
        path.unlink()
        with guarded(tmp_path / "second", keys=False, socket=path):
            first.close()
            assert get(path).status_code == 200
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "says"),
    [("x" * 120, "longer than"), ("no/such/folder/http.sock", "cannot listen"), ("file/http.sock", "cannot listen")],
)
def test_a_path_that_cannot_be_a_socket_is_one_line_and_a_hint(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgekitError, match=says) as caught, guarded(tmp_path, keys=False, socket=tmp_path / path):
        pass
    assert caught.value.hint


def test_without_port_and_socket_there_is_nothing_to_listen_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http\.socket"), guarded(tmp_path, keys=False, tcp=False):
        pass
