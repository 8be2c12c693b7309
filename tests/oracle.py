"""transformers as an oracle: torch's own models, in the environment that `edgekit optimum install` makes.

One process serves all tests of a run, because importing torch costs seconds. A test that uses it has the marker
`optimum`. Without the environment such a test is skipped; under `scripts/test`, which creates one, it fails.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import EdgekitError
from edgekit.export.optimum.env import VARIABLE, optimum_python

__all__ = ["oracle_python", "transformers_checkpoint", "transformers_logits"]


def oracle_python() -> Path:
    """The interpreter that has torch, transformers and Optimum; skips the test if there is none."""
    try:
        return optimum_python()
    except EdgekitError as error:
        if os.environ.get(VARIABLE):
            pytest.fail(f"{error.message} ({error.hint})")
        pytest.skip(f"{error.message} ({error.hint})")


def transformers_logits(folder: Path, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Run `tokens` in one pass through transformers' model of a checkpoint folder.

    In float32 with eager attention, whatever the checkpoint stores.

    Returns:
        Logits, float32 `[len(tokens), vocab]`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "logits.npy"
        _ask({"kind": "logits", "folder": str(folder), "tokens": [int(t) for t in tokens], "output": str(output)})
        result: npt.NDArray[np.float32] = np.load(output)
    return result


def transformers_checkpoint(folder: Path, model_type: str, config: Mapping[str, Any], *, seed: int = 0) -> Path:
    """Let transformers write `config.json` and random weights of realistic scales for any architecture it supports.

    Args:
        folder: Created if missing; gets no tokenizer.
        model_type: transformers' name of the architecture.
        config: Arguments of its configuration class.
        seed: Of the weights.

    Returns:
        `folder`.
    """
    _ask({"kind": "create", "folder": str(folder), "model_type": model_type, "config": dict(config), "seed": seed})
    return folder


def _ask(request: Mapping[str, Any]) -> None:
    requests, replies = _worker(oracle_python())
    requests.write(json.dumps(request) + "\n")
    requests.flush()
    line = replies.readline()
    assert line, "the oracle's process ended; see its output above"
    reply = json.loads(line)
    if "error" in reply:
        pytest.fail(f"transformers failed:\n{reply['error']}")


@cache
def _worker(python: Path) -> tuple[IO[str], IO[str]]:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [python, "-I", "-W", "ignore", Path(__file__).with_name("oracle_worker.py"), str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    os.close(writing)
    assert process.stdin is not None
    requests, replies = process.stdin, os.fdopen(reading)

    @atexit.register
    def end() -> None:
        requests.close()
        replies.close()
        process.wait(timeout=30)

    return requests, replies
