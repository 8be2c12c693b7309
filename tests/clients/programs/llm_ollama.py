"""llm's command line, with its plugin for Ollama, and its Python API."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

url = sys.argv[1]
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
with tempfile.TemporaryDirectory() as folder:
    environment = {**os.environ, "OLLAMA_HOST": url, "LLM_USER_PATH": folder}

    def run(*arguments: str) -> str:
        program = [Path(sys.executable).with_name("llm"), *arguments]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.strip() if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()}"

    print(
        json.dumps(
            {
                "listed": "ollama/scripted:latest" in run("models"),
                "text": run("-m", "ollama/scripted", "--no-stream", "Hello"),
                "streamed": run("-m", "ollama/scripted", "Hello"),
                "structured": run("-m", "ollama/scripted", "--schema", SCHEMA, "A city as JSON."),
            }
        )
    )
