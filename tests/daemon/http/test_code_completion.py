"""Code completion: `suffix` in both dialects, llama-server's endpoints, and the requests that editors send, replayed.

The bodies are those that the sources of Continue (2.0) and llama.vscode (0.0.5x) send, written anew.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import ollama
import pytest

from edgekit.daemon.http.ollama_models import OLLAMA_VERSION
from tests.daemon.http.conftest import Serve, Served
from tests.generation.filling import fill_model
from tests.generation.tiny import echo_model

PREFIX, SUFFIX, FILLING = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n", "a + b"


@pytest.fixture
def coder(serve: Serve) -> Served:
    """A daemon whose model fills every gap, and then begins another file."""
    return serve(fill_model(f"{FILLING}<|file_sep|>other.py\n"))


def sse(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_openais_client_fills_the_gap_before_a_suffix(coder: Served) -> None:
    with coder.openai() as client:
        full = client.completions.create(model="coder", prompt=PREFIX, suffix=SUFFIX, max_tokens=50)
        stream = client.completions.create(model="coder", prompt=PREFIX, suffix=SUFFIX, max_tokens=50, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == FILLING
    assert (full.choices[0].text, full.choices[0].finish_reason) == (FILLING, "stop")


def test_ollamas_client_fills_the_gap_before_a_suffix(coder: Served) -> None:
    with ollama.Client(coder.server.url, timeout=20) as client:
        full = client.generate("coder", PREFIX, suffix=SUFFIX)
        assert (full.response, full.done_reason, full.context) == (FILLING, "stop", None)
        said = "".join(chunk.response or "" for chunk in client.generate("coder", PREFIX, suffix=SUFFIX, stream=True))
        assert said == FILLING
        assert client.show("coder").capabilities == ["completion", "insert"]


def test_a_model_that_cannot_fill_refuses_with_what_to_do(serve: Serve) -> None:
    served = serve(echo_model())
    with ollama.Client(served.server.url, timeout=20) as client:
        with pytest.raises(ollama.ResponseError, match=r"Qwen2\.5-Coder") as caught:
            client.generate("echo", PREFIX, suffix=SUFFIX)
        assert caught.value.status_code == 400
        assert ".Suffix" not in (client.show("echo").template or "")
    for path, param, body in (
        ("/v1/completions", "suffix", {"prompt": PREFIX, "suffix": SUFFIX}),
        ("/infill", "input_suffix", {"input_prefix": PREFIX, "input_suffix": SUFFIX}),
    ):
        error = served.http.post(path, json=body).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)


def continue_ollama_options(show: dict[str, Any]) -> dict[str, Any]:
    """What Continue's provider `ollama` keeps of `/api/show`: it fills if the template has a `.Suffix`."""
    assert ".Suffix" in show["template"]
    lines = [re.fullmatch(r'(\S+)\s+((?:".*")|\S+)', line) for line in show["parameters"].split("\n")]
    assert all(lines)
    found = {line[1]: line[2] for line in lines if line}
    return {"num_ctx": int(found["num_ctx"])}


def test_continue_completes_through_its_provider_for_ollama(coder: Served) -> None:
    show = coder.http.post("/api/show", json={"name": "coder"}).json()
    body = {
        "model": "coder",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "options": {
            "temperature": 0.01,
            "num_predict": 256,
            "stop": ["/src/", "#- coding: utf-8", "```"],
            **continue_ollama_options(show),
        },
        "keep_alive": 1800,
        "stream": True,
    }
    lines = [json.loads(line) for line in coder.http.post("/api/generate", json=body).text.splitlines()]
    assert "".join(line["response"] for line in lines) == FILLING
    assert "warnings" not in lines[-1]
    tags = coder.http.get("/api/tags").json()["models"]
    assert [model["name"] for model in tags] == ["coder:latest"]


def test_continue_completes_through_its_provider_for_llama_cpp(coder: Served) -> None:
    # The provider writes the tokens itself, by the model's name.
    prompt = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    stop = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>"]
    body = {"model": "coder", "prompt": prompt, "stream": True, "n_predict": 256, "stop": stop, "temperature": 0.01}
    *chunks, last = sse(coder.http.post("/completion", json=body, headers={"Authorization": "Bearer none"}))
    assert "".join(chunk["content"] for chunk in [*chunks, last]) == FILLING
    assert [chunk["stop"] for chunk in chunks] == [False] * len(chunks)
    assert (last["stop"], last["stop_type"]) == (True, "eos")


