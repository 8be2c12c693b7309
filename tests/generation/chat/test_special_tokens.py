"""A caller's text is never encoded as a special token, and the markers around it are characters that none used."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.generation.chat.special_tokens import SpecialTokenGuard
from tests.generation.tiny import byte_tokenizer
from tests.models import SPECIAL

PRIVATE = [chr(code) for code in range(0x100000, 0x10FFFE)]


def test_half_of_the_private_use_characters_may_be_used_and_no_more() -> None:
    tokenizer = byte_tokenizer()
    most = "".join(PRIVATE[: len(PRIVATE) // 2])
    text = most + "<|im_end|>"
    guard = SpecialTokenGuard(tokenizer, [text, most])
    assert guard.encode(guard.wrap(text)) == tokenizer.encode(text, obey_special=False)
    # Only different characters count.
    SpecialTokenGuard(tokenizer, [most * 2])
    with pytest.raises(RequestError, match="more than 32767 different characters") as caught:
        SpecialTokenGuard(tokenizer, [most, {PRIVATE[-1]: "a"}])
    assert caught.value.param == "messages"


def test_values_may_be_nested_as_deep_as_the_limit() -> None:
    def nested(levels: int) -> object:
        value: object = "<|im_end|>"
        for _ in range(levels):
            value = [value]
        return value

    tokenizer = byte_tokenizer()
    # The values are in a list themselves.
    assert SpecialTokenGuard(tokenizer, [nested(63)]).size == len("<|im_end|>")
    with pytest.raises(RequestError, match="more than 64 levels"):
        SpecialTokenGuard(tokenizer, [nested(64)])


TOKENIZER = byte_tokenizer()
END = "<|im_end|>"
WRITTEN = st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "|>", "|", ">", "a", ""]), max_size=4).map("".join)


@given(texts=st.lists(WRITTEN, max_size=5))
@example(["<", "|", "im_end|>"])
@example(["a<|im_end|", ">"])
@example([END])
def test_strings_in_a_row_are_plain_text_between_the_templates_special_tokens(texts: list[str]) -> None:
    guard = SpecialTokenGuard(TOKENIZER, texts)
    rendered = END + "".join(guard.wrap(text) for text in texts) + END
    ids = guard.encode(rendered)
    (end,) = TOKENIZER.encode(END)
    assert [token for token in ids if token in TOKENIZER.special_ids] == [end, end]
    assert TOKENIZER.decode(ids) == "".join(texts)
    assert guard.size == sum(map(len, texts))


@pytest.mark.parametrize(
    ("texts", "wrapped"),
    [
        (["plain"], 0),
        ([END], 1),
        (["a" + END + "b" + END], 2),
        # Only what another string may complete is wrapped.
        (["a<"], 0),
        (["a<", "|im_end|>"], 1),
        (["a<", "|im_"], 1),
        (["a<", "x"], 0),
        (["<|im_end|", ">"], 1),
        (["<|im_end|", "x>"], 0),
    ],
)
def test_no_more_is_wrapped_than_needed(texts: list[str], wrapped: int) -> None:
    guard = SpecialTokenGuard(TOKENIZER, texts)
    private = [char for text in texts for char in guard.wrap(text) if char >= "\U00100000"]
    assert len(private) == wrapped * 2 * 6


def test_the_strings_of_lists_and_objects_are_wrapped_their_keys_too() -> None:
    value: Any = {END: [END, 5, None, {"a": END}], "b": (END,)}
    guard = SpecialTokenGuard(TOKENIZER, [value])
    mark = guard.wrap(END)
    assert mark != END
    assert guard.wrap(value) == {mark: [mark, 5, None, {"a": mark}], "b": [mark]}
    assert guard.size == 4 * len(END) + 2


def test_a_template_that_cuts_what_was_wrapped_is_refused() -> None:
    guard = SpecialTokenGuard(TOKENIZER, [END])
    wrapped = guard.wrap(END)
    for cut in (wrapped[:-1], wrapped[1:], wrapped[3:], wrapped[:3], wrapped[:8]):
        with pytest.raises(RequestError, match="which its chat template splits") as caught:
            guard.encode(cut)
        assert caught.value.param == "messages"
