from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.output.detokenizer import Detokenizer
from edgekit.generation.output.graphemes import GraphemeBuffer
from tests.generation.tiny import byte_tokenizer

UNKNOWN = "<unk>"
TEXTS = (
    "The capital of France is Paris.",
    "法国的首都是巴黎。你好、世界。",
    "フランスの首都はパリです。がぎぐ",
    "عاصمة فرنسا هي باريس؛ السَّلَامُ عَلَيْكُمْ",
    "เมืองหลวงของฝรั่งเศสคือปารีส ที่นี่",
    "फ़्रांस की राजधानी पेरिस है। क्षत्रिय",
    "👩‍💻 👨‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
)


def _trained() -> Tokenizer:
    """A byte-level BPE whose tokens split characters anywhere."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer=trainer)
    return Tokenizer(backend)


def _sentencepiece_like() -> Tokenizer:
    """Like Llama 2's: spaces are ▁, a leading one is stripped, unknown characters fall back to bytes."""
    vocab = {UNKNOWN: 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for char in "▁abcdefghijklmnopqrstuvwxyz":
        vocab[char] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


TOKENIZERS = {"bytes": byte_tokenizer(), "trained": _trained(), "sentencepiece": _sentencepiece_like()}


def _stream(tokenizer: Tokenizer, ids: list[int], *, continued: bool = False) -> list[str]:
    detokenizer, graphemes = Detokenizer(tokenizer, continued=continued), GraphemeBuffer()
    deltas = [graphemes.push(detokenizer.push(number)) for number in ids]
    return [*deltas, graphemes.push(detokenizer.finish()), graphemes.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_deltas_join_to_the_text_and_none_contains_a_broken_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    deltas = _stream(tokenizer, tokenizer.encode(text))
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=40))
def test_the_deltas_of_any_text_join_to_its_full_decoding(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(before=st.text(min_size=1, max_size=20), text=st.text(max_size=40))
def test_the_deltas_of_a_continuation_are_what_it_adds_to_the_text_before(name: str, before: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    head, ids = tokenizer.encode(f"a{before}"), tokenizer.encode(text)
    added = tokenizer.decode([*head, *ids]).removeprefix(tokenizer.decode(head))
    assert "".join(_stream(tokenizer, ids, continued=True)) == added


@given(ids=st.lists(st.integers(0, 399), max_size=50))
def test_the_deltas_of_any_tokens_join_to_their_full_decoding(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["trained"]
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("cluster", ["👩‍💻", "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "ที่", "سَّ", "क्ष", "कि", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"])
def test_a_grapheme_cluster_is_in_one_delta(cluster: str) -> None:
    tokenizer = byte_tokenizer()
    deltas = _stream(tokenizer, tokenizer.encode(f"a{cluster}b"))
    assert deltas[0] == "a"
    assert sum(cluster in delta for delta in deltas) == 1


def test_endless_invalid_bytes_are_not_held_back_for_ever() -> None:
    tokenizer = byte_tokenizer()
    broken = next(number for number in range(256) if tokenizer.decode([number]) == "\ufffd")
    detokenizer = Detokenizer(tokenizer)
    assert any(detokenizer.push(broken) for _ in range(100))


def test_special_tokens_have_no_text() -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer.encode("a"), *tokenizer.encode("<|im_end|>"), *tokenizer.encode("b")]
    assert "".join(_stream(tokenizer, ids)) == "ab"


def test_visible_special_tokens_have_their_text_and_users_cannot_write_them() -> None:
    for tokenizer in TOKENIZERS.values():
        for marker, number in tokenizer.special_tokens.items():
            detokenizer = Detokenizer(tokenizer, visible=frozenset({number}))
            ids = [*tokenizer.encode("ab"), number, number, *tokenizer.encode("c"), number]
            deltas = [detokenizer.push(token) for token in ids]
            assert "".join(deltas) + detokenizer.finish() == f"ab{marker}{marker}c{marker}"
            assert number not in tokenizer.encode(f"a{marker}b", obey_special=False)
            # Where it is not visible it has no text.
            hidden = Detokenizer(tokenizer)
            assert [hidden.push(number), hidden.push(number)] == ["", ""]


def test_invisible_tokens_cost_nothing_however_many_there_are() -> None:
    tokenizer = byte_tokenizer()
    (special,) = tokenizer.encode("<|im_end|>")
    detokenizer = Detokenizer(tokenizer)
    detokenizer.push(tokenizer.encode("a")[0])
    for _ in range(10_000):
        detokenizer.push(special)
    assert detokenizer._context == tokenizer.encode("a")
