"""Speed of edgekit, llama.cpp and onnxruntime-genai: same model, same tokens, same machine, same run, as ratios.

    scripts/bench generation --peers                                   all scenarios on SmolLM2-135M
    scripts/bench generation --peers smollm2-135m-instruct qwen2.5-coder-1.5b-instruct --chart docs/generation.svg
    scripts/bench generation --scenario streams --rounds 3             one scenario, without peers
    scripts/bench generation --show --chart docs/generation.svg        print the last results again

Scenarios: `single` (one stream, prefill and decode), `streams` (4 and 8 at once), `extraction` (JSON by schema),
`copying` (answers that repeat their prompt), `restart` (a cached prefix after a restart). In each, every engine is
loaded once in its own process; rounds are interleaved, so that a slowdown of the machine affects all of them; and
medians are compared with the best peer's. edgekit is measured through its engine worker, including tokenizing and
detokenizing; peers get token ids.

Peers are optional (`peers.py`). edgekit runs the bundle exported from the GGUF. llama.cpp runs the GGUF itself and, as
another contender, the same model in Q4_0, which it repacks at load for its fastest kernels. onnxruntime-genai runs the
model of its own builder.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from inputs.bundles import SMALL_MODEL, exported
from inputs.genai_model import built, genai_model
from inputs.llama_model import q4_0_model
from peers import GENAI, GENAI_BUILDER, LLAMA, add_peers, interpreter
from quick import parse
from speed.chart import draw
from speed.engine import Options, Request
from speed.process import Contender, EngineProcess, Installation
from speed.report import comparison, markdown, medians, ratios, stored
from speed.rounds import RESTART, play, restart
from speed.scenarios import LLAMA_FORMS, ORDINARY, Prompts, Sizes

from edgekit.bundle.bundle import open_bundle
from edgekit.errors import EdgekitError
from edgekit.export.sources.catalog import fetch_entry
from edgekit.generation.chat.tokenizer import Tokenizer

SCENARIOS = (*ORDINARY, RESTART)
TEXT = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Measure, save and print the results, and draw the chart."""
    arguments = _arguments()
    results: dict[str, Any] = {}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    for model in [] if arguments.show else arguments.models:
        installations = _installations(arguments, model)
        prompts = _prompts(installations["edgekit"])
        sizes = Sizes.quick() if arguments.quick else Sizes()
        for name in arguments.scenario:
            rounds = arguments.rounds
            if name == RESTART:
                outcome = restart(prompts, sizes, arguments.threads, installations, rounds=rounds, work=arguments.work)
            else:
                outcome = play(ORDINARY[name](prompts, sizes, arguments.threads), installations, rounds)
            facts = {
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{_processor()}, {arguments.threads} threads",
                "bundle": open_bundle(installations["edgekit"].model).manifest.recipe["summary"],
            }
            results.setdefault(model, {})[name] = stored(outcome, **facts)
            # After each scenario, so that a late failure does not lose an hour's figures.
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
        print(comparison(model, tables))
    print(f"```json\n{json.dumps(_summary(chosen), indent=1)}\n```")
    if arguments.chart:
        arguments.chart.write_text(_chart(chosen), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[SMALL_MODEL], help="catalogue names of GGUF models")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds [5]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for models and prefixes")
    parser.add_argument("--bundle", type=Path, help="an exported bundle of the (one) model, instead of exporting it")
    add_peers(parser, LLAMA, GENAI_BUILDER)
    parser.add_argument(
        "--results", type=Path, help="JSON file to which every round's figures are added [WORK/generation.json]"
    )
    parser.add_argument("--show", action="store_true", help="do not measure: print and draw the figures in --results")
    parser.add_argument("--chart", type=Path, help="write the ratios as SVG")
    # One thread each: engines that wait for their threads are slow on a busy machine.
    arguments = parse(parser, {"rounds": 1, "threads": 1})
    if arguments.bundle and len(arguments.models) > 1:
        parser.error("--bundle needs exactly one model")
    arguments.scenario = arguments.scenario or list(SCENARIOS)
    # Figures of --quick are meaningless and kept apart.
    name = "generation-quick.json" if arguments.quick else "generation.json"
    arguments.results = arguments.results or arguments.work / name
    return arguments


def _installations(arguments: argparse.Namespace, model: str) -> dict[str, Installation]:
    """Return the available engines, each with its interpreter and its form of the model."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = arguments.bundle or exported(arguments.work, model, arguments.recipe)
    installations = {"edgekit": Installation("edgekit", sys.executable, bundle)}
    if python := interpreter(LLAMA, arguments):
        try:
            gguf = fetch_entry(model)
        except EdgekitError as error:
            sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
        models = (gguf, q4_0_model(gguf, arguments.work, python))
        installations |= {
            name: Installation("llama.cpp", python, file) for name, file in zip(LLAMA_FORMS, models, strict=True)
        }
    # A model that was built before needs no builder.
    python = interpreter(GENAI if built(model, arguments.work) else GENAI_BUILDER, arguments)
    if python and (folder := genai_model(model, arguments.work, python)):
        installations["onnxruntime-genai"] = Installation("onnxruntime-genai", python, folder)
    return installations


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _prompts(installation: Installation) -> Prompts:
    """Return the prompt generator for this model's tokenizer and template."""
    tokenizer = Tokenizer.load(installation.model / "tokenizer.json")
    process = EngineProcess(Contender("edgekit", "edgekit", Options()), installation)
    probe = process.render([Request([{"role": "user", "content": "x"}], max_tokens=1)])[0]
    process.stop()
    text = TEXT.read_text(encoding="utf-8")
    return Prompts(tokenizer.encode, tokenizer.decode, len(probe.tokens) - 1, text)


def _summary(chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        model: {
            name: {
                "medians": {label: medians(table, label) for label in table["rows"]},
                "ratios": {key: ratio for key, (ratio, _) in ratios(table).items()},
                "best_peers": {key: peer for key, (_, peer) in ratios(table).items()},
            }
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
            bars += [(f"{name}: {titles[key]}", ratio, peer) for key, (ratio, peer) in ratios(table).items()]
            dates.add(table["date"])
        panels.append((model, bars))
    caption = "edgekit against the best peer, named at the bar; above 1 edgekit is faster. "
    return draw(panels, caption + " to ".join(sorted({min(dates), max(dates)}) if dates else []))


if __name__ == "__main__":
    main()
