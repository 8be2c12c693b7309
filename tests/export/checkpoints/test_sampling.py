from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.checkpoints.sampling import hf_generation_config, hf_sampling
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.target import load_target
from tests.export.checkpoints.gguf.files import write_gguf
from tests.export.checkpoints.test_hf_folder import change
from tests.models import tiny_checkpoint

# Qwen2.5-7B-Instruct's.
QWEN: dict[str, Any] = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (QWEN, {key: value for key, value in QWEN.items() if key != "do_sample"}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        # Gemma 3's: transformers then samples at temperature 1.
        ({"do_sample": True, "top_k": 64}, {"temperature": 1.0, "top_k": 64}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 20.0}, {"top_k": 20}),
        ({"eos_token_id": 2, "max_new_tokens": 7, "temperature": None}, {}),
    ],
)
def test_defaults_are_those_of_transformers(generation: dict[str, Any], expected: dict[str, float]) -> None:
    assert hf_sampling(generation) == (expected, [])
    assert hf_sampling(hf_generation_config(expected)) == (expected, [])


def test_a_value_that_cannot_be_used_is_reported() -> None:
    found, notes = hf_sampling({"temperature": 7.5, "top_p": "high", "top_k": 2.5, "min_p": 0.1})
    assert found == {"min_p": 0.1}
    assert [("temperature" in note, "top_k" in note, "top_p" in note) for note in notes] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


@pytest.mark.parametrize(
    "setting",
    [
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [5]},
        {"stop_strings": ["User:"]},
        {"num_beams": 4},
        {"min_length": 9},
    ],
)
def test_a_setting_that_has_no_counterpart_is_reported(setting: dict[str, Any]) -> None:
    found, (note,) = hf_sampling({**QWEN, **setting})
    assert found == {key: value for key, value in QWEN.items() if key != "do_sample"}
    assert f"`{next(iter(setting))}`" in note


def test_settings_at_their_neutral_values_are_not_reported() -> None:
    neutral = {
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "min_length": 0,
        "suppress_tokens": None,
        "epsilon_cutoff": 0.0,
    }
    assert hf_sampling({**neutral, "bad_words_ids": [], "pad_token_id": 0, "use_cache": True})[1] == []


def test_without_a_generation_configuration_the_models_own_counts(tmp_path: Path) -> None:
    """Older releases of transformers had them there, and newer ones still read them."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    change(folder / "config.json", repetition_penalty=1.3, temperature=0.5, no_repeat_ngram_size=2)
    change(folder / "generation_config.json", eos_token_id=2)
    assert FolderCheckpoint(folder).tokenizer().sampling == {}
    (folder / "generation_config.json").unlink()
    text = FolderCheckpoint(folder).tokenizer()
    assert text.sampling == {"repetition_penalty": 1.3, "temperature": 0.5}
    assert text.notes == ("config.json sets `no_repeat_ngram_size`, which edgekit does not apply",)


def test_the_manifest_and_the_bundles_generation_config_carry_them(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    change(folder / "generation_config.json", **QWEN)
    export_bundle(str(folder), load_target("cpu"), tmp_path / "out", ExportOptions(), lambda *_: None)
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.sampling == {key: value for key, value in QWEN.items() if key != "do_sample"}
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"eos_token_id": list(manifest.eos_token_ids), **QWEN}


def test_gguf_files_may_state_them_too(tmp_path: Path) -> None:
    metadata = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.05}
    path = write_gguf(tiny_checkpoint(tmp_path / "m"), tmp_path / "m.gguf", metadata=metadata)
    found = GgufCheckpoint(path).tokenizer().sampling
    assert found == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
