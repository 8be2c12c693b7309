"""The chat of `edgekit run` in a pseudo-terminal, with the real model."""

from __future__ import annotations

import json
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cli.chat.session import Session
from edgekit.cli.chat.settings import Settings
from edgekit.errors import EdgekitError
from tests.conftest import Export, edgekit_command
from tests.terminal import CTRL_C, CTRL_D, ENTER, Terminal

QUESTION = "What is the capital of France?"
WHO = "Who are you?"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def open_chat(export: Export, state: Path, *options: str) -> Terminal:
    return Terminal(edgekit_command("run", export("cpu"), *options), {"EDGEKIT_STATE": str(state)})


@pytest.fixture
def chat(export: Export, state: Path) -> Iterator[Terminal]:
    """A chat with short answers, at its first prompt."""
    with open_chat(export, state, "--max-tokens", "6") as terminal:
        terminal.prompt()
        yield terminal


def messages(chat: Terminal, file: Path) -> list[tuple[str, str]]:
    """Role and text of each message of the conversation."""
    chat.send(f"/save {file}{ENTER}")
    chat.expect("saved ")
    chat.prompt()
    return [(item["role"], item["content"]) for item in json.loads(file.read_text())["messages"]]


def test_a_pasted_block_is_one_message(chat: Terminal, tmp_path: Path) -> None:
    assert "loading smollm2-135m-instruct" in chat.output
    block = 'def f():\n    return """x"""\n\nWhat does this do?'
    chat.paste(block)
    time.sleep(0.3)
    assert "cut off" not in chat.output
    chat.send(ENTER)
    chat.prompt()
    commands = "/bye\nends a chat, and\n/clear forgets it"
    chat.paste(commands)
    chat.send(ENTER)
    chat.prompt()
    assert [text for role, text in messages(chat, tmp_path / "c.json") if role == "user"] == [block, commands]
    chat.paste("/system Be brief.\nAnswer in French.")
    chat.send(ENTER)
    chat.prompt()
    chat.send(f"/show system{ENTER}")
    assert "Be brief.\r\nAnswer in French." in chat.prompt()


def test_triple_quotes_and_new_line_keys_make_one_message(chat: Terminal, tmp_path: Path) -> None:
    for typed in (f'"""Hello{ENTER}you{ENTER}{ENTER}there"""', "Hello\nyou\x1b\rthere"):
        chat.send(typed + ENTER)
        chat.prompt()
    users = [text for role, text in messages(chat, tmp_path / "c.json") if role == "user"]
    assert users == ["Hello\nyou\n\nthere", "Hello\nyou\nthere"]


def test_commands_do_not_reach_the_model(chat: Terminal, tmp_path: Path) -> None:
    for command, shown in {
        "/help": "/set parameter",
        "/?": "Ctrl-J",
        "/show": "context length   8,192 tokens",
        "/show parameters": "max_tokens       6",
        "/show license": "Apache License",
        "/show template": "im_start",
        "/show system": "no system message",
        "/show tools": "none",
        "/hlep": "unknown command /hlep\r\nhint: did you mean /help",
        "/set": "/set needs a setting",
        "/set verbos": "did you mean /set verbose",
        "/set parameter top_q 1": "did you mean top_p",
        "/set parameter top_p x": "`top_p` must be a number",
        "/set parameter top_p 7": "`top_p` must be between 0 and 1",
        "/set parameter num_ctx 9": "--context-length N",
        "/set parameter top_p": "a name and a value",
        "/set format nowhere.json": "cannot read nowhere.json",
        "/load nowhere": "cannot read ",
        "/load": "/load needs a name",
        "/tools nowhere.json": "cannot read nowhere.json",
        "/show nonsense": "known: info, system",
        "/clear": "forgotten",
    }.items():
        chat.send(command + ENTER)
        assert shown in chat.prompt(), command
    assert messages(chat, tmp_path / "c.json") == []
    chat.send(f"/etc/hosts is what?{ENTER}")
    chat.prompt()
    assert messages(chat, tmp_path / "c.json")[0] == ("user", "/etc/hosts is what?")
    chat.send(f"/bye{ENTER}")
    assert chat.end() == 0


