"""A leading space of the output is kept when a prompt is continued, and dropped in a chat message.

The tokenizer is like SentencePiece's, with a space before every text; the model is real and random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers

from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.generate import generate
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.types import ChatRequest, Delta, Finished, Message, ResponseFormat, Sampling
from tests.generation.bundles import tiny_bundle
from tests.generation.grammar.kits import kit

PROMPTS = ("The capital of France is", "The answer is ", " name", "法国的首都是", "value\n")
TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
# Single bytes would be parts of characters; all other tokens are text.
NO_BYTES = dict.fromkeys(range(1, 257), -100.0)


def _metaspace(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens, as newer files write them."""
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return tiny_bundle(tmp_path_factory.mktemp("onnx"), "onnx")


@pytest.fixture(scope="module", params=["strip", "metaspace"])
def model(request: pytest.FixtureRequest, bundle: Path) -> Iterator[TextModel]:
    used = kit("sentencepiece")
    tokenizer = used.tokenizer if request.param == "strip" else _metaspace(used.tokenizer)
    loaded = load_model(bundle, threads=1)
    width = loaded.runner.limits.vocab_size
    yield replace(
        loaded,
        tokenizer=tokenizer,
        template=ChatTemplate(TEMPLATE),
        eos_token_ids=used.eos,
        grammars=GrammarCompiler(tokenizer, vocab_size=width, eos_token_ids=used.eos),
    )
    loaded.close()


def answers(model: TextModel, **fields: Any) -> list[tuple[str, list[int]]]:
    """Twelve choices: text and tokens."""
    vocabulary = model.tokenizer.backend.get_vocab()
    # Few words start with a space; make it about half.
    boosted = {number: 3.0 for piece, number in vocabulary.items() if piece.startswith("▁")}
    sampling = Sampling(temperature=1.0, seed=7, logit_bias=NO_BYTES | boosted)
    request = ChatRequest("r", max_tokens=8, n=12, logprobs=0, sampling=sampling, **fields)
    texts, tokens = [""] * request.n, [[] for _ in range(request.n)]  # type: ignore[var-annotated]
    events = list(generate(model, request))
    assert isinstance(events[-1], Finished), events[-1]
    for event in events:
        if isinstance(event, Delta):
            texts[event.index] += event.text
            tokens[event.index] += [item.token for item in event.logprobs]
    return list(zip(texts, tokens, strict=True))


def starts_with_a_space(model: TextModel, tokens: list[int]) -> bool:
    # The logits are wider than the tokenizer's vocabulary.
    pieces = [model.tokenizer.backend.id_to_token(number) for number in tokens]
    shown = [piece for piece in pieces if piece is not None and piece not in model.tokenizer.special_tokens]
    return bool(shown) and shown[0].startswith("▁")


def test_a_prompt_and_its_continuation_together_are_the_full_text(model: TextModel) -> None:
    spaces = 0
    for prompt in PROMPTS:
        before = model.tokenizer.encode_text(prompt)
        head = model.tokenizer.decode(before)
        for text, tokens in answers(model, prompt=prompt):
            assert head + text == model.tokenizer.decode([*before, *tokens])
            assert text.startswith(" ") == starts_with_a_space(model, tokens)
            spaces += starts_with_a_space(model, tokens)
    assert 0 < spaces < 12 * len(PROMPTS)


def test_an_echo_and_its_continuation_are_one_text(model: TextModel) -> None:
    for text, tokens in answers(model, prompt=PROMPTS[0], echo=True):
        generated = tokens[len(model.tokenizer.encode_text(PROMPTS[0])) :]
        assert text.startswith(PROMPTS[0])
        assert text[len(PROMPTS[0]) :].startswith(" ") == starts_with_a_space(model, generated)


def test_a_chat_message_is_decoded_by_itself(model: TextModel) -> None:
    spaces = 0
    for text, tokens in answers(model, messages=(Message("user", "Hello"),)):
        assert text == model.tokenizer.decode(tokens)
        spaces += starts_with_a_space(model, tokens)
    assert spaces


@pytest.mark.parametrize("fields", [{"prompt": "The"}, {"messages": (Message("user", "Hello"),)}])
@pytest.mark.parametrize("space", ["", " "])
def test_a_pattern_with_or_without_a_leading_space_is_kept(
    model: TextModel, space: str, fields: dict[str, Any]
) -> None:
    pattern = ResponseFormat("regex", f"{space}[a-z]{{3}}")
    for text, _ in answers(model, response_format=pattern, **fields):
        assert text.startswith(space)
        assert len(text) == len(space) + 3
