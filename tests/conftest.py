"""Shared fixtures: the command line, and the real model, exported once per run for each target."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from edgekit import profile
from edgekit.cli import main
from edgekit.errors import EdgekitError

SMALL = "smollm2-135m-instruct"
LARGE = "qwen2.5-coder-1.5b-instruct"

Export = Callable[..., Path]

# Sensitive to timing or memory; and those that share one process with torch in it.
_GROUPED = ("serial", "optimum")

_KEPT = {"EDGEKIT_BENCH_EVALS_PYTHON", "EDGEKIT_CACHE", "EDGEKIT_CLIENTS_PYTHON", "EDGEKIT_OPTIMUM_PYTHON"}

# The same examples every time, so that a failure is caused by the change; `--hypothesis-profile=random` finds new ones.
# No deadline: it would measure how busy the machine is.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", derandomize=False, deadline=None)
hypothesis.settings.load_profile("steady")

# Tests that run in the background ignore SIGINT, and programs started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all files with a mark of `_GROUPED` to one worker of pytest-xdist, and any other test to the next free one.

    The tests of a file with the mark `clients` stay together too.

    pytest-xdist's own groups do not work with pytest 9.2, whose node ids cannot be changed.
    """
    from xdist.scheduler import LoadScopeScheduling

    group_of = {}
    for path in Path(__file__).parent.rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(config.rootpath).as_posix()
        if re.search(r"pytest\.mark\.clients\b", text):
            # A file runs its program once for all of its tests.
            group_of[name] = name
        for mark in _GROUPED:
            if re.search(rf"pytest\.mark\.{mark}\b", text):
                group_of[name] = mark

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
        def _split_scope(self, nodeid: str) -> str:
            return group_of.get(nodeid.partition("::")[0], nodeid)

    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip a test that needs MLX where that is not installed, as in the environment of `scripts/test --floors`."""
    try:
        return (yield)
    except EdgekitError as error:
        if error.code == "missing_extra" and "`mlx" in error.message and find_spec("mlx") is None:
            pytest.skip(error.message)
        raise


def edgekit(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which saves the second that a new one takes to import everything.

    Where the process matters (signals, start-up, missing libraries), start one: see `edgekit_command`.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    status: str | int | None = 0
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        warnings.catch_warnings(),
        _replaced(sys, "argv", ["edgekit", *map(str, arguments)]),
        _replaced(sys, "stdin", io.StringIO()),
    ):
        warnings.simplefilter("default")  # as in a process of its own: on stderr, where a test may see them
        try:
            main()
        except SystemExit as end:
            status = end.code
    out, err = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))
    if check and status:
        pytest.fail(f"edgekit {' '.join(map(str, arguments))} exited with {status}:\n{err}")
    return subprocess.CompletedProcess(arguments, int(status or 0), out, err)


def edgekit_command(*arguments: str | Path) -> list[str]:
    """Return the command that runs the command line in a process of its own."""
    return [sys.executable, "-m", "edgekit", *map(str, arguments)]


@pytest.fixture
def targets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `targets/` in the place of edgekit's own, to be changed before it is read."""
    folder = shutil.copytree(Path(__file__).parents[1] / "targets", tmp_path / "targets")
    monkeypatch.setattr(profile, "FOLDER", folder)
    for cache in (profile.target_names, profile.read_profile):
        cache.cache_clear()
    yield folder
    for cache in (profile.target_names, profile.read_profile):
        cache.cache_clear()


@contextlib.contextmanager
def _replaced(module: object, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@pytest.fixture(scope="session", autouse=True)
def _a_state_folder_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a catalogue model for a target, once per run; the model itself is downloaded once per machine."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def export_once(target: str, model: str = SMALL, *options: str) -> Path:
        key = hashlib.sha256(repr((target, model, options)).encode()).hexdigest()[:8]
        folder = shared / f"{target}-{key}" / model
        folder.parent.mkdir(exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A bundle is renamed into place when it is complete.
            if not folder.exists():
                edgekit("export", model, "--target", target, "-o", folder, *options)
        return folder

    return export_once


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Removes the EDGEKIT_ variables of this machine, except the model cache and other environments' Pythons.

    Daemons keep their state in a temporary folder.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    for name in list(os.environ):
        if name.startswith("EDGEKIT_") and name not in _KEPT:
            monkeypatch.delenv(name)
