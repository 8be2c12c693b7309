from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.fixes import TextFixes
from edgekit.export.checkpoints.gguf.tokenizer import PRE_TOKENIZERS, build_tokenizer
from tests.export.checkpoints.gguf.files import tokenizer_metadata
from tests.models import CHATML, tiny_checkpoint

TEXTS = [
    "Hello, world! It's 2026, and I'VE 12345 apples.\n\n\tdef f(x):\n    return x**2  # ok\r\n",
    "你好，世界！今天是2026年。",  # noqa: RUF001  Chinese has its own comma
    "👩‍👩‍👧‍👦 🇫🇷 ✨ e\u0301 ﬁ",
    "مرحبا ١٢٣ ไทย    x",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def built(folder: Path, pre: str | None = "gpt-2", *, fixes: TextFixes | None = None, **changes: Any) -> TokenizerFiles:
    metadata = tokenizer_metadata(folder, pre)
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"])
    for key, value in changes.items():
        metadata[f"tokenizer.{key.replace('__', '.')}"] = value
    present = {key: value for key, value in metadata.items() if value is not None}
    return build_tokenizer(present, "tiny.gguf", 512, fixes or TextFixes())


def test_the_tokenizer_encodes_as_the_one_it_was_made_from(folder: Path) -> None:
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = Tokenizer.from_str(built(folder).tokenizer_json.decode())
    for text in [*TEXTS, "<|im_start|>user\nthe capital of France<|im_end|>"]:
        assert found.encode(text).ids == expected.encode(text).ids
        assert found.decode(found.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_any_text(folder: Path, pre: str) -> None:
    tokenizer = Tokenizer.from_str(built(folder, pre).tokenizer_json.decode())
    for text in TEXTS:
        decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
        assert decoded == (text.replace("e\u0301", "é") if pre == "qwen2" else text)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["Year", "Ġ2026"]),
        ("smollm", ["Year", "Ġ", "2", "0", "2", "6"]),
        ("qwen2", ["Year", "Ġ", "2", "0", "2", "6"]),
        ("llama-bpe", ["Year", "Ġ", "202", "6"]),
    ],
)
def test_digits_are_split_as_the_model_was_trained(folder: Path, pre: str, pieces: list[str]) -> None:
    tokenizer = Tokenizer.from_str(built(folder, pre).tokenizer_json.decode())
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("Year 2026")] == pieces


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("deepseek-r1-qwen", ["HTML", "'s", "ĠgetName", "Ġ", "1", "2", "3", "4", "Ġa", "//Ċ"]),
        ("falcon3", ["HTML", "'s", "ĠgetName", "Ġ", "123", "4", "Ġa", "//Ċ"]),
        ("smaug-bpe", ["HTML", "'s", "ĠgetName", "Ġ", "123", "4", "Ġa", "//Ċ"]),
        ("dbrx", ["HTML", "'s", "ĠgetName", "Ġ", "123", "4", "Ġa", "//Ċ"]),
        ("gpt-4o", ["HTML's", "Ġget", "Name", "Ġ", "123", "4", "Ġa", "//Ċ"]),
        ("tekken", ["HTML", "'s", "Ġget", "Name", "Ġ", "1", "2", "3", "4", "Ġa", "//Ċ"]),
    ],
)
def test_words_are_split_as_the_model_was_trained(folder: Path, pre: str, pieces: list[str]) -> None:
    tokenizer = Tokenizer.from_str(built(folder, pre).tokenizer_json.decode())
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("HTML's getName 1234 a//\n")] == pieces


def test_control_tokens_are_special_and_user_defined_ones_are_not(folder: Path) -> None:
    metadata = tokenizer_metadata(folder, "gpt-2")
    count = len(metadata["tokenizer.ggml.tokens"])
    extra = ["<tool_call>", "</tool_call>", "<|end|>", "[PAD0]", "[PAD1]"]
    found = built(
        folder,
        ggml__tokens=metadata["tokenizer.ggml.tokens"] + extra,
        ggml__token_type=np.array(metadata["tokenizer.ggml.token_type"] + [4, 4, 3, 5, 5]),
    )
    document = json.loads(found.tokenizer_json)
    added = {entry["content"]: (entry["id"], entry["special"]) for entry in document["added_tokens"]}
    assert added["<tool_call>"] == (count, False)
    assert added["<|end|>"] == (count + 2, True)
    assert not {"[PAD0]", "[PAD1]"} & (set(added) | set(document["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(found.tokenizer_json.decode())
    assert tokenizer.encode("<tool_call><|im_end|>").ids == [count, 2]
    assert found.eos_token_ids == (2, count + 2, 0)


def test_every_end_token_ends_an_answer(folder: Path) -> None:
    assert built(folder).eos_token_ids == (2, 0)
    assert built(folder, ggml__eot_token_id=1).eos_token_ids == (2, 1, 0)


def test_the_catalogue_corrects_end_tokens_special_tokens_and_template(folder: Path) -> None:
    fixes = TextFixes(replace=(("assistant", "bot"),), special={"bos_token": None}, eos_tokens=("<|im_end|>",))
    found = built(folder, fixes=fixes)
    assert found.eos_token_ids == (2,)
    assert found.special == {"eos_token": "<|im_end|>"}
    assert found.chat_template == CHATML.replace("assistant", "bot")
    with pytest.raises(ExportError, match="does not match the catalogue"):
        built(folder, fixes=TextFixes(template_sha256="0" * 64))


def test_the_template_for_tools_is_kept_and_others_are_reported(folder: Path) -> None:
    """As llama.cpp's converter writes a checkpoint with several templates."""
    tools = "{{ tools }}" + CHATML
    found = built(folder, chat_templates=["tool_use", "rag"], chat_template__tool_use=tools, chat_template__rag="never")
    assert (found.chat_template, found.tool_template) == (CHATML, tools)
    assert found.notes == ("the chat template `rag` is left out: edgekit uses `default` and `tool_use`",)
    with pytest.raises(ExportError, match="is not a string"):
        built(folder, chat_template__tool_use=1)


def test_the_bos_token_is_added_only_where_the_file_says_so(folder: Path) -> None:
    def ids(**changes: Any) -> list[int]:
        return list(Tokenizer.from_str(built(folder, **changes).tokenizer_json.decode()).encode("a").ids)

    assert ids(ggml__add_bos_token=True) == [1, *ids()]
    assert ids(ggml__add_bos_token=False) == ids()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": None}, "has no tokenizer"),
        ({"ggml__model": "llama"}, "one finite score per token"),
        ({"ggml__model": "bert"}, "`bert` tokenizer"),
        ({"ggml__pre": "viking"}, "the pre-tokenizer `viking`"),
        ({"ggml__tokens": None}, "has no tokens"),
        ({"ggml__tokens": ["a", "a"]}, "twice"),
        ({"ggml__token_type": np.array([1])}, "one type per token"),
        ({"ggml__merges": ["a b c"]}, "does not join two tokens"),
        ({"ggml__merges": ["Ġ <|im_end|>"]}, "does not join two tokens"),
        ({"ggml__eos_token_id": 1 << 20}, "not a token id"),
        ({"chat_template": 7}, "not a string"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused_with_the_reason(folder: Path, changes: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        built(folder, **changes)


def test_a_file_without_chat_template_has_none(folder: Path) -> None:
    assert built(folder, chat_template=None).chat_template is None
