from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.load import load_engines
from tests.runners.tensorrt.engines import open_double


def test_a_damaged_engine_is_an_error_with_the_librarys_reason(tmp_path: Path) -> None:
    engine = tmp_path / "segment-00.engine"
    engine.write_bytes(b"\x00\x01")
    with pytest.raises(RunnerError, match=r"does not load .*segment-00\.engine: the engine is damaged") as caught:
        open_double([engine])
    assert "edgekit build" in str(caught.value.hint)


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
