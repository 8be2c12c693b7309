from __future__ import annotations

from pathlib import Path

import pytest

from tests.generation.bundles import tiny_bundle
from tests.generation.prefix.killing import kill_again_and_again

pytestmark = pytest.mark.serial


def test_a_killed_process_leaves_only_complete_blocks_that_give_the_same_logits(tmp_path: Path) -> None:
    outcome = kill_again_and_again(tiny_bundle(tmp_path, "onnx"), tmp_path / "cache", 10)
    assert outcome.kills == 10
    assert outcome.restored > 0
    assert outcome.refused > 0
