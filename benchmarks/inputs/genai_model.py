"""Builds the model as onnxruntime-genai's users would: with its own builder, INT4, for the CPU.

The builder needs a Hugging Face checkpoint, so the GGUF is converted to one first (float16, dequantized). It also needs
torch, transformers and onnx-ir.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgekit.export.quantization.grid import as_floats
from edgekit.export.sources.open import open_checkpoint

__all__ = ["built", "genai_model"]

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
OPTIONS = ("int4_accuracy_level=4", "int4_block_size=32", "hf_token=false")


def built(model: str, work: Path) -> bool:
    """Whether `genai_model` has built the model before."""
    return (work / f"{model}-genai" / "model.onnx").exists()


def genai_model(model: str, work: Path, python: str) -> Path | None:
    """Return the folder of the model, built on first use; None if the builder failed.

    Args:
        model: A catalogue name.
        work: Folder for the results.
        python: The interpreter with onnxruntime-genai and its builder's dependencies.
    """
    folder = work / f"{model}-genai"
    if built(model, work):
        return folder
    checkpoint = work / f"{model}-float16"
    _write_checkpoint(model, checkpoint)
    print(f"building {model} with onnxruntime-genai's builder …", file=sys.stderr)
    command = [python, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-i", str(checkpoint)]
    command += ["-o", str(folder), "-p", "int4", "-e", "cpu", "-c", str(work / "cache"), "--extra_options", *OPTIONS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return folder


def _write_checkpoint(model: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with closing(open_checkpoint(model)) as source:
        tensors = {}
        for name in source.tensors:
            tensors[name] = np.ascontiguousarray(as_floats(source.read(name)).astype(np.float16))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {**source.config, "architectures": [CLASSES[source.config["model_type"]]], "torch_dtype": "float16"}
        text = source.tokenizer()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_bytes(text.tokenizer_json)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **text.special}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(text.eos_token_ids)}))