def test_settings_change_the_next_answers(chat: Terminal, tmp_path: Path) -> None:
    def says(text: str) -> str:
        chat.send(f"/clear{ENTER}")
        chat.prompt()
        chat.send(text + ENTER)
        chat.prompt()
        return messages(chat, tmp_path / "c.json")[-1][1]

    def command(text: str) -> str:
        chat.send(text + ENTER)
        return chat.prompt()

    # A pirate does not know another capital of France, but another name, on every processor.
    command("/set parameter num_predict 30")
    greedy = says(WHO)
    assert says(WHO) == greedy
    assert "no system message" not in command("/system You are a pirate.")
    assert "You are a pirate." in command("/show system")
    assert says(WHO) != greedy
    assert "no system message" in command('/set system ""')
    command("/set parameter temperature 2")
    command("/set parameter seed 7")
    assert says(WHO) != greedy
    command("/set parameter temperature 0")
    assert says(WHO) == greedy
    command("/set parameter num_predict 2")
    assert len(says(WHO)) < len(greedy)
    command("/set parameter num_predict 60")
    command("/set format json")
    assert says("Describe a cat in JSON.").lstrip().startswith("{")
    command("/set noformat")
    command("/set verbose")
    chat.send(QUESTION + ENTER)
    chat.expect(r"decode_tokens_per_s \d")
    chat.prompt()
    command("/set quiet")
    chat.send(QUESTION + ENTER)
    assert "tokens_per_s" not in chat.prompt()


def test_a_file_that_is_no_saved_chat_is_not_replaced(chat: Terminal, tmp_path: Path) -> None:
    for name, text in (("notes.txt", "dear diary"), ("list.json", "[1]"), ("other.json", '{"format": "mine"}')):
        file = tmp_path / name
        file.write_text(text)
        chat.send(f"/save {file}{ENTER}")
        assert "is no saved chat" in " ".join(chat.prompt().split())
        assert file.read_text() == text
    (tmp_path / "empty.json").touch()
    assert messages(chat, tmp_path / "empty.json") == messages(chat, tmp_path / "empty.json") == []


def test_what_is_set_is_shown_in_full(chat: Terminal) -> None:
    chat.send(f"/set parameter seed 12345678901{ENTER}")
    chat.prompt()
    chat.send(f"/show parameters{ENTER}")
    assert re.search(r"seed +12345678901\r", chat.prompt())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ("role", "content", "tool_calls", "id", "function", "name", "arguments", "tool_call_id")
_MESSAGE = st.dictionaries(
    st.sampled_from(_NAMES),
    _JSON | st.sampled_from(["user", "assistant", "tool"]) | st.lists(st.dictionaries(st.sampled_from(_NAMES), _JSON)),
)


@given(messages=_JSON | st.lists(_MESSAGE), parameters=_JSON, system=_JSON)
def test_a_hostile_saved_chat_is_refused_in_one_line(messages: object, parameters: object, system: object) -> None:
    body = {"format": "edgekit chat", "system": system, "parameters": parameters, "messages": messages}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chat.json"
        file.write_text(json.dumps(body))
        session = Session("", Settings({}))
        with suppress(EdgekitError):
            session.load(file)
            return
    assert (session.system, session.messages) == ("", [])


def test_a_saved_chat_is_continued_in_another_one(chat: Terminal, export: Export, state: Path) -> None:
    chat.send(f"/system Answer shortly.{ENTER}")
    chat.prompt()
    chat.send(QUESTION + ENTER)
    chat.prompt()
    chat.send(f"/save france{ENTER}")
    chat.expect("saved 2 messages")
    file = state / "france.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with open_chat(export, state) as other:
        other.prompt()
        other.send(f"/load france{ENTER}")
        other.expect("loaded 2 messages")
        other.prompt()
        other.send(f"/show messages{ENTER}")
        shown = other.prompt()
        assert "system: Answer shortly." in shown
        assert f"user: {QUESTION}" in shown
        file.write_text('{"format": "edgekit chat", "messages": [{"role": "robot"}]}')
        other.send(f"/load france{ENTER}")
        assert "`messages[0].role` is not system" in other.prompt()
        other.send(f"/show messages{ENTER}")
        assert QUESTION in other.prompt()


