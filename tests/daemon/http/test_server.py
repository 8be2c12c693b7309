from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from edgekit.config import HttpConfig
from edgekit.daemon.http.listeners import listen_error
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.errors import ConfigError, EdgekitError
from edgekit.runners import Rejected
from tests.daemon.http.conftest import ASK, MODEL, Played, Serve
from tests.generation.tiny import echo_model

CHAT = "/v1/chat/completions"
ANSWER = "Paris is the capital of France."


def test_openais_client_gets_a_full_reply(serve: Serve) -> None:
    with serve(echo_model()).openai() as client:
        reply = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "Hello"}])
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    # Every byte of the answer is a token of this model, and so is its end.
    assert reply.usage.completion_tokens == len(ANSWER) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.model_extra is not None
    assert reply.model_extra["timings"]["prefill_s"] > 0


def test_a_message_that_was_begun_is_continued_as_vllm_does(serve: Serve) -> None:
    begun = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": ANSWER[:8]}]
    http = serve(echo_model()).http
    for fields in ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}):
        reply = http.post(CHAT, json={"messages": begun, **fields}).json()
        assert reply["choices"][0]["message"]["content"] == ANSWER[8:]
    error = http.post(CHAT, json={"messages": [{"role": "user", "content": ""}], **fields}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "messages")


