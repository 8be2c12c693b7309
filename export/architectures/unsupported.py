"""Names models that edgekit does not export, so that the error says what they are instead of a similar name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgekit.errors import ExportError

__all__ = ["is_misspelling", "refuse_encoder", "refuse_known"]

# Families whose layers are not those of any architecture here, by the beginning of `model_type`; longest first.
_FAMILIES: tuple[tuple[str, str], ...] = (
    ("qwen3_5", "Qwen3.5, which mixes linear and full attention"),
    ("qwen3_next", "Qwen3-Next, which mixes linear and full attention"),
    ("gemma3n", "Gemma 3n, which has embeddings per layer and images and audio as input"),
    ("llama4", "Llama 4, a mixture of experts with images as input"),
    ("gemma2", "Gemma 2, which caps its logits"),
    ("gpt_oss", "gpt-oss, a mixture of experts with attention sinks"),
    ("falcon_mamba", "a state-space model"),
    ("mamba", "a state-space model"),
    ("rwkv", "a recurrent model"),
    ("jamba", "a state-space model mixed with attention"),
    ("mixtral", "a mixture of experts"),
    ("deepseek", "a mixture of experts with latent attention"),
)
_PARTS = {"vision_config": "images", "audio_config": "audio", "thinker_config": "images and audio"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_ENCODERS = {"bert", "roberta", "camembert", "distilbert", "electra", "mpnet", "modernbert", "deberta", "albert", "gte"}

_SCORES = re.compile(r"For(\w*Classification|\w*RewardModel|QuestionAnswering|MultipleChoice)$")


def refuse_known(config: Mapping[str, Any]) -> None:
    """Refuse a model whose kind is known not to be supported.

    Args:
        config: A `config.json` whose `model_type` is none of the architectures.

    Raises:
        ExportError: The message says what the model is.
    """
    _refuse(_encoder(config) or _decoder(config), config)


def refuse_encoder(config: Mapping[str, Any]) -> None:
    """Refuse a model that does not continue text, whichever exporter is asked.

    Args:
        config: A `config.json`.

    Raises:
        ExportError: It is an embedding model, a classifier or an encoder-decoder.
    """
    _refuse(_encoder(config), config)


def is_misspelling(model_type: str, name: str) -> bool:
    """Whether a name may be meant: `qwenn2` is a misspelt `qwen2`, but `qwen4` and `qwen2_moe` are other models."""
    return re.findall(r"\d+", model_type) == re.findall(r"\d+", name) and not model_type.startswith(f"{name}_")


def _refuse(kind: tuple[str, str] | None, config: Mapping[str, Any]) -> None:
    if kind is not None:
        what, hint = kind
        message = f"unsupported architecture `{_other_head(config) or config.get('model_type')}`: this is {what}"
        raise ExportError(message, hint=hint, code="unsupported_architecture")


def _type(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type") or "").lower().replace("-", "_")


def _encoder(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the model is, and a hint, if it is no decoder that continues text."""
    if _other_head(config) is not None:
        return "a classifier or reward model", "choose a model that continues text: edgekit models"
    if _is_embedding_model(config):
        return "an embedding model", "embedding models are not supported yet; choose a chat model: edgekit models"
    if config.get("is_encoder_decoder") is True:
        return "an encoder-decoder model", "choose a decoder, such as a chat model of `edgekit models`"
    return None


def _decoder(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the model is, and a hint, if it is of a kind that is known."""
    model_type = _type(config)
    for beginning, what in _FAMILIES:
        if model_type.startswith(beginning):
            return what, _other(model_type)
    inputs = [name for key, name in _PARTS.items() if isinstance(config.get(key), Mapping)]
    if inputs or isinstance(config.get("text_config"), Mapping):
        of = f" ({' and '.join(inputs)} as input)" if inputs else ""
        return f"a multimodal model{of}", _other(model_type)
    if any(isinstance(config.get(key), int) and config[key] > 1 for key in _EXPERTS):
        return "a mixture of experts", _other(model_type)
    return None


def _other(model_type: str) -> str:
    text = "edgekit exports dense text models; `edgekit models` lists some"
    return f"{text}, and Gemma 3 is one in the sizes 270M and 1B" if model_type.startswith("gemma3") else text


def _classes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _other_head(config: Mapping[str, Any]) -> str | None:
    """The class of a decoder whose head gives scores instead of tokens, such as `Qwen2ForRewardModel`."""
    classes = _classes(config)
    if set(re.split(r"[^a-z]+", _type(config))) & _ENCODERS or any("ForCausalLM" in name for name in classes):
        return None
    return next((name[:100] for name in classes if _SCORES.search(name)), None)


def _is_embedding_model(config: Mapping[str, Any]) -> bool:
    classes = _classes(config)
    if any("ForCausalLM" in name or "ForConditionalGeneration" in name for name in classes):
        return False
    if config.get("is_encoder_decoder") is True:
        return False
    words = set(re.split(r"[^a-z]+", _type(config)))
    heads = ("ForMaskedLM", "ForSentenceEmbedding")
    return bool(words & _ENCODERS) or any(head in name for name in classes for head in heads)
