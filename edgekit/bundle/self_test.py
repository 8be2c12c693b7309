"""`self_test.json`: a short prompt, and logits that a runner of the bundle must compute for it.

The exporter computes them in float32 from the quantized weights as the writer receives them, before they are packed. So
they depend neither on the artifact nor on any runner.

    {"format": 1, "tokens": [18 ids], "chunks": [8, 6, 1, 1, 1, 1], "rows": [
      {"position": 7, "log_sum_exp": 19.2, "ids": [largest first, then others], "logits": [one for each id]}, …]}

A row describes the logits after the last token of a chunk. It has the most probable tokens and a sample of the others;
the logarithm of the sum of exponentials is that of all logits.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import Bundle
from edgekit.errors import BundleError, IncompatibleBundleError

__all__ = ["FORMAT", "LARGEST", "SELF_TEST_FILE", "ExpectedRow", "SelfTest", "read_self_test"]

SELF_TEST_FILE = "self_test.json"
FORMAT = 1
LARGEST = 64
"""The first so many ids of a row are its largest logits, in order."""
_SAMPLE = 192
_DECIMALS = 4
_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """The logits after one token.

    Attributes:
        position: Of the token.
        ids: Token ids, int64 `[n]`: the largest logits first.
        logits: Float64 `[n]`.
        log_sum_exp: Logarithm of the sum of the exponentials of all logits.
    """

    position: int
    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    log_sum_exp: float

    @classmethod
    def of_logits(cls, position: int, logits: npt.NDArray[np.float32]) -> ExpectedRow:
        """Select from the logits of the whole vocabulary, `[vocab]`."""
        values = logits.astype(np.float64)
        vocabulary = len(values)
        largest = np.argsort(-values, kind="stable")[:LARGEST]
        others = np.setdiff1d(np.arange(vocabulary), largest)
        # Always the same ones: an export repeats.
        sample = np.random.default_rng(0).permutation(others)[:_SAMPLE]
        ids = np.concatenate([largest, np.sort(sample)])
        top = values.max()
        return cls(position, ids, values[ids], float(top + np.log(np.exp(values - top).sum())))


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A prompt and its logits.

    Attributes:
        tokens: The prompt.
        chunks: How many tokens to compute at a time; they add up to the prompt.
        rows: The logits after the last token of each chunk.
    """

    tokens: tuple[int, ...]
    chunks: tuple[int, ...]
    rows: tuple[ExpectedRow, ...]

    def to_json(self) -> str:
        """Return the content of the file."""
        rows = [
            {
                "position": row.position,
                "log_sum_exp": round(row.log_sum_exp, _DECIMALS),
                "ids": row.ids.tolist(),
                "logits": [round(value, _DECIMALS) for value in row.logits.tolist()],
            }
            for row in self.rows
        ]
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = f'"format": {FORMAT}, "tokens": {list(self.tokens)}, "chunks": {list(self.chunks)}'
        return f'{{{head}, "rows": [\n{lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: bytes) -> SelfTest:
        """Read the content of the file.

        Raises:
            IncompatibleBundleError: It has a newer format.
            BundleError: It is damaged.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] > FORMAT:
                raise IncompatibleBundleError(
                    f"{SELF_TEST_FILE} has format {data['format']}; this edgekit reads {FORMAT}", hint="update edgekit"
                )
            tokens, chunks = (tuple(_int(value) for value in data[name]) for name in ("tokens", "chunks"))
            rows = tuple(
                ExpectedRow(
                    position=_int(row["position"]),
                    ids=np.array([_int(value) for value in row["ids"]], np.int64),
                    logits=np.array([_float(value) for value in row["logits"]], np.float64),
                    log_sum_exp=_float(row["log_sum_exp"]),
                )
                for row in data["rows"]
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BundleError(
                f"{SELF_TEST_FILE} is damaged: {error}", hint="copy or export the bundle again"
            ) from error
        ends = [sum(chunks[: number + 1]) - 1 for number in range(len(chunks))]
        sound = (
            min((*chunks, *(token + 1 for token in tokens)), default=0) >= 1
            and sum(chunks) == len(tokens)
            and [row.position for row in rows] == ends
            and all(len(row.ids) == len(row.logits) and _sound(row.ids) for row in rows)
        )
        if not sound:
            raise BundleError(f"{SELF_TEST_FILE} is damaged", hint=_AGAIN)
        return cls(tokens, chunks, rows)


def read_self_test(bundle: Bundle) -> SelfTest | None:
    """Read a bundle's self-test; None if it has none.

    Raises:
        IncompatibleBundleError: It has a newer format.
        BundleError: It is damaged or cannot be read.
    """
    if all(entry.path != SELF_TEST_FILE for entry in bundle.manifest.files):
        return None
    try:
        return SelfTest.from_json((bundle.path / SELF_TEST_FILE).read_bytes())
    except OSError as error:
        raise BundleError(f"cannot read {bundle.path / SELF_TEST_FILE}: {error.strerror}") from error


def _sound(ids: npt.NDArray[np.int64]) -> bool:
    return len(ids) > 1 and int(ids.min()) >= 0 and len(np.unique(ids)) == len(ids)


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _float(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
