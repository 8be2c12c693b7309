"""What the APIs report about a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.runners import Rejected

__all__ = ["ModelInfo", "read_bits", "read_dimensions"]

# GGUF's names of sizes in Hugging Face's `config.json`.
_DIMENSIONS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Model metadata that the APIs report.

    Attributes:
        created: Seconds since the epoch.
        context_length: Maximum tokens of prompt and completion together.
        architecture: Hugging Face's `model_type`; empty if unknown.
        parameters: Number of weights; 0 if unknown.
        format: Artifact kind: `onnx`, `mlx`.
        size_bytes: Total size of the bundle's files.
        capabilities: Ollama's names: `completion`, `insert`, `tools`, `thinking`.
        runner: The runner and its kernels: `cpu (avx2)`, `onnxruntime`.
        rejected: Better runners that do not work here, with the reason of each, the best first.
        licence: SPDX identifier of the weights, or `unknown`.
        bits: Bits of a weight; 0 if unknown.
        template: Source of the chat template; empty without one.
        fill_template: How it fills in the middle, in the syntax of Ollama's templates; empty if it does not.
        sampling: The model's own defaults of sampling parameters.
        dimensions: Sizes of the architecture, by GGUF's names without the architecture's: `block_count`, ….
        aliases: Further names by which requests may name it.
    """

    name: str
    created: int
    context_length: int
    architecture: str = ""
    parameters: int = 0
    format: str = ""
    size_bytes: int = 0
    capabilities: tuple[str, ...] = ("completion",)
    runner: str = ""
    rejected: tuple[Rejected, ...] = ()
    licence: str = "unknown"
    bits: int = 0
    template: str = ""
    fill_template: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases, each once."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


def read_bits(recipe: Mapping[str, Any]) -> int:
    """Return the bits that most matrices have, by a manifest's entry for the recipe; 0 if they are not quantized."""
    matrices = recipe.get("matrices")
    if not isinstance(matrices, Mapping):
        return 0
    counts = {str(name): count for name, count in matrices.items() if isinstance(count, int)}
    found = re.search(r"\b(\d{1,2})-bit", max(counts, key=counts.__getitem__, default=""))
    return int(found[1]) if found else 0


def read_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that `config.json` has, by GGUF's names."""
    found = {name: config.get(key) for name, key in _DIMENSIONS.items()}
    return {name: value for name, value in found.items() if isinstance(value, int) and value > 0}
