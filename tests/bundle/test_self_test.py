"""`self_test.json` is read as it was written, and a damaged one is an error of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.self_test import SELF_TEST_FILE, ExpectedRow, SelfTest, read_self_test
from edgekit.errors import BundleError, IncompatibleBundleError
from tests.generation.bundles import tiny_bundle


def some() -> SelfTest:
    logits = np.random.default_rng(0).standard_normal((2, 500), dtype=np.float32)
    rows = tuple(ExpectedRow.of_logits(at, row) for at, row in zip((1, 2), logits, strict=True))
    return SelfTest(tokens=(5, 0, 7), chunks=(2, 1), rows=rows)


def test_what_is_written_is_read() -> None:
    written = some()
    read = SelfTest.from_json(written.to_json().encode())
    assert (read.tokens, read.chunks) == (written.tokens, written.chunks)
    assert read.to_json() == written.to_json()
    for a, b in zip(read.rows, written.rows, strict=True):
        assert (a.position, a.ids.tolist()) == (b.position, b.ids.tolist())
        assert np.abs(a.logits - b.logits).max() <= 5e-5
        assert a.log_sum_exp == pytest.approx(b.log_sum_exp, abs=5e-5)


def test_a_small_vocabulary_is_kept_whole() -> None:
    row = ExpectedRow.of_logits(0, np.array([1.0, 3.0, 2.0], np.float32))
    assert row.ids.tolist() == [1, 2, 0]
    assert row.log_sum_exp == pytest.approx(np.log(np.exp([1.0, 3.0, 2.0]).sum()))


def test_unknown_fields_are_accepted() -> None:
    data = json.loads(some().to_json())
    data["rows"][0]["colour"] = data["colour"] = "blue"
    assert SelfTest.from_json(json.dumps(data).encode()).tokens == (5, 0, 7)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tokens",), [5, 0]),
        (("tokens",), [5, -1, 7]),
        (("tokens",), [5, 0.5, 7]),
        (("tokens",), "5, 0, 7"),
        (("chunks",), [3]),
        (("chunks",), [3, 0]),
        (("chunks",), [2, True]),
        (("rows",), []),
        (("rows",), None),
        (("rows", 0, "position"), 0),
        (("rows", 1, "ids"), [1, 2]),
        (("rows", 1, "ids", 0), -1),
        (("rows", 1, "ids", 0), 10**30),
        (("rows", 1, "logits", 0), None),
        (("rows", 1, "logits", 0), float("nan")),
        (("rows", 0, "log_sum_exp"), float("inf")),
        (("format",), "new"),
    ],
)
def test_a_damaged_self_test_is_refused(path: tuple[str | int, ...], value: object) -> None:
    data: Any = json.loads(some().to_json())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(BundleError, match=r"^self_test\.json is damaged"):
        SelfTest.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_self_test_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match=r"^self_test\.json is damaged"):
        SelfTest.from_json(text)


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(IncompatibleBundleError, match="format 2"):
        SelfTest.from_json(some().to_json().replace('"format": 1', '"format": 2').encode())


def test_a_bundle_without_one_has_none_even_if_a_file_lies_there(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "onnx")
    assert read_self_test(open_bundle(bundle)) is None
    (bundle / SELF_TEST_FILE).write_text(some().to_json())
    assert read_self_test(open_bundle(bundle)) is None
