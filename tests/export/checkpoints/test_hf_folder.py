from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from tests.models import CHATML, tiny_checkpoint, tiny_tensors

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endoftext|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "Tiny-Model")


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text()) if path.exists() else {}
    data |= values
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_a_folder_is_a_checkpoint(folder: Path) -> None:
    with closing(FolderCheckpoint(folder)) as reader:
        checkpoint: Checkpoint = reader
        assert (checkpoint.name, checkpoint.id, checkpoint.licence) == ("tiny-model", "Tiny-Model", "unknown")
        assert checkpoint.config["rope_theta"] == 50_000.0
        for name, values in tiny_tensors(folder).items():
            np.testing.assert_array_equal(checkpoint.read(name), values)


def test_tokenizer_and_template_are_read_unchanged(folder: Path) -> None:
    text = FolderCheckpoint(folder).tokenizer()
    assert text.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    assert text.chat_template == CHATML
    assert text.special == dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), SPECIAL_TOKENS, strict=True))
    assert text.eos_token_ids == (2, 0)


def test_every_end_token_counts_once(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[0, 2])
    change(folder / "config.json", eos_token_id=[1])
    assert FolderCheckpoint(folder).tokenizer().eos_token_ids == (0, 2, 1)


def test_a_template_file_goes_before_the_one_in_the_configuration(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("jinja")
    assert FolderCheckpoint(folder).tokenizer().chat_template == "jinja"


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    templates = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    change(folder / "tokenizer_config.json", chat_template=templates, eos_token={"content": "<|im_end|>"})
    text = FolderCheckpoint(folder).tokenizer()
    assert (text.chat_template, text.special["eos_token"]) == ("d", "<|im_end|>")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("license: apache-2.0\n", "Apache-2.0"),
        ("license: other\nlicense_name: qwen-research\n", "LicenseRef-qwen-research"),
        ("license: other\n", "unknown"),
        ("license: [mit]\n", "unknown"),
        ("language: [en\n", "unknown"),
    ],
)
def test_the_licence_is_the_model_cards(folder: Path, card: str, licence: str) -> None:
    (folder / "README.md").write_text(f"---\n{card}---\n# Model\n")
    assert FolderCheckpoint(folder).licence == licence


def test_a_licence_file_is_carried_along(folder: Path) -> None:
    (folder / "LICENSE").write_text("terms")
    assert FolderCheckpoint(folder).tokenizer().extra == {"LICENSE": b"terms"}


def test_the_source_lists_weights_and_configuration_with_their_hashes(folder: Path) -> None:
    files = {file.name: file for file in FolderCheckpoint(folder).source()}
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    data = (folder / "model.safetensors").read_bytes()
    assert (files["model.safetensors"].size, files["model.safetensors"].sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantized_checkpoint_is_refused_by_its_method(folder: Path, method: str) -> None:
    change(folder / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(ExportError, match=method):
        FolderCheckpoint(folder)


@pytest.mark.parametrize(("name", "contents"), [("config.json", "{"), ("config.json", "[]"), ("config.json", "\xff")])
def test_a_damaged_configuration_is_named(folder: Path, name: str, contents: str) -> None:
    (folder / name).write_text(contents, encoding="latin-1")
    with pytest.raises(ExportError, match=name):
        FolderCheckpoint(folder)


def test_a_folder_without_tokenizer_says_how_to_get_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"no tokenizer\.json") as caught:
        FolderCheckpoint(folder).tokenizer()
    assert "save_pretrained" in str(caught.value.hint)
