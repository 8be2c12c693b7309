from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME, Artifact
from edgekit.errors import BundleError, ConfigError, IncompatibleBundleError, RequestError, RunnerError
from edgekit.generation.chat import tokenizer as text
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.tools import find_format, find_reasoning
from edgekit.generation.types import (
    ChatRequest,
    Delta,
    Event,
    Finished,
    Message,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.generation.bundles import tiny_bundle
from tests.generation.engine.test_worker import Receiver
from tests.generation.tiny import echo_model
from tests.generation.tools.test_find_format import HERMES, QWEN3
from tests.models import CHATML, tiny_decoder, tiny_tensors
from tests.reference import forward


@pytest.fixture(scope="module", params=["onnx", "onnx in floats", "mlx"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2: in 8 bits on the CPU kernels; in floats on onnxruntime and MLX."""
    if request.param == "mlx":
        mx = pytest.importorskip("mlx.core")
        mx.set_default_device(mx.cpu)
        return tiny_bundle(tmp_path_factory.mktemp("mlx"), "mlx", bits=32)
    return tiny_bundle(tmp_path_factory.mktemp("onnx"), "onnx", bits=8 if request.param == "onnx" else 32)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[TextModel]:
    """The bundle, loaded."""
    model = load_model(bundle, threads=1)
    yield model
    model.close()


def _ask(**fields: object) -> ChatRequest:
    return ChatRequest("r", (Message("user", "what is the capital of France"),), **fields)  # type: ignore[arg-type]


def _answer(events: list[Event]) -> str:
    assert isinstance(events[-1], Finished), events[-1]
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_bundle_loads_with_its_names_and_limits(model: TextModel) -> None:
    assert (model.info.name, model.info.created, model.info.context_length) == ("tiny", 1767323045, 256)
    assert model.info.capabilities == ("completion",)
    assert model.eos_token_ids == {2}


def test_a_chat_with_tools_takes_the_template_for_tools(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    (bundle / "additional_chat_templates").mkdir()
    with_tools = (
        "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call> arguments{% endfor %}TOOLS:" + CHATML
    )
    (bundle / "additional_chat_templates" / "tool_use.jinja").write_text(with_tools)
    model = load_model(bundle, threads=1)
    call = Message("assistant", "", tool_calls=(ToolCall("1", "clock", "{}"),))
    answered = ChatRequest("r", (*_ask().messages, call, Message("tool", "noon", tool_call_id="1")))
    offered = _ask(tools=(Tool("clock"),))
    unused = _ask(tools=(Tool("clock"),), tool_choice=ToolChoice("none"))
    try:
        assert "tools" in model.info.capabilities
        for request, expected in ((_ask(), False), (offered, True), (unused, True), (answered, True)):
            assert ("TOOLS:" in model.tokenizer.decode(model.prompt(request).tokens)) is expected
        assert "clock" in model.tokenizer.decode(model.prompt(offered).tokens)
    finally:
        model.close()


def test_capabilities_follow_the_chat_template(tmp_path: Path) -> None:
    template = (
        "{% if tools %}<tool_call>{'arguments'}{% endif %}{% if enable_thinking %}<think></think>{% endif %}" + CHATML
    )
    model = load_model(tiny_bundle(tmp_path, "onnx", template=template), threads=1)
    model.close()
    assert model.info.capabilities == ("completion", "tools", "thinking")


def test_special_tokens_are_tokens_in_a_raw_prompt_and_text_in_a_message(model: TextModel) -> None:
    chat = model.prompt(_ask()).tokens
    assert model.template is not None
    rendered = model.template.render([{"role": "user", "content": "what is the capital of France"}])
    assert model.tokenizer.special_ids.intersection(chat)
    assert model.prompt(ChatRequest("r", (), prompt=rendered)).tokens == chat
    quoted = model.prompt(ChatRequest("r", (Message("user", rendered),))).tokens
    starts = model.tokenizer.special_tokens["<|im_start|>"]
    assert list(quoted).count(starts) == list(chat).count(starts)


def test_a_token_that_only_the_tokenizer_knows_is_the_callers_mistake(model: TextModel) -> None:
    backend = Tokenizer.from_str(model.tokenizer.backend.to_str())
    backend.add_tokens([AddedToken(f"<extra_{number}>") for number in range(512)])
    more = dataclasses.replace(model, tokenizer=text.Tokenizer(backend))
    assert more.prompt(_ask()).tokens == model.prompt(_ask()).tokens
    for request in (
        ChatRequest("r", (Message("user", "a <extra_511>"),)),
        ChatRequest("r", (), prompt="a <extra_511>"),
    ):
        with pytest.raises(RequestError, match=r"contains `<extra_511>`, token \d+ of the tokenizer; .* 512 tokens"):
            more.prompt(request)


def test_tools_need_a_template_that_knows_them_unless_they_must_not_be_called(model: TextModel) -> None:
    tool = Tool("clock")
    for mode in ("auto", "required"):
        with pytest.raises(RequestError, match="does not support tool calls") as caught:
            model.prompt(_ask(tools=(tool,), tool_choice=ToolChoice(mode)))
        assert caught.value.param == "tools"
    assert model.prompt(_ask(tools=(tool,), tool_choice=ToolChoice("none"))) == model.prompt(_ask())


def _detected(template: str) -> TextModel:
    """A model whose formats of tool calls and reasoning are found in the template's source; it renders ChatML."""
    return dataclasses.replace(
        echo_model(),
        template=ChatTemplate("{% if false %}" + template + "{% endif %}" + CHATML),
        tool_format=find_format(template, {}),
        reasoning=find_reasoning(template, {}),
    )


def test_a_required_call_is_enforced_without_reasoning() -> None:
    model = _detected(HERMES)
    prepared = model.prepare(_ask(tools=(Tool("clock"),), tool_choice=ToolChoice("required")))
    assert prepared.grammar is not None
    matcher = prepared.grammar.matcher()
    assert matcher.fits(model.tokenizer.encode("It is", obey_special=False)) == 0
    call = model.tokenizer.encode('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', obey_special=False)
    assert matcher.fits(call) == len(call)
    assert model.prepare(_ask()).grammar is None


@pytest.mark.parametrize("opened", [False, True])
def test_a_response_format_follows_the_reasoning_that_the_prompt_opens(opened: bool) -> None:
    model = _detected(QWEN3)
    if opened:
        source = CHATML.replace("assistant\n", "assistant\n<think>\n")
        model = dataclasses.replace(model, template=ChatTemplate(source))
    prepared = model.prepare(_ask(response_format=ResponseFormat("choice", ("yes", "no"))))
    assert prepared.thinking is opened
    assert prepared.grammar is not None
    for output, fits in (("yes", True), ("Hm.", opened), ("Hm.</think>\n\nyes", opened), ("Hm.</think>\n\nHm.", False)):
        tokens = model.tokenizer.encode(output, obey_special=False)
        matcher = prepared.grammar.matcher()
        taken = matcher.fits(tokens)
        for token in tokens[:taken]:
            matcher.accept(token)
        assert (taken == len(tokens) and matcher.accepting) is fits


# The reference computes with floats: with quantized activations another token may be the most likely.
@pytest.mark.parametrize("bundle", ["onnx in floats", "mlx"], indirect=True)
def test_greedy_decoding_is_what_the_reference_computes_token_by_token(model: TextModel, bundle: Path) -> None:
    request = _ask(sampling=Sampling(temperature=0), max_tokens=12)
    checkpoint = bundle.parent / "checkpoint"
    tensors = tiny_tensors(checkpoint)
    decoder = tiny_decoder(checkpoint)
    tokens = [*model.prompt(request).tokens]
    start = len(tokens)
    while len(tokens) < start + 12 and tokens[-1] != 2:
        tokens.append(int(np.argmax(forward(decoder, tensors.__getitem__, tokens)[-1])))
    expected = model.tokenizer.decode(tokens[start:])
    assert _answer(list(generate(model, request))) == expected


def test_a_seed_gives_the_same_answer_twice_and_another_seed_another(model: TextModel) -> None:
    def answer(seed: int) -> str:
        sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed)
        return _answer(list(generate(model, _ask(sampling=sampling, max_tokens=40))))

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_the_answer_ends_with_the_context(model: TextModel) -> None:
    # A random model rarely ends by itself; skip the seeds with which it does.
    for seed in range(20):
        events = list(generate(model, _ask(sampling=Sampling(temperature=1.0, seed=seed))))
        finish = events[-1]
        assert isinstance(finish, Finished)
        if finish.reason == "length":
            assert finish.usage.total_tokens == 256
            return
    pytest.fail("no answer reached the end of the context")


def test_a_shorter_context_may_be_chosen_and_a_longer_one_not(bundle: Path) -> None:
    model = load_model(bundle, context_length=64, threads=1)
    assert model.info.context_length == 64
    model.close()
    with pytest.raises(ConfigError, match="between 2 and 256, not 257"):
        load_model(bundle, context_length=257)


def test_the_queue_answers_from_a_real_model_and_closes_it(bundle: Path) -> None:
    worker = EngineWorker(load_model(bundle, threads=1))
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        worker.submit(_ask(sampling=Sampling(temperature=0), max_tokens=8), receiver)
    for receiver in receivers:
        assert isinstance(receiver.wait(), Finished)
    assert len({receiver.text for receiver in receivers}) == 1
    worker.stop()


def _copy(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def test_a_missing_or_broken_tokenizer_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    (copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        load_model(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        load_model(copy)


def test_the_template_of_the_tokenizers_settings_is_the_second_choice(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    (copy / "chat_template.jinja").unlink()
    model = load_model(copy, threads=1)
    assert model.prompt(_ask()).tokens
    model.close()
    settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    without = load_model(copy, threads=1)
    with pytest.raises(RequestError, match="no chat template"):
        without.prompt(_ask())
    assert without.prompt(ChatRequest("r", (), prompt="the capital")).tokens
    without.close()


def test_an_artifact_of_an_unknown_kind_is_incompatible(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    manifest = dataclasses.replace(open_bundle(copy).manifest, artifact=Artifact("gguf"))
    (copy / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    with pytest.raises(IncompatibleBundleError, match="`gguf`"):
        load_model(copy)


def test_nan_weights_are_found_before_the_first_request(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    weights = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    data = weights.read_bytes()
    # All bits set is NaN in every float type.
    weights.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    with pytest.raises(RunnerError, match="NaN or infinity"):
        load_model(copy, threads=1)


def _chat(*contents: str, **fields: object) -> ChatRequest:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[at % 2], content) for at, content in enumerate(contents))  # type: ignore[arg-type]
    return ChatRequest("r", messages, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("param", ["prompt", "messages"])
def test_a_prompt_leaves_room_for_one_token_at_least(param: str) -> None:
    model = echo_model(context_length=128)
    around = len(model.prompt(_chat("")).tokens) if param == "messages" else 0

    def request(tokens: int) -> ChatRequest:
        text = "x" * (tokens - around)
        return _chat(text) if param == "messages" else ChatRequest("r", prompt=text)

    assert len(model.prompt(request(127)).tokens) == 127
    with pytest.raises(RequestError, match="the prompt has 128 tokens; the context holds 128") as caught:
        model.prompt(request(128))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


@pytest.mark.parametrize(
    ("size", "max_tokens", "dropped"),
    [
        # A quarter of the context is reserved for the answer, or as much as was asked for, up to half.
        (300, None, 0),
        (301, None, 2),
        (300, 100, 0),
        (300, 101, 2),
        (399, 1, 0),
        (200, 200, 0),
        (200, 1000, 0),
        (201, 1000, 2),
    ],
)
def test_a_chat_is_truncated_where_it_would_leave_no_room_for_its_answer(
    size: int, max_tokens: int | None, dropped: int
) -> None:
    model = echo_model(context_length=400)
    around = len(model.prompt(_chat("", "a", "b")).tokens)
    request = _chat("x" * (size - around), "a", "b", truncation="auto", max_tokens=max_tokens)
    prompt = model.prompt(request)
    assert prompt.left_out == dropped
    assert (len(prompt.tokens) == size) is (dropped == 0)


def test_the_bytes_of_a_token_beyond_the_tokenizers_are_none() -> None:
    model = echo_model()
    assert model.token_bytes(model.tokenizer.vocab_size - 1) == b"<|im_end|>"
    assert model.token_bytes(model.tokenizer.vocab_size) == b""


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="the prompt is empty") as caught:
        echo_model().prompt(ChatRequest("r", prompt=""))
    assert caught.value.param == "prompt"
