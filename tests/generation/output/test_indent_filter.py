from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.generation.output.indent_filter import IndentFilter

BODY = "a = 1\n    b = 2\n      c\n\td\ndone\n"


def passed(text: str, minimum: int, size: int = 1) -> tuple[str, bool]:
    lines = IndentFilter(minimum)
    out = "".join(lines.push(text[at : at + size]) for at in range(0, len(text), size))
    return out + lines.finish(), lines.hit


def test_text_ends_before_the_first_line_that_is_indented_by_too_little() -> None:
    assert passed(BODY, 4) == ("a = 1\n    b = 2\n      c", True)
    assert passed(BODY, 1) == ("a = 1\n    b = 2\n      c\n\td", True)
    assert passed(BODY, 0) == (BODY, False)
    assert passed("first", 8) == ("first", False)
    # An empty line is not indented, as in llama.cpp.
    assert passed("a\n\n    b", 4) == ("a", True)
    # The end may be within an indentation.
    assert passed("a\n  ", 4) == ("a\n  ", False)


@given(st.text(alphabet="ab \t\n", max_size=30), st.integers(0, 4), st.integers(1, 5))
def test_pieces_pass_as_the_whole_text_does(text: str, minimum: int, size: int) -> None:
    whole = passed(text, minimum, max(1, len(text)))
    assert passed(text, minimum, size) == whole
    first, *others = text.split("\n")
    kept = [first]
    for line in others[:-1] if minimum else others:
        if minimum and len(line) - len(line.lstrip(" \t")) < minimum:
            break
        kept.append(line)
    else:
        assert whole[0].startswith("\n".join(kept))
        return
    assert whole == ("\n".join(kept), True)
