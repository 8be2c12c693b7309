"""Preparing a chat costs time in proportion to its size, whatever a caller writes, and stops at the time limit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import pytest

from edgekit.daemon.api import parse_chat
from edgekit.daemon.api.messages import MAX_MESSAGES
from edgekit.daemon.api.ollama import parse_ollama_chat
from edgekit.errors import RequestError
from edgekit.generation.chat.prompt import Prompt, encode_chat
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.truncation import leave_out
from edgekit.generation.engine import worker as worker_module
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.time_limit import TimeLimit
from edgekit.generation.types import ChatRequest, Message, ToolCall
from tests.generation.tiny import byte_tokenizer, echo_model
from tests.models import CHATML

pytestmark = pytest.mark.serial

TOKENIZER, TEMPLATE = byte_tokenizer(), ChatTemplate(CHATML)


def _starts_of_special_tokens(count: int) -> list[Message]:
    return [Message("user", f"{number} <|im_") for number in range(count)]


def _special_tokens(count: int) -> list[Message]:
    return [Message("user", "<|im_end|>" * count)]


def _results_of_distant_calls(count: int) -> list[Message]:
    half = count // 2
    calls = [Message("assistant", "", (ToolCall(f"c{number}", "now", "{}"),)) for number in range(half)]
    return [*calls, *(Message("tool", "12:00", tool_call_id=f"c{number}") for number in range(half))]


@pytest.mark.parametrize("chat", [_starts_of_special_tokens, _special_tokens, _results_of_distant_calls])
def test_a_chat_eight_times_as_large_takes_about_eight_times_as_long(chat: Callable[[int], list[Message]]) -> None:
    def seconds(count: int) -> float:
        messages = chat(count)
        began = time.process_time()
        encode_chat(TOKENIZER, TEMPLATE, messages)
        return time.process_time() - began

    small = min(seconds(1200) for _ in range(3))
    large = min(seconds(9600) for _ in range(2))
    # 64 times as long, if the cost were quadratic.
    assert large < 24 * small
    assert large < 10


@pytest.mark.parametrize("kept", [1, 3, 40])
def test_dropping_turns_encodes_little_more_than_what_is_kept(kept: int) -> None:
    messages = [Message("user", "x" * 10) for _ in range(10_000)]
    encoded = []

    def encode(shown: Sequence[Message]) -> Prompt:
        encoded.append(len(shown))
        return Prompt([0] * (10 * len(shown)))

    prompt = leave_out(messages, encode, max_tokens=10 * kept)
    assert (len(prompt.tokens), prompt.left_out) == (10 * kept, 10_000 - kept)
    assert sum(encoded) <= 30 * kept


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_more_messages_than_the_limit_are_refused(dialect: str) -> None:
    def parse(count: int) -> object:
        data = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}] * count}).encode()
        if dialect == "openai":
            return parse_chat(data, request_id="r")
        return parse_ollama_chat(data, request_id="r", client="", context_length=1024)

    parse(MAX_MESSAGES)
    with pytest.raises(RequestError, match=f"{MAX_MESSAGES + 1} messages") as caught:
        parse(MAX_MESSAGES + 1)
    assert caught.value.param == "messages"


def test_preparation_ends_at_its_time_limit() -> None:
    model = echo_model()
    request = ChatRequest("r", tuple(_starts_of_special_tokens(10_000)), truncation="auto")
    began = time.thread_time()
    with pytest.raises(RequestError) as caught:
        model.prepare(request, TimeLimit(0.05))
    assert caught.value.code == "preparation_timeout"
    assert time.thread_time() - began < 1.5


def test_the_worker_limits_preparation_and_knows_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_PREPARE_S", 0.05)
    worker = EngineWorker(echo_model())
    try:
        assert worker.seconds_preparing() == 0
        with pytest.raises(RequestError) as caught:
            worker.submit(ChatRequest("r", tuple(_starts_of_special_tokens(10_000))), lambda _: None)
        assert caught.value.code == "preparation_timeout"
        assert worker.seconds_preparing() == 0
    finally:
        worker.stop()
