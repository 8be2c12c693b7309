from __future__ import annotations

import pytest

from edgekit.errors import EdgekitError, nearest


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "bell\x07", "null\0", "\u202eright to left"])
def test_a_message_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    error = EdgekitError(f"tensor `{text}` is missing", hint=f"not {text}")
    assert error.message.isprintable()
    assert (error.hint or "").isprintable()
    assert str(error) == error.message


def test_a_message_in_any_language_is_left_as_it_is() -> None:
    assert EdgekitError("模型 `größe` fehlt 🙂").message == "模型 `größe` fehlt 🙂"


def test_the_nearest_word_is_found_and_a_far_one_is_not() -> None:
    assert nearest("hots", ["host", "port"]) == "host"
    assert nearest("xyzzy", ["host", "port"]) is None