def test_openais_client_gets_a_stream_with_usage_at_its_end(serve: Serve) -> None:
    with serve(echo_model("Grüße aus 東京 👩‍💻")).openai() as client:
        chunks = list(
            client.chat.completions.create(
                model="echo",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Grüße aus 東京 👩‍💻"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_a_stream_ends_with_done_and_carries_timings(serve: Serve) -> None:
    response = serve(echo_model()).http.post(CHAT, json={**ASK, "stream": True, "max_tokens": 5})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["timings"]["decode_tokens_per_s"] > 0
    assert "usage" not in last


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(serve: Serve) -> None:
    reply = serve(echo_model()).http.post(CHAT, json={**ASK, "stop": " capital"}).json()
    assert reply["choices"][0]["message"]["content"] == "Paris is the"
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_models_are_listed_and_shown_by_name(serve: Serve) -> None:
    served = serve(echo_model(context_length=777))
    with served.openai() as client:
        assert [model.id for model in client.models.list()] == ["echo"]
        assert client.models.retrieve("echo").created == 1_700_000_000
        with pytest.raises(openai.NotFoundError, match="model `other/one` is not served here"):
            client.models.retrieve("other/one")
    assert served.http.get("/v1/models").json()["data"][0]["context_length"] == 777


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_request", None),
        (b"[]", 400, "invalid_request", None),
        (b"{}", 400, "invalid_request", "messages"),
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({**ASK, "temperature": 9}, 400, "invalid_request", "temperature"),
        ({**ASK, "n": 99}, 400, "invalid_request", "n"),
        ({**ASK, "audio": {"voice": "x"}}, 400, "unsupported_parameter", "audio"),
        ({**ASK, "tool_choice": {"type": "web_search"}}, 400, "unsupported_parameter", "tool_choice.type"),
        ({**ASK, "model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, 400, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, 413, "body_too_large", None),
    ],
)
def test_a_bad_request_gets_a_status_and_a_stable_code(
    serve: Serve, body: bytes | dict[str, object], status: int, code: str, param: str | None
) -> None:
    served = serve(echo_model(), max_body_bytes=65_536)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = served.http.post(CHAT, content=content)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    # Clients show the message and nothing else.
    assert error["hint"] is None or error["message"].endswith(f" ({error['hint']})")


def test_a_body_without_a_declared_length_is_cut_off_at_the_limit(serve: Serve) -> None:
    served = serve(echo_model(), max_body_bytes=1000)
    response = served.http.post(CHAT, content=iter([b"x" * 600, b"x" * 600]))
    assert response.status_code == 413


def test_unknown_paths_and_methods_get_json_errors(serve: Serve) -> None:
    http = serve(echo_model()).http
    assert (http.get("/nothing").status_code, http.get("/nothing").json()["error"]["code"]) == (404, "not_found")
    refused = http.get(CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    assert refused.json()["error"]["message"] == f"`GET {CHAT}` is not allowed (use POST)"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/chat/completions", "`POST /chat/completions` (did you mean `/v1/chat/completions`?)"),
        ("/v1/v1/completions", "`POST /v1/v1/completions` (did you mean `/v1/completions`?)"),
        ("/v1/completion", "`POST /v1/completion` (did you mean `/v1/completions`?)"),
        ("/v1", "`POST /v1` (https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md lists the endpoints)"),
        ("/a%0Ab", "`POST /a?b` (https://github.com/edgekit-llm/edgekit/blob/main/docs/http.md lists the endpoints)"),
    ],
)
def test_an_unknown_path_is_named_with_the_one_that_was_meant(serve: Serve, path: str, message: str) -> None:
    response = serve(echo_model()).http.post(path, json=ASK)
    assert response.json()["error"]["message"] == f"unknown endpoint {message}"


def test_openais_client_shows_the_hint_and_the_model_that_is_served(serve: Serve) -> None:
    served = serve(echo_model())
    with served.openai() as client:
        with pytest.raises(
            openai.NotFoundError, match=r"model `gpt-4` is not served here \(this daemon serves `echo`\)"
        ):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
        with pytest.raises(openai.NotFoundError, match=r"this daemon serves `echo`"):
            client.models.retrieve("gpt-4")
        with pytest.raises(openai.BadRequestError, match="did you mean `temperature`"):
            client.completions.create(model="echo", prompt="Hi", extra_body={"temprature": 1})


def test_a_full_queue_is_answered_with_429_and_retry_after(serve: Serve) -> None:
    release = threading.Event()
    served = serve(echo_model(before_step=lambda _: release.wait(10)), max_queue=0)
    with served.http.stream("POST", CHAT, json={**ASK, "stream": True}):
        response = served.http.post(CHAT, json=ASK)
        release.set()
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


def test_openais_client_retries_an_overloaded_request_by_itself(serve: Serve) -> None:
    release = threading.Event()
    served = serve(echo_model(before_step=lambda _: release.wait(10)), max_queue=0)
    with served.openai(max_retries=2) as client, served.http.stream("POST", CHAT, json={**ASK, "stream": True}):
        timer = threading.Timer(0.3, release.set)
        timer.start()
        reply = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "Hello"}])
        timer.join()
    assert reply.choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_request(serve: Serve, *, stream: bool) -> None:
    served = serve(echo_model("x" * 900, before_step=lambda _: time.sleep(0.02)))
    if stream:
        with served.http.stream("POST", CHAT, json={**ASK, "stream": True}) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            served.http.post(CHAT, json=ASK, timeout=httpx.Timeout(5, read=0.3))
    until = time.monotonic() + 3
    while served.worker.queue_length() and time.monotonic() < until:
        time.sleep(0.02)
    assert served.worker.queue_length() == 0
    assert 'edgekit_requests_total{outcome="cancelled",transport="http"} 1.0' in served.http.get("/metrics").text


def test_a_missed_deadline_is_504_and_not_to_be_retried(serve: Serve) -> None:
    served = serve(echo_model("x" * 900, before_step=lambda _: time.sleep(0.02)))
    response = served.http.post(CHAT, json={**ASK, "deadline_s": 0.2})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    streamed = served.http.post(CHAT, json={**ASK, "deadline_s": 0.2, "stream": True})
    assert '"code":"deadline_exceeded"' in streamed.text
    assert "[DONE]" not in streamed.text


def test_a_fault_in_the_model_is_500_and_the_next_request_is_answered(serve: Serve) -> None:
    def fail_once(step: int) -> None:
        if step == 1:
            raise ZeroDivisionError("broken kernel")

    served = serve(echo_model(before_step=fail_once))
    response = served.http.post(CHAT, json=ASK)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert served.http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"] == ANSWER


