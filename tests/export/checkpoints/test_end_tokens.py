"""Which tokens end an answer: one decision, whatever the checkpoint's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import ExportError
from edgekit.export.checkpoints.end_tokens import AddedToken, end_tokens, turn_end
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import CHATML, tiny_checkpoint

Ends = Callable[[Path], tuple[int, ...]]


def of_folder(folder: Path) -> tuple[int, ...]:
    return FolderCheckpoint(folder).tokenizer().eos_token_ids


def of_gguf(folder: Path) -> tuple[int, ...]:
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    number = json.loads((folder / "config.json").read_text())["eos_token_id"]
    metadata = {"tokenizer.ggml.eos_token_id": number, "tokenizer.chat_template": template}
    return GgufCheckpoint(write_gguf(folder, folder / "model.gguf", metadata=metadata)).tokenizer().eos_token_ids


READERS = pytest.mark.parametrize("ends", [of_folder, of_gguf])


def fine_tune(folder: Path, *, end: str = "<|im_end|>", template: str = CHATML) -> Path:
    """A base model's files, all of which say `<|endoftext|>` (0), with a chat template and a token 2 for turns."""
    tiny_checkpoint(folder, eos_token_id=0)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"eos_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", end))
    return folder


@READERS
def test_a_chat_fine_tune_of_a_base_model_stops_after_its_turn(ends: Ends, tmp_path: Path) -> None:
    assert set(ends(fine_tune(tmp_path / "m"))) == {0, 2}


@READERS
def test_a_token_that_only_the_template_names_ends_an_answer(ends: Ends, tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<|over|>")
    assert set(ends(fine_tune(tmp_path / "m", end="<|over|>", template=template))) == {0, 2}


@READERS
def test_a_format_without_an_end_token_ends_where_the_users_turn_begins(ends: Ends, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ '<|you|>' if m.role == 'user' else '' }}{{ m.content }}\n{% endfor %}"
    assert set(ends(fine_tune(tmp_path / "m", end="<|you|>", template=template))) == {0, 2}


@READERS
def test_a_checkpoint_that_names_no_end_token_is_refused(ends: Ends, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|im_end|>", "<|b|>").replace("<|endoftext|>", "<|c|>"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "{{ messages }}", "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(ExportError, match="names no token that ends an answer"):
        ends(folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}<|e|>\n{% endfor %}", "<|e|>"),
        # The longest one, where one token begins with another.
        ("{% for m in messages %}{{ m.content }}<|e|><x>{% endfor %}", "<|e|><x>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "<eos>"),
        # A tag that is text, and a token further on.
        ("{% for m in messages %}{{ m.content }} END <|e|>{% endfor %}", None),
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", None),
        ("{{ nothing.at.all }}", None),
        ("{{ '<|e|>' }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_token_after_its_text(template: str, expected: str | None) -> None:
    assert turn_end(template, ["<|e|>", "<|e|><x>", "<eos>", " "], {"eos_token": "<eos>"}) == expected


def test_a_message_of_gpt_oss_does_not_end_the_answer() -> None:
    added = {text: AddedToken(number, special=True) for number, text in enumerate(["<|end|>", "<|return|>"])}
    assert end_tokens([1], added, None, {}) == (1,)
    assert end_tokens([], {"<|end|>": added["<|end|>"]}, None, {}) == (0,)
    assert end_tokens([], {"<|im_end|>": AddedToken(7, special=False)}, None, {}) == ()
