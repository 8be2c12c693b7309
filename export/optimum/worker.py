"""The child process of `exporter`: the only code that talks to Optimum, torch and transformers.

    python worker.py REQUEST.json REPLY.json

It runs in the environment that has them, where edgekit is not, and so imports nothing of edgekit. It writes a graph
in floating point with its weights beside it, and what torch itself computes for a few tokens, to check the graph by.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    # Weights beside the graph, whatever its size: its reader never has all of them in memory. Read at import.
    os.environ["FORCE_ONNX_EXTERNAL_DATA"] = "1"
    try:
        reply = _export(request)
    except ModuleNotFoundError as error:
        reply = {"missing": error.name}
    except Exception as error:  # noqa: BLE001  the libraries' exceptions share no base class
        reply = {"error": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"}
    Path(reply_file).write_text(json.dumps(reply), encoding="utf-8")


def _export(request: dict[str, Any]) -> dict[str, Any]:
    import onnx
    import torch
    from optimum.exporters.onnx import base, onnx_export_from_model
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoConfig, AutoModelForCausalLM

    source, output = request["folder"], Path(request["output"])
    model_type = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("model_type")
    if not _knows(TasksManager, model_type):
        known = sorted(name for name in TasksManager._SUPPORTED_MODEL_TYPE if _knows(TasksManager, name))  # noqa: SLF001  no public list
        return {"unknown": str(model_type), "known": known}
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    context = _context(config)
    if context is None:
        return {"error": "config.json names no longest context", "hint": "add max_position_embeddings to it"}
    model = AutoModelForCausalLM.from_pretrained(
        source, config=config, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    tokens = [(7919 * i + 11) % config.vocab_size for i in range(min(request["check_tokens"], context))]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    logits.tofile(output / "check.f32")
    # It would load the whole graph into onnxruntime to look at its outputs' shapes; what reads the graph does.
    base.OnnxConfig.fix_dynamic_axes = lambda *_, **__: None
    model.config.use_cache = True
    onnx_export_from_model(model, output, task=TASK, no_post_process=True, do_validation=False, device="cpu")
    graph = onnx.load(str(output / "model.onnx"), load_external_data=False)
    onnx.helper.set_model_props(graph, {"edgekit.dialect": "optimum", "edgekit.context_length": str(context)})
    (output / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    return {"context_length": context, "tokens": tokens, "vocab_size": int(logits.shape[-1])}


def _knows(manager: Any, model_type: object) -> bool:
    try:
        return TASK in manager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        return False


def _context(config: Any) -> int | None:
    """The longest context that the traced graph is right for."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    longest = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    # LongRoPE chooses between two tables by the length; the trace, which is short, holds the one for short texts.
    original = getattr(config, "original_max_position_embeddings", None)
    if longest is not None and isinstance(original, int):
        longest = min(longest, original)
    return longest


if __name__ == "__main__":
    main(*sys.argv[1:])
