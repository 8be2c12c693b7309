"""Damaged and hostile checkpoints are planned for, or refused by an `EdgekitError`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.export.planning.plan import plan_model
from edgekit.target import load_target
from tests.export.checkpoints.fuzzing import KINDS, Input, changed, write_seeds

TARGETS = ("cpu", "m2", "orin")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("inputs", [range(100), pytest.param(range(100, 2000), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_checkpoint_is_planned_for_or_refused(kind: str, inputs: range, seeds: Path) -> None:
    folder = seeds / kind
    for number in inputs:
        changes = changed(Input(kind, number), folder)
        before = {name: (folder / name).read_bytes() for name in changes}
        for name, data in changes.items():
            (folder / name).unlink()
            if data is not None:
                (folder / name).write_bytes(data)
        ggufs = sorted(folder.glob("*.gguf"))
        try:
            with suppress(EdgekitError):
                plan_model(str(ggufs[0] if ggufs else folder), load_target(TARGETS[number % 3]))
        except Exception as error:
            raise AssertionError(f"{Input(kind, number)} was neither planned for nor refused") from error
        finally:
            for name, data in before.items():
                (folder / name).write_bytes(data)
