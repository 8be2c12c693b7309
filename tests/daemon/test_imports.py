"""What the daemon loads before it answers: each module costs every start time and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The command, the daemon, and what runs a bundle for the CPU.
_PROGRAM = """
import sys, edgekit.cli.serve, edgekit.daemon.app, edgekit.runners.cpu.select, edgekit.runners.cpu.runner
from pydantic import BaseModel
def derived(model):
    return [one for child in model.__subclasses__() for one in (child, *derived(child))]
print(*sorted(sys.modules))
ours = [one for one in derived(BaseModel) if one.__module__.startswith("edgekit.")]
print(len(ours), *[one.__name__ for one in ours if one.__pydantic_complete__])
"""

_UNUSED = {
    "torch": "no part of the daemon",
    "transformers": "no part of the daemon",
    "edgekit.export": "a device never exports",
    "onnx": "graphs are read by a reader of our own",
    "onnxruntime": "loaded if the kernels cannot run the bundle",
    "mlx": "for other bundles",
    "httpx": "for clients",
    "rich": "for tables and progress bars in a terminal",
    "prompt_toolkit": "for `edgekit run`",
    "paho": "for the MQTT API, which is off without `mqtt.host`",
    "edgekit.daemon.mqtt": "as above",
    "edgekit.daemon.http.openapi": "for the OpenAPI document",
    "edgekit.daemon.http.document_types": "as above",
    "edgekit.runners.tensorrt": "for engines",
    "edgekit.runners.cuda": "for GPUs",
}


@pytest.fixture(scope="module")
def loaded() -> tuple[set[str], list[str]]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    modules, models = done.stdout.split("\n")[:2]
    return set(modules.split()), models.split()


@pytest.mark.parametrize(("unused", "reason"), _UNUSED.items(), ids=list(_UNUSED))
def test_a_daemon_that_serves_http_loads_nothing_that_it_does_not_use(
    unused: str, reason: str, loaded: tuple[set[str], list[str]]
) -> None:
    modules, _ = loaded
    assert {"edgekit.daemon.engine_start", "edgekit.daemon.http.server", "edgekit.runners.cpu.runner"} <= modules
    assert sorted(name for name in modules if f"{name}.".startswith(f"{unused}.")) == [], reason


def test_no_validator_of_a_body_is_built_before_the_daemon_answers(loaded: tuple[set[str], list[str]]) -> None:
    count, *built = loaded[1]
    assert int(count) > 20
    assert built == []
