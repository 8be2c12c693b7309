"""Attention reads at most twice the bytes of the tokens held, by the shapes that the runner binds."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest

from edgekit.export.writers.onnx import OnnxWriter
from edgekit.profile import ENGINES, Dialect
from edgekit.runners.base import Chunk
from edgekit.runners.buckets import FIRST_BUCKET
from edgekit.runners.tensorrt.session import Session
from edgekit.target import Target, load_target, load_targets
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.runners.tensorrt.engines import build, open_double
from tests.variants import variant

CONTEXT = 32_768
BUCKETS = [FIRST_BUCKET << power for power in range(8) if FIRST_BUCKET << power < CONTEXT]


def engine_targets() -> list[Target]:
    """Every target that runs engines, with each of its JetPacks and without one."""
    targets = [target for target in load_targets() if ENGINES.intersection(target.runners)]
    return targets + [
        load_target(target.name, jetpack=pack.since) for target in targets for pack in target.profile.jetpacks
    ]


def test_what_is_exported_by_default_has_caches_of_any_length() -> None:
    assert {target.dialect for target in engine_targets()} == {"portable"}


@pytest.mark.parametrize("dialect", sorted({target.dialect or "" for target in engine_targets()}))
def test_a_step_reads_at_most_twice_the_tokens_held(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = variant("qwen2", tmp_path / "hf", max_position=CONTEXT)
    OnnxWriter(dialect)(tiny_decoder(source), TensorWeights(tiny_tensors(source)), tmp_path, lambda _: None)
    runner = open_double(build(tmp_path / "model.onnx", context=CONTEXT, batch=1)).runner
    bound: dict[str, tuple[int, ...]] = {}
    reshape = Session.reshape

    def noted(session: Session, shapes: Mapping[str, tuple[int, ...]]) -> None:
        bound.update(shapes)
        reshape(session, shapes)

    monkeypatch.setattr(Session, "reshape", noted)
    token = runner.limits.kv_bytes_per_token
    for held in sorted({300, 30_000, *(bucket + more for bucket in BUCKETS for more in (0, 1))}):
        # What the rows are makes no difference.
        more = held - 1 - runner.length(0)
        runner.write_kv(0, runner.length(0), bytes(more * token))
        runner.run([Chunk(0, [1])])
        read = sum(prod(shape) for name, shape in bound.items() if name.startswith("past_key_values."))
        assert held * token <= read * runner._tensors.dtype.itemsize <= 2 * held * token, held
    runner.close()
