"""No text from outside forges a log line or reaches a terminal as an escape sequence."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from edgekit.daemon.log_format import LogFormatter
from edgekit.daemon.notify import Notifier
from tests.conftest import edgekit, edgekit_command
from tests.daemon.manager import Manager
from tests.generation.bundles import tiny_bundle

HOSTILE = [
    "a\nERROR forged",
    "a\r\nb",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x08\x7f",
    "\x9b31m",
    "\u2028\u2029\u0085",
    "\u202e reversed",
    "\udcff",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("with_time", [False, True])
def test_a_record_is_one_printable_line_and_nothing_is_dropped(text: str, with_time: bool) -> None:
    record = logging.LogRecord("edgekit", logging.INFO, "", 1, "loading %s now", (text,), None)
    line = LogFormatter(with_time=with_time).format(record)
    assert line.isprintable()
    assert line.endswith(" now")
    escaped = re.search("loading (.*) now", line)
    assert escaped is not None
    assert escaped[1].encode("ascii", "replace").decode("unicode_escape") == text


def test_plain_text_in_any_script_stays_as_it_is() -> None:
    record = logging.LogRecord("edgekit", logging.INFO, "", 1, "serving 日本 grüße 👩", (), None)
    assert LogFormatter(with_time=False).format(record) == "INFO edgekit: serving 日本 grüße 👩"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_traceback_keeps_its_lines_and_its_message_is_escaped(text: str) -> None:
    record = logging.LogRecord("edgekit", logging.ERROR, "", 1, "failed", (), (ValueError, ValueError(text), None))
    first, *rest = LogFormatter(with_time=False).format(record).split("\n")
    assert first == "ERROR edgekit: failed"
    assert rest
    assert all(line.isprintable() and line.startswith("  ") for line in rest)


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_the_service_managers_status_is_one_printable_line(text: str, tmp_path: Path) -> None:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        Notifier({"NOTIFY_SOCKET": manager.name}).status(f"loading {text}")
        received = manager.receive()
    assert received.startswith("STATUS=loading")
    assert received.isprintable()


def test_a_daemon_whose_bundle_has_a_hostile_path_logs_only_lines_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "x\n2026-01-01 00:00:00,000 ERROR forged\x1b[31m"
    folder.mkdir()
    bundle = tiny_bundle(folder, "onnx")
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        process = subprocess.Popen(
            edgekit_command("serve", bundle, "--port", "0", "--threads", "1"),
            env={**os.environ, "NOTIFY_SOCKET": manager.name},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while "READY=1" not in manager.receive().splitlines():
                pass
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "forged" in log
    assert "\x1b" not in log
    assert not any("ERROR" in line.split(maxsplit=3)[2] for line in log.splitlines())


def test_an_error_of_the_command_line_is_escaped_too(tmp_path: Path) -> None:
    done = edgekit("serve", tmp_path, "--config", tmp_path / "a\x1b[31m\nb.yaml", check=False)
    assert "\x1b" not in done.stderr
    done = edgekit("ask", "Hi", "--ca-file", "no\x1b[31m", check=False)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
