from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import edgekit
from edgekit.config import MAX_PARALLEL, GenerationConfig
from tests.generation.bundles import tiny_bundle
from tests.models import CHATML

# A random model's answer ends when chance says so; biased away from its end it has as many tokens as were asked for.
# Hermes' format, as short as the tiny model's context.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    '<tool_call>{"arguments"}</tool_call><|im_end|>\n{% endif %}'
)
ENDLESS: dict[str, Any] = {"logit_bias": {"2": -100}, "temperature": 0}


def test_a_string_is_answered_as_a_users_message(model: edgekit.Model) -> None:
    one = model.chat("hello", max_tokens=5, **ENDLESS)
    other = model.chat([{"role": "user", "content": "hello"}], max_tokens=5, **ENDLESS)
    assert isinstance(one, edgekit.Reply)
    assert one.text == other.text == str(one)
    assert one.usage.completion_tokens == 5
    assert one.finish_reason == "length"
    assert one.message == {"role": "assistant", "content": one.text}


def test_a_reply_may_be_sent_back_as_a_turn_of_the_conversation(model: edgekit.Model) -> None:
    turns = [{"role": "user", "content": "hello"}]
    first = model.chat(turns, max_tokens=3, **ENDLESS)
    again = model.chat([*turns, first.message, {"role": "user", "content": "more"}], max_tokens=3, **ENDLESS)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_the_deltas_of_a_stream_join_to_the_reply(model: edgekit.Model) -> None:
    whole = model.chat("hello", max_tokens=12, **ENDLESS)
    with model.chat("hello", stream=True, max_tokens=12, **ENDLESS) as stream:
        deltas = list(stream)
        assert all(isinstance(delta, edgekit.Delta) for delta in deltas)
        assert stream.reply().text == whole.text
    assert "".join(model.chat("hello", stream=True, max_tokens=12, **ENDLESS).text_stream) == whole.text


def test_leaving_a_stream_early_cancels_the_request_and_frees_its_slot(model: edgekit.Model) -> None:
    for _ in range(5):
        stream = model.chat("hello", stream=True, max_tokens=200, **ENDLESS)
        for _delta in stream:
            break
        gc.collect()
        with pytest.raises(edgekit.RequestError, match="closed"):
            stream.reply()
    assert model.chat("hello", max_tokens=2, **ENDLESS).usage.completion_tokens == 2


def test_a_json_schema_is_enforced_and_parsed(model: edgekit.Model) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    reply = model.chat(
        "hello", max_tokens=200, response_format={"type": "json_schema", "json_schema": {"schema": schema}}
    )
    assert reply.json() in ({"ok": True}, {"ok": False})


def test_a_reply_that_is_not_json_says_so(model: edgekit.Model) -> None:
    reply = model.chat("hello", max_tokens=3, response_format={"type": "json_object"}, temperature=0)
    with pytest.raises(edgekit.RequestError, match="not JSON") as caught:
        reply.json()
    assert "max_tokens" in str(caught.value.hint)


def test_a_required_tool_is_called(tmp_path: Path) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "light",
            "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
            "strict": True,
        },
    }
    with edgekit.load(tiny_bundle(tmp_path, "onnx", template=TOOLS + CHATML)) as model:
        reply = model.chat("light", tools=[tool], tool_choice="required", max_tokens=120, parallel_tool_calls=False)
        (call,) = reply.tool_calls
        assert call.name == "light"
        assert set(json.loads(call.arguments)) == {"on"}
        assert reply.finish_reason == "tool_calls"
        kinds = {type(delta) for delta in model.chat("x", stream=True, tools=[tool], tool_choice="required")}
        assert edgekit.ToolCallDelta in kinds


def test_completions_continue_a_text_without_a_template(model: edgekit.Model) -> None:
    reply = model.complete("hello", max_tokens=4, **ENDLESS)
    assert reply.usage.prompt_tokens == model.count_tokens("hello", raw=True)
    assert reply.usage.completion_tokens == 4


def test_tokens_are_counted_as_usage_counts_them(model: edgekit.Model) -> None:
    assert model.count_tokens("hello") == model.chat("hello", max_tokens=1).usage.prompt_tokens
    assert model.count_tokens("hello") > model.count_tokens("hello", raw=True)


