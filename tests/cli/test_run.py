"""`edgekit run` while it loads, in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.generation.types import Delta
from tests.conftest import edgekit, edgekit_command
from tests.daemon.mqtt.scripted import Playing, ScriptedWorker, finish
from tests.generation.bundles import seal, tiny_bundle
from tests.terminal import ENTER, Terminal

pytest_plugins = ("tests.serving",)

# Loading as a library does it: minutes in one call, which does not return to Python.
_SLOW = """
import hashlib
from edgekit.cli import main, run
run.load_model = lambda *_, **__: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
main()
"""


def start(command: list[str], **variables: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a program whose stderr is a terminal; return it and the terminal's other end."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **variables}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + 30
    while text not in seen:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 4096)
    return seen


def test_a_terminal_shows_that_the_model_is_loading_and_a_pipe_gets_only_the_answer(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    command = edgekit_command("run", bundle, "Hello", "--max-tokens", "4", "--threads", "1")
    process, terminal = start(command)
    read_until(terminal, b"loading tiny")
    answer, _ = process.communicate(timeout=30)
    os.close(terminal)
    assert process.returncode == 0
    plain = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert (plain.stdout, plain.stderr) == (answer, b"")


def test_a_terminal_shows_why_no_better_runner_is_used(tmp_path: Path) -> None:
    command = edgekit_command("run", tiny_bundle(tmp_path, "onnx"), "Hello", "--max-tokens", "4", "--threads", "1")
    process, terminal = start(command, EDGEKIT_CPU_KERNELS="off")
    read_until(terminal, b"running on onnxruntime; not on cpu: switched off by $EDGEKIT_CPU_KERNELS")
    process.communicate(timeout=30)
    os.close(terminal)
    assert process.returncode == 0


def test_ctrl_c_while_the_model_loads_ends_it_at_once_with_the_cursor_shown_again(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    process, terminal = start([sys.executable, "-c", _SLOW, "run", str(bundle), "Hello"])
    read_until(terminal, b"loading tiny")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    read_until(terminal, b"\x1b[?25h")
    os.close(terminal)


def without_template(bundle: Path) -> Path:
    (bundle / "chat_template.jinja").unlink()
    settings = bundle / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    kept.pop("chat_template", None)
    settings.write_text(json.dumps(kept), encoding="utf-8")
    seal(bundle)
    return bundle


def go_on(playing: Playing) -> None:
    """Answer as a model that never ends: up to the limit of the request, else to that of the context."""
    tokens = playing.request.max_tokens or 5000
    playing.on_event(Delta(0, "again"))
    playing.on_event(finish("length", tokens))


@pytest.mark.parametrize("verb", ["ask", "run"])
def test_an_answer_that_does_not_end_is_cut_off_and_the_note_says_how_to_get_more(
    verb: str, url: str, worker: ScriptedWorker
) -> None:
    worker.script = go_on
    full = "(cut off after 5000 tokens: the context is full)\n"
    for options, limit, note in (
        ((), 2048, "(cut off after 2048 tokens; --max-tokens N allows more, -1 any number)\n"),
        (("--max-tokens", "-1"), None, full),
        (("--max-tokens", "3000"), 3000, ""),
    ):
        done = edgekit(verb, "--http", url, "Hi", *options)
        assert (done.stdout, done.stderr) == ("again\n", note)
        assert worker.played[-1].request.max_tokens == limit
    with Terminal(edgekit_command("run", "--http", url), {}) as chat:
        chat.prompt()
        chat.send(f"Hi{ENTER}")
        chat.expect("the context is full")
    assert worker.played[-1].request.max_tokens is None


def test_a_model_that_is_loaded_here_has_the_same_limit(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx", max_position=4096)
    done = edgekit("run", bundle, "Hi", "--temperature", "0")
    assert done.stderr == "(cut off after 2048 tokens; --max-tokens N allows more, -1 any number)\n"
    done = edgekit("run", bundle, "Hi", "--max-tokens", "-1", "--context-length", "128")
    assert "the context is full" in done.stderr


def test_a_model_without_a_chat_template_continues_the_text(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    limit = ("--max-tokens", "8")
    answered = edgekit("run", bundle, "Once upon", *limit).stdout
    raw = edgekit("run", bundle, "Once upon", "--raw", *limit).stdout
    assert raw != answered
    without_template(bundle)
    assert edgekit("run", bundle, "Once upon", *limit).stdout == raw
    piped = subprocess.run(
        edgekit_command("run", bundle, *limit), input=b"Once upon", capture_output=True, timeout=60, check=True
    )
    assert piped.stdout.decode() == raw
    refused = edgekit("run", bundle, "Once upon", "--system", "Be brief.", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "error: a system message needs a chat template" in refused.stderr
    with Terminal(edgekit_command("run", bundle), {}) as chat:
        assert chat.end() == 2
        assert "hint: give a text to continue: edgekit run BUNDLE PROMPT" in chat.output


def test_a_daemon_is_not_asked_to_continue_text(url: str) -> None:
    refused = edgekit("run", "--http", url, "Once upon", "--raw", check=False)
    assert (refused.returncode, "--raw needs a bundle" in refused.stderr) == (2, True)
