"""Runs one engine in its own process: reads commands as JSON lines, and answers with timings.

It runs under the interpreter in which the engine is installed, and imports no other engine.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from speed.engine import Engine, Options, Request

MODULES = {
    "edgekit": "speed.edgekit_engine",
    "llama.cpp": "speed.llama_engine",
    "onnxruntime-genai": "speed.genai_engine",
}


def main() -> None:
    """Load one engine and execute commands until standard input ends."""
    name, model, options = sys.argv[1], Path(sys.argv[2]), Options(**json.loads(sys.argv[3]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the output of the engines out of the answers
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        sys.exit(f"{name}: {error}")
    engine: Engine = module.open_engine(model, options)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"version": engine.version}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_execute(engine, json.loads(line))), file=answers, flush=True)
    engine.close()


def _execute(engine: Engine, command: dict[str, Any]) -> Any:
    requests = [Request(**request) for request in command["requests"]]
    if command["verb"] == "render":
        return [engine.render(request) for request in requests]
    if command["verb"] == "keep":
        engine.keep(requests[0], command["shared"])
        return None
    try:
        return [answer.as_dict() for answer in engine.run(requests)]
    except Exception as error:  # noqa: BLE001  reported; the engine stays usable
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


if __name__ == "__main__":
    main()
