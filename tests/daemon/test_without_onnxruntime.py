"""A device with `edgekit-llm[daemon]` and the kernels, without export and onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from edgekit.runners.cpu.build import find_compiler, refresh
from tests.broker import free_port
from tests.generation.bundles import tiny_bundle

_SERVE = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"onnxruntime", "onnx", "mlx", "numba", "huggingface_hub"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Lacking())
from edgekit.cli import main
main()
"""


def test_the_daemon_serves_without_onnxruntime_and_names_its_runner(tmp_path: Path) -> None:
    refresh(find_compiler())
    port, bundle = free_port(), tiny_bundle(tmp_path, "onnx", bits=4)
    command = [sys.executable, "-c", _SERVE, "serve", str(bundle), "--port", str(port), "--threads", "1"]
    with (
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "EDGEKIT_CPU_KERNELS": "plain"}
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            assert _ready(process, client) == "ready, on cpu (plain)\n"
            # No end token (2), which random weights may choose at any time.
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "logit_bias": {"2": -100}}
            reply = client.post("/v1/chat/completions", json=body)
            assert (reply.status_code, reply.json()["usage"]["completion_tokens"]) == (200, 5)
            assert 'runner="cpu (plain)"' in client.get("/metrics").text
        finally:
            process.terminate()
            said = process.communicate(timeout=30)[1]
    assert "running on the CPU kernels, plain" in said
    assert "serving tiny on cpu (plain)" in said


def _ready(process: subprocess.Popen[str], client: httpx.Client) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "the daemon ended"
        try:
            response = client.get("/readyz")
        except httpx.TransportError:
            response = httpx.Response(503)
        if response.status_code == 200:
            return response.text
        time.sleep(0.1)
    raise AssertionError("the daemon did not become ready")
