from __future__ import annotations

import os
import plistlib
import time
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, EdgekitError
from edgekit.service import launchd
from edgekit.service.launchd import LABEL, job_state, load_job, plist_path, render_plist
from edgekit.service.spec import ServiceSpec
from tests.conftest import edgekit

PROGRAM = Path("/opt/my & <tools>/edgekit")


def test_the_job_is_restarted_after_a_crash_and_not_after_a_clean_exit() -> None:
    job = plistlib.loads(render_plist(ServiceSpec(PROGRAM, scope="user")).encode())
    assert job["Label"] == LABEL
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ThrottleInterval"] >= 10
    assert job["ExitTimeOut"] > 20
    assert job["Umask"] == 0o077
    assert "UserName" not in job


def test_paths_survive_the_round_trip_through_xml() -> None:
    spec = ServiceSpec(PROGRAM, bundle=Path("/a b/%h/$HOME"), config=Path("/ü.yaml"), scope="user")
    job = plistlib.loads(render_plist(spec).encode())
    assert job["ProgramArguments"] == [str(PROGRAM), "serve", "/a b/%h/$HOME", "--config", "/ü.yaml"]


def test_a_system_job_runs_as_the_given_account_and_never_as_root() -> None:
    job = plistlib.loads(render_plist(ServiceSpec(PROGRAM, run_as="alice")).encode())
    assert job["UserName"] == "alice"
    with pytest.raises(ConfigError, match="needs an account"):
        render_plist(ServiceSpec(PROGRAM))


def test_the_property_list_is_where_launchd_looks_for_it() -> None:
    assert plist_path("system", None) == Path("/Library/LaunchDaemons/io.edgekit.daemon.plist")
    assert plist_path("user", None) == Path.home() / "Library/LaunchAgents/io.edgekit.daemon.plist"


def test_the_output_of_launchctl_print_is_parsed() -> None:
    printed = (
        "system/io.edgekit.daemon = {\n\tactive count = 1\n\tpath = /Library/LaunchDaemons/io.edgekit.daemon.plist\n"
        "\tstate = running\n\n\tpid = 4711\n\tlast exit code = 1\n\tendpoints = {\n\t\tstate = other\n\t}\n}\n"
    )
    assert job_state(printed) == ("running", 4711, "1")
    assert job_state("gui/501/io.edgekit.daemon = {\n\tstate = not running\n\tlast exit code = (never exited)\n}") == (
        "not running", None, "(never exited)",
    )  # fmt: skip
    assert job_state("") == ("unknown", None, None)


# Stands in for launchctl, which only a Mac has: the old job drains for a while, and a new one is refused meanwhile.
LAUNCHCTL = """#!/bin/sh
cd {folder}
echo "$@" >> calls
drains() {{ [ -e draining ] && [ "$(cat draining)" -gt 0 ]; }}
case "$1" in
bootout) [ -e loaded ] || {{ echo "Boot-out failed: 3: No such process" >&2; exit 3; }}
  echo "Boot-out failed: 36: Operation now in progress" >&2; exit 36;;
print) [ -e loaded ] || exit 113
  if drains; then echo $(($(cat draining) - 1)) > draining; else rm loaded; fi;;
bootstrap) [ -e loaded ] && {{ echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }}
  [ -e broken ] && {{ echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }}
  touch started;;
esac
"""


@pytest.fixture
def launchctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "launchctl"
    program.write_text(LAUNCHCTL.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (tmp_path / "job.plist").write_text(render_plist(ServiceSpec(PROGRAM, scope="user")))
    return folder


def test_a_job_that_still_drains_is_waited_for_before_it_is_replaced(launchctl: Path, tmp_path: Path) -> None:
    (launchctl / "loaded").touch()
    (launchctl / "draining").write_text("5")
    load_job("user", tmp_path / "job.plist", pause_s=0.01)
    assert (launchctl / "started").exists()
    calls = [line.split()[0] for line in (launchctl / "calls").read_text().splitlines()]
    assert calls == ["bootout", *["print"] * 7, "bootstrap"]


def test_the_wait_is_longer_than_the_job_may_take_to_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = tmp_path / "job.plist"
    job.write_text(render_plist(ServiceSpec(PROGRAM, scope="user")))
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(launchd, "launchctl", lambda *_: "")
    load_job("user", job)
    assert now > plistlib.loads(job.read_bytes())["ExitTimeOut"]


def test_a_job_that_launchd_refuses_for_good_is_an_error(
    launchctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (launchctl / "broken").touch()
    monkeypatch.setattr(launchd, "_RESERVE_S", 0.1)
    with pytest.raises(EdgekitError, match="Input/output error"):
        load_job("user", tmp_path / "job.plist", pause_s=0.01)


def test_after_a_wrong_configuration_launchd_does_not_restart_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its KeepAlive restarts after every status but 0."""
    (tmp_path / "edgekit.yaml").write_text("htpp: {}\n")
    arguments = ("serve", tmp_path, "--config", tmp_path / "edgekit.yaml")
    assert edgekit(*arguments, check=False).returncode == 2
    monkeypatch.setattr("edgekit.cli.serve.is_launchd_job", lambda: True)
    done = edgekit(*arguments, check=False)
    assert done.returncode == 0
    assert "unknown key `htpp`" in done.stderr
