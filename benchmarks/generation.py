"""Speed of edgekit, llama.cpp and onnxruntime-genai: same model, same tokens, same machine, same run, as ratios.

    python benchmarks/generation.py                                   all scenarios on SmolLM2-135M
    python benchmarks/generation.py smollm2-135m-instruct qwen2.5-coder-1.5b-instruct --chart docs/generation.svg
    python benchmarks/generation.py --scenario streams --rounds 3     one of them
    python benchmarks/generation.py --quick                           seconds each: shows that it works, no more
    python benchmarks/generation.py --show --chart docs/generation.svg      what was measured last, again

Scenarios: `single` (one stream, prompt and decode), `streams` (4 and 8 at once), `extraction` (JSON by schema),
`copying` (answers that repeat their prompt), `restart` (a known prefix after a restart). In each, every engine is
loaded once in a process of its own, rounds are interleaved, so that a machine that slows down slows all of them, and
medians are compared with the better peer's. Edgekit is measured through its scheduler, with the tokenizing and
detokenizing that its users get; peers are given token ids.

Peers are optional: `pip install llama-cpp-python`, and `pip install onnxruntime-genai torch transformers onnx-ir` for
onnxruntime-genai and its model builder, into this environment or another one named by `--llama-python` and
`--genai-python`. llama.cpp runs the GGUF itself, edgekit the bundle it exports from it, onnxruntime-genai what its own
builder makes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from genai_model import genai_model
from speed.chart import draw
from speed.engine import Ask, Options
from speed.process import Contender, EngineProcess, Place
from speed.report import markdown, medians, ratios, stored
from speed.rounds import RESTART, play, restart
from speed.scenarios import ORDINARY, Prompts, Sizes

from edgekit.bundle.bundle import open_bundle
from edgekit.errors import EdgekitError
from edgekit.export.catalog import fetch_entry
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.generation.tokenizer import Tokenizer
from edgekit.target import load_target

SCENARIOS = (*ORDINARY, RESTART)
TEXT = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Measure, keep, print, draw."""
    arguments = _arguments()
    results: dict[str, Any] = {}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    for model in [] if arguments.show else arguments.models:
        places = _places(arguments, model)
        prompts = _prompts(places["edgekit"])
        sizes = Sizes.quick() if arguments.quick else Sizes()
        for name in arguments.scenario:
            rounds = arguments.rounds
            if name == RESTART:
                outcome = restart(prompts, sizes, arguments.threads, places, rounds=rounds, work=arguments.work)
            else:
                outcome = play(ORDINARY[name](prompts, sizes, arguments.threads), places, rounds)
            facts = {
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{_processor()}, {arguments.threads} threads",
                "bundle": open_bundle(places["edgekit"].model).manifest.recipe["summary"],
            }
            results.setdefault(model, {})[name] = stored(outcome, **facts)
            # After each scenario: an hour's figures do not hang on the last one.
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            arguments.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    chosen = {
        model: {name: results[model][name] for name in arguments.scenario if name in results[model]}
        for model in arguments.models
        if model in results
    }
    for model, tables in chosen.items():
        for table in tables.values():
            print(markdown(model, table))
    print(f"```json\n{json.dumps(_summary(chosen), indent=1)}\n```")
    if arguments.chart:
        arguments.chart.write_text(_chart(chosen), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2-135m-instruct"], help="catalogue names of GGUF models")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="this one only; may be repeated")
    parser.add_argument("--rounds", type=int, help="rounds that count [5]")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: the figures mean nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where models and prefixes are kept")
    parser.add_argument("--bundle", type=Path, help="an exported bundle of the (one) model, instead of exporting it")
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    parser.add_argument("--genai-python", default=sys.executable, help="interpreter that has onnxruntime-genai")
    parser.add_argument(
        "--results", type=Path, help="every round's figures, added to what is there [WORK/generation.json]"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing: print and draw what is in --results")
    parser.add_argument("--chart", type=Path, help="write the ratios as SVG")
    arguments = parser.parse_args()
    if arguments.bundle and len(arguments.models) > 1:
        parser.error("--bundle goes with one model")
    arguments.scenario = arguments.scenario or list(SCENARIOS)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    # What means nothing is not mixed with what does.
    name = "generation-quick.json" if arguments.quick else "generation.json"
    arguments.results = arguments.results or arguments.work / name
    return arguments


def _places(arguments: argparse.Namespace, model: str) -> dict[str, Place]:
    """Where each engine that can take part is."""
    try:
        bundle = arguments.bundle or _exported(model, arguments.work, arguments.recipe)
        gguf = fetch_entry(model)
    except EdgekitError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
    places = {"edgekit": Place(sys.executable, bundle), "llama.cpp": Place(arguments.llama_python, gguf)}
    built = genai_model(model, arguments.work, arguments.genai_python)
    if built is None:
        print(
            f"onnxruntime-genai or its builder is not installed for {arguments.genai_python}: left out", file=sys.stderr
        )
    else:
        places["onnxruntime-genai"] = Place(arguments.genai_python, built)
    return places


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _exported(model: str, folder: Path, recipe: str) -> Path:
    """Export the model for the CPU, once."""
    bundle = folder / f"{model}-cpu-{recipe}"
    if not bundle.exists():
        print(f"exporting {model} …", file=sys.stderr)
        export_bundle(model, load_target("cpu"), bundle, ExportOptions(recipe=recipe), lambda *_: None)
    return bundle


def _prompts(place: Place) -> Prompts:
    """What chats are cut out of, for this model's tokenizer and template."""
    tokenizer = Tokenizer.load(place.model / "tokenizer.json")
    process = EngineProcess(Contender("edgekit", "edgekit", Options()), place)
    probe = process.render([Ask([{"role": "user", "content": "x"}], max_tokens=1)])[0]
    process.stop()
    text = TEXT.read_text(encoding="utf-8")
    return Prompts(tokenizer.encode, tokenizer.decode, len(probe.tokens) - 1, text)


def _summary(chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        model: {
            name: {"medians": {label: medians(table, label) for label in table["rows"]}, "ratios": ratios(table)}
            for name, table in tables.items()
        }
        for model, tables in chosen.items()
    }


def _chart(chosen: dict[str, dict[str, Any]]) -> str:
    panels = []
    dates = set()
    for model, tables in chosen.items():
        bars = []
        for name, table in tables.items():
            titles = {figure["key"]: figure["title"] for figure in table["figures"]}
            bars += [(f"{name}: {titles[key]}", ratio) for key, ratio in ratios(table).items()]
            dates.add(table["date"])
        panels.append((model, bars))
    caption = "edgekit against the better of llama.cpp and onnxruntime-genai; above 1 edgekit is faster. "
    return draw(panels, caption + " to ".join(sorted({min(dates), max(dates)}) if dates else []))


if __name__ == "__main__":
    main()
