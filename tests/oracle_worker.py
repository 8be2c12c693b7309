"""The process behind `tests.oracle`: runs in the environment that has torch and transformers, without edgekit.

Requests come as one line of JSON each on stdin, replies go as one line each to the file descriptor given as argument,
separate from anything that the libraries print.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers


def logits(request: dict[str, Any]) -> None:
    """Write logits, float32 `[tokens, vocab]`, to `output` (.npy)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"], torch_dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.no_grad():
        result = model(torch.tensor([request["tokens"]]), use_cache=False).logits[0]
    np.save(request["output"], result.float().numpy())


def create(request: dict[str, Any]) -> None:
    """Write a checkpoint with random weights: config.json and model.safetensors."""
    torch.manual_seed(request["seed"])
    config = transformers.AutoConfig.for_model(request["model_type"], **request["config"])
    model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                # The libraries' own initialization (σ = 0.02) leaves logits and attention almost flat.
                value.normal_(0, value.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                value.normal_(0, 0.3)
            elif value.ndim >= 2:
                value.normal_(0, 0.2)
    model.save_pretrained(request["folder"])


KINDS: dict[str, Callable[[dict[str, Any]], None]] = {"logits": logits, "create": create}


def main() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    with os.fdopen(int(sys.argv[1]), "w") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                KINDS[request["kind"]](request)
                reply: dict[str, str] = {}
            except Exception:  # noqa: BLE001  the test reports any error
                reply = {"error": traceback.format_exc()}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
