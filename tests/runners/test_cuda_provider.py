"""What is found out about onnxruntime's CUDA provider, where it does not work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import get_available_providers

from edgekit.runners import cuda_provider as module
from edgekit.runners import expected_runner
from edgekit.runners.cuda_probe import PROVIDER, compute, expected, probe_graph
from edgekit.runners.cuda_provider import CudaProvider, cuda_provider, explain

# What onnxruntime-gpu 1.31.1 for x86-64 says: without CUDA's libraries, without a driver, with a driver that is none.
_LIBRARY = (
    "2026-12-01 04:38:00 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/venv/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: {}\n\x1b[m\n"
)
_NOT_FOUND = "{}: cannot open shared object file: No such file or directory"
_DRIVER = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, Status> "
    "onnxruntime::CudaCall(ERRTYPE, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: CUDA driver "
    "version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; file=cuda_execution_provider.cc"
)
# From microsoft/onnxruntime#32422.
_NO_KERNELS = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMulNBits node. Name:'' Status "
    "Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
)


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    cuda_provider.cache_clear()
    yield
    cuda_provider.cache_clear()


@pytest.fixture
def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the installed package had the provider's library."""
    monkeypatch.setattr(module, "_has_library", lambda _: True)


def answer(monkeypatch: pytest.MonkeyPatch, program: str) -> CudaProvider:
    """What is found out where this program runs instead of the probe."""
    run = subprocess.run

    def replaced(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command == [sys.executable, "-m", "edgekit.runners.cuda_probe"]
        return run([sys.executable, "-c", program], **options)

    monkeypatch.setattr(subprocess, "run", replaced)
    return cuda_provider()


def test_a_package_without_the_provider_is_recognised_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    found = cuda_provider()
    assert found.reason == "the installed onnxruntime has no CUDA provider"
    assert found.hint
    assert ("onnxruntime", version("onnxruntime")) in found.distributions
    assert cuda_provider() is found


def test_without_onnxruntime_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert cuda_provider().reason == "onnxruntime is not installed"


@pytest.mark.usefixtures("with_library")
def test_a_package_that_does_not_list_the_provider_says_so_itself() -> None:
    found = cuda_provider()
    assert found.reason == f"this onnxruntime has no {PROVIDER}"
    assert found.version == version("onnxruntime")
    assert "CPUExecutionProvider" in found.providers


@pytest.mark.usefixtures("with_library")
def test_the_probe_finds_the_modules_that_this_process_would_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit(3)")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert cuda_provider().version == version("onnxruntime")


@pytest.mark.usefixtures("with_library")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", "it crashed (signal 6): no reason given"),
        ("import sys; sys.exit('CUDA failure 700: bad ; x')", "it crashed (status 1): CUDA failure 700: bad"),
        ("print('[1]')", "it crashed (status 0): no reason given"),
    ],
    ids=["abort", "error", "other output"],
)  # fmt: skip
def test_a_library_that_crashes_ends_only_the_probe(monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    assert answer(monkeypatch, program).reason == reason


@pytest.mark.usefixtures("with_library")
def test_the_reason_comes_from_the_log_where_the_error_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"version": "1.31.1", "providers": [PROVIDER], "error": f"onnxruntime cannot load {PROVIDER}"}
    log = _LIBRARY.format(_NOT_FOUND.format("libcublasLt.so.13"))
    program = f"import sys; sys.stderr.write({log!r}); print('a line of a library'); print({json.dumps(facts)!r})"
    found = answer(monkeypatch, program)
    assert found.reason == _NOT_FOUND.format("libcublasLt.so.13")
    assert found.hint == "install CUDA's libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    assert (found.version, found.providers) == ("1.31.1", (PROVIDER,))


@pytest.mark.usefixtures("with_library")
def test_a_provider_that_computes_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"version": "1.31.1", "providers": [PROVIDER], "error": None}
    assert answer(monkeypatch, f"print({json.dumps(facts)!r})").reason is None
    label, rejected = expected_runner(Path(), "onnx", "portable")
    assert label == "onnxruntime 1.31.1 with CUDA"
    assert [one.name for one in rejected] == ["tensorrt"], "there is no engine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_LIBRARY.format(_NOT_FOUND.format("libcuda.so.1")), _NOT_FOUND.format("libcuda.so.1")),
        (_LIBRARY.format("undefined symbol: cuTensorMapEncodeTiled"), "undefined symbol: cuTensorMapEncodeTiled"),
        (_DRIVER, "CUDA driver version is insufficient for CUDA runtime version"),
        (_NO_KERNELS, "no kernel image is available for execution on the device"),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=vm", "CUDA failure 2: out of memory"),
        ("\nsomething else\nat length", "something else"),
        ("", "no reason given"),
    ],
)
def test_the_reason_is_found_in_what_onnxruntime_says(text: str, reason: str) -> None:
    assert explain(text)[0] == reason


def test_the_probes_product_is_right_where_a_provider_computes_it() -> None:
    model = onnx.load_from_string(probe_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]
    np.testing.assert_allclose(compute("CPUExecutionProvider", exclusive=False), expected(), atol=0.02)


@pytest.mark.skipif(PROVIDER in get_available_providers(), reason="this onnxruntime has the provider")
def test_a_provider_that_cannot_be_loaded_is_no_silent_cpu() -> None:
    with pytest.raises(RuntimeError, match=f"cannot load {PROVIDER}"), pytest.warns(UserWarning, match=PROVIDER):
        compute(PROVIDER, exclusive=False)
