"""What an export or a plan fetches from the hub before it refuses, and the ways to name a model there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.checkpoints.gguf.files import rope_tables, write_gguf
from tests.export.sources import test_hub
from tests.export.sources.test_hub import COMMIT, Hub, in_process
from tests.models import tiny_checkpoint
from tests.variants import variant

hub = test_hub.hub

# Larger than the part of a file that is fetched for its header.
LARGE: dict[str, Any] = {"hidden": 256, "intermediate": 512, "vocab": 2048, "layers": 2, "tied": True}
PROGRAM = """
import json, logging, sys
from pathlib import Path
import edgekit
from edgekit.export.planning.plan import plan_model
from edgekit.export.options import ExportOptions
from edgekit.target import load_target
logging.disable()
verb, cases = sys.argv[1], json.loads(sys.argv[2])
for number, (model, options) in enumerate(cases):
    try:
        target = options.pop("target", "cpu")
        if verb == "plan":
            if "calibrate_on" in options:
                options["calibrate_on"] = Path(options["calibrate_on"])
            plan = plan_model(model, load_target(target, options.get("memory_gib")), ExportOptions(**options))
            print(json.dumps({"name": plan.name, "basis": plan.basis, "bytes": plan.sizes.stored}))
        else:
            bundle = edgekit.export_model(model, target, f"{sys.argv[3]}/{number}", **options)
            print(json.dumps({"name": bundle.manifest.name, "source": bundle.manifest.source["id"]}))
    except edgekit.EdgekitError as error:
        print(json.dumps({"message": error.message, "hint": error.hint, "code": error.code}))
