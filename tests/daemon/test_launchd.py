from __future__ import annotations

import pytest

from edgekit.daemon.launchd import is_launchd_job


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"XPC_SERVICE_NAME": "io.edgekit.daemon"}, True),
        ({"XPC_SERVICE_NAME": "0"}, False),
        ({"XPC_SERVICE_NAME": ""}, False),
        ({"XPC_SERVICE_NAME": "application.com.apple.Terminal.1152921500"}, False),
        ({}, False),
    ],
)
def test_a_program_in_a_macs_terminal_is_no_launchd_job(env: dict[str, str], expected: bool) -> None:
    assert is_launchd_job(env, "Darwin") is expected
    assert is_launchd_job(env, "Linux") is False


def test_this_process_and_system_are_asked_unless_others_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPC_SERVICE_NAME", "io.edgekit.daemon")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert not is_launchd_job()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert is_launchd_job()
    assert not is_launchd_job({})
