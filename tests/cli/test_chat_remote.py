"""`edgekit run --http` and `--mqtt`: the chat with a running daemon, in a pseudo-terminal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgekit.generation.types import Delta, Message, ToolCall, ToolCallDelta
from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit, edgekit_command
from tests.daemon.mqtt.scripted import ARGUMENTS, WORDS, Playing, ScriptedWorker, call_tools, finish, wait_for_cancel
from tests.terminal import CTRL_C, ENTER, Terminal

ANSWER = "".join(WORDS)
pytest_plugins = ("tests.serving",)


@pytest.fixture(params=["http", pytest.param("mqtt", marks=pytest.mark.broker)])
def address(request: pytest.FixtureRequest) -> list[str]:
    """The options that name the daemon."""
    if request.param == "http":
        return ["--http", request.getfixturevalue("url")]
    request.getfixturevalue("service")
    return ["--mqtt", f"127.0.0.1:{request.getfixturevalue('broker').port}", "--device", "box"]


def open_chat(address: list[str], state: Path, *options: str) -> Terminal:
    return Terminal(edgekit_command("run", *address, *options), {"EDGEKIT_STATE": str(state)})


def test_a_daemon_answers_a_prompt_and_a_chat(address: list[str], worker: ScriptedWorker, tmp_path: Path) -> None:
    assert edgekit("run", *address, "What is a//b?").stdout == f"{ANSWER}\n"
    assert worker.played[0].request.messages == (Message("user", "What is a//b?"),)
    with open_chat(address, tmp_path, "--system", "Be brief.", "--temperature", "0.5") as chat:
        assert "tiny-instruct" in chat.prompt()
        chat.send(f"/show{ENTER}")
        shown = chat.prompt()
        assert "context length   2,048 tokens" in shown
        assert "daemon" in shown
        for question in ("Where is Paris?", "And Rome?"):
            chat.send(question + ENTER)
            assert ANSWER[:20] in chat.prompt()
    request = worker.played[-1].request
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "Where is Paris?"),
        Message("assistant", ANSWER),
        Message("user", "And Rome?"),
    )
    assert (request.sampling.temperature, request.truncation) == (0.5, "auto")


def test_ctrl_c_cancels_the_request_and_the_chat_goes_on(
    address: list[str], worker: ScriptedWorker, tmp_path: Path
) -> None:
    worker.script = wait_for_cancel
    with open_chat(address, tmp_path) as chat:
        chat.prompt()
        chat.send(f"Go on for ever{ENTER}")
        chat.expect("word word")
        chat.send(CTRL_C)
        chat.expect(r"\(stopped\)")
        chat.prompt()
        assert worker.played[0].cancelled.wait(20)
        chat.send(f"/bye{ENTER}")
        assert chat.end() == 0


def test_the_results_of_tool_calls_are_asked_for_and_sent(
    address: list[str], worker: ScriptedWorker, tmp_path: Path
) -> None:
    def call_or_answer(playing: Playing) -> None:
        if playing.request.messages[-1].role == "tool":
            playing.on_event(Delta(0, "It rains."))
            playing.on_event(finish())
        else:
            call_tools(playing)

    worker.script = call_or_answer
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "weather", "parameters": {"type": "object"}}, {"name": "time"}]))
    with open_chat(address, tmp_path) as chat:
        chat.prompt()
        chat.send(f"/tools {tools}{ENTER}")
        chat.prompt()
        chat.send(f"How is the weather?{ENTER}")
        shown = chat.prompt()
        assert 'weather(city="Orl' in shown
        chat.send(f"rain{ENTER}")
        chat.prompt()
        chat.send(f"noon{ENTER}")
        chat.expect("It rains")
        chat.prompt()
    request = worker.played[-1].request
    assert [tool.name for tool in request.tools] == ["weather", "time"]
    calls = (ToolCall("call_0", "weather", ARGUMENTS[0]), ToolCall("call_1", "time", ARGUMENTS[1]))
    assert request.messages == (
        Message("user", "How is the weather?"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "rain", tool_call_id="call_0", name="weather"),
        Message("tool", "noon", tool_call_id="call_1", name="time"),
    )


def test_a_call_that_was_cut_off_has_no_result_and_the_chat_goes_on(
    address: list[str], worker: ScriptedWorker, tmp_path: Path
) -> None:
    def call_and_be_cut_off(playing: Playing) -> None:
        playing.on_event(ToolCallDelta(0, 0, '{"city": "Pa', id="call_0", name="weather"))
        playing.on_event(finish("length"))

    tools = tmp_path / "tools.json"
    tools.write_text('{"name": "weather"}')
    worker.script = call_and_be_cut_off
    with open_chat(address, tmp_path) as chat:
        chat.prompt()
        chat.send(f"/tools {tools}{ENTER}")
        chat.prompt()
        for _ in range(2):
            chat.send(f"How is the weather?{ENTER}")
            shown = chat.prompt()
            assert "result of" not in shown
            assert "cut off" in shown
    assert worker.played[-1].request.messages[1] == Message("assistant", "")


@pytest.mark.broker
def test_an_answer_that_a_restarted_device_begins_again_replaces_the_first(broker: Broker, tmp_path: Path) -> None:
    def answer(device: Caller, *attempts: str) -> list[dict[str, str]]:
        """Answer a request once per attempt, of which only the last one comes to an end; returns its messages."""
        request = device.message()
        topic = device.property(request, "ResponseTopic")
        for number, text in enumerate(attempts, 1):
            device.publish(topic, {"type": "delta", "id": "1", "attempt": number, "seq": 0, "text": text})
        message = {"role": "assistant", "content": attempts[-1]}
        end = {"type": "final", "id": "1", "attempt": len(attempts), "seq": 1, "message": message}
        device.publish(topic, {**end, "finish_reason": "stop"})
        messages: list[dict[str, str]] = json.loads(request.payload)["messages"]
        return messages

    options = ("--mqtt", f"127.0.0.1:{broker.port}", "--device", "box")
    with Caller(broker.port, "edgekit/box/chat/request") as device:
        device.publish("edgekit/box/status", {"state": "online", "session": "1"}, retain=True)
        device.publish("edgekit/box/info", {"model": {"id": "tiny-instruct"}}, retain=True)
        for command in ("ask", "run"):
            asking = subprocess.Popen(
                edgekit_command(command, *options, "Hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            answer(device, "Rome is", "Paris is it.")
            stdout, stderr = asking.communicate(timeout=60)
            assert (asking.returncode, stdout) == (0, "Rome is\nParis is it.\n")
            assert stderr == "the device was restarted; its answer begins again\n"
        with open_chat(list(options), tmp_path) as chat:
            chat.prompt()
            chat.send(f"Where am I?{ENTER}")
            answer(device, "Rome is", "Paris is it.")
            chat.expect("Rome is\r\nthe device was restarted; its answer begins again\r\nParis is it")
            chat.prompt()
            chat.send(f"Sure?{ENTER}")
            assert answer(device, "Yes.") == [
                {"role": "user", "content": "Where am I?"},
                {"role": "assistant", "content": "Paris is it."},
                {"role": "user", "content": "Sure?"},
            ]
            chat.prompt()


def test_control_characters_of_an_answer_do_not_reach_the_terminal(
    url: str, worker: ScriptedWorker, tmp_path: Path
) -> None:
    def write_escapes(playing: Playing) -> None:
        playing.on_event(Delta(0, "a\x1b]0;title\x07b\x9b2Jc\td\re"))
        playing.on_event(finish())

    worker.script = write_escapes
    with open_chat(["--http", url], tmp_path) as chat:
        chat.prompt()
        chat.send(f"Hi{ENTER}")
        chat.expect("a]0;titleb2Jc")
    # A pipe gets the answer as it is.
    assert edgekit("run", "--http", url, "Hi").stdout == "a\x1b]0;title\x07b\x9b2Jc\td\re\n"


def test_wrong_addresses_are_refused_before_the_first_prompt(url: str) -> None:
    for arguments, status, message in (
        (("--http", f"http://127.0.0.1:{free_port()}"), 1, "no daemon answers"),
        (("--http", "nonsense"), 2, "is not a URL"),
        (("--mqtt", f"127.0.0.1:{free_port()}"), 1, "no broker answers"),
        (("--http", url, "--mqtt", "127.0.0.1"), 2, "exclude each other"),
        (("some-bundle", "hi", "--http", url), 2, "leave out BUNDLE"),
        ((), 2, "no bundle to run"),
    ):
        done = edgekit("run", *arguments, check=False)
        assert (done.returncode, done.stdout) == (status, "")
        assert message in done.stderr
        assert "hint: " in done.stderr