def test_what_was_typed_is_there_in_the_next_chat_unless_turned_off(
    chat: Terminal, export: Export, state: Path
) -> None:
    chat.send(f"/show system{ENTER}")
    chat.prompt()
    chat.send(f"/set nohistory{ENTER}")
    chat.prompt()
    chat.send(f"/show tools{ENTER}")
    chat.prompt()
    chat.send(CTRL_D)
    assert chat.end() == 0
    history = state / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "/show tools" not in history.read_text()
    with open_chat(export, state) as other:
        other.prompt()
        other.send("\x1b[A\x1b[A" + ENTER)  # up, up
        assert "no system message" in other.prompt()


def test_a_history_that_cannot_be_written_is_kept_in_memory(export: Export, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    with open_chat(export, tmp_path / "state") as chat:
        chat.prompt()
        chat.send(f"/show system{ENTER}")
        chat.prompt()
        chat.send("\x1b[A" + ENTER)
        assert "no system message" in chat.prompt()
        chat.send(f"/save mine{ENTER}")
        assert "cannot write" in chat.prompt()


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat(export: Export, state: Path, tmp_path: Path) -> None:
    with open_chat(export, state) as chat:
        chat.prompt()
        chat.send(f"Tell me a long story about a dog.{ENTER}")
        chat.expect(r"dog\.\s+\w+.*? \w+ \w+ ")
        chat.send(CTRL_C)
        chat.expect(r"\(stopped\)")
        chat.prompt()
        # The part that was shown belongs to the conversation.
        (_, question), (role, part) = messages(chat, tmp_path / "c.json")
        assert (question, role) == ("Tell me a long story about a dog.", "assistant")
        assert 0 < len(part) < 1000
        chat.send("half a line" + CTRL_C)
        assert "/bye ends the chat" in chat.prompt()
        assert len(messages(chat, tmp_path / "c.json")) == 2
        chat.send(f"/set parameter max_tokens 3{ENTER}")
        chat.prompt()
        chat.send(f"Hello{ENTER}")
        chat.prompt()
        assert len(messages(chat, tmp_path / "c.json")) == 4
        chat.send(CTRL_D)
        assert chat.end() == 0


def test_ctrl_c_stops_a_long_prompt_too(export: Export, state: Path, tmp_path: Path) -> None:
    with open_chat(export, state) as chat:
        chat.prompt()
        chat.paste("one two three four " * 1000)
        chat.send(ENTER)
        time.sleep(1)
        chat.send(CTRL_C)
        chat.expect(r"\(stopped\)", timeout_s=20)
        chat.prompt()
        assert messages(chat, tmp_path / "c.json") == []


def test_a_conversation_longer_than_the_context_goes_on(export: Export, state: Path, tmp_path: Path) -> None:
    with open_chat(export, state, "--context-length", "128", "--max-tokens", "8") as chat:
        chat.prompt()
        said = ""
        for _ in range(3):
            chat.send(f"Please tell me in a few words what the weather is like in Paris in the winter months.{ENTER}")
            said = chat.prompt()
        assert re.search(r"its oldest \d messages were left out", said)
        chat.paste("word " * 200)
        chat.send(ENTER)
        said = chat.prompt()
        assert re.search(r"error: the prompt has \d+ tokens; the context holds 128", said)
        assert "hint: shorten it, or start over with /clear" in said
        assert len(messages(chat, tmp_path / "c.json")) == 6
        chat.send(f"/set parameter max_tokens 1000{ENTER}")
        chat.prompt()
        chat.send(f"Tell me a long story about a dog.{ENTER}")
        assert "cut off: the context is full" in chat.prompt()


def test_a_model_without_tools_refuses_them_and_the_chat_goes_on(chat: Terminal, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "now", "description": "The time"}}]))
    chat.send(f"/tools {tools}{ENTER}")
    assert "The time" in chat.prompt()
    chat.send(f"Hello{ENTER}")
    assert "error: " in chat.prompt()
    chat.send(f"/tools off{ENTER}")
    chat.prompt()
    chat.send(f"Hello{ENTER}")
    assert "error: " not in chat.prompt()
    tools.write_text("[{}]")
    chat.send(f"/tools {tools}{ENTER}")
    assert "has no `name`" in chat.prompt()
