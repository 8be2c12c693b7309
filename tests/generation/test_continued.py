"""A blank that an answer begins with: of a text that is continued it is a part, of a chat's message it is none.

The tokenizer is of SentencePiece's kind, with a blank before every text; the model is real and random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers

from edgekit.generation.decode import generate
from edgekit.generation.grammar import GrammarCompiler
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.request import ChatRequest, Delta, Finish, Message, ResponseFormat, Sampling
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer
from tests.generation.bundles import tiny_bundle
from tests.generation.grammar.kits import kit

PROMPTS = ("The capital of France is", "The answer is ", " name", "法国的首都是", "value\n")
TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
# Single bytes would be halves of characters; whatever else the model says is text.
NO_BYTES = dict.fromkeys(range(1, 257), -100.0)


def _metaspace(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens, the way newer files write it."""
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


def answers(model: TextModel, **asked: Any) -> list[tuple[str, list[int]]]:
    """Twelve answers: text and tokens."""
    vocabulary = model.tokenizer.backend.get_vocab()
    # Words that begin with a blank are few; let them be about half.
    likelier = {number: 3.0 for piece, number in vocabulary.items() if piece.startswith("▁")}
    sampling = Sampling(temperature=1.0, seed=7, logit_bias=NO_BYTES | likelier)
    request = ChatRequest("r", max_tokens=8, n=12, logprobs=0, sampling=sampling, **asked)
    texts, tokens = [""] * request.n, [[] for _ in range(request.n)]  # type: ignore[var-annotated]
    events = list(generate(model, request))
    assert isinstance(events[-1], Finish), events[-1]
    for event in events:
        if isinstance(event, Delta):
            texts[event.index] += event.text
            tokens[event.index] += [item.token for item in event.logprobs]
    return list(zip(texts, tokens, strict=True))


def begins_with_a_blank(model: TextModel, tokens: list[int]) -> bool:
    # The model's logits are wider than the tokenizer: not every token is one.
    pieces = [model.tokenizer.backend.id_to_token(number) for number in tokens]
    shown = [piece for piece in pieces if piece is not None and piece not in model.tokenizer.special_tokens]
    return bool(shown) and shown[0].startswith("▁")


def test_a_prompt_and_its_continuation_together_are_the_whole_text(model: TextModel) -> None:
    blanks = 0
    for prompt in PROMPTS:
        before = model.tokenizer.encode_text(prompt)
        head = model.tokenizer.decode(before)
        for text, tokens in answers(model, prompt=prompt):
            assert head + text == model.tokenizer.decode([*before, *tokens])
            assert text.startswith(" ") == begins_with_a_blank(model, tokens)
            blanks += begins_with_a_blank(model, tokens)
    assert 0 < blanks < 12 * len(PROMPTS)


def test_an_echo_and_its_continuation_are_one_text(model: TextModel) -> None:
    for text, tokens in answers(model, prompt=PROMPTS[0], echo=True):
        made = tokens[len(model.tokenizer.encode_text(PROMPTS[0])) :]
        assert text.startswith(PROMPTS[0])
        assert text[len(PROMPTS[0]) :].startswith(" ") == begins_with_a_blank(model, made)


def test_a_chats_message_is_decoded_as_a_text_of_its_own(model: TextModel) -> None:
    blanks = 0
    for text, tokens in answers(model, messages=(Message("user", "Hello"),)):
        assert text == model.tokenizer.decode(tokens)
        blanks += begins_with_a_blank(model, tokens)
    assert blanks


@pytest.mark.parametrize("asked", [{"prompt": "The"}, {"messages": (Message("user", "Hello"),)}])
@pytest.mark.parametrize("blank", ["", " "])
def test_a_form_that_begins_with_a_blank_or_with_none_is_kept(
    model: TextModel, blank: str, asked: dict[str, Any]
) -> None:
    form = ResponseFormat("regex", f"{blank}[a-z]{{3}}")
    for text, _ in answers(model, response_format=form, **asked):
        assert text.startswith(blank)
        assert len(text) == len(blank) + 3
