from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.service.launchd import LABEL, job_state, plist_path, render_plist
from edgekit.service.spec import ServiceSpec

PROGRAM = Path("/opt/my & <tools>/edgekit")


def test_the_job_is_restarted_after_a_crash_and_left_alone_after_a_clean_end() -> None:
    job = plistlib.loads(render_plist(ServiceSpec(PROGRAM, scope="user")).encode())
    assert job["Label"] == LABEL
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ThrottleInterval"] >= 10
    assert job["ExitTimeOut"] > 20
    assert job["Umask"] == 0o077
    assert "UserName" not in job


def test_paths_are_written_as_xml_and_come_back_as_they_were() -> None:
    spec = ServiceSpec(PROGRAM, bundle=Path("/a b/%h/$HOME"), config=Path("/ü.yaml"), scope="user")
    job = plistlib.loads(render_plist(spec).encode())
    assert job["ProgramArguments"] == [str(PROGRAM), "serve", "/a b/%h/$HOME", "--config", "/ü.yaml"]


def test_a_system_job_runs_under_the_account_it_is_given_and_never_as_root() -> None:
    job = plistlib.loads(render_plist(ServiceSpec(PROGRAM, run_as="alice")).encode())
    assert job["UserName"] == "alice"
    with pytest.raises(ConfigError, match="needs an account"):
        render_plist(ServiceSpec(PROGRAM))


def test_the_job_lies_where_launchd_looks() -> None:
    assert plist_path("system", None) == Path("/Library/LaunchDaemons/io.edgekit.daemon.plist")
    assert plist_path("user", None) == Path.home() / "Library/LaunchAgents/io.edgekit.daemon.plist"


def test_what_launchctl_prints_is_read() -> None:
    printed = (
        "system/io.edgekit.daemon = {\n\tactive count = 1\n\tpath = /Library/LaunchDaemons/io.edgekit.daemon.plist\n"
        "\tstate = running\n\n\tpid = 4711\n\tlast exit code = 1\n\tendpoints = {\n\t\tstate = other\n\t}\n}\n"
    )
    assert job_state(printed) == ("running", 4711, "1")
    assert job_state("gui/501/io.edgekit.daemon = {\n\tstate = not running\n\tlast exit code = (never exited)\n}") == (
        "not running", None, "(never exited)",
    )  # fmt: skip
    assert job_state("") == ("unknown", None, None)