"""


def run(verb: str, endpoint: str, home: Path, cases: list[tuple[str, dict[str, Any]]], **env: str) -> list[Any]:
    done = in_process(PROGRAM, verb, json.dumps(cases), str(home), endpoint=endpoint, home=home, **env)
    return [json.loads(line) for line in done.stdout.splitlines()]


def with_keys(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def damaged_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for")


def damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-64])


# What is wrong with a repository, the options, and what the message says.
REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "architecture": (with_keys(model_type="mamba"), {}, "unsupported architecture"),
    "key": (with_keys(logit_scale=2.0), {}, "logit_scale"),
    "fp8": (with_keys(quantization_config={"quant_method": "fp8"}), {}, "(fp8)"),
    "marlin": (
        with_keys(quantization_config={"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
        {},
        "`marlin`",
    ),
    "tokenizer": (without("tokenizer.json"), {}, "no tokenizer.json"),
    "no-tokenizer-text": (damaged_tokenizer, {}, "tokenizer"),
    "bad-template": (damaged_template, {}, "cannot answer a chat"),
    "other-vocabulary": (with_keys(vocab_size=2000), {}, "configuration gives"),
    "layers": (with_keys(num_hidden_layers=3), {}, "no tensor `model.layers.2"),
    "fewer-layers": (with_keys(num_hidden_layers=1), {}, "does not use"),
    "pickled": (pickled, {}, "no safetensors"),
    "cut": (cut, {}, "truncated"),
    "context": (lambda _: None, {"context_length": 9999}, "context is 256 tokens"),
    "yarn": (with_keys(rope_scaling={"rope_type": "linear", "factor": 2.0}), {"yarn": 4.0}, "already has RoPE scaling"),
    "window": (
        with_keys(use_sliding_window=True, sliding_window=12, max_window_layers=1),
        {"target": "m2"},
        "sliding window",
    ),
    "memory": (
        with_keys(max_position_embeddings=1 << 30),
        {"context_length": 1 << 30, "memory_gib": 2},
        "does not fit",
    ),
    "calibration": (lambda _: None, {"recipe": "gptq", "calibrate_on": "absent.txt"}, "absent.txt"),
    "optimum-gptq": (
        with_keys(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32}),
        {"exporter": "optimum"},
        "quantized already",
    ),
    "optimum-tokenizer": (without("tokenizer.json"), {"exporter": "optimum"}, "no tokenizer.json"),
}


@pytest.mark.optimum
def test_an_export_that_is_refused_fetches_no_weights_and_a_plan_refuses_the_same(hub: str, tmp_path: Path) -> None:
    good = tiny_checkpoint(tmp_path / "good", **LARGE)
    assert (good / "model.safetensors").stat().st_size > 2_000_000
    for name, (change, _, _) in REFUSED.items():
        change(Path(shutil.copytree(good, tmp_path / "repositories" / name)))
        Hub.more[name] = tmp_path / "repositories" / name
    cases = [(f"org/{name}", options) for name, (_, options, _) in REFUSED.items()]
    refusals = run("export", hub, tmp_path / "home", cases)
    for (name, (_, _, message)), refusal in zip(REFUSED.items(), refusals, strict=True):
        assert message in refusal.get("message", ""), (name, refusal)
        assert "/tmp" not in refusal["message"], refusal  # noqa: S108  no folder that the user does not know
    most = max(count for file, count in Hub.sent if file.endswith(".safetensors"))
    assert most <= 1 << 18, "weights were fetched"

    Hub.sent.clear()
    planned = [(model, options) for model, options in cases if options.get("exporter") != "optimum"]
    planned = [(model, options) for model, options in planned if "memory_gib" not in options]
    plans = dict(zip((model for model, _ in planned), run("plan", hub, tmp_path / "home", planned), strict=True))
    for (model, _), refusal in zip(cases, refusals, strict=True):
        assert plans.get(model, refusal) == refusal
    assert all(count <= 1 << 18 for file, count in Hub.sent if file.endswith(".safetensors"))


def test_a_checkpoint_that_is_accepted_is_exported_and_its_weights_are_fetched_once(hub: str, tmp_path: Path) -> None:
    Hub.more["Good"] = tiny_checkpoint(tmp_path / "good", **LARGE)
    size = (Hub.more["Good"] / "model.safetensors").stat().st_size
    (bundle,) = run("export", hub, tmp_path / "home", [("org/Good", {})])
    assert bundle == {"name": "good", "source": f"org/Good@{COMMIT}"}
    assert [count for name, count in Hub.sent if name == "model.safetensors"] == [1 << 18, size]
    Hub.sent.clear()
    (again,) = run("export", hub, tmp_path / "home", [("org/Good", {"force": True})])
    assert again == bundle
    assert test_hub.weight_bytes() == 0


def gguf_repository(folder: Path) -> None:
    """A repository of GGUF files, as quantizers publish them: no configuration, a folder for a split model."""
    source = variant("llama3", folder.parent / "source", **{**LARGE, "kv_heads": 1})
    tables = rope_tables(json.loads((source / "config.json").read_text()))
    (folder / "Q8_0").mkdir(parents=True)
    for name in ("Tiny-Q4_0.gguf", "Tiny-Q4_K_M.gguf"):
        write_gguf(source, folder / name, encoding="Q4_0", pre="smollm", extra_tensors=tables)
    write_gguf(source, folder / "Q8_0" / "Tiny-Q8_0.gguf", encoding="Q8_0", pre="smollm", parts=2, extra_tensors=tables)
    (folder / "mmproj-F16.gguf").write_bytes(b"another model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


def test_gguf_files_of_the_hub_are_named_by_quantization_or_address(hub: str, tmp_path: Path) -> None:
    Hub.more["Tiny-GGUF"] = tmp_path / "repository"
    gguf_repository(Hub.more["Tiny-GGUF"])
    refs = {
        "org/Tiny-GGUF:q4_0": "Tiny-Q4_0.gguf",
        "hf.co/org/Tiny-GGUF:Q8_0": "Q8_0/Tiny-Q8_0-00001-of-00002.gguf",
        "org/Tiny-GGUF": "Tiny-Q4_K_M.gguf",  # as llama.cpp and Ollama choose
        f"{hub}/org/Tiny-GGUF/blob/main/Tiny-Q4_0.gguf": "Tiny-Q4_0.gguf",
        f"{hub}/org/Tiny-GGUF/resolve/main/Q8_0/Tiny-Q8_0-00002-of-00002.gguf?download=true": (
            "Q8_0/Tiny-Q8_0-00001-of-00002.gguf"
        ),
    }
    cases: list[tuple[str, dict[str, Any]]] = [(ref, {}) for ref in refs]
    home = tmp_path / "home"
    plans = run("plan", hub, home, cases)
    assert [plan["basis"].split("@")[0] for plan in plans] == ["header of org/Tiny-GGUF"] * len(refs), plans
    whole = min(path.stat().st_size for path in Hub.more["Tiny-GGUF"].glob("*.gguf") if path.stat().st_size > 100)
    assert all(name != "mmproj-F16.gguf" for name, _ in Hub.sent)
    assert whole > 0
    bundles = run("export", hub, home, cases)
    assert [bundle.get("source") for bundle in bundles] == [f"org/Tiny-GGUF@{COMMIT}:{file}" for file in refs.values()]
    Hub.requests.clear()
    offline = run("export", "http://127.0.0.1:9", home / "again", cases[:1], HF_HUB_OFFLINE="1", HF_HOME=str(home))
    assert offline == bundles[:1]
    unknown, absent = run("plan", hub, home, [("org/Tiny-GGUF:Q2_K", {}), ("org/Tiny-GGUF:Q2_K", {"revision": "v1"})])
    assert unknown["message"] == "org/Tiny-GGUF has no quantization `Q2_K`"
    assert "Q4_0, Q4_K_M, Q8_0" in unknown["hint"]
    assert absent["code"] == "unknown_model"


def test_an_address_of_a_model_is_its_hub_id(hub: str, tmp_path: Path) -> None:
    refs = ["org/Tiny", f"{hub}/org/Tiny", f"{hub}/org/Tiny/tree/v1", f"{hub}/org/Tiny/blob/main/config.json"]
    plans = run("plan", hub, tmp_path, [*((ref, {}) for ref in refs), (refs[2], {"revision": "main"})])
    commits = [plan["basis"].rpartition("@")[2] for plan in plans[:-1]]
    assert commits == [COMMIT[:8], COMMIT[:8], test_hub.OLD[:8], COMMIT[:8]]
    assert "names the revision `v1`" in plans[-1]["message"]
