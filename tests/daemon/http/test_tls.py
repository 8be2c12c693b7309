"""HTTPS, with certificates that openssl makes here, and their replacement while the server runs."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from edgekit.errors import ConfigError
from tests.daemon.access.served import ASK, CHAT, guarded
from tests.daemon.http.conftest import MODEL
from tests.daemon.mqtt.conftest import eventually
from tests.daemon.mqtt.scripted import WORDS


def make(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def common_name(port: int, *, server_name: str | None = "localhost") -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as wrapped,
    ):
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    shown = subprocess.run(
        ["openssl", "x509", "-inform", "der", "-noout", "-subject"], input=der, capture_output=True, check=True
    )
    return shown.stdout.decode().rpartition("CN")[2].strip(" =\n")


def test_openais_client_asks_over_https_and_a_stream_ends_as_without(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "one")
    context = ssl.create_default_context(cafile=certificate)
    with guarded(tmp_path, tls_certificate=certificate, tls_key=key) as served:
        assert served.server.url.startswith("https://127.0.0.1:")
        secret = served.add("ann")
        with (
            openai.DefaultHttpxClient(verify=context) as http,
            openai.OpenAI(
                base_url=f"{served.server.url}/v1", api_key=secret, max_retries=0, http_client=http
            ) as client,
        ):
            chunks = client.chat.completions.create(
                model=MODEL.name, messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == "".join(WORDS)
        # Plain HTTP is no request.
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{served.server.port}/healthz", timeout=20)


def test_nothing_below_tls_1_2_is_spoken(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "one")
    with guarded(tmp_path, tls_certificate=certificate, tls_key=key) as served:
        for flag, works in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
            done = subprocess.run(
                [
                    "openssl",
                    "s_client",
                    "-connect",
                    f"127.0.0.1:{served.server.port}",
                    flag,
                    "-cipher",
                    "ALL:@SECLEVEL=0",
                ],
                input=b"",
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert (b"Cipher is (NONE)" not in done.stdout and b"BEGIN CERTIFICATE" in done.stdout) == works, flag


def test_a_reloaded_certificate_is_used_for_new_connections_and_open_ones_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    certificate, key = make(tmp_path, "one")
    make(tmp_path, "two")
    with guarded(tmp_path, tls_certificate=certificate, tls_key=key) as served:
        secret = served.add("ann")
        with httpx.Client(
            base_url=served.server.url, verify=ssl.create_default_context(cafile=certificate)
        ) as open_one:
            assert open_one.get("/healthz").status_code == 200
            assert common_name(served.server.port) == "one"
            certificate.write_bytes((tmp_path / "two.crt").read_bytes())
            # A certificate whose key has not been replaced yet.
            served.server.reload()
            assert "stays in use" in caplog.text
            assert [common_name(served.server.port, server_name=name) for name in ("localhost", None)] == ["one", "one"]
            key.write_bytes((tmp_path / "two.key").read_bytes())
            served.server.reload()
            # With a server name, and without one, as clients send none for an address.
            assert [common_name(served.server.port, server_name=name) for name in ("localhost", None)] == ["two", "two"]
            key.write_text("nonsense")
            served.server.reload()
            assert common_name(served.server.port) == "two"
            key.unlink()
            served.server.reload()
            assert common_name(served.server.port) == "two"
            assert open_one.post(CHAT, json=ASK, headers={"api-key": secret}).status_code == 200
    assert "Traceback" not in caplog.text


def test_a_client_that_closes_its_half_is_answered_or_dropped_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make(tmp_path, "one")
    context = ssl.create_default_context(cafile=certificate)
    with guarded(tmp_path, tls_certificate=certificate, tls_key=key) as served:
        with (
            socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wrapped.shutdown(socket.SHUT_WR)
        assert httpx.get(f"{served.server.url}/healthz", verify=context).status_code == 200
    assert "eof_received" not in caplog.text


@pytest.mark.parametrize("broken", ["missing", "swapped", "half", "password", "folder"])
def test_a_certificate_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, broken: str) -> None:
    certificate, key = make(tmp_path, "one")
    if broken == "missing":
        certificate = tmp_path / "no.crt"
    elif broken == "swapped":
        key = make(tmp_path, "two")[1]
    elif broken == "half":
        certificate.write_text(certificate.read_text()[:200])
    elif broken == "folder":
        key = tmp_path
    else:
        locked = tmp_path / "locked.key"
        command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)]
        subprocess.run(command, check=True, capture_output=True)
        key = locked
    with (
        pytest.raises(ConfigError, match="cannot use the certificate") as caught,
        guarded(tmp_path, tls_certificate=certificate, tls_key=key),
    ):
        pass
    assert "tls_key" in str(caught.value.hint)


def test_a_certificate_without_a_key_is_a_configuration_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="need each other"),
        guarded(tmp_path, tls_certificate=make(tmp_path, "one")[0]),
    ):
        pass


def encrypted(port: int, address: str = "127.0.0.1") -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))
    return context.wrap_socket(raw, server_hostname="localhost")


@pytest.mark.parametrize("limits", [{"max_connections": 8}, {"max_connections_per_client": 8}])
def test_handshakes_count_as_connections_and_the_longest_makes_room(tmp_path: Path, limits: dict[str, Any]) -> None:
    certificate, key = make(tmp_path, "one")
    with (
        guarded(tmp_path, tls_certificate=certificate, tls_key=key, **limits) as served,
        contextlib.ExitStack() as stack,
    ):
        port, handshakes = served.server.port, served.server._connections._handshakes
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(8)]
        assert eventually(lambda: len(handshakes) == 8)
        for number in range(4):
            with encrypted(port) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"
            if not number:
                assert silent[0].recv(1) == b""
            # Far more than there are places.
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            assert eventually(lambda: len(handshakes) == 8)


def test_a_refused_connection_does_not_wait_for_the_end_of_tls(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "one")
    with (
        guarded(tmp_path, tls_certificate=certificate, tls_key=key, max_connections_per_client=1) as served,
        encrypted(served.server.port) as first,
    ):
        assert eventually(lambda: len(served.server._connections._open) == 1)
        with encrypted(served.server.port) as second:
            assert second.recv(12) == b"HTTP/1.1 503"
            while second.recv(1000):
                pass
            # It is closed although this side has not agreed.
            with socket.socket(fileno=second.detach()) as raw:
                raw.settimeout(20)
                assert raw.recv(1000) == b""
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(15) == b"HTTP/1.1 200 OK"
