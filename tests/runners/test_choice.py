"""The order in which runners are tried, what falls to the next one, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, cast, get_args

import pytest

from edgekit import runners
from edgekit.config import RunnerName
from edgekit.errors import BundleError, ConfigError, EdgekitError, IncompatibleBundleError, RunnerError, missing_extra
from edgekit.profile import ENGINES, target_names
from edgekit.runners import LoadOptions, Rejected, choose_runner, expected_runner
from edgekit.runners.base import Runner
from edgekit.runners.candidates import Candidate, Offer, candidates
from edgekit.target import load_target

OPTIONS = LoadOptions(64)
RUNNER = cast("Runner", object())
KINDS = [("onnx", "onnxruntime"), ("onnx", "portable"), ("onnx", "native"), ("onnx", "optimum"), ("mlx", "")]


def fail(error: Exception) -> Callable[..., NoReturn]:
    def raising(*_: object) -> NoReturn:
        raise error

    return raising


def working(name: str) -> Candidate:
    return Candidate(name, f"runner {name}", name, lambda *_: Offer(f"runner {name}", lambda _: RUNNER))


def refusing(name: str, error: Exception) -> Candidate:
    return Candidate(name, f"runner {name}", name, fail(error))


def breaking(name: str, error: Exception) -> Candidate:
    return Candidate(name, f"runner {name}", name, lambda *_: Offer(f"runner {name}", fail(error)))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    found: list[Candidate] = []
    monkeypatch.setattr(runners, "candidates", lambda *_: tuple(found))
    return found


def test_the_first_runner_that_works_is_taken_and_the_better_ones_are_listed_with_reasons(
    listed: list[Candidate], caplog: pytest.LogCaptureFixture
) -> None:
    listed += [
        refusing("a", RunnerError("it has no device")),
        breaking("b", RunnerError("its memory is full")),
        refusing("c", missing_extra("clib", "c")),
        refusing("d", ModuleNotFoundError("No module named 'dlib'", name="dlib")),
        working("e"),
        working("f"),
    ]
    with caplog.at_level("INFO", "edgekit.runners"):
        choice = choose_runner(Path(), "onnx", "portable", OPTIONS)
    assert choice.runner is RUNNER
    assert choice.rejected == (
        Rejected("a", "it has no device"),
        Rejected("b", "its memory is full"),
        Rejected("c", "this needs `clib`, which is not installed"),
        Rejected("d", "this needs `dlib`, which is not installed"),
    )
    assert "running on runner e; not on a: it has no device, b: its memory is full, c: " in caplog.text


@pytest.mark.parametrize(
    "error",
    [BundleError("damaged"), IncompatibleBundleError("of another time"), ConfigError("mistyped"), OSError("no disk")],
    ids=lambda error: type(error).__name__,
)
def test_a_damaged_bundle_and_a_users_mistake_do_not_fall_to_the_next_runner(
    listed: list[Candidate], error: Exception
) -> None:
    for make in (refusing, breaking):
        listed[:] = [make("a", error), working("b")]
        with pytest.raises(type(error), match=str(error)):
            choose_runner(Path(), "onnx", "portable", OPTIONS)


def test_where_nothing_works_the_error_has_every_reason_and_the_hints(listed: list[Candidate]) -> None:
    listed += [refusing("a", RunnerError("no device", hint="buy one")), breaking("b", RunnerError("no memory"))]
    with pytest.raises(EdgekitError) as caught:
        choose_runner(Path(), "onnx", "portable", OPTIONS)
    assert caught.value.message == "nothing here runs this bundle: runner a: no device; runner b: no memory"
    assert (caught.value.hint, caught.value.code) == (
        "buy one; to see what is missing: edgekit doctor",
        "runner_failed",
    )
    listed[:] = [breaking("a", RunnerError("no device", hint="buy one"))]
    with pytest.raises(RunnerError, match=r"^no device\b"):
        choose_runner(Path(), "onnx", "portable", OPTIONS)


def test_a_fixed_runner_is_used_or_the_error_says_why_not(listed: list[Candidate]) -> None:
    listed += [working("a"), breaking("b", RunnerError("no memory"))]
    assert choose_runner(Path(), "onnx", "portable", OPTIONS, runner="a").rejected == ()
    with pytest.raises(RunnerError) as caught:
        choose_runner(Path(), "onnx", "portable", OPTIONS, runner="b")
    assert caught.value.message == "this bundle cannot run on runner b: no memory"
    assert caught.value.hint == "`runner='auto'` takes the best runner that works here"
    with pytest.raises(ConfigError, match="no runner `mlx` for this bundle, whose artifact is onnx portable") as wrong:
        choose_runner(Path(), "onnx", "portable", OPTIONS, runner="mlx")
    assert wrong.value.hint == "choose a or b, or auto"


def test_onnxruntime_is_found_without_importing_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgekit.runners import expected_runner; "
        f"print(expected_runner(Path({str(tmp_path)!r}), 'onnx', 'optimum')[0], 'onnxruntime' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == f"onnxruntime {version('onnxruntime')} on the CPU False\n"


def test_a_runner_that_is_not_accepted_is_closed_and_the_next_one_is_tried(listed: list[Candidate]) -> None:
    class Closing:
        closed = False

        def close(self) -> None:
            self.closed = True

    first, second = Closing(), Closing()
    for name, runner in (("a", first), ("b", second)):
        offer = Offer(name, lambda _, runner=runner: cast("Runner", runner))  # type: ignore[misc]
        listed.append(Candidate(name, name, name, lambda *_, offer=offer: offer))

    def accept(runner: Runner) -> None:
        if cast("Closing", runner) is first:
            raise RunnerError("its logits are wrong")

    choice = choose_runner(Path(), "onnx", "portable", OPTIONS, accept=accept)
    assert cast("Closing", choice.runner) is second
    assert choice.rejected == (Rejected("a", "its logits are wrong"),)
    assert (first.closed, second.closed) == (True, False)


def test_what_a_failed_runner_loaded_is_freed_before_the_next_one_loads(listed: list[Candidate]) -> None:
    class Weights:
        pass

    held: list[weakref.ref[Weights]] = []

    def fail_after_loading(_: LoadOptions) -> NoReturn:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise RunnerError("no room for the KV cache")

    def load(_: LoadOptions) -> Runner:
        assert [weights() for weights in held] == [None]
        return RUNNER

    for name, loading in (("a", fail_after_loading), ("b", load)):
        listed.append(Candidate(name, name, name, lambda *_, loading=loading: Offer("", loading)))
    choice = choose_runner(Path(), "onnx", "portable", OPTIONS)
    assert choice.rejected == (Rejected("a", "no room for the KV cache"),)


def test_what_would_be_chosen_is_told_without_loading(listed: list[Candidate]) -> None:
    listed += [refusing("a", RunnerError("no device")), breaking("b", AssertionError("it was loaded"))]
    assert expected_runner(Path(), "onnx", "portable") == ("runner b", (Rejected("a", "no device"),))


@pytest.mark.parametrize(("kind", "dialect"), KINDS)
def test_every_runner_can_be_configured(kind: str, dialect: str) -> None:
    names = [candidate.name for candidate in candidates(kind, dialect)]
    assert names
    assert len(set(names)) == len(names)
    assert set(names) < set(get_args(RunnerName))


@pytest.mark.parametrize("name", target_names())
def test_a_target_names_runners_in_the_order_in_which_they_are_tried(name: str) -> None:
    target = load_target(name)
    tried = [one.name for one in candidates(target.artifact, target.dialect or "")]
    assert target.runners
    # Engines of both libraries are one runner.
    named = ["tensorrt" if runner in ENGINES else runner for runner in target.runners]
    assert named == tried


def test_an_unknown_kind_of_artifact_is_refused() -> None:
    with pytest.raises(IncompatibleBundleError, match="of kind `tarot`"):
        candidates("tarot", "")
