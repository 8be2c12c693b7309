"""A builder that hangs is cancelled, and the daemon's thread for it is watched."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edgekit.daemon import engine_build
from edgekit.daemon.build_state import BuildState
from edgekit.daemon.engine_build import EngineBuild
from edgekit.errors import RunnerError
from edgekit.generation.first_build import FirstBuild
from edgekit.runners.tensorrt.build import BuildProgress
from edgekit.runners.tensorrt.build_record import BuildRecords


class Clock:
    """The time that a test wants."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(engine_build, "time", made)
    return made


def build_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, builder: Any) -> tuple[EngineBuild, list[BuildState]]:
    """A build by a builder that calls back as the real one does."""
    said: list[BuildState] = []
    plan: Any = type("Plan", (), {"bundle": type("Bundle", (), {"path": tmp_path})})
    monkeypatch.setattr(engine_build, "prepare_engine", lambda _, **calls: builder(**calls))
    first = FirstBuild(plan, "key", memory_bytes=1)
    return EngineBuild(first, BuildRecords(tmp_path), said.append, threading.Event()), said


def test_a_builder_that_does_nothing_is_cancelled_and_not_tried_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hang(*, progress: Any, check: Any, **_: Any) -> None:
        for share in (0.1, 0.2):
            clock.now += engine_build.STALL_S / 2
            progress(BuildProgress(0, 1, share))
        while True:
            clock.now += 0.5
            check()

    build, said = build_with(monkeypatch, tmp_path, hang)
    with pytest.raises(RunnerError, match="has done nothing for 600 s"):
        build.run()
    assert build._records.get("key").failure == "TensorRT's builder has done nothing for 600 s"
    # Signs of life went on for so long, and no longer.
    assert len(said) == pytest.approx(engine_build.STALL_S / engine_build.REPORT_S, abs=4)


def test_a_builder_that_computes_for_long_without_a_step_is_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compute(*, progress: Any, check: Any, **_: Any) -> Any:
        for _second in range(int(3 * engine_build.STALL_S)):
            clock.now += 1.0
            progress(BuildProgress(0, 1, 0.5))
            check()
            assert build.seconds_stalled() == 0.0
        return type("Prepared", (), {"report": None, "stored": "engine"})

    build, _ = build_with(monkeypatch, tmp_path, compute)
    stored: Any = build.run()
    assert stored == "engine"
    assert build._records.get("key").unfinished == 0
    # Were its thread to hang, the watchdog would see it.
    clock.now += engine_build.STALL_S + 90
    assert build.seconds_stalled() == 90.0
    build.end()
    assert build.seconds_stalled() == 0.0
