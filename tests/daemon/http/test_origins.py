"""Web pages that may send requests, and what browsers are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit.config import DEFAULT_ORIGINS, HttpConfig
from edgekit.daemon.http.origins import origin_pattern
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.errors import ConfigError
from tests.daemon.access.served import ASK, CHAT, guarded

DEFAULT = re.compile(f"(?i:{origin_pattern(DEFAULT_ORIGINS)})")


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://0.0.0.0:80",
        "http://[::1]:5173",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://1fbjq2ldnbgq0v0l5f4bm6tcq8g0",
        "vscode-file://vscode-app",
        "HTTP://LOCALHOST:3000",
    ],
)
def test_pages_of_this_machine_and_of_desktop_programs_are_allowed(origin: str) -> None:
    assert DEFAULT.fullmatch(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://localhost.evil.example",
        "http://localhost:3000.evil.example",
        "http://localhost:",
        "http://localhost:3000/",
        "http://localhost@evil.example",
        "http://127.0.0.1.nip.io",
        "http://127x0x0x1",
        "https://evil.example",
        "https://evil.example#http://localhost",
        "http://evil.example/app://x",
        "chrome-extension://abc",
        "ftp://localhost",
        "xapp://obsidian.md",
        "app:obsidian",
        "app://a/b",
        "http://[::1]x",
    ],
)
def test_other_pages_are_not(origin: str) -> None:
    assert not DEFAULT.fullmatch(origin)


def test_wildcards_stand_for_subdomains_ports_and_schemes_only() -> None:
    pattern = re.compile(origin_pattern(("https://*.example.com", "http://a.b:8080", "moz-extension://*")))
    for origin in ("https://a.example.com", "https://a.b.example.com", "http://a.b:8080", "moz-extension://1-2"):
        assert pattern.fullmatch(origin), origin
    for origin in (
        "https://example.com",
        "https://xexample.com",
        "https://a.example.com:1",
        "http://a.b",
        "http://axb:8080",
    ):
        assert not pattern.fullmatch(origin), origin
    assert re.fullmatch(origin_pattern(("*",)), "https://any.example")
    assert re.fullmatch(origin_pattern(("null",)), "null")
    assert not re.fullmatch(origin_pattern(()), "")


@pytest.mark.parametrize(
    "origin", ["localhost", "https://", "https://a b", "https://a/b", "https://a.*.b", "http://a:x", "(", ""]
)
def test_what_is_no_origin_is_a_configuration_error(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins") as caught:
        HttpServer(HttpConfig(allowed_origins=(origin,)), None, None, Metrics())
    assert caught.value.hint


def test_a_preflight_is_answered_without_a_key_and_the_reply_can_be_read(tmp_path: Path) -> None:
    with guarded(tmp_path) as served:
        asks = {
            "Origin": "app://obsidian.md",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
            "Access-Control-Request-Private-Network": "true",
        }
        preflight = served.http.options(CHAT, headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "app://obsidian.md"
        assert preflight.headers["access-control-allow-headers"] == asks["Access-Control-Request-Headers"]
        assert preflight.headers["access-control-allow-private-network"] == "true"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in preflight.headers
        secret = served.add("ann")
        for stream in (False, True):
            reply = served.ask(secret, body={**ASK, "stream": stream}, Origin="app://obsidian.md")
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "app://obsidian.md")
            assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
            assert "Origin" in reply.headers["vary"]
        # A page can read why it was refused.
        refused = served.ask("wrong", Origin="http://localhost:3000")
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://localhost:3000")
        foreign = served.http.options(CHAT, headers={**asks, "Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in foreign.headers
        # Without a method it is no preflight, and needs a key.
        assert served.http.options(CHAT, headers={"Origin": "app://obsidian.md"}).status_code == 401


def test_a_rebound_name_is_refused_whatever_its_origin(tmp_path: Path) -> None:
    with guarded(tmp_path, keys=False) as served:
        for origin in ("http://evil.example", "http://localhost:3000", "app://x"):
            response = served.http.get("/v1/models", headers={"Host": "evil.example", "Origin": origin})
            assert response.json()["error"]["code"] == "host_not_allowed"


def test_a_list_of_ones_own_takes_the_place_of_the_default(tmp_path: Path) -> None:
    with guarded(tmp_path, keys=False, allowed_origins=("https://chat.example",)) as served:
        got = {
            origin: served.http.get("/v1/models", headers={"Origin": origin}).status_code
            for origin in ("https://chat.example", "http://localhost:3000", served.server.url)
        }
        assert list(got.values()) == [200, 403, 200]
