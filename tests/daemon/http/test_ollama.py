"""The Ollama dialect through Ollama's own client, in front of a worker that plays a script."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from edgekit import __version__
from edgekit.config import HttpConfig
from edgekit.daemon.http import events
from edgekit.daemon.http.ollama_models import OLLAMA_VERSION
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.errors import EdgekitError
from edgekit.generation.tools import find_reasoning
from edgekit.generation.types import Delta, Failure, Message, ResponseFormat, ToolCallDelta
from tests.daemon.http.conftest import MODEL, Played, Serve
from tests.daemon.mqtt.scripted import WORDS, Playing, call_tools, finish, tell_logprobs, wait_for_cancel
from tests.generation.tiny import echo_model

HELLO = [{"role": "user", "content": "Hello"}]
SAID = "".join(WORDS)


class Place(BaseModel):
    """The response format."""

    city: str
    people: int


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"sunny in {city}"


def test_a_full_reply_has_its_durations_in_nanoseconds(played: Played) -> None:
    reply = played.ollama.chat("tiny", HELLO)
    assert (reply.message.role, reply.message.content) == ("assistant", SAID)
    assert (reply.model, reply.done, reply.done_reason) == ("tiny", True, "stop")
    assert (reply.prompt_eval_count, reply.eval_count) == (11, 8)
    assert (reply.prompt_eval_duration, reply.eval_duration) == (500_000_000, 1_000_000_000)
    assert (reply.total_duration, reply.load_duration) == (1_750_000_000, 0)
    assert reply.created_at is not None


def test_a_streamed_chat_joins_to_the_full_one(played: Played) -> None:
    *chunks, last = played.ollama.chat("tiny:latest", HELLO, stream=True)
    assert "".join(chunk.message.content or "" for chunk in chunks) == SAID
    assert not any(chunk.done for chunk in chunks)
    assert (last.done, last.done_reason, last.message.content, last.eval_count) == (True, "stop", "", 8)


def test_a_stream_is_the_default_and_one_object_per_line(played: Played) -> None:
    response = played.http.post("/api/chat", json={"model": "tiny", "messages": HELLO})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * len(WORDS) + [True]


def test_a_model_that_reasons_can_be_asked_to_think_and_its_thinking_is_separate(serve: Serve) -> None:
    model = echo_model("<think>\nHm.</think>\n\nParis")
    info = replace(model.info, capabilities=("completion", "thinking"))
    served = serve(replace(model, info=info, reasoning=find_reasoning("</think>", {})))
    with ollama.Client(served.server.url, timeout=20) as client:
        message = client.chat("echo", HELLO, think=True).message
    assert (message.thinking, message.content) == ("\nHm.", "Paris")


def test_a_model_that_does_not_reason_cannot_be_asked_to_think(played: Played) -> None:
    with pytest.raises(ollama.ResponseError, match="think") as caught:
        played.ollama.chat("tiny", HELLO, think=True)
    assert caught.value.status_code == 400


def test_a_schema_of_a_pydantic_model_is_the_format(played: Played) -> None:
    def obey(playing: Playing) -> None:
        playing.on_event(Delta(0, '{"city": "Paris", "people": 2}'))
        playing.on_event(finish())

    played.worker.script = obey
    reply = played.ollama.chat("tiny", HELLO, format=Place.model_json_schema())
    assert Place.model_validate_json(reply.message.content or "") == Place(city="Paris", people=2)
    requested = played.worker.played[0].request.response_format
    assert requested == ResponseFormat("json_schema", Place.model_json_schema())
    played.ollama.chat("tiny", HELLO, format="json")
    assert played.worker.played[1].request.response_format == ResponseFormat("json_object")


def test_a_python_function_is_a_tool_and_its_call_comes_as_an_object(played: Played) -> None:
    played.worker.script = call_tools
    reply = played.ollama.chat("tiny", HELLO, tools=[weather])
    calls = reply.message.tool_calls or ()
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", {"city": "Orléans"}),
        ("time", {"zone": "CET"}),
    ]
    assert reply.done_reason == "stop"
    (tool,) = played.worker.played[0].request.tools
    assert (tool.name, tool.description) == ("weather", "Tell the weather.")
    assert tool.parameters is not None
    assert tool.parameters["properties"]["city"]["type"] == "string"
    turns: list[Any] = [*HELLO, reply.message, {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    played.ollama.chat("tiny", turns, tools=[weather])
    messages = played.worker.played[1].request.messages
    assert json.loads(messages[1].tool_calls[0].arguments) == {"city": "Orléans"}
    assert (messages[2].tool_call_id, messages[2].name) == (messages[1].tool_calls[0].id, "weather")


def test_streamed_calls_come_one_by_one_and_complete(played: Played) -> None:
    played.worker.script = call_tools
    chunks = list(played.ollama.chat("tiny", HELLO, tools=[weather], stream=True))
    calls = [[call.function.name for call in chunk.message.tool_calls or ()] for chunk in chunks]
    assert calls == [["weather"], ["time"], []]
    assert chunks[-1].done


def test_a_call_that_was_cut_off_is_left_out(played: Played) -> None:
    def cut(playing: Playing) -> None:
        playing.on_event(ToolCallDelta(0, 0, '{"city": "Or', id="c", name="weather"))
        playing.on_event(finish("length"))

    played.worker.script = cut
    reply = played.ollama.chat("tiny", HELLO, tools=[weather])
    assert (reply.message.tool_calls, reply.done_reason) == (None, "length")
    (last,) = played.ollama.chat("tiny", HELLO, tools=[weather], stream=True)
    assert (last.message.tool_calls, last.done_reason) == (None, "length")


def test_log_probabilities_come_with_the_chunks(played: Played) -> None:
    played.worker.script = tell_logprobs
    reply = played.ollama.chat("tiny", HELLO, logprobs=True, top_logprobs=2)
    assert [token.logprob for token in reply.logprobs or ()] == [-0.5, -1.0, 0.0]
    chunks = list(played.ollama.generate("tiny", "Hello", logprobs=True, stream=True))
    assert next(token.token for chunk in chunks for token in chunk.logprobs or ()) == "Hi"


def test_generate_answers_one_message_or_continues_a_raw_prompt(played: Played) -> None:
    reply = played.ollama.generate("tiny", "Why?", system="Be brief.")
    assert (reply.response, reply.done_reason, reply.eval_count) == (SAID, "stop", 8)
    chunks = list(played.ollama.generate("tiny", "Once", raw=True, stream=True, options={"num_predict": 4}))
    assert "".join(chunk.response or "" for chunk in chunks) == SAID
    first, second = (playing.request for playing in played.worker.played)
    assert first.messages == (Message("system", "Be brief."), Message("user", "Why?"))
    assert (second.prompt, second.max_tokens) == ("Once", 4)


def test_an_empty_request_loads_the_model_as_in_ollama(played: Played) -> None:
    assert played.ollama.generate("tiny", "").done_reason == "load"
    assert played.ollama.chat("tiny", []).done_reason == "load"
    assert played.worker.played == []


def test_the_model_is_listed_shown_and_running(played: Played) -> None:
    (model,) = played.ollama.list().models
    assert (model.model, model.size) == ("tiny:latest", 141_000_000)
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "134.5M")
    shown = played.ollama.show("tiny")
    assert shown.capabilities == ["completion", "tools"]
    assert (shown.modelinfo or {})["llama.context_length"] == 2048
    assert [running.context_length for running in played.ollama.ps().models] == [2048]
    assert played.http.head("/").status_code == played.http.get("/").status_code == 200
    assert played.http.get("/api/version").json() == {"version": OLLAMA_VERSION, "edgekit": __version__}


def test_rejected_requests_are_raised_with_message_and_status(played: Played) -> None:
    with pytest.raises(ollama.ResponseError, match="model `other` is not served here") as caught:
        played.ollama.chat("other", HELLO)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"`options\.temperature` must be between"):
        played.ollama.generate("tiny", "x", options={"temperature": 9})
    assert 'edgekit_refusals_total{code="model_not_found",transport="http"} 1.0' in played.http.get("/metrics").text


def test_the_served_model_can_be_pulled_and_others_are_refused_with_what_to_do(played: Played) -> None:
    assert played.ollama.pull("tiny").status == "success"
    statuses = list(played.ollama.pull("tiny:latest", stream=True))
    assert (statuses[0].status, statuses[-1].status) == ("pulling manifest", "success")
    assert [(one.total, one.completed) for one in statuses if one.total] == [(MODEL.size_bytes, MODEL.size_bytes)]
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError, match=r"cannot be pulled.*edgekit export") as caught:
            list(played.ollama.pull("llama3.2", stream=stream))
        assert caught.value.status_code == 404


def test_what_this_daemon_does_not_do_is_refused_in_ollamas_shape(played: Played) -> None:
    client = played.ollama
    for ask in (
        lambda: client.create("new", from_="tiny"),
        lambda: client.copy("tiny", "copy"),
        lambda: client.delete("tiny"),
        lambda: client.push("tiny"),
        lambda: client.embed("tiny", "text"),
        lambda: client.embeddings("tiny", "text"),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 501
    assert played.http.head("/api/blobs/sha256:00").status_code == 404
    upload = played.http.post("/api/blobs/sha256:00", content=b"x")
    assert (upload.status_code, upload.json()["code"]) == (501, "not_implemented")


def test_a_conversation_is_continued_by_the_tokens_of_the_last_reply(serve: Serve) -> None:
    served = serve(echo_model("Paris."))
    with ollama.Client(served.server.url, timeout=20) as client:
        first = client.generate("echo", "Hello")
        assert first.context
        again = client.generate("echo", "And?", context=first.context)
        *_, streamed = client.generate("echo", "And?", context=first.context, stream=True)
        assert client.generate("echo", "Once", raw=True, options={"num_predict": 1}).context is None
    assert list(again.context or ())[: len(first.context)] == list(first.context)
    assert again.context == streamed.context
    assert (again.prompt_eval_count or 0) > len(first.context)


def test_a_prompt_that_does_not_fit_is_shortened_with_a_warning_or_refused_with_a_hint_for_it(serve: Serve) -> None:
    served = serve(echo_model("Paris.", context_length=96))

    def ask(**fields: Any) -> dict[str, Any]:
        body = {"model": "echo", "stream": False, **fields}
        answer: dict[str, Any] = served.http.post("/api/generate", json=body).json()
        return answer

    assert "warnings" not in ask(prompt="Hi", context=[20, 21, 22])
    assert ask(prompt="Hi", context=[*range(20, 100)])["warnings"] == [
        "`context` was too long: its beginning was left out"
    ]
    refused = ask(prompt="x" * 200)
    assert refused["code"] == "context_length_exceeded"
    assert "shorten it: there are no older messages to leave out" in refused["error"]


def test_a_request_to_unload_is_answered_and_the_model_stays(played: Played) -> None:
    reply = played.http.post("/api/generate", json={"model": "tiny", "keep_alive": 0}).json()
    assert (reply["done"], reply["done_reason"]) == (True, "unload")
    assert reply["warnings"] == ["the model stays loaded as long as the daemon runs"]
    assert played.http.get("/api/ps").json()["models"]


def test_a_longer_context_and_unknown_options_are_answered_with_warnings(played: Played) -> None:
    options = {"num_ctx": 100_000, "temprature": 1}
    last = json.loads(
        played.http.post("/api/chat", json={"model": "tiny", "messages": HELLO, "options": options}).text.splitlines()[
            -1
        ]
    )
    assert [warning.split("`")[1] for warning in last["warnings"]] == ["temprature", "num_ctx"]
    body = {"model": "tiny", "prompt": "x", "stream": False, "options": options}
    assert played.http.post("/api/generate", json=body).json()["warnings"] == last["warnings"]
    reply = played.ollama.chat("tiny", HELLO, options=options)
    assert reply.message.content == SAID
    assert "warnings" not in played.http.post("/api/chat", json={"model": "tiny", "messages": HELLO}).text


def test_a_failure_in_the_middle_of_a_stream_is_raised(played: Played) -> None:
    def fail(playing: Playing) -> None:
        playing.on_event(Delta(0, "Par"))
        playing.on_event(Failure(EdgekitError("the runner broke", code="runner_failed")))

    played.worker.script = fail
    with pytest.raises(ollama.ResponseError, match="the runner broke"):
        list(played.ollama.chat("tiny", HELLO, stream=True))
    with pytest.raises(ollama.ResponseError, match="the runner broke") as caught:
        played.ollama.chat("tiny", HELLO)
    assert caught.value.status_code == 500


def test_an_idle_stream_is_kept_open_by_chunks_without_text(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def think(playing: Playing) -> None:
        time.sleep(0.5)
        playing.on_event(Delta(0, "42"))
        playing.on_event(finish())

    monkeypatch.setattr(events, "_KEEP_ALIVE_S", 0.1)
    played.worker.script = think
    chunks = list(played.ollama.chat("tiny", HELLO, stream=True))
    assert len(chunks) > 3
    assert "".join(chunk.message.content or "" for chunk in chunks) == "42"


def test_closing_the_stream_cancels_the_request(played: Played) -> None:
    played.worker.script = wait_for_cancel
    stream = played.ollama.chat("tiny", HELLO, stream=True)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]  # a generator, behind an Iterator
    assert played.worker.played[0].cancelled.wait(20)


def test_ollamas_client_is_answered_by_the_real_worker(serve: Serve) -> None:
    served = serve(echo_model("Grüße 👩‍💻"))
    with ollama.Client(served.server.url) as client:
        assert client.chat("echo", HELLO).message.content == "Grüße 👩‍💻"
        said = "".join(chunk.response or "" for chunk in client.generate("echo", "Hello", stream=True))
    assert said == "Grüße 👩‍💻"


def test_a_server_without_a_model_reports_that_it_is_loading() -> None:
    server = HttpServer(HttpConfig(port=0), None, None, Metrics())
    server.start()
    try:
        with ollama.Client(server.url) as client:
            assert client.ps().models == []
            with pytest.raises(ollama.ResponseError, match="still loading"):
                client.list()
            with pytest.raises(ollama.ResponseError, match="still loading") as caught:
                client.chat("tiny", HELLO)
            assert caught.value.status_code == 503
    finally:
        server.stop()
