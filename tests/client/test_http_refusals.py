"""Refusals of a daemon over HTTP: the hints name what a user of the command line can set."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.client import ask_http
from edgekit.errors import EdgekitError
from edgekit.generation.types import Message
from tests.daemon.access.served import guarded
from tests.daemon.http.test_tls import make


def refusal(url: str) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        list(ask_http(url, [Message("user", "Hi")]))
    return caught.value


def test_a_missing_and_a_wrong_key_name_the_variable_that_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(tmp_path) as served:
        for key, code in (("", "api_key_missing"), ("ek-wrong", "invalid_api_key")):
            monkeypatch.setenv("EDGEKIT_API_KEY", key)
            error = refusal(served.server.url)
            assert error.code == code
            assert "$EDGEKIT_API_KEY" in (error.hint or "")
        monkeypatch.setenv("EDGEKIT_API_KEY", served.add("ann"))
        assert list(ask_http(served.server.url, [Message("user", "Hi")]))


def test_an_untrusted_certificate_and_the_wrong_scheme_are_told_apart_from_a_daemon_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make(tmp_path, "one")
    with guarded(tmp_path, tls_certificate=certificate, tls_key=key) as served:
        monkeypatch.setenv("EDGEKIT_API_KEY", served.add("ann"))
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        error = refusal(served.server.url)
        assert "is not trusted" in error.message
        assert "$SSL_CERT_FILE" in (error.hint or "")
        error = refusal(served.server.url.replace("https:", "http:"))
        assert "https://" in (error.hint or ""), error
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert list(ask_http(served.server.url, [Message("user", "Hi")]))
    with guarded(tmp_path, keys=False, host="127.0.0.2", tls_certificate=certificate, tls_key=key) as served:
        error = refusal(served.server.url)
        assert "127.0.0.2" in error.message
        assert error.hint == "ask by a name or an address that the certificate has"
    with guarded(tmp_path, keys=False) as served:
        error = refusal(served.server.url.replace("http:", "https:"))
        assert "http://" in (error.hint or ""), error
