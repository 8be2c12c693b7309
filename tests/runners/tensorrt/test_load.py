from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.build import build_engine, open_chain
from edgekit.runners.tensorrt.load import load_engines
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.runners.tensorrt.troubles import load_failed
from tests.runners.tensorrt.engines import open_double
from tests.runners.tensorrt.graphs import write_graph


def test_a_damaged_engine_is_an_error_with_the_librarys_reason(tmp_path: Path) -> None:
    engine = tmp_path / "segment-00.engine"
    engine.write_bytes(b"\x00\x01")
    with pytest.raises(RunnerError, match=r"does not load .*segment-00\.engine: the engine is damaged") as caught:
        open_double([engine])
    assert "edgekit build" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        # TensorRT for RTX 1.7 without a driver; TensorRT 10 with another GPU's engine and with another version's.
        (
            "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)",
            "update NVIDIA's",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.9 got compute 8.6",
            "for this GPU",
        ),
        ("Serialization (Serialization assertion stdVersionRead == serializationVersion failed.)", "build it again"),
    ],
)
def test_the_hint_of_an_engine_that_does_not_load_is_for_its_reason(tmp_path: Path, said: str, hint: str) -> None:
    assert hint in str(load_failed(tmp_path / "segment-00.engine", said).hint)


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_engine_is_an_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    engine = tmp_path / "segment-00.engine"
    if content is not None:
        engine.write_bytes(content)
    with pytest.raises(RunnerError, match=r"cannot read .*segment-00\.engine"):
        open_double([engine])


def test_the_real_library_takes_a_mapped_file_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]  # the library ships no types
        def log(self, severity: object, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                errors.append(message)

    engine = tmp_path / "segment-00.engine"
    engine.write_bytes(b"not an engine " * 100)
    with pytest.raises(RunnerError, match=r"does not load .*segment-00\.engine: .*incompatible serialization version"):
        load_engines(trt, Log(), [engine], lambda: errors)


def test_a_real_engine_without_a_driver_is_an_error_that_says_so(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    folder = tmp_path / "engine"
    folder.mkdir()
    build_engine(*open_chain(write_graph(tmp_path, layers=1), BuildLimits()), compute_capability="8.6", folder=folder)
    program = LOAD.format(engine=str(folder / "segment-00.engine"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert trt is not None
    assert "does not load" in done.stdout
    assert "hint: update NVIDIA's driver" in done.stdout


LOAD = """
import os
import subprocess
import sys
from pathlib import Path
from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.library import Messages, find_library
from edgekit.runners.tensorrt.load import load_engines
library, messages = find_library("tensorrt_rtx"), Messages()
try:
    load_engines(library.module, library.logger(messages), [Path({engine!r})], messages.take_errors)
except RunnerError as error:
    print(error.message, "hint:", error.hint)
"""