def test_asyncio_answers_several_at_once_and_streams(model: edgekit.Model) -> None:
    async def ask() -> tuple[list[edgekit.Reply], str, str]:
        replies = await asyncio.gather(*(model.achat(f"number {n}", max_tokens=6, **ENDLESS) for n in range(6)))
        text = ""
        async with await model.achat("hello", stream=True, max_tokens=6, **ENDLESS) as stream:
            async for delta in stream:
                assert isinstance(delta, edgekit.Delta)
                text += delta.text
            reply = await stream.reply()
        return replies, text, reply.text

    replies, text, reply = asyncio.run(ask())
    assert [answer.usage.completion_tokens for answer in replies] == [6] * 6
    assert text == reply == model.chat("hello", max_tokens=6, **ENDLESS).text
    one = [model.chat(f"number {n}", max_tokens=6, **ENDLESS).text for n in range(6)]
    assert [answer.text for answer in replies] == one


def test_a_cancelled_task_cancels_its_request(model: edgekit.Model) -> None:
    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.achat("hello", max_tokens=240, **ENDLESS), 0.01)

    asyncio.run(ask())
    assert model.chat("hello", max_tokens=2, **ENDLESS).usage.completion_tokens == 2


def test_threads_share_a_model(model: edgekit.Model) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(model.chat("hello", max_tokens=8, **ENDLESS).text))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"colour": 1}, "colour"),
        ({"temperature": 9}, "temperature"),
        ({"n": 2}, "n"),
        ({"stop": ["x" * 257]}, "stop"),
    ],
)
def test_a_wrong_parameter_is_named(model: edgekit.Model, parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(edgekit.RequestError) as caught:
        model.chat("hello", **parameters)
    assert caught.value.param == param


def test_too_long_a_prompt_is_refused_with_numbers(model: edgekit.Model) -> None:
    with pytest.raises(edgekit.RequestError, match="256") as caught:
        model.chat("hello " * 400)
    assert caught.value.code == "context_length_exceeded"


def test_a_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(edgekit.BundleError, match="no bundle"):
        edgekit.load(tmp_path / "nothing")


def test_settings_of_the_configuration_are_taken_and_arguments_override_them(bundle: Path) -> None:
    with edgekit.load(str(bundle), config=GenerationConfig(context_length=128), threads=1) as model:
        assert model.context_length == 128
    with edgekit.load(edgekit.open_bundle(bundle), config=GenerationConfig(), context_length=64) as model:
        assert model.context_length == 64
        assert "context_length=64" in repr(model)


def test_a_closed_model_says_so_and_may_be_closed_again(bundle: Path) -> None:
    model = edgekit.load(bundle)
    model.close()
    model.close()
    with pytest.raises(edgekit.RunnerError, match="closed"):
        model.chat("hello")
    assert "closed" in repr(model)


def test_a_program_that_does_not_close_its_model_ends_cleanly(bundle: Path) -> None:
    program = f"""
import edgekit
model = edgekit.load({str(bundle)!r})
stream = model.chat("hello", stream=True, max_tokens=200)
print(next(iter(stream.text_stream), "") is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_typed_parameters_are_those_that_the_http_api_takes() -> None:
    from edgekit.api.parameters import ChatParameters, CompletionParameters
    from edgekit.daemon.api import chat, completion

    # Other servers' spellings work too, but are not offered; streaming and the number of answers are not the caller's.
    elsewhere = {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "repeat_penalty", "reasoning_effort"}
    elsewhere |= {"enable_thinking", "thinking", "thinking_budget", "reasoning", "reasoning_budget"}
    elsewhere |= {"n_predict", "grammar", "add_generation_prompt", "verbosity"}
    ours = {"best_of", "model", "stream", "stream_options", "n", "messages", "prompt", "max_completion_tokens"}
    for typed, body in ((ChatParameters, chat.ChatBody), (CompletionParameters, completion.CompletionBody)):
        assert set(typed.__annotations__) == set(body.model_fields) - elsewhere - ours


def test_a_bundle_is_opened_by_a_string_too(bundle: Path) -> None:
    assert edgekit.open_bundle(str(bundle)).manifest.name == "tiny"
    with pytest.raises(edgekit.BundleError):
        edgekit.open_bundle(str(bundle / "manifest.json"))


@pytest.mark.parametrize("messages", [None, 5, b"hello", {"role": "user", "content": "hello"}])
def test_messages_of_another_type_are_refused_by_name(model: edgekit.Model, messages: Any) -> None:
    with pytest.raises(edgekit.RequestError, match="a string or a list of messages") as caught:
        model.chat(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": object()}}}}, "schema.const"),
        ({"messages": [{"role": "user", "content": b"hello"}]}, "messages[0].content"),
        ({"stop": {"a"}}, "stop"),
        ({"tools": [{"type": "function", "function": {("a",): 1}}]}, "tools[0].function"),
        ({"seed": 1j}, "seed"),
    ],
)
def test_a_parameter_that_json_does_not_have_is_refused_by_name(
    model: edgekit.Model, parameters: dict[str, Any], path: str
) -> None:
    with pytest.raises(edgekit.RequestError, match="has no form in JSON") as caught:
        model.chat(**{"messages": "hello", **parameters})
    assert str(caught.value.param).endswith(path)
    assert f"`{caught.value.param}`" in caught.value.message


def test_a_number_that_is_not_finite_is_refused_by_name(model: edgekit.Model) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(edgekit.RequestError, match="`temperature` must be a finite number") as caught:
            model.chat("hello", temperature=value)
        assert caught.value.param == "temperature"


def test_a_value_that_contains_itself_is_refused_by_name(model: edgekit.Model) -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    with pytest.raises(edgekit.RequestError, match="`json_schema` is nested too deeply") as caught:
        model.chat("hello", json_schema=schema)
    assert caught.value.param == "json_schema"


def test_mappings_and_sequences_of_any_type_are_taken(model: edgekit.Model) -> None:
    plain = model.chat([{"role": "user", "content": "hello"}], stop=["x"], max_tokens=4, **ENDLESS)
    message = MappingProxyType({"role": "user", "content": "hello"})
    biases = MappingProxyType({2: -100})
    reply = model.chat((message,), stop=("x",), max_tokens=4, logit_bias=biases, temperature=0)
    assert reply.text == plain.text


@pytest.mark.parametrize("name", ["context_length", "threads", "parallel"])
@pytest.mark.parametrize("value", [2.0, "2", True])
def test_counts_that_are_not_integers_are_refused(bundle: Path, name: str, value: Any) -> None:
    with pytest.raises(edgekit.ConfigError, match=f"`{name}` must be an integer, not {value!r}"):
        edgekit.load(bundle, **{name: value})


@pytest.mark.parametrize("value", [0, -3, 10**9])
@pytest.mark.parametrize(("name", "bounds"), [("parallel", "1 and 64"), ("threads", "1 and 1024")])
def test_counts_out_of_range_are_refused_with_the_range(bundle: Path, name: str, bounds: str, value: int) -> None:
    with pytest.raises(edgekit.ConfigError, match=f"`{name}` must be between {bounds}, not {value}"):
        edgekit.load(bundle, **{name: value})  # type: ignore[arg-type] # a count


def test_a_runner_can_be_fixed(bundle: Path) -> None:
    with edgekit.load(bundle, runner="onnxruntime", context_length=64) as model:
        assert model.chat("hello", max_tokens=2).usage.completion_tokens > 0
    with pytest.raises(edgekit.ConfigError, match="no runner `mlx` for this bundle"):
        edgekit.load(bundle, runner="mlx")


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel": 1000},
        {"max_queue": 0},
        {"threads": 5000},
        {"prefix_memory_mib": -1},
        {"prefix_folder": "a string"},
        {"draft_max": 65},
        {"kv_cache_bits": 4},
        {"speculation": 1},
        {"context_length": 63},
        {"runner": "gpu"},
        {"runner": []},
    ],
)
def test_settings_of_the_configuration_are_checked_as_the_files_are(bundle: Path, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(edgekit.ConfigError, match=f"^`{name}` must be "):
        edgekit.load(bundle, config=GenerationConfig(**settings))


def test_the_documented_number_of_parallel_answers_is_the_default(bundle: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    with edgekit.load(bundle) as model:
        slots = model._model.runner.limits.sequence_slots
    assert f"up to {MAX_PARALLEL}; {slots} unless given" in page


def test_closing_a_model_fails_its_open_stream_and_says_why(bundle: Path) -> None:
    model = edgekit.load(bundle)
    stream = model.chat("hello", stream=True, max_tokens=240, **ENDLESS)
    next(iter(stream.text_stream))
    other = model.chat("hello", stream=True, max_tokens=240, **ENDLESS)
    model.close()
    with pytest.raises(edgekit.RunnerError, match="closed"):
        other.reply()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_model_says_that_it_does_not_survive_a_fork(bundle: Path) -> None:
    program = f"""
import os, sys, warnings, edgekit
warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads
with edgekit.load({str(bundle)!r}) as model:
    child = os.fork()
    if not child:
        try:
            model.chat("hello", max_tokens=1)
        except edgekit.RunnerError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model.chat("hello", max_tokens=1) is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0 True\n", done.stderr
