from __future__ import annotations

import sys
import traceback

import pytest

from edgekit.errors import EdgekitError, as_argument, field_path, nearest, option, spell_options, spelled


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "bell\x07", "null\0", "\u202eright to left"])
def test_a_message_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    error = EdgekitError(f"tensor `{text}` is missing", hint=f"not {text}")
    assert error.message.isprintable()
    assert (error.hint or "").isprintable()
    assert str(error) == error.message


def test_a_message_in_any_language_is_unchanged() -> None:
    assert EdgekitError("模型 `größe` fehlt 🙂").message == "模型 `größe` fehlt 🙂"


def test_a_close_word_is_found_and_a_distant_one_is_not() -> None:
    assert nearest("hots", ["host", "port"]) == "host"
    assert nearest("xyzzy", ["host", "port"]) is None


@pytest.mark.parametrize(
    ("steps", "base", "path"),
    [
        (["messages", 0, "content"], "", "messages[0].content"),
        (["properties", "a b", "type"], "tools[1]", 'tools[1].properties["a b"].type'),
        (["$defs", 'a"\n'], "schema", 'schema.$defs["a\\"\\n"]'),
        (["größe", "\ud800", "\x1b"], "x", 'x.größe["\\ud800"]["\\u001b"]'),
        (["a" * 99], "x", f"x.{'a' * 40}…"),
        ([], "", ""),
    ],
)
def test_a_path_names_a_field_in_one_printable_line(steps: list[str | int], base: str, path: str) -> None:
    assert field_path(steps, base) == path
    assert path.isprintable()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1_000_000, "1000000"),
        (1e6, "1000000"),
        (-(2**63), "-9223372036854775808"),
        (2.0, "2"),
        (2.0000001, "2.0000001"),
        (0.01, "0.01"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (10**500, "1" + 39 * "0" + "…"),
    ],
)
def test_a_number_in_a_message_has_the_digits_that_a_person_would_type(number: float, text: str) -> None:
    assert spelled(number) == text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_a_traceback_shows_the_hint() -> None:
    lines = traceback.format_exception(EdgekitError("wrong", hint="do it right"))
    assert lines[-1] == "hint: do it right\n"


@pytest.mark.parametrize("text", ["two\nlines", "\x02recipe=1\x03", "\x02", "}", "`", "\\1"])
def test_an_option_is_spelled_however_odd_its_value(text: str) -> None:
    def spell(name: str, value: object) -> str:
        return f"{name} is {value!r}"

    assert spell_options(f"use {option('recipe', text)} or {option('yarn')}", spell) == (
        f"use recipe is {text!r} or yarn is None"
    )
    assert EdgekitError("no", hint=f"use {option('recipe', text)}").spelled(spell)[1] == f"use recipe is {text!r}"


def test_an_error_mentions_options_as_python_arguments_unless_asked_otherwise() -> None:
    error = EdgekitError(
        f"{option('yarn')} is no", hint=f"use {option('force', value=True)} or {option('fit_bytes', 9)}"
    )
    assert (str(error), error.message, error.hint) == ("`yarn` is no",) * 2 + ("use `force=True` or `fit_bytes=9`",)
    assert error.spelled(as_argument) == (error.message, error.hint)


@pytest.mark.parametrize("text", ["\x02oops\x03", "\x02recipe=1\x03", "\x020123456789abcdef:recipe=no JSON\x03"])
def test_a_quoted_name_cannot_pass_for_an_option(text: str) -> None:
    escaped = text.replace("\x02", "\\x02").replace("\x03", "\\x03")
    assert EdgekitError(f"tensor `{text}` is missing").message == f"tensor `{escaped}` is missing"
