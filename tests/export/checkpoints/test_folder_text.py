"""The text files of a folder: facts that several of them state, and what lies beside the usual ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import TokenizerFiles
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.checkpoints.tokenizer_files import check_tokens
from tests.export.checkpoints.test_hf_folder import change
from tests.models import CHATML, tiny_checkpoint

NEW = "<|function|>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def text_of(folder: Path) -> TokenizerFiles:
    return FolderCheckpoint(folder).tokenizer()


def size(folder: Path) -> int:
    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


def encode(text: TokenizerFiles, value: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(text.tokenizer_json.decode()).encode(value, add_special_tokens=False).ids
    return ids


def test_a_token_that_only_the_configuration_adds_stays_in_one_piece(folder: Path) -> None:
    new = size(folder)
    assert len(encode(text_of(folder), NEW)) > 1
    change(folder / "tokenizer_config.json", added_tokens_decoder={str(new): {"content": NEW, "special": True}})
    text = text_of(folder)
    assert encode(text, f"a{NEW}b") == [*encode(text, "a"), new, *encode(text, "b")]
    assert Tokenizer.from_str(text.tokenizer_json.decode()).get_added_tokens_decoder()[new].special


def test_the_configuration_says_what_kind_of_token_it_is(folder: Path) -> None:
    """transformers takes the flags of `added_tokens_decoder`: a special token there is no text in an answer."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    number = size(folder)
    token = {"id": number, "content": NEW, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    tokenizer["added_tokens"].append({**token, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for stated, special in (({}, False), ({"special": False}, False), ({"special": True, "rstrip": True}, True)):
        change(folder / "tokenizer_config.json", added_tokens_decoder={str(number): {"content": NEW, **stated}})
        text = text_of(folder)
        backend = Tokenizer.from_str(text.tokenizer_json.decode())
        assert backend.get_added_tokens_decoder()[number].special is special
        assert backend.get_added_tokens_decoder()[number].rstrip is special
        assert encode(text, f"{NEW}a")[0] == number
        if not special:
            assert text.tokenizer_json == (folder / "tokenizer.json").read_bytes()


def test_tokens_of_the_older_file_stay_in_one_piece(folder: Path) -> None:
    new = size(folder)
    # In any order, and beside tokens that are there already.
    (folder / "added_tokens.json").write_text(json.dumps({"<two>": new + 1, NEW: new, "<|im_end|>": 2}))
    assert encode(text_of(folder), f"{NEW}<two><|im_end|>") == [new, new + 1, 2]


def test_a_special_token_that_is_an_ordinary_piece_stays_in_one_piece(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    new = size(folder)
    tokenizer["model"]["vocab"]["</s>"] = new
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", eos_token={"content": "</s>"})
    text = text_of(folder)
    assert encode(text, "Paris</s>")[-1] == new
    assert new in text.eos_token_ids


@pytest.mark.parametrize("listed", [[NEW], {"function_token": NEW}, [{"content": NEW}]])
def test_a_further_special_token_that_is_an_ordinary_piece_stays_in_one_piece(listed: Any, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    new = size(folder)
    key = "extra_special_tokens" if isinstance(listed, dict) else "additional_special_tokens"
    change(folder / "tokenizer_config.json", **{key: listed}, chat_template=f"{NEW} {CHATML}")
    with pytest.raises(ExportError, match=r"writes the special token .* which tokenizer\.json does not have"):
        text_of(folder)
    tokenizer["model"]["vocab"][NEW] = new
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert encode(text_of(folder), f"a{NEW}")[-1] == new


@pytest.mark.parametrize(
    ("decoder", "added", "message"),
    [
        (
            {"2": {"content": NEW}},
            {},
            r"tokenizer_config.json names token 2 `<\|function\|>`, but it is `<\|im_end\|>`",
        ),
        ({"7": {"content": "<|im_end|>"}}, {}, "gives `<|im_end|>` the id 7, but it has 2"),
        ({}, {NEW: 5}, "added_tokens.json names token 5"),
        ({"9000": {"content": NEW}}, {}, "has the id 9000, which tokenizer.json cannot give it"),
        ({"x": {"content": NEW}}, {}, "malformed entry `x`"),
        ({"9000": NEW}, {}, "malformed entry `9000`"),
        ({}, {NEW: "5"}, "malformed entry"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    decoder: dict[str, Any], added: dict[str, Any], message: str, folder: Path
) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    change(folder / "added_tokens.json", **added)
    with pytest.raises(ExportError) as caught:
        text_of(folder)
    assert message.replace("\\", "") in caught.value.message


@pytest.mark.parametrize("entry", [{"content": "<a>"}, {"id": "F16", "content": "<a>"}, {"id": True}, "<a>", None])
def test_a_malformed_entry_beside_which_a_token_is_missing_is_refused(entry: object, folder: Path) -> None:
    new = size(folder)
    change(folder / "tokenizer_config.json", added_tokens_decoder={str(new): {"content": NEW}})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(entry)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExportError, match=r"`added_tokens` of tokenizer\.json has a malformed entry"):
        text_of(folder)


def test_a_variable_of_the_template_that_the_tokenizer_splits_is_refused(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json",
        eos_token={"content": "<nowhere>"},
        chat_template="{{ messages[0].content + eos_token }}",
    )
    with pytest.raises(ExportError, match="writes the eos_token `<nowhere>`, which the tokenizer splits"):
        check_tokens(text_of(folder), 512)


def test_special_tokens_that_two_files_state_differently_are_reported(folder: Path) -> None:
    assert text_of(folder).notes == ()
    change(
        folder / "special_tokens_map.json",
        eos_token={"content": "<|endoftext|>"},
        bos_token={"content": "<|im_start|>"},
    )
    text = text_of(folder)
    assert text.special.get("eos_token") == "<|im_end|>"
    assert [note for note in text.notes if "special_tokens_map.json `<|endoftext|>`" in note] == list(text.notes)
    change(folder / "tokenizer_config.json", eos_token=None)
    assert text_of(folder).special.get("eos_token") == "<|endoftext|>"
    assert text_of(folder).notes == ()


def test_an_end_token_of_config_json_that_is_ordinary_text_gives_way(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=2)
    change(folder / "config.json", eos_token_id=[2, 40])
    text = text_of(folder)
    assert 40 not in text.eos_token_ids
    assert "eos_token_id 40" in text.notes[0]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["chat_template.json"], "chat_template.json"),
        (["tokenizer_config.json", "chat_template.json"], "tokenizer_config.json"),
        (["chat_template.jinja", "tokenizer_config.json", "chat_template.json"], "chat_template.jinja"),
    ],
)
def test_the_template_is_found_wherever_it_is(places: list[str], expected: str, folder: Path) -> None:
    change(folder / "tokenizer_config.json", chat_template=None)
    for place in places:
        template = f"{{{{ messages }}}} {place}"
        if place.endswith(".jinja"):
            (folder / place).write_text(template)
        else:
            change(folder / place, chat_template=template)
    text = text_of(folder)
    assert str(text.chat_template).endswith(expected)
    assert len([note for note in text.notes if "different chat templates" in note]) == len(places) - 1


@pytest.mark.parametrize("listed", [True, False])
def test_the_template_for_tools_is_kept_and_others_are_reported(listed: bool, folder: Path) -> None:
    templates = {"tool_use": "t {{ tools }}", "rag": "r"}
    if listed:
        entries = [{"name": name, "template": template} for name, template in templates.items()]
        change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": CHATML}, *entries])
    else:
        (folder / "additional_chat_templates").mkdir()
        for name, template in templates.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    text = text_of(folder)
    assert (text.chat_template, text.tool_template) == (CHATML, "t {{ tools }}")
    assert text.notes == ("the chat template `rag` is left out: edgekit uses `default` and `tool_use`",)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_not_left_out_in_silence(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"{}")
    with pytest.raises(ExportError, match="LoRA adapter") as caught:
        FolderCheckpoint(folder)
    assert "merge_and_unload" in str(caught.value.hint)
