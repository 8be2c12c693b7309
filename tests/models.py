"""Creates tiny checkpoints with random weights, in Hugging Face's layout.

The weights have realistic scales, so that logits spread and attention is not flat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor

__all__ = ["CHATML", "TensorWeights", "tiny_checkpoint", "tiny_decoder", "tiny_tensors", "trained_bpe"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def tiny_checkpoint(
    folder: Path,
    *,
    model_type: str = "qwen2",
    tied: bool = False,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 128,
    intermediate: int = 192,
    vocab: int = 512,
    max_position: int = 256,
    seed: int = 0,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    **keys: Any,
) -> Path:
    """Write a checkpoint folder: config, weights, tokenizer, chat template.

    Widths that divide by 64 (the defaults do, `intermediate` by 64 too) fit every group size but 128.

    Args:
        folder: Created if missing.
        vocab: At least 259: 256 bytes and three special tokens.
        keys: Additional keys of config.json, or other values; None removes one.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": [f"{model_type.split('_', maxsplit=1)[0].capitalize()}ForCausalLM"],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_position,
        "rms_norm_eps": 1e-6 if model_type == "qwen2" else 1e-5,
        # Neither library's default, so that a lost value shows.
        "rope_theta": 50_000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vocab_size": vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Phi-3's own is outside a small vocabulary.
        "pad_token_id": 0,
    }
    config = {key: value for key, value in (config | keys).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    rng, decoder = np.random.default_rng(seed), describe(config)
    tensors = {name: _random(rng, name, shape) for name, shape in decoder.tensor_shapes().items()}
    for name in decoder.norms():
        tensors[name] -= np.float32(decoder.norm_offset)
    tensors = {name: values.astype(_DTYPES[dtype]) for name, values in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, vocab)
    return folder


def tiny_tensors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of a tiny checkpoint in float32, by name."""
    return {name: value.astype(np.float32) for name, value in load_file(folder / "model.safetensors").items()}


def tiny_decoder(folder: Path) -> Decoder:
    """The description of a checkpoint folder."""
    return describe(json.loads((folder / "config.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class TensorWeights:
    """Arrays in memory as the `Weights` of a writer.

    Attributes:
        tensors: Every tensor by name.
        quantize: Returns a matrix's quantized form, or the matrix itself to leave it in floating point.
        order: See `Weights.order`.
    """

    tensors: Mapping[str, npt.NDArray[np.float32]]
    quantize: Callable[[Linear, npt.NDArray[np.float32]], GroupedTensor | npt.NDArray[np.float32]] | None = None
    order: Sequence[Linear] = ()

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        return self.tensors[name]

    def matrix(self, linear: Linear) -> GroupedTensor | npt.NDArray[np.float32]:
        weight = self.tensors[linear.stored.weight][linear.rows]
        return weight if self.quantize is None else self.quantize(linear, weight)

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        matrix = self.matrix(linear)
        return matrix if isinstance(matrix, GroupedTensor) else FloatRows.of(matrix)

    def stored(self, decoder: Decoder) -> dict[str, npt.NDArray[np.float32]]:
        """Every tensor as the artifact should compute with it: quantized ones dequantized."""
        values = dict(self.tensors)
        for linear in (decoder.embedding, *decoder.linears()):
            matrix = self.matrix(linear)
            stored = values[linear.stored.weight].copy()
            stored[linear.rows] = matrix.dequantize() if isinstance(matrix, GroupedTensor) else matrix
            values[linear.stored.weight] = stored
        return values


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * values).astype(np.float32)
    if name.endswith(".bias"):
        return (0.3 * values).astype(np.float32)
    if "embed_tokens" in name:
        return (0.2 * values).astype(np.float32)
    # Keeps the variance of activations from layer to layer.
    values /= np.float32(np.sqrt(shape[-1]))
    return values


def trained_bpe(texts: list[str], vocab: int, *, words: bool = True) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab` tokens; any text survives encode and decode.

    Args:
        texts: What to train on.
        vocab: Maximum number of tokens.
        words: Split texts into words as GPT-2 does; otherwise tokens span words.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write a small BPE tokenizer with its settings, as a checkpoint folder has them."""
    words = ["the capital of France is Paris", "user assistant system", "what is the sum of even numbers in a list"]
    trained_bpe(words, vocab).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": SPECIAL[0],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
