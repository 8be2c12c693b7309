"""The endpoints of llama-server, vLLM and LM Studio that plugins call besides generating."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from edgekit import __version__
from edgekit.config import HttpConfig
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.types import ChatRequest, Message
from tests.daemon.http.conftest import Serve, Served
from tests.generation.tiny import echo_model

HELLO = [{"role": "user", "content": "Hello <|im_end|>"}]
SETTINGS = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "model_max_length": 1024}


@pytest.fixture
def echo(serve: Serve) -> Served:
    model = echo_model(sequence_slots=2)
    info = replace(model.info, template="{{ messages }}", sampling={"repetition_penalty": 1.1}, bits=4)
    return serve(replace(model, info=info, tokenizer_settings=SETTINGS))


def post(echo: Served, path: str, **body: Any) -> Any:
    response = echo.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_text_is_tokenized_as_llama_server_does(echo: Served) -> None:
    encode = echo.worker.model.tokenizer.encode
    assert post(echo, "/tokenize", content="Grüße <|im_end|>") == {"tokens": encode("Grüße <|im_end|>")}
    plain = post(echo, "/tokenize", content="<|im_end|>", parse_special=False, add_special=True)["tokens"]
    assert plain == encode("<|im_end|>", obey_special=False)
    pieces = post(echo, "/tokenize", content="ü<|im_end|>", with_pieces=True)["tokens"]
    # A byte of a character is no text.
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0xBC], "<|im_end|>"]
    assert [piece["id"] for piece in pieces] == encode("ü<|im_end|>")
    assert post(echo, "/tokenize", content="") == {"tokens": []}


def test_text_and_chats_are_tokenized_as_vllm_does(echo: Served) -> None:
    text = echo.worker.model
    reply = post(echo, "/tokenize", model="echo", prompt="Hi", return_token_strs=True)
    assert reply == {"count": 2, "max_model_len": 1024, "tokens": text.tokenizer.encode("Hi"), "token_strs": ["H", "i"]}
    chat = post(echo, "/tokenize", model="echo", messages=HELLO, add_generation_prompt=True)
    prompt = text.prompt(ChatRequest("r", (Message("user", "Hello <|im_end|>"),))).tokens
    assert (chat["tokens"], chat["count"], chat["token_strs"]) == (list(prompt), len(prompt), None)
    closed = post(echo, "/tokenize", messages=HELLO, add_generation_prompt=False)
    assert closed["count"] == chat["count"] - len(text.tokenizer.encode("<|im_start|>assistant\n"))
    # Longer than the context: a client wants to know by how much.
    assert post(echo, "/tokenize", messages=[{"role": "user", "content": "x" * 5000}])["count"] > 5000


def test_tokens_become_text_under_the_name_of_either_server(echo: Served) -> None:
    tokens = echo.worker.model.tokenizer.encode("Grüße <|im_end|>")
    text = "Grüße <|im_end|>"
    assert post(echo, "/detokenize", model="echo", tokens=tokens) == {"content": text, "prompt": text}
    assert (
        post(echo, "/detokenize", tokens=[])["content"] == post(echo, "/detokenize", tokens=[999_999])["content"] == ""
    )


def test_the_template_is_applied_to_a_chat(echo: Served) -> None:
    prompt = post(echo, "/apply-template", messages=HELLO, model="echo")["prompt"]
    assert prompt == "<|im_start|>user\nHello <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    begun = [*HELLO, {"role": "assistant", "content": "Sure:"}]
    body = {"messages": begun, "continue_final_message": True}
    assert post(echo, "/apply-template", **body)["prompt"] == f"{prompt}Sure:"


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "invalid_request", "content"),
        ("/tokenize", {"content": 1}, "invalid_request", "content"),
        ("/tokenize", {"content": "x", "add_specials": True}, "unsupported_parameter", "add_specials"),
        ("/tokenize", {"prompt": [1]}, "invalid_request", "prompt"),
        ("/tokenize", {"messages": []}, "invalid_request", "messages"),
        ("/tokenize", {"messages": HELLO, "return_token_strs": 1}, "invalid_request", "return_token_strs"),
        ("/tokenize", {"messages": HELLO, "add_generation_prompt": 1}, "invalid_request", "add_generation_prompt"),
        ("/tokenize", {"content": "x", "model": "other"}, "model_not_found", "model"),
        ("/detokenize", {"tokens": [1, -1]}, "invalid_request", "tokens[1]"),
        ("/detokenize", {"tokens": [1 << 30]}, "invalid_request", "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, "invalid_request", "tokens"),
        ("/apply-template", {"messages": "x"}, "invalid_request", "messages"),
        ("/apply-template", {}, "invalid_request", "messages"),
    ],
)
def test_wrong_bodies_are_refused_by_name(echo: Served, path: str, body: dict[str, Any], code: str, param: str) -> None:
    response = echo.http.post(path, json=body)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert response.status_code in {400, 404}
    if (path, body) == ("/tokenize", {}):
        assert error["hint"] == "send `content`, `prompt` or `messages`"


def test_bodies_are_as_large_as_those_of_any_request(serve: Serve) -> None:
    served = serve(echo_model(), max_body_bytes=1000)
    for path in ("/tokenize", "/detokenize", "/apply-template", "/infill", "/completion", "/api/pull"):
        refused = served.http.post(path, json={"content": "x" * 2000})
        assert (refused.status_code, "`http.max_body_bytes`" in refused.text) == (413, True)


def test_the_properties_of_the_model_and_its_slots_are_told(echo: Served) -> None:
    props = echo.http.get("/props", params={"model": "echo", "autoload": "false"}).json()
    settings = props["default_generation_settings"]
    assert (settings["n_ctx"], settings["params"]["repeat_penalty"], props["total_slots"]) == (1024, 1.1, 2)
    assert (props["chat_template"], props["bos_token"], props["eos_token"]) == (
        "{{ messages }}",
        "<|im_start|>",
        "<|im_end|>",
    )
    assert props["model_path"] == props["model_alias"] == "echo"
    slots = echo.http.get("/slots").json()
    assert [(slot["id"], slot["n_ctx"], slot["is_processing"]) for slot in slots] == [
        (0, 1024, False),
        (1, 1024, False),
    ]
    assert echo.http.get("/slots", params={"fail_on_no_slot": 1}).status_code == 200
    info = echo.http.get("/tokenizer_info").json()
    assert info == {"tokenizer_class": "PreTrainedTokenizerFast", **SETTINGS, "chat_template": "{{ messages }}"}
    assert echo.http.get("/version").json() == {"version": __version__}


def test_a_daemon_without_a_free_slot_says_so_to_those_who_ask(serve: Serve) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        begun.set()
        assert may_go_on.wait(60)

    served = serve(echo_model(before_step=wait))
    thread = threading.Thread(target=served.http.post, args=("/completion",), kwargs={"json": {"prompt": "x"}})
    thread.start()
    try:
        assert begun.wait(60)
        with httpx.Client(base_url=served.server.url, timeout=20) as http:
            assert [slot["is_processing"] for slot in http.get("/slots").json()] == [True]
            full = http.get("/slots", params={"fail_on_no_slot": 1})
        assert (full.status_code, full.json()["error"]["code"]) == (503, "not_ready")
    finally:
        may_go_on.set()
        thread.join()


def test_lm_studios_list_has_the_model(echo: Served) -> None:
    (model,) = echo.http.get("/api/v0/models").json()["data"]
    assert (model["id"], model["type"], model["state"], model["max_context_length"]) == ("echo", "llm", "loaded", 1024)
    assert echo.http.get("/api/v0/models/echo").json() == model
    assert echo.http.get("/api/v0/models/other").status_code == 404


def test_a_daemon_that_is_loading_says_so_everywhere() -> None:
    server = HttpServer(HttpConfig(port=0), None, None, Metrics())
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            for path in ("/health", "/v1/health"):
                response = http.get(path)
                assert (response.status_code, response.json()["error"]["message"].split(" (")[0]) == (
                    503,
                    "the model is loading",
                )
            assert http.get("/version").status_code == 200
            for path in ("/props", "/slots", "/tokenizer_info", "/api/v0/models/tiny", "/api/v0/models"):
                assert http.get(path).status_code == 503
            for path in ("/tokenize", "/infill", "/api/pull"):
                assert http.post(path, json={}).status_code == 503
    finally:
        server.stop()
