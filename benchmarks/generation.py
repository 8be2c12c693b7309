"""Prompt and decode speed of edgekit, llama.cpp and onnxruntime-genai: same model, same tokens, same run, as ratios.

    python benchmarks/generation.py                                   SmolLM2-135M
    python benchmarks/generation.py qwen2.5-coder-1.5b-instruct       the headline architecture (1.1 GB download)

Peers are optional: `pip install llama-cpp-python`, and `pip install onnxruntime-genai torch transformers onnx-ir` for
onnxruntime-genai and its model builder, into this environment or another one named by `--llama-python` and
`--genai-python`. Every engine is loaded once in a process of its own; rounds are interleaved, so that a
machine that slows down slows all of them; the table shows medians and their ratio to the better peer.
llama.cpp runs the GGUF itself, edgekit the bundle it exports from it, onnxruntime-genai what its own builder makes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genai_model import genai_model

from edgekit.bundle.bundle import open_bundle
from edgekit.errors import EdgekitError
from edgekit.export.catalog import fetch_entry
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.target import load_target

ENGINES = Path(__file__).with_name("engines.py")
TEXT = Path(__file__).parent.parent / "README.md"


@dataclass
class Engine:
    """One engine, loaded in its own process, that times what it is told to."""

    name: str
    process: subprocess.Popen[str]
    version: str

    @classmethod
    def start(cls, name: str, python: str, model: Path, threads: int) -> Engine | None:
        """Load the engine; None if its library is not installed."""
        command = [python, str(ENGINES), name, str(model), str(threads)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        first = process.stdout.readline()
        if not first:
            process.wait()
            return None
        return cls(name, process, json.loads(first)["version"])

    def time(self, prompt: Sequence[int], decode: int) -> dict[str, float]:
        """Return seconds: `prompt_s` for all of `prompt`, `decode_s` for `decode` greedy tokens after it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"prompt": list(prompt), "decode": decode}) + "\n")
        self.process.stdin.flush()
        timing: dict[str, float] = json.loads(self.process.stdout.readline())
        return timing

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)


def prompt_tokens(bundle: Path, count: int) -> list[int]:
    """Return `count` tokens of English text."""
    from tokenizers import Tokenizer

    text = TEXT.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return (ids * (count // len(ids) + 1))[:count]


def exported(model: str, folder: Path, recipe: str) -> Path:
    """Export the model for the CPU, once."""
    bundle = folder / f"{model}-cpu-{recipe}"
    if not bundle.exists():
        print(f"exporting {model} …", file=sys.stderr)
        export_bundle(model, load_target("cpu"), bundle, ExportOptions(recipe=recipe), lambda *_: None)
    return bundle


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a catalogue name of a GGUF model")
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens")
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode after the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the exported bundle is kept")
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    parser.add_argument("--genai-python", default=sys.executable, help="interpreter that has onnxruntime-genai")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        bundle = exported(arguments.model, arguments.work, arguments.recipe)
        gguf = fetch_entry(arguments.model)
    except EdgekitError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
    tokens = prompt_tokens(bundle, arguments.prompt)
    plan = {"edgekit": (sys.executable, bundle), "llama.cpp": (arguments.llama_python, gguf)}
    built = genai_model(arguments.model, arguments.work, arguments.genai_python)
    if built is not None:
        plan["onnxruntime-genai"] = (arguments.genai_python, built)
    engines = []
    for name, (python, model) in plan.items():
        engine = Engine.start(name, python, model, arguments.threads)
        if engine is None:
            print(f"{name} is not installed for {python}: left out", file=sys.stderr)
        else:
            engines.append(engine)
    results: dict[str, dict[str, list[float]]] = {engine.name: {"prompt": [], "decode": []} for engine in engines}
    try:
        for number in range(arguments.rounds + 1):
            for engine in engines:
                timing = engine.time(tokens, arguments.decode)
                if number:  # the first round warms up
                    results[engine.name]["prompt"].append(len(tokens) / timing["prompt_s"])
                    results[engine.name]["decode"].append(arguments.decode / timing["decode_s"])
    finally:
        for engine in engines:
            engine.stop()
    _print(arguments, engines, results, bundle)


def _print(
    arguments: argparse.Namespace, engines: list[Engine], results: dict[str, dict[str, list[float]]], bundle: Path
) -> None:
    median = {name: {what: statistics.median(rates) for what, rates in both.items()} for name, both in results.items()}
    peers = [name for name in median if name != "edgekit"]
    ratios = {
        what: median["edgekit"][what] / max(median[name][what] for name in peers) if peers else None
        for what in ("prompt", "decode")
    }
    if arguments.json:
        print(json.dumps({"model": arguments.model, "median_tokens_per_s": median, "ratio_to_better_peer": ratios}))
        return
    print(f"{arguments.model}: {arguments.prompt} prompt and {arguments.decode} decoded tokens, ", end="")
    print(f"{arguments.threads} threads, median of {arguments.rounds} interleaved rounds")
    print(f"bundle: {open_bundle(bundle).manifest.recipe['summary']}")
    print(f"{'':28}{'prompt tok/s':>14}{'decode tok/s':>14}")
    for engine in engines:
        rates = median[engine.name]
        print(f"{engine.name + ' ' + engine.version:28}{rates['prompt']:14.1f}{rates['decode']:14.1f}")
    if peers:
        print(f"{'edgekit / better peer':28}{ratios['prompt']:13.2f}x{ratios['decode']:13.2f}x")


if __name__ == "__main__":
    main()
