from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import RunnerError
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
