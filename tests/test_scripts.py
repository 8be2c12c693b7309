"""The project's own checkers find what they are for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgekit_scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


texts = script("check_texts")
mutate = script("mutate")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("def make_knob(self):", "knob"),
        ("class KnobTurner:", None),
        ("two knobs", "knobs"),
        ("A Knob begins", "Knob"),
        ("doorknob", None),
        ("_BIG_NUM = 3", "BIG"),
        ("a big number", None),
    ],
)
def test_a_retired_word_is_found_between_word_boundaries(line: str, found: str | None) -> None:
    vocabulary = texts.read_vocabulary("knobs? -> control\nBIG -> MAX  # upper case alone\n")
    complaints = list(texts.retired_words("a.py", f"fine\n{line}", vocabulary))
    assert len(complaints) == (0 if found is None else 1)
    if found is not None:
        assert complaints[0].startswith(f"a.py:2: `{found}` is retired")


def test_a_line_of_the_vocabulary_without_a_better_word_is_refused() -> None:
    with pytest.raises(ValueError, match="knob"):
        texts.read_vocabulary("knob\n")


def test_the_vocabulary_leaves_least_squares_and_ordinary_words_alone() -> None:
    vocabulary = texts.read_vocabulary(texts.VOCABULARY.read_text(encoding="utf-8"))
    for line in (
        "least squares",
        "at least one",
        "most_common(3)",
        "the most recent",
        "least recently used",
        "outdoors",
    ):
        assert not list(texts.retired_words("a.md", line, vocabulary)), line


def test_links_to_missing_files_and_headings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `code` heading\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#a-code-heading) [c](#page) [d](other.md#twice-1) [e](https://nowhere.test/x)\n"
        "`[not](a-link.md)`\n```\n[nor](this.md)\n```\n[f](gone.md) [g](other.md#gone)\n[h](#gone)\n",
        encoding="utf-8",
    )
    assert list(texts.broken_links(page)) == [
        "page.md:7: the link to gone.md leads nowhere",
        "page.md:7: other.md has no heading #gone",
        "page.md:8: page.md has no heading #gone",
    ]


DEFINED = "[here]: other.md\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a][here] and [Here][] and [here]\n\n" + DEFINED, None),
        ("[a][Here]\n\n" + DEFINED, None),
        ("[a][gone]\n", "page.md:1: no line defines [gone]: TARGET"),
        ("[Gone][]\n\n" + DEFINED, "page.md:1: no line defines [Gone]: TARGET"),
        ("![a][gone]\n", "page.md:1: no line defines [gone]: TARGET"),
        ("[![a](other.md)][gone]\n", "page.md:1: no line defines [gone]: TARGET"),
        ("x\n\n[here]: gone.md\n", "page.md:3: the link to gone.md leads nowhere"),
        ("[here]: other.md#gone\n", "page.md:1: other.md has no heading #gone"),
        ('[here]: <gone.md> "A title"\n', "page.md:1: the link to gone.md leads nowhere"),
        ("[here]:\n  gone.md\n", "page.md:2: the link to gone.md leads nowhere"),
        ("A note[^1] and a task [ ]\n\n[^1]: gone.md is its text\n", None),
        ("`[a][gone]` and `x[1][2]`\n\n```\n[here]: gone.md\n```\n", None),
        ('[a](gone.md "A title")\n', "page.md:1: the link to gone.md leads nowhere"),
        ("[a](<gone away.md>)\n", "page.md:1: the link to gone away.md leads nowhere"),
        ("[a](two%20words.md) [b](<two words.md>) [c](/other.md) [d](other.md?plain=1)\n", None),
        ("[![a](other.md)](gone.md)\n", "page.md:1: the link to gone.md leads nowhere"),
        ("[a](../outside.md)\n", "page.md:1: the link to ../outside.md leads nowhere"),
        ('<p>\n<a\n href="gone.md">a</a></p>\n', "page.md:2: the link to gone.md leads nowhere"),
        ("<a href='other.md#gone'>a</a>\n", "page.md:1: other.md has no heading #gone"),
        ("<IMG width=3 src=gone.svg>\n", "page.md:1: the link to gone.svg leads nowhere"),
        ('<source srcset="other.md 1x, gone.svg 2x">\n', "page.md:1: the link to gone.svg leads nowhere"),
        ('<a href="#placed">a</a> [b](#placed)\n\n<a id="placed"></a>\n', None),
        ('<a href="https://nowhere.test/x">a</a> <img src="//nowhere.test/x"> <https://nowhere.test>\n', None),
        ('`<a href="gone.md">` <!-- <img src="gone.svg"> [a](gone.md) -->\n', None),
        ("A stray ` here.\n\n[a](gone.md)\n\nAnd ` there.\n", "page.md:3: the link to gone.md leads nowhere"),
        ("`code\nover lines` [a](gone.md)\n", "page.md:2: the link to gone.md leads nowhere"),
        ("````\n```\n[a](gone.md)\n```\n````\n[b](gone.md)\n", "page.md:6: the link to gone.md leads nowhere"),
        ("# A [linked][here] heading\n\n[a](#a-linked-heading)\n\n" + DEFINED, None),
    ],
)
def test_links_of_every_form_are_checked(
    text: str, complaint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside.md").touch()
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(texts, "ROOT", root)
    (root / "other.md").write_text("# A heading\n", encoding="utf-8")
    (root / "two words.md").touch()
    (root / "page.md").write_text(text, encoding="utf-8")
    assert list(texts.broken_links(root / "page.md")) == ([] if complaint is None else [complaint])


def test_every_operator_is_mutated_once_and_what_is_no_behaviour_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "x: int | None = 1 + 2\n"
        "@dataclass(frozen=True)\nclass A:\n    y = 0\n"
        "def f(a: int | None, *, flag: bool = True) -> int | None:\n"
        "    assert a < 3\n"
        "    logger.info('%d', a - 1)\n"
        "    if not a and flag:\n"
        "        return max(a, 2) * 3\n"
        "    return 'text' + str(a) if a >= 0 else None\n",
        encoding="utf-8",
    )
    found = [str(mutant) for mutant in mutate.mutants_of("a.py", tmp_path)]
    assert found == [
        "a.py:1: + -> -",
        "a.py:5: True -> False",
        "a.py:8: and -> or",
        "a.py:8: not a -> (a)",
        "a.py:9: * -> +",
        "a.py:9: max -> min",
        "a.py:10: >= -> >",
    ]


def test_a_file_is_tested_by_the_tests_that_mirror_it() -> None:
    assert mutate.mirrored_tests("edgekit/generation/sampling/filters.py") == [
        "tests/generation/sampling/test_filters.py"
    ]
    assert mutate.mirrored_tests("export/recipes/sensitivity.py") == ["tests/export/recipes"]
    for file in mutate._files(["edgekit", "export"]):
        for test in mutate.mirrored_tests(file):
            assert (SCRIPTS.parent / test).exists(), file


def test_a_file_is_tested_by_its_own_tests_first_and_then_by_those_that_mirror_no_single_file(tmp_path: Path) -> None:
    for name in ("edgekit/a/engine.py", "edgekit/a/worker.py", "edgekit/a/slots.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = tmp_path / "tests" / "a"
    folder.mkdir(parents=True)
    for name in ("answers", "engine", "engine_rules", "worker"):
        (folder / f"test_{name}.py").touch()
    assert mutate.mirrored_tests("edgekit/a/engine.py", tmp_path) == [
        "tests/a/test_engine.py",
        "tests/a/test_engine_rules.py",
        "tests/a/test_answers.py",
    ]
    assert mutate.mirrored_tests("edgekit/a/worker.py", tmp_path) == [
        "tests/a/test_worker.py",
        "tests/a/test_answers.py",
    ]
    assert mutate.mirrored_tests("edgekit/a/slots.py", tmp_path) == ["tests/a"]


def test_a_mutant_that_a_test_notices_is_caught_and_another_survives(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "edgekit").mkdir()
    (tmp_path / "edgekit" / "__init__.py").touch()
    (tmp_path / "edgekit" / "sum.py").write_text("def add(a, b):\n    return a + b\n", encoding="utf-8")
    test = tmp_path / "tests" / "test_sum.py"
    program = "from edgekit.sum import add\ndef test_it():\n    assert add({}) == {}\n"
    (mutant,) = mutate.mutants_of("edgekit/sum.py", tmp_path)
    test.write_text(program.format("1, 2", 3), encoding="utf-8")
    runs = mutate.PytestRuns()
    assert not mutate.survives(mutant, tmp_path, runs, 60)
    test.write_text(program.format("1, 0", 1), encoding="utf-8")
    assert mutate.survives(mutant, tmp_path, runs, 60)
    assert (tmp_path / "edgekit" / "sum.py").read_text(encoding="utf-8").endswith("a + b\n")


@pytest.fixture
def tree_with_a_child(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A tree whose one test starts a process, and then does what `$THEN` says; the file of the process ids."""
    tree, pids = tmp_path / "tree", tmp_path / "pids"
    for folder in ("edgekit", "tests", "scripts"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(SCRIPTS / "mutate.py", tree / "scripts")
    (tree / "edgekit" / "sum.py").write_text("def add(a, b):\n    return a + b\n", encoding="utf-8")
    (tree / "tests" / "test_sum.py").write_text(
        "import os, subprocess, sys, time\n"
        "def test_it():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    with open({str(pids) + '.new'!r}, 'w') as file:\n"
        "        file.write(f'{os.getpid()} {child.pid}')\n"
        f"    os.replace({str(pids) + '.new'!r}, {str(pids)!r})\n"
        "    exec(os.environ['THEN'])\n",
        encoding="utf-8",
    )
    yield tree, pids
    for process in started(pids):
        process.kill()


def started(pids: Path) -> list[psutil.Process]:
    """Those of the processes that still run."""
    listed = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    alive = [psutil.Process(pid) for pid in listed if psutil.pid_exists(pid)]
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_mutation_testing_with_everything_that_it_started(
    number: signal.Signals, tree_with_a_child: tuple[Path, Path], tmp_path: Path
) -> None:
    tree, pids = tree_with_a_child
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "scripts/mutate.py", "--jobs", "1", "edgekit"]
    environment = {**os.environ, "THEN": "time.sleep(600)", "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert until(lambda: pids.exists() or process.poll() is not None)
        assert len(started(pids)) == 2, process.communicate(timeout=60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert errors == ""
    assert until(lambda: not started(pids))
    assert list(scratch.iterdir()) == []


def test_what_a_test_leaves_running_ends_with_it(
    tree_with_a_child: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, pids = tree_with_a_child
    monkeypatch.setenv("THEN", "pass")
    assert mutate.PytestRuns().run(["tests"], tree, 60) == 0
    assert pids.exists()
    assert until(lambda: not started(pids))


def test_what_a_test_that_hangs_started_ends_with_it(
    tree_with_a_child: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, pids = tree_with_a_child
    monkeypatch.setenv("THEN", "time.sleep(600)")
    for timeout_s in (2, 8, 32):  # on a busy machine it may take a while to get there
        assert mutate.PytestRuns().run(["tests"], tree, timeout_s) is None
        if pids.exists():
            break
    assert pids.exists()
    assert until(lambda: not started(pids))
