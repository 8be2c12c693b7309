from __future__ import annotations

import pytest

from edgekit.generation.chat.infill import FillFormat, find_fill_format
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.types import Infill
from tests.generation.filling import QWEN, fill_tokenizer, spaced_tokenizer
from tests.generation.tiny import byte_tokenizer


def known(tokenizer: Tokenizer) -> FillFormat:
    found = find_fill_format(tokenizer)
    assert found is not None
    return found


def written(tokenizer: Tokenizer, prefix: str, infill: Infill, *, room: int | None = None) -> str:
    """The prompt as text, with its tokens; what the caller wrote as tokens shows as such."""
    ids = known(tokenizer).encode(tokenizer, prefix, infill, room=room)
    return tokenizer.decode(ids, visible=tokenizer.special_ids)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("markers", "prompt"),
    [
        (QWEN, "<|fim_prefix|>A<|fim_suffix|>C<|fim_middle|>"),
        (("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"), "<fim_prefix>A<fim_suffix>C<fim_middle>"),
        (("<fim-prefix>", "<fim-middle>", "<fim-suffix>"), "<fim-prefix>A<fim-suffix>C<fim-middle>"),
        (
            ("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"),  # noqa: RUF001  DeepSeek's
            "<｜fim▁begin｜>A<｜fim▁hole｜>C<｜fim▁end｜>",  # noqa: RUF001
        ),
        (("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"), "▁<PRE>A▁<SUF>C▁<MID>"),
        (("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>"), "<|code_prefix|>A<|code_suffix|>C<|code_middle|>"),
        (
            ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
            "<[fim-suffix]>C<[fim-prefix]>A<[fim-middle]>",
        ),
        (("[PREFIX]", "[SUFFIX]", "[MIDDLE]"), "[SUFFIX]C[PREFIX]A"),
    ],
)
def test_each_family_of_models_is_prompted_with_its_own_tokens(
    markers: tuple[str, ...], prompt: str, special: bool
) -> None:
    tokenizer = fill_tokenizer(*markers, special=special)
    assert written(tokenizer, "A", Infill("C")) == prompt
    assert known(tokenizer).template == prompt.replace("A", "{{ .Prompt }}").replace("C", "{{ .Suffix }}")
    # Each marker is one token, and all of them end an answer.
    ids = known(tokenizer).encode(tokenizer, "", Infill(""))
    assert len(ids) == prompt.count("<") or len(ids) == prompt.count("[")
    assert set(ids) <= known(tokenizer).end_tokens
    assert {tokenizer.encode(text)[0] for text in markers} <= known(tokenizer).end_tokens


def test_a_model_without_the_tokens_does_not_fill_in_the_middle() -> None:
    assert find_fill_format(byte_tokenizer()) is None
    assert find_fill_format(fill_tokenizer("<|fim_prefix|>", "<|fim_suffix|>")) is None
    # SmolLM2 has these, and no others.
    assert find_fill_format(fill_tokenizer("<repo_name>", "<file_sep>", special=True)) is None


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_source_code_mentions_stay_text(special: bool) -> None:
    tokenizer = fill_tokenizer(*QWEN, special=special)
    code = 'END = "<|fim_middle|>"  # and <|im_end|><|fim_pad|><|fim_<|fim_suffix|>'
    ids = known(tokenizer).encode(tokenizer, code, Infill(code, ((code, code),)))
    plain = [token for token in ids if token < 256]
    assert [tokenizer.text(token) for token in ids if token >= 256] == [
        *("<|repo_name|>", "<|file_sep|>", "<|file_sep|>"),
        *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ]
    assert tokenizer.decode(plain) == f"myproject\n{code}\n{code}filename\n{code}{code}"


def test_other_files_come_first_as_llama_server_writes_them() -> None:
    files = (("a.py", "one"), ("b.py", "two"))
    assert written(fill_tokenizer(*QWEN), "A", Infill("C", files)) == (
        "<|repo_name|>myproject\n<|file_sep|>a.py\none<|file_sep|>b.py\ntwo<|file_sep|>filename\n"
        "<|fim_prefix|>A<|fim_suffix|>C<|fim_middle|>"
    )
    without = fill_tokenizer("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert written(without, "A", Infill("C", files)) == (
        "\n\n--- snippet ---\n\none\n\n--- snippet ---\n\ntwo<fim_prefix>A<fim_suffix>C<fim_middle>"
    )


def test_a_prompt_that_is_too_long_loses_the_oldest_files_and_then_text_far_from_the_gap() -> None:
    tokenizer = fill_tokenizer(*QWEN)
    files = (("a", "z" * 40), ("b", "y" * 40))
    whole = known(tokenizer).encode(tokenizer, "A" * 30, Infill("C" * 30, files))
    assert known(tokenizer).encode(tokenizer, "A" * 30, Infill("C" * 30, files), room=len(whole)) == whole
    one = written(tokenizer, "A" * 30, Infill("C" * 30, files), room=len(whole) - 1)
    assert ("z" in one, "y" * 40 in one, "C" * 30 in one) == (False, True, True)
    none = written(tokenizer, "A" * 30, Infill("C" * 30, files), room=63)
    assert none == f"<|fim_prefix|>{'A' * 30}<|fim_suffix|>{'C' * 30}<|fim_middle|>"
    # A quarter for the suffix, unless the prefix is short.
    assert written(tokenizer, "-A" * 90, Infill("C-" * 90), room=43) == (
        f"<|fim_prefix|>{'-A' * 15}<|fim_suffix|>{'C-' * 5}<|fim_middle|>"
    )
    short = known(tokenizer).encode(tokenizer, "AB", Infill("C" * 90), room=43)
    assert (len(short), tokenizer.decode(short).count("C")) == (43, 38)
    assert known(tokenizer).encode(tokenizer, "AB", Infill("C"), room=1) != []


def test_no_space_is_put_in_front_of_a_suffix() -> None:
    tokenizer = spaced_tokenizer("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    ids = known(tokenizer).encode(tokenizer, "x = ", Infill(" + 1\n"))
    assert [tokenizer.text(token) for token in ids] == [
        *("▁<PRE>", "▁", "x", "▁", "=", "▁"),
        *("▁<SUF>", "▁", "+", "▁", "1", "\n", "▁<MID>"),
    ]
