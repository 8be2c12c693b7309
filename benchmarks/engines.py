"""One engine behind a pipe, for `generation.py`: reads orders, a JSON object a line, and answers with times.

It runs under the interpreter that has the engine, so it imports nothing but that engine. It knows no scenario.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from speed.engine import Ask, Engine, Options

MODULES = {
    "edgekit": "speed.edgekit_engine",
    "llama.cpp": "speed.llama_engine",
    "onnxruntime-genai": "speed.genai_engine",
}


def main() -> None:
    """Load one engine and serve orders until standard input ends."""
    name, model, options = sys.argv[1], Path(sys.argv[2]), Options(**json.loads(sys.argv[3]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engines print must not mix with the answers
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        sys.exit(f"{name}: {error}")
    engine: Engine = module.open_engine(model, options)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"version": engine.version}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_obey(engine, json.loads(line))), file=answers, flush=True)
    engine.close()


def _obey(engine: Engine, order: dict[str, Any]) -> Any:
    asks = [Ask(**ask) for ask in order["asks"]]
    if order["do"] == "render":
        return [engine.render(ask) for ask in asks]
    if order["do"] == "keep":
        engine.keep(asks[0], order["shared"])
        return None
    try:
        return [answer.as_dict() for answer in engine.run(asks)]
    except Exception as error:  # noqa: BLE001  an engine that cannot do this says so, and goes on
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


if __name__ == "__main__":
    main()
