from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.runners.tensorrt import library as module
from edgekit.runners.tensorrt.library import Messages, find_library

pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")


def test_the_library_for_rtx_is_recognised_by_what_it_can_do() -> None:
    library = find_library()
    assert library.name == "tensorrt_rtx"
    assert library.streams
    assert not library.times_kernels
    assert library.capabilities()[86] == "SM86"


def test_its_errors_are_kept_until_they_are_taken() -> None:
    library, messages = find_library(), Messages()
    trt = library.module
    logger = library.logger(messages)
    builder = trt.Builder(logger)
    network = library.create_network(builder)
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse(b"not a graph")
    assert messages.take_errors()
    assert messages.take_errors() == []


def in_a_new_process(program: str, *paths: Path) -> str:
    program = f"import sys\nsys.path[:0] = {[str(path) for path in paths]}\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


FIND = """
from edgekit.errors import EdgekitError
from edgekit.runners.tensorrt.library import find_library
try: print(find_library({}).name)
except EdgekitError as error: print(error.code, error.hint)
"""


def test_jetpacks_library_is_preferred_and_one_that_cannot_be_loaded_is_passed_over(tmp_path: Path) -> None:
    module = tmp_path / "tensorrt.py"
    module.write_text("__version__ = '10.3.0'\nclass IBuilderConfig:\n    def create_timing_cache(self): ...\n")
    assert in_a_new_process(FIND.format(""), tmp_path) == "tensorrt\n"
    assert in_a_new_process(FIND.format("'tensorrt_rtx'"), tmp_path) == "tensorrt_rtx\n"
    for broken in ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "raise RuntimeError", "x = 1"):
        module.write_text(broken)
        assert in_a_new_process(FIND.format(""), tmp_path) == "tensorrt_rtx\n"


def test_without_the_library_the_error_names_the_extra(tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError")
    assert in_a_new_process(FIND.format(""), tmp_path) == "missing_extra pip install 'edgekit-llm[tensorrt-rtx]'\n"
    wanted = FIND.format("'tensorrt'")
    assert in_a_new_process(wanted, tmp_path) == "missing_extra pip install 'edgekit-llm[tensorrt]'\n"


def test_on_a_jetson_the_library_that_is_missing_is_jetpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODULES", ())
    monkeypatch.setattr(module, "device_tree", lambda: ("NVIDIA Jetson AGX Orin", "nvidia,tegra234"))
    for prefer in (None, "tensorrt"):
        with pytest.raises(EdgekitError, match="JetPack's `tensorrt` is not installed, or not visible") as found:
            find_library(prefer)
        assert found.value.code == "missing_extra"
        assert found.value.hint is not None
        assert found.value.hint.startswith("edgekit doctor")
