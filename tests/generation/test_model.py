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
from edgekit.generation import tokenizer as text
from edgekit.generation.decode import generate
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.request import ChatRequest, Delta, Event, Finish, Message, Sampling
from edgekit.generation.scheduler import Scheduler
from tests.generation.bundles import tiny_bundle
from tests.generation.test_scheduler import Receiver
from tests.models import CHATML, tiny_decoder, tiny_tensors
from tests.reference import forward


@pytest.fixture(scope="module", params=["onnx", "onnx in floats", "mlx"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2: on the CPU kernels in 8 bits; on onnxruntime and MLX as it is."""
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
    assert isinstance(events[-1], Finish), events[-1]
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_bundle_loads_with_its_names_and_limits(model: TextModel) -> None:
    assert (model.info.name, model.info.created, model.info.context_length) == ("tiny", 1767323045, 256)
    assert model.info.capabilities == ("completion",)
    assert model.eos_token_ids == {2}


def test_what_its_template_can_do_is_said(tmp_path: Path) -> None:
    template = (
        "{% if tools %}<tool_call>{'arguments'}{% endif %}{% if enable_thinking %}<think></think>{% endif %}" + CHATML
    )
    model = load_model(tiny_bundle(tmp_path, "onnx", template=template), threads=1)
    model.close()
    assert model.info.capabilities == ("completion", "tools", "thinking")


def test_a_token_that_only_the_tokenizer_knows_is_the_callers_mistake(model: TextModel) -> None:
    backend = Tokenizer.from_str(model.tokenizer.backend.to_str())
    backend.add_tokens([AddedToken(f"<extra_{number}>") for number in range(512)])
    more = dataclasses.replace(model, tokenizer=text.Tokenizer(backend))
    assert more.prompt(_ask()).tokens == model.prompt(_ask()).tokens
    for request in (
        ChatRequest("r", (Message("user", "a <extra_511>"),)),
        ChatRequest("r", (), prompt="a <extra_511>"),
    ):
        with pytest.raises(RequestError, match=r"holds `<extra_511>`, token \d+ of the tokenizer, and .* 512 tokens"):
            more.prompt(request)


# The reference computes with floats: what rounds its activations may choose another token.
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
    # A random model ends rarely by itself; sampled seeds that do are of no use here.
    for seed in range(20):
        events = list(generate(model, _ask(sampling=Sampling(temperature=1.0, seed=seed))))
        finish = events[-1]
        assert isinstance(finish, Finish)
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
    scheduler = Scheduler(load_model(bundle, threads=1))
    receivers = [Receiver() for _ in range(3)]
    for receiver in receivers:
        scheduler.submit(_ask(sampling=Sampling(temperature=0), max_tokens=8), receiver)
    for receiver in receivers:
        assert isinstance(receiver.wait(), Finish)
    assert len({receiver.text for receiver in receivers}) == 1
    scheduler.stop()


def _copy(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def test_a_bundle_without_its_text_side_is_named(bundle: Path, tmp_path: Path) -> None:
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
    with pytest.raises(BundleError, match="no chat template"):
        load_model(copy)


def test_an_artifact_of_an_unknown_kind_is_incompatible(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    manifest = dataclasses.replace(open_bundle(copy).manifest, artifact=Artifact("gguf"))
    (copy / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    with pytest.raises(IncompatibleBundleError, match="`gguf`"):
        load_model(copy)


def test_weights_that_are_not_numbers_show_before_anybody_asks(bundle: Path, tmp_path: Path) -> None:
    copy = _copy(bundle, tmp_path)
    weights = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    data = weights.read_bytes()
    # All bits set is NaN in every float type.
    weights.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    with pytest.raises(RunnerError, match="not numbers"):
        load_model(copy, threads=1)
