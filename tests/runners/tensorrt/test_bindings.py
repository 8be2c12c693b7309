"""The real bindings of TensorRT 10.3 and 10.16 and of TensorRT for RTX hold the double and the runner.

They import without TensorRT and without a GPU (`scripts/tensorrt_stubs.py`). The first two are downloaded: 3 MB.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorrt_stubs import RTX, VERSIONS, check, environment, install, make_stubs, module_of

from tests.runners.tensorrt import tensorrt_double
from tests.runners.tensorrt.tensorrt_double import CLASSES

DESCRIBE = Path(__file__).with_name("describe_bindings.py")
# Behind a feature probe.
_CACHE = {
    "IRuntimeCache.deserialize", "IRuntimeCache.serialize", "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
}  # fmt: skip
_NEWER = {
    "ICudaEngine.create_runtime_config", "ICudaEngine.get_aliased_input_tensor",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
}  # fmt: skip
MISSING = {
    "10.3.0": {"IExecutionContext.is_stream_capturable", *_CACHE, *_NEWER},
    "10.16.1.11": {"IExecutionContext.is_stream_capturable", *_CACHE},
}
ENUMERATIONS = ("TensorIOMode", "DataType", "ExecutionContextAllocationStrategy")


def claimed() -> dict[str, list[str]]:
    """The parameters of every public method of the double's classes; none of a property."""
    found = {}
    for kind in CLASSES:
        for name, value in vars(kind).items():
            if name == "__init__" and kind is not CLASSES[0]:
                continue  # only a runtime is created by its class
            if name == "__init__" or (not name.startswith("_") and name != "driver"):
                parameters = [] if isinstance(value, property) else list(inspect.signature(value).parameters)[1:]
                found[f"{kind.__name__}.{name}"] = parameters
    return found


def members() -> dict[str, list[str]]:
    return {name: [member.name for member in getattr(tensorrt_double, name)] for name in ENUMERATIONS}


def compare(module: str, env: dict[str, str], missing: set[str]) -> None:
    """Hold the double to a module, in a process of its own."""
    mine = claimed()
    names = [*mine, *(f"{kind}.{member}" for kind, all_ in members().items() for member in all_), "ILogger.log"]
    command = [sys.executable, str(DESCRIBE), module, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    real: dict[str, Any] = json.loads(done.stdout)
    assert {name for name, overloads in real.items() if overloads is None} == missing
    for name, parameters in mine.items():
        if name not in missing and isinstance(_member(name), property):
            assert not real[name], f"{name} is a method"
        elif name not in missing:
            assert parameters in real[name], f"{name} takes {real[name]}"
    assert ["severity", "msg"] in real["ILogger.log"]


def _member(name: str) -> object:
    kind, _, member = name.partition(".")
    return vars(getattr(tensorrt_double, kind))[member]


def test_the_double_has_names_and_parameters_of_tensorrt_for_rtx() -> None:
    if find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("TensorRT for RTX is not installed")
    compare("tensorrt_rtx_bindings", dict(os.environ), set())


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bindings")
    install(folder)
    return folder


def available(bindings: Path, version: str) -> None:
    found = find_spec("tensorrt_rtx_bindings") if version == RTX else (bindings / version).is_dir()
    if not found:
        pytest.skip(f"no bindings of {version} for this Python")


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_has_names_and_parameters_of_tensorrt(bindings: Path, version: str) -> None:
    available(bindings, version)
    compare(module_of(version), environment(bindings, version), MISSING.get(version, set()))


@pytest.mark.slow
@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_the_runner_fits_the_types_of_every_version(bindings: Path, version: str, tmp_path: Path) -> None:
    available(bindings, version)
    make_stubs(bindings, version)
    assert not check(bindings, version, "edgekit/runners/tensorrt")
    # Else a package that mypy does not find would pass for anything.
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import tensorrt as trt\n\ndef run(engine: trt.ICudaEngine) -> None:\n    engine.execute()\n")
    assert 'ICudaEngine" has no attribute "execute"' in check(bindings, version, str(wrong))
