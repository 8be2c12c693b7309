from __future__ import annotations

import itertools
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.output.graphemes import _NO_WAIT, GraphemeBuffer

TEXTS = (
    "The capital é naïve 12 #3 *.\r\n\n",
    "法国的首都是巴黎。你好、世界。㊗️",
    "フランスの首都はパリです。がぎぐ ｶﾞｷﾞﾊﾟ",
    "عاصمة فرنسا السَّلَامُ عَلَيْكُمْ ؀١٢",
    "เมืองหลวงของฝรั่งเศสคือปารีส ที่นี่ น้ำ",
    "ລາວ ນ້ຳ",
    "फ़्रांस क्षत्रिय हिन्दी श्री विद्‍यार्थी",
    "বাংলা ক্ষ தமிழ் கொ മലയാളം ക്ഷ",
    "ភាសាខ្មែរ မြန်မာ བོད་སྐད",
    "한국어 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "👩‍💻 👨‍👩‍👧‍👦 🇩🇪🇫🇷 🇮 👍🏽 ❤️ ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🏳️‍🌈 1️⃣ #️⃣ *️⃣ ©️ ™️ ‼️",
)
CHARACTERS = sorted(set("".join(TEXTS)))


def _stream(chunks: list[str]) -> list[str]:
    graphemes = GraphemeBuffer()
    return [*(graphemes.push(chunk) for chunk in chunks), graphemes.finish()]


def _split(chunks: list[str]) -> list[tuple[str, str]]:
    """Where the stream split a cluster: the characters before and after."""
    text = "".join(chunks)
    borders = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    ends = itertools.accumulate(len(chunk) for chunk in chunks)
    return [(text[end - 1], text[end]) for end in ends if end not in borders]


@pytest.mark.parametrize("text", TEXTS)
@given(data=st.data())
def test_no_cluster_of_real_text_is_split_wherever_the_text_is_cut(text: str, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(0, len(text)), max_size=20).map(sorted))
    chunks = [text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])]
    for cut in (chunks, list(text)):
        assert "".join(_stream(cut)) == text
        assert _split(_stream(cut)) == []


@given(text=st.text(st.sampled_from(CHARACTERS), max_size=12))
def test_of_any_characters_in_a_row_only_a_mark_after_a_letter_that_does_not_wait_is_split_off(text: str) -> None:
    stream = _stream(list(text))
    assert "".join(stream) == text
    for before, after in _split(stream):
        closed = ord(before) < 0x80 or any(low <= ord(before) <= high for low, high in _NO_WAIT)
        assert closed, (before, after)
        assert unicodedata.category(after)[0] in "MCLS"


def test_endless_marks_are_not_held_back_for_ever() -> None:
    graphemes = GraphemeBuffer()
    shown = graphemes.push("ก") + "".join(graphemes.push("\u0e48") for _ in range(500))
    assert len(shown) > 400


def test_latin_and_han_text_is_never_kept_waiting() -> None:
    graphemes = GraphemeBuffer()
    assert [graphemes.push(chunk) for chunk in ("Paris", "巴", "黎", "é", "1.")] == ["Paris", "巴", "黎", "é", "1."]


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        # Complete at once.
        (["a", "b ", "."], ["a", "b ", "."]),
        (["", "a", ""], ["", "a", ""]),
        # Keycap bases and a carriage return wait for the next character.
        (["1", "2", "a"], ["", "1", "2a"]),
        (["#", "\ufe0f\u20e3", "a"], ["", "", "#\ufe0f\u20e3a"]),
        (["\r", "\n", "a"], ["", "", "\r\na"]),
        (["\r", "a"], ["", "\ra"]),
        # A flag is a pair.
        (["🇩", "🇪", "🇫", "🇷", "a"], ["", "", "🇩🇪", "", "🇫🇷a"]),
        (["🇩🇪🇫", "a"], ["🇩🇪", "🇫a"]),
        (["👩", "\u200d", "💻", "x"], ["", "", "", "👩\u200d💻x"]),
        (["👍", "🏽", "👍"], ["", "", "👍🏽"]),
        # Jamo join to syllables, and those to final consonants.
        (["\u1112", "\u1161", "\u11ab", "a"], ["", "", "", "\u1112\u1161\u11aba"]),
        (["가", "나"], ["가", "나"]),
        # A virama joins consonants.
        (["क", "्", "ष", "a"], ["", "", "", "क्षa"]),
        (["क", "ष"], ["", "क"]),
        (["\u0600", "1", "a"], ["", "", "\u06001a"]),
    ],
)
def test_a_character_waits_only_for_what_may_join_it(chunks: list[str], shown: list[str]) -> None:
    graphemes = GraphemeBuffer()
    assert [graphemes.push(chunk) for chunk in chunks] == shown


def test_a_cluster_of_more_than_32_characters_is_split() -> None:
    graphemes = GraphemeBuffer()
    assert graphemes.push("क" + "\u0951" * 31) == ""
    assert graphemes.push("\u0951") == "क" + "\u0951" * 32
    assert graphemes.push("\u0951") == ""
    assert graphemes.finish() == "\u0951"
    assert graphemes.finish() == ""
