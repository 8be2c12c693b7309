from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConfigError, ExportError
from edgekit.export.sources.gguf_files import choose_gguf
from edgekit.export.sources.hub_ref import HubRef, hub_ref, short_name


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/Name-7B", HubRef("org/Name-7B")),
        ("org/Name:Q4_K_M", HubRef("org/Name", tag="Q4_K_M")),
        ("hf.co/org/Name", HubRef("org/Name")),
        ("hf.co/org/Name:Q4_K_M", HubRef("org/Name", tag="Q4_K_M")),
        ("hf://org/Name", HubRef("org/Name")),
        ("huggingface.co/org/Name/", HubRef("org/Name")),
        ("https://huggingface.co/org/Name?library=x#files", HubRef("org/Name")),
        ("https://HuggingFace.co/org/Name/tree/main", HubRef("org/Name", "main")),
        ("https://huggingface.co/org/Name/tree/refs%2Fpr%2F1", HubRef("org/Name", "refs/pr/1")),
        ("https://huggingface.co/org/Name/blob/main/a/m.gguf", HubRef("org/Name", "main", file="a/m.gguf")),
        ("https://huggingface.co/org/Name/resolve/v1/m.gguf?download=true", HubRef("org/Name", "v1", file="m.gguf")),
        ("https://huggingface.co/org/Name/blob/main/config.json", HubRef("org/Name", "main")),
        ("name", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("", None),
    ],
)
def test_the_names_that_users_copy_are_understood(text: str, ref: HubRef | None) -> None:
    assert hub_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/org/Name",
        "https://huggingface.co/datasets/org/Name",
        "https://huggingface.co/spaces/org/Name",
        "https://huggingface.co/org",
        "https://huggingface.co/org/Name/discussions/1",
        "https://huggingface.co/org/Name/blob/main/onnx/model.onnx",
        "https://huggingface.co/../..",
    ],
)
def test_an_address_of_anything_else_is_refused_with_the_forms_that_are_read(text: str) -> None:
    with pytest.raises(ExportError) as caught:
        hub_ref(text)
    assert caught.value.hint


def test_an_address_and_an_option_that_name_two_revisions_are_refused() -> None:
    assert HubRef("org/name").at("v1").revision == "v1"
    assert HubRef("org/name", "v1").at("v1").revision == "v1"
    with pytest.raises(ConfigError, match="`v1`"):
        HubRef("org/name", "v1").at("v2")


def test_a_mirror_is_an_address_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    assert hub_ref("https://mirror.example:8443/org/Name") == HubRef("org/Name")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://huggingface.co/org/Name-7B-GGUF/blob/main/x.gguf", "name-7b"),
        ("hf.co/org/Name:Q4_K_M", "name"),
        ("models/Other.gguf", "other"),
        ("models/folder/", "folder"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
    ],
)
def test_a_bundles_folder_is_named_after_the_model(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_name(text) == name


FILES = [
    "README.md", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m.f16.gguf", "mmproj-m-f16.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "odd.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "first"),
    [
        ("q4_0", "m-Q4_0.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("F16", "m.f16.gguf"),
        ("Q8_0", "Q8_0/m-Q8_0-00001-of-00002.gguf"),
        ("odd", "odd.gguf"),
        ("m-Q4_0.gguf", "m-Q4_0.gguf"),
        (None, "m-Q4_K_M.gguf"),
    ],
)
def test_a_quantization_is_found_by_its_name(tag: str | None, first: str) -> None:
    found = choose_gguf("org/m", FILES, tag=tag)
    assert found is not None
    assert found[0] == first
    assert len(found) == (2 if tag == "Q8_0" else 1)


@pytest.mark.parametrize(
    ("names", "tag", "message"),
    [
        (FILES, "Q5_K_M", "no quantization `Q5_K_M`"),
        (["a-Q2_K.gguf", "a-Q3_K.gguf"], None, "several quantizations"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0", "several models"),
        (["README.md"], "Q4_0", "no quantization"),
    ],
)
def test_a_quantization_that_is_not_there_or_not_one_is_refused_with_those_there_are(
    names: list[str], tag: str | None, message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        choose_gguf("org/m", names, tag=tag)
    assert caught.value.hint
    assert ("Q" in caught.value.hint) is (names != ["README.md"]) or "gguf" in caught.value.hint


def test_a_repository_without_a_gguf_model_has_none() -> None:
    assert choose_gguf("org/m", ["README.md", "config.json", "mmproj-x.gguf"]) is None