def test_a_page_whose_name_was_rebound_to_loopback_is_refused(serve: Serve) -> None:
    http = serve(echo_model()).http
    for host in ("evil.example", "evil.example:8090", "", "127.0.0.1.evil.example", "[::2]"):
        response = http.get("/v1/models", headers={"Host": host})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed"), host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8090", "[::1]:8090"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_another_sites_page_is_refused_and_its_own_origin_is_not(serve: Serve) -> None:
    served = serve(echo_model())
    for origin in ("https://evil.example", "null", "http://localhost.evil", "http://[::1", "http://[", "", "//"):
        response = served.http.post(CHAT, json=ASK, headers={"Origin": origin})
        assert response.json()["error"]["code"] == "origin_not_allowed", origin
        assert "access-control-allow-origin" not in response.headers
    assert served.http.post(CHAT, json=ASK, headers={"Origin": served.server.url}).status_code == 200


@pytest.fixture
def open_to_all(played: Played) -> Iterator[Callable[..., HttpServer]]:
    running = []

    def start(**config: Any) -> HttpServer:
        server = HttpServer(HttpConfig(port=0, **config), played.worker, MODEL, Metrics())  # type: ignore[arg-type]
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


def test_on_all_interfaces_only_allowed_names_and_addresses_are_served(
    open_to_all: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = open_to_all(host="0.0.0.0", insecure=True, allowed_hosts=("Kitchen.lan", "*.example.com"))  # noqa: S104  tested
    assert "http.allowed_hosts" not in caplog.text
    for host in ("evil.example", "", "kitchen.lan.evil", "example.com", "a.b.example.com", "[::1"):
        response = httpx.get(f"{server.url}/v1/models", headers={"Host": host})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed"), host
    for host in ("kitchen.lan:8090", "KITCHEN.LAN", "www.example.com", "192.168.1.5:8090", "[fe80::1]", "localhost"):
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == 200, host


def test_listening_on_all_interfaces_without_allowed_hosts_is_logged_as_a_warning(
    open_to_all: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = open_to_all(host="0.0.0.0", insecure=True)  # noqa: S104  what is tested
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": "any.example"}).status_code == 200
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "http.allowed_hosts" in warning.message


def test_on_loopback_further_names_can_be_allowed(open_to_all: Callable[..., HttpServer]) -> None:
    server = open_to_all(allowed_hosts=("kitchen.lan",))
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": "kitchen.lan"}).status_code == 200
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": "192.168.1.5"}).status_code == 403


@pytest.mark.parametrize(
    ("proxies", "client"), [((), "127.0.0.1"), (("127.0.0.1",), "10.1.2.3"), (("10.0.0.1",), "127.0.0.1")]
)
def test_only_a_trusted_proxy_names_the_client(
    open_to_all: Callable[..., HttpServer], played: Played, proxies: tuple[str, ...], client: str
) -> None:
    server = open_to_all(trusted_proxies=proxies)
    forged = {"X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "https"}
    assert httpx.post(f"{server.url}{CHAT}", json=ASK, headers=forged).status_code == 200
    assert played.worker.played[-1].request.client == client


def test_a_trusted_proxy_has_more_connections_than_a_client(open_to_all: Callable[..., HttpServer]) -> None:
    server = open_to_all(trusted_proxies=("127.0.0.0/8",), max_connections_per_client=1)
    with httpx.stream("GET", f"{server.url}/healthz") as one, httpx.stream("GET", f"{server.url}/healthz") as two:
        assert (one.status_code, two.status_code) == (200, 200)


def test_a_trusted_proxy_that_is_no_address_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="trusted_proxies") as caught:
        HttpServer(HttpConfig(trusted_proxies=("proxy.lan",)), None, None, Metrics())
    assert caught.value.hint


def test_every_reply_carries_a_request_id_and_a_callers_own_is_kept(serve: Serve) -> None:
    http = serve(echo_model()).http
    response = http.post(CHAT, json=ASK, headers={"X-Request-Id": "job-7"})
    assert response.headers["x-request-id"] == "job-7"
    assert response.json()["id"] == "chatcmpl-job-7"
    assert len(http.get("/nothing", headers={"X-Request-Id": "a b"}).headers["x-request-id"]) == 32


def test_a_reply_does_not_name_the_program_that_sent_it(serve: Serve) -> None:
    assert "server" not in serve(echo_model()).http.get("/healthz").headers


def test_metrics_count_requests_and_tokens(serve: Serve) -> None:
    served = serve(echo_model())
    served.http.post(CHAT, json=ASK)
    served.http.post(CHAT, json={**ASK, "mirostat": 3})
    text = served.http.get("/metrics").text
    assert 'edgekit_requests_total{outcome="stop",transport="http"} 1.0' in text
    assert 'edgekit_requests_total{outcome="unsupported_parameter",transport="http"} 1.0' in text
    assert 'edgekit_refusals_total{code="unsupported_parameter",transport="http"} 1.0' in text
    assert f'edgekit_completion_tokens_total{{transport="http"}} {len(ANSWER) + 1:.1f}' in text
    assert 'edgekit_model_info{context_length="1024",name="echo",runner=""} 1.0' in text
    assert "edgekit_queue_length 0.0" in text
    assert 'edgekit_first_delta_seconds_count{transport="http"} 1.0' in text


def test_a_server_without_a_model_is_alive_and_not_ready() -> None:
    server = HttpServer(HttpConfig(port=0), None, None, Metrics())
    server.start()
    try:
        with httpx.Client(base_url=server.url) as http:
            assert http.get("/healthz").status_code == 200
            assert http.get("/readyz").status_code == 503
            response = http.post(CHAT, json=ASK)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    finally:
        server.stop()


def test_a_ready_server_names_its_runner_and_why_it_is_no_better_one(serve: Serve) -> None:
    model = echo_model()
    better = (Rejected("tensorrt", "no engine"), Rejected("cuda", "there is no GPU"))
    served = serve(replace(model, info=replace(model.info, runner="cpu (avx2)", rejected=better)))
    assert served.http.get("/readyz").text == (
        "ready, on cpu (avx2)\nnot on tensorrt: no engine\nnot on cuda: there is no GPU\n"
    )


def test_a_server_is_not_ready_once_the_daemon_shuts_down(serve: Serve) -> None:
    served = serve(echo_model())
    assert served.http.get("/readyz").status_code == 200
    served.worker.stop()
    assert served.http.get("/readyz").status_code == 503
    response = served.http.post(CHAT, json=ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


def test_a_stalled_generation_makes_the_server_unhealthy() -> None:
    class Stopped:
        problem = "generation has been stalled for 31 s"

    server = HttpServer(HttpConfig(port=0), None, None, Metrics(), Stopped())
    server.start()
    try:
        assert httpx.get(f"{server.url}/healthz").status_code == 503
    finally:
        server.stop()


def refused(**address: Any) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        HttpServer(HttpConfig(**address), None, None, Metrics()).start()
    return caught.value


def test_a_busy_port_is_one_line_and_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refused(port=port)
    assert f"port {port}" in error.message
    assert "--port" in str(error.hint)


def test_what_may_mend_itself_is_no_configuration_error_which_a_service_manager_would_not_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        errors = [
            refused(port=other.getsockname()[1]),
            refused(
                host="192.0.2.1", port=0, insecure=True
            ),  # an address of another machine, or of this one in a minute
            refused(host="2001:db8::1", port=0, insecure=True),
            refused(host="no-such-host.invalid", port=0),
        ]
    assert {(error.code, error.exit_status) for error in errors} == {("address_unavailable", 1)}


def test_an_address_that_can_never_work_is_a_configuration_error() -> None:
    assert refused(host="a" * 300, port=0).exit_status == 2
    # As the kernel answers an account that is not root.
    error = listen_error("0.0.0.0", 80, PermissionError(errno.EACCES, "Permission denied"))  # noqa: S104  not bound
    assert (error.exit_status, error.hint) == (2, "choose an `http.port` (--port) above 1023")


def test_a_stopped_server_can_be_started_again_on_the_same_port(serve: Serve) -> None:
    served = serve(echo_model())
    served.http.post(CHAT, json=ASK)
    port = served.server.port
    served.server.stop()
    server = HttpServer(HttpConfig(port=port), served.worker, served.worker.info, served.metrics)
    server.start()
    try:
        assert httpx.post(f"{server.url}{CHAT}", json=ASK).status_code == 200
    finally:
        server.stop()


def test_many_clients_at_once_each_get_their_full_answer(serve: Serve) -> None:
    served = serve(echo_model(), max_queue=32)
    replies: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=served.server.url, timeout=30) as http:
            replies.append(http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [ANSWER] * 12
