"""A model that is not supported is called what it is, and no similar name is offered for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError, ExportError
from edgekit.export.architectures import architectures, describe
from edgekit.export.architectures.unsupported import is_misspelling
from edgekit.export.optimum.exporter import export_graph
from edgekit.profile import target_names
from edgekit.target import load_target
from tests.conftest import edgekit
from tests.models import tiny_checkpoint

_TEXT = {"text_config": {"model_type": "qwen3_5_text"}}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "qwen3_5", "vision_config": {}, **_TEXT}, "Qwen3.5, which mixes"),
        ({"model_type": "qwen3_5_text"}, "Qwen3.5, which mixes"),
        ({"model_type": "qwen3_5_moe"}, "Qwen3.5, which mixes"),
        ({"model_type": "gemma3n", "audio_config": {}, "text_config": {}}, "Gemma 3n"),
        ({"model_type": "gemma3n_text"}, "Gemma 3n"),
        ({"model_type": "llama4", "vision_config": {}}, "Llama 4"),
        ({"model_type": "llama4_text"}, "Llama 4"),
        ({"model_type": "gemma3", "vision_config": {}, "text_config": {}}, "a multimodal model (images as input)"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "a multimodal model (images as input)"),
        ({"model_type": "llava", "vision_config": {}, "text_config": {}}, "a multimodal model (images as input)"),
        ({"model_type": "phi4mm", "vision_config": {}, "audio_config": {}}, "a multimodal model (images and audio as"),
        ({"model_type": "mistral3", "text_config": {}}, "a multimodal model"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "a mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder model"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "an embedding model"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, "an embedding model"),
        ({"model_type": "nomic_bert"}, "an embedding model"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"]}, "an embedding model"),
    ],
)
def test_a_known_kind_of_model_is_named(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ExportError) as refused:
        describe(config)
    assert f"unsupported architecture `{config['model_type']}`: this is {what}" in refused.value.message
    hint = refused.value.hint or ""
    assert "did you mean" not in hint
    assert "optimum" not in hint
    assert ("embedding models are not supported yet" in hint) == (what == "an embedding model")
    assert refused.value.code == "unsupported_architecture"


@pytest.mark.parametrize("model_type", ["qwen4", "llama5", "phi4", "mistral4", "qwen3_new", "gemma4_text", "", None])
def test_another_generation_is_no_misspelling(model_type: str | None) -> None:
    with pytest.raises(ExportError) as refused:
        describe({"model_type": model_type})
    assert "did you mean" not in (refused.value.hint or "")
    assert "known architectures: gemma3_text, llama" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("typed", "meant"), [("qwenn2", "qwen2"), ("lama", "llama"), ("qwen_2", "qwen2"), ("gemma3-text", "gemma3_text")]
)
def test_a_misspelling_is_still_one(typed: str, meant: str) -> None:
    assert is_misspelling(typed, meant)
    with pytest.raises(ExportError) as refused:
        describe({"model_type": typed})
    assert f"did you mean `{meant}`?" in (refused.value.hint or "")


def test_no_supported_architecture_is_taken_for_another_kind() -> None:
    for model_type in architectures():
        with pytest.raises(ExportError) as refused:
            # The configuration lacks everything else.
            describe({"model_type": model_type, "text_config": {}, "num_experts": 8})
        assert "this is" not in refused.value.message


@pytest.mark.parametrize("exporter", ["edgekit", pytest.param("optimum", marks=pytest.mark.optimum)])
@pytest.mark.parametrize("head", ["SequenceClassification", "RewardModel", "TokenClassification"])
def test_a_model_that_gives_scores_is_no_chat_model(head: str, exporter: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tied=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [f"Qwen2For{head}"]}))
    done = edgekit("export", folder, "-t", "cpu", "--exporter", exporter, "-o", tmp_path / "out", check=False)
    assert f"unsupported architecture `Qwen2For{head}`: this is a classifier or reward model" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.optimum
def test_an_embedding_model_is_not_sent_to_optimum(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "bert", "architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    for exporter in ("edgekit", "optimum"):
        done = edgekit("export", folder, "-t", "cpu", "--exporter", exporter, "-o", tmp_path / "out", check=False)
        assert done.returncode == 1
        assert "this is an embedding model\n\nhint: embedding models are not supported yet" in done.stderr
    with pytest.raises(ExportError, match="embedding model"):
        export_graph(folder, config, tmp_path / "graph")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *((name, "m2") for name in ("m3", "m4", "M4", "m5", "m3-max", "apple-m4-pro", "M2 Ultra")),
        *(("m1-pro", "m1"), ("rtx4090", "rtx"), ("RTX 3060 Ti", "rtx"), ("pi5", "cpu"), ("raspberry-pi", "cpu")),
        *(("x86_64", "cpu"), ("arm64", "cpu"), ("agx-orin", "orin"), ("orinn", "orin")),
    ],
)
def test_the_target_that_covers_a_device_is_offered(typed: str, meant: str) -> None:
    assert meant in target_names()
    with pytest.raises(ConfigError) as refused:
        load_target(typed)
    assert (refused.value.hint or "").startswith(f"did you mean `{meant}`? known targets: ")


def test_a_missing_tensor_is_not_only_a_missing_shard(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    done = edgekit("export", folder, "-t", "cpu", "-o", tmp_path / "out", check=False)
    assert "has no tensor `model.norm.weight`" in done.stderr
    assert "hint: a file may be missing, or this is an adapter or another kind of model" in done.stderr