def test_continue_completes_through_an_openai_compatible_provider(coder: Served) -> None:
    body = {
        "model": "coder",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 256,
        "temperature": 0.01,
        "top_p": None,
        "stop": ["```"],
        "stream": True,
    }
    chunks = sse(coder.http.post("/v1/completions", json=body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == FILLING


def vscode(prefix: str, suffix: str, prompt: str, **fields: Any) -> dict[str, Any]:
    """A body of llama.vscode."""
    return {
        "id_slot": 0,
        "input_prefix": prefix,
        "input_suffix": suffix,
        "input_extra": [],
        "prompt": prompt,
        "n_predict": 128,
        "n_cmpl": 3,
        "top_k": 40,
        "top_p": 0.99,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        **fields,
    }


def test_llama_vscode_completes(coder: Served) -> None:
    line = "    return "
    body = vscode(PREFIX.removesuffix(line), SUFFIX, line, n_indent=4)
    (reply,) = coder.http.post("/infill", json=body).json()
    assert (reply["content"], reply["stop"], reply["stop_type"], reply["truncated"]) == (FILLING, True, "eos", False)
    assert reply["timings"]["predicted_n"] == len(FILLING) + 1
    assert reply["timings"]["prompt_n"] + reply["timings"]["cache_n"] == reply["tokens_evaluated"]
    again = coder.http.post("/infill", json={**body, "n_cmpl": 1, "return_tokens": True}).json()
    assert again["content"] == FILLING
    text = coder.http.post("/detokenize", json={"tokens": again["tokens"]}).json()["content"]
    assert text == f"{FILLING}<|file_sep|>"
    # The line up to the cursor is in front of the suffix, so this is the same prompt.
    joined = coder.http.post("/infill", json=vscode(PREFIX, SUFFIX, "", n_cmpl=1)).json()
    assert joined["tokens_evaluated"] == reply["tokens_evaluated"]


def test_llama_vscode_has_its_files_computed_in_advance(coder: Served) -> None:
    extra = [{"text": "def sub(a, b):\n    return a - b\n", "time": 1, "filename": "/home/me/sub.py"}]
    ahead = vscode("", "", "", input_extra=extra, n_predict=0, samplers=[], t_max_predict_ms=1)
    del ahead["n_cmpl"]
    reply = coder.http.post("/infill", json=ahead).json()
    assert (reply["content"], reply["tokens_predicted"], reply["stop_type"]) == ("", 0, "limit")
    after = coder.http.post("/infill", json=vscode(PREFIX, SUFFIX, "", input_extra=extra, n_cmpl=1)).json()
    assert after["content"] == FILLING
    # All but what follows the beginning of the edited file.
    assert after["timings"]["cache_n"] >= reply["tokens_evaluated"] - 64


def test_llama_vscode_asks_for_the_context_and_counts_tokens(coder: Served) -> None:
    (model,) = coder.http.get("/v1/models").json()["data"]
    assert isinstance(model["meta"], dict)
    assert coder.http.get("/props").json()["default_generation_settings"]["n_ctx"] == 1024
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    prompt = coder.http.post("/apply-template", json={"messages": messages, "model": "coder"}).json()["prompt"]
    body = {"content": prompt, "add_special": False, "parse_special": True}
    counted = len(coder.http.post("/tokenize", json=body).json()["tokens"])
    assert counted == coder.http.post("/tokenize", json={"messages": messages}).json()["count"]
    assert coder.http.get("/health").json() == {"status": "ok"}


def test_infill_is_streamed_and_ends_at_a_line_that_leaves_the_block(serve: Serve) -> None:
    served = serve(fill_model("1\n    b = 2\nc = 3\n"))
    body = vscode("if x:\n    a = ", "\n", "", n_indent=4, n_cmpl=1, stream=True)
    *chunks, last = sse(served.http.post("/infill", json=body))
    assert "".join(chunk["content"] for chunk in chunks) == "1\n    b = 2"
    assert (last["has_new_line"], last["content"]) == (True, "")


def test_several_completions_that_are_sampled_are_a_list(coder: Served) -> None:
    replies = coder.http.post("/infill", json=vscode(PREFIX, SUFFIX, "", temperature=0.8, n_cmpl=3)).json()
    assert [(reply["index"], reply["content"]) for reply in replies] == [(0, FILLING), (1, FILLING), (2, FILLING)]
    assert [reply["tokens_predicted"] for reply in replies] == [len(FILLING) + 1] * 3


def test_copilot_recognises_the_daemon(coder: Served) -> None:
    """VS Code's Copilot asks for the version, the models and each model, and then chats in OpenAI's dialect."""
    agent = {"User-Agent": "GitHubCopilotChat/0.40.0"}
    version = coder.http.get("/api/version", headers=agent).json()["version"]
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]
    assert version == OLLAMA_VERSION
    (listed,) = coder.http.get("/api/tags", headers=agent).json()["models"]
    shown = coder.http.post("/api/show", json={"model": listed["model"]}, headers=agent).json()
    info = shown["model_info"]
    assert info["general.basename"] == "coder"
    assert info[f"{info['general.architecture']}.context_length"] == 1024
    assert shown["capabilities"] == ["completion", "insert"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input_suffix": None}, "invalid_request", "input_suffix"),
        ({"input_prefix": 1}, "invalid_request", "input_prefix"),
        ({"input_extra": [{"text": 1}]}, "invalid_request", "input_extra[0].text"),
        ({"input_extra": [{}] * 257}, "invalid_request", "input_extra"),
        ({"n_indent": -1}, "invalid_request", "n_indent"),
        ({"n_cmpl": 99, "temperature": 1}, "invalid_request", "n_cmpl"),
        ({"n_cmpl": 0}, "invalid_request", "n_cmpl"),
        ({"logit_bias": [[1]]}, "invalid_request", "logit_bias"),
        ({"logit_bias": [["a", 1]]}, "invalid_request", "logit_bias"),
        ({"mirostat": 2}, "unsupported_parameter", "mirostat"),
        ({"input_extras": []}, "unsupported_parameter", "input_extras"),
        ({"model": "other"}, "model_not_found", "model"),
    ],
)
def test_wrong_fields_of_infill_are_refused_by_name(
    coder: Served, fields: dict[str, Any], code: str, param: str
) -> None:
    response = coder.http.post("/infill", json={"input_prefix": "a", "input_suffix": "b", **fields})
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert response.status_code in {400, 404}
