"""The child process of `exporter`: the only code that uses Optimum, torch and transformers.

    python worker.py REQUEST.json REPLY.json

It runs in their environment, which does not have edgekit, and so imports nothing of edgekit. It writes a graph in
floating point with its weights beside it, and torch's logits for a few tokens, to check the graph with.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"


def main(request_file: str, reply_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    # Weights beside the graph, whatever its size, so that its reader need not load them all. Read at import.
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
    import transformers
    from optimum.exporters.onnx import base, onnx_export_from_model
    from optimum.exporters.tasks import TasksManager
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    source, output = request["folder"], Path(request["output"])
    model_type = request["config"].get("model_type")
    if not _supports(TasksManager, model_type):
        known = sorted(name for name in TasksManager._SUPPORTED_MODEL_TYPE if _supports(TasksManager, name))  # noqa: SLF001  no public list
        return {"unknown": str(model_type), "known": known}
    # The translated configuration, and not the folder's: `older_config` says why.
    keys = {key: value for key, value in request["config"].items() if key not in {"model_type", *request["ignore"]}}
    unread = _unread(CONFIG_MAPPING[model_type], keys, request["harmless"])
    if unread:
        return {"unread": unread[0], "transformers": transformers.__version__}
    config = CONFIG_MAPPING[model_type].from_dict(keys)
    context = _context(config)
    if context is None:
        return {"error": "config.json states no maximum context length", "hint": "add max_position_embeddings to it"}
    model, loaded = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        torch_dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        # torch's fused attention has no softcap, and leaves out a model's without an error.
        attn_implementation="eager",
        output_loading_info=True,
    )
    strangers = [name for kind in ("missing_keys", "unexpected_keys") for name in sorted(loaded[kind])]
    if strangers:
        # transformers fills a missing tensor with random numbers and passes over an unexpected one.
        return {"error": f"the tensor `{strangers[0]}` is missing or belongs to another architecture"}
    head = _other_head(model, Path(source))
    if head is not None:
        return {"error": f"config.json ties the output head to the embedding, but `{head}` is another matrix"}
    model = model.eval()
    tokens = [(7919 * i + 11) % config.vocab_size for i in range(min(request["check_tokens"], context))]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    logits.tofile(output / "check.f32")
    # It would load the full graph into onnxruntime to check output shapes, which edgekit's reader does.
    base.OnnxConfig.fix_dynamic_axes = lambda *_, **__: None
    model.config.use_cache = True
    onnx_export_from_model(model, output, task=TASK, no_post_process=True, do_validation=False, device="cpu")
    graph = onnx.load(str(output / "model.onnx"), load_external_data=False)
    onnx.helper.set_model_props(graph, {"edgekit.dialect": "optimum", "edgekit.context_length": str(context)})
    (output / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    frequencies = [buffer.tolist() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    return {
        "context_length": context,
        "tokens": tokens,
        "vocab_size": int(logits.shape[-1]),
        "rope_frequencies": frequencies,
    }


def _unread(kind: Any, keys: dict[str, Any], harmless: list[str]) -> list[str]:
    """The keys that neither the configuration class nor the model's code reads; null, false and empty mean unused."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

    known = {*harmless, *vars(PretrainedConfig()), *kind.attribute_map, *kind.attribute_map.values()}
    known |= {name for base in kind.__mro__[:-1] for name in inspect.signature(base.__init__).parameters}
    code = inspect.getsource(sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[kind].__module__])
    known |= set(
        re.findall(r"""kwargs(?:\.get\(|\.pop\(|\[)["'](\w+)""", inspect.getsource(sys.modules[kind.__module__]))
    )
    return [
        key
        for key, value in keys.items()
        if key not in known and value not in (None, False, [], {}, "") and not re.search(rf"\b{re.escape(key)}\b", code)
    ]


def _other_head(model: Any, folder: Path) -> str | None:
    """The stored output head of a tied model, if it differs from the embedding: transformers 4 drops it, 5 uses it."""
    import torch
    from safetensors import safe_open

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return None
    name = f"{next(name for name, module in model.named_modules() if module is head)}.weight"
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys() and not torch.equal(file.get_tensor(name).float(), table.weight):  # noqa: SIM118  no mapping
                return name
    return None


def _supports(manager: Any, model_type: object) -> bool:
    try:
        return TASK in manager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        return False


def _context(config: Any) -> int | None:
    """The longest context for which the traced graph is correct."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    longest = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    # LongRoPE chooses between two tables by length; the trace, which is short, has the one for short sequences.
    original = getattr(config, "original_max_position_embeddings", None)
    if longest is not None and isinstance(original, int):
        longest = min(longest, original)
    return longest


if __name__ == "__main__":
    main(*sys.argv[1:])
