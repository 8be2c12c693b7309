"""Mutation testing: changes one operator at a time in product files and says which changes the files' tests miss.

    python scripts/mutate.py --count 40 --seed 7 edgekit/generation edgekit/daemon

Each mutant lives in a copy of the working tree, and its file's tests run on it (`mirrored_tests`): those that mirror
the file, and those of their folder that mirror no single file. A mutant that no test fails on has survived: either the
tests have a gap, or the change makes no difference.

Ctrl-C and SIGTERM end the tests that run, and all that they started.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import FrameType

import pytest

ROOT = Path(__file__).resolve().parents[1]

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "+"),
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        start, end: Offsets in the file's UTF-8 bytes.
        replacement: What goes between them.
    """

    file: str
    line: int
    start: int
    end: int
    before: str
    replacement: str

    def __str__(self) -> str:
        """`file:line: before -> after`."""
        return f"{self.file}:{self.line}: {self.before} -> {self.replacement}"


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one file; annotations, assertions, `__all__` and logging are left alone."""

    def __init__(self, file: str, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._file = file
        self._source = source
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for default in (*node.args.defaults, *(item for item in node.args.kw_defaults if item is not None)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  ast's name

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:  # not its decorators: whether a dataclass is frozen is no behaviour
            self.visit(statement)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Left alone: it guards against slips and is no behaviour."""

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if (
            isinstance(called, ast.Attribute)
            and isinstance(called.value, ast.Name)
            and called.value.id in {"logger", "_log"}
        ):
            return
        if isinstance(called, ast.Name) and called.id in _CALLS:
            self._add(called, _CALLS[called.id])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            self._between(left, right, *_COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(
            isinstance(side, ast.Constant | ast.JoinedStr) and not _number(side) for side in (node.left, node.right)
        )
        if type(node.op) in _ARITHMETIC and not text:
            self._between(node.left, node.right, *_ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        before, after = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, before, after)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value is True or node.value is False:
            self._add(node, str(not node.value))

    def _between(self, left: ast.expr, right: ast.expr, before: str, after: str) -> None:
        start, end = self._end(left), self._start(right)
        at = self._source[start:end].find(before.encode())
        if at >= 0:
            line = left.end_lineno or left.lineno
            self.found.append(Mutant(self._file, line, start + at, start + at + len(before), before, after))

    def _add(self, node: ast.expr, after: str) -> None:
        start, end = self._start(node), self._end(node)
        before = self._source[start:end].decode()
        self.found.append(Mutant(self._file, node.lineno, start, end, before, after))

    def _start(self, node: ast.expr) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr) -> int:
        return self._lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or node.col_offset)


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def mutants_of(file: str, root: Path = ROOT) -> list[Mutant]:
    """Return every mutant of a file that still compiles."""
    source = (root / file).read_bytes()
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return [mutant for mutant in finder.found if _compiles(_mutated(source, mutant))]


def _mutated(source: bytes, mutant: Mutant) -> bytes:
    return source[: mutant.start] + mutant.replacement.encode() + source[mutant.end :]


def _compiles(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def mirrored_tests(file: str, root: Path = ROOT) -> list[str]:
    """Return the tests of a file, its own first.

    Its own are `test_NAME*.py` in the mirrored folder; next come that folder's tests that mirror no single file, such
    as `test_limits.py` of all grammars. A file without tests of its own is tested by the whole mirrored folder, or the
    nearest above that has tests.
    """
    path = Path(file)
    folder = Path("tests", *path.parts[1 if path.parts[0] == "edgekit" else 0 : -1])
    tests = sorted((root / folder).glob("test_*.py"))
    own = [test for test in tests if test.name.startswith(f"test_{path.stem}")]
    if own:
        names = tuple(f"test_{other.stem}" for other in (root / path.parent).glob("*.py"))
        shared = [test for test in tests if not test.name.startswith(names)]
        return [str(test.relative_to(root)) for test in (*own, *shared)]
    while not list((root / folder).glob("test_*.py")):
        folder = folder.parent
    return [str(folder)]


class PytestRuns:
    """Runs pytest in process groups of its own, so that everything that tests start ends with them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def close(self) -> None:
        """End the runs that are under way, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill_group(process)

    def run(self, arguments: Sequence[str], copy: Path, timeout_s: float | None = None) -> int | None:
        """Run pytest in a copy of the tree.

        Returns:
            The exit status; None if it took longer than `timeout_s`.

        Raises:
            RuntimeError: Closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the test runs are closed")
            process = subprocess.Popen(  # noqa: S603  our own command
                [*_PYTEST, *arguments],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with self._lock:
                _kill_group(process)
                self._running.remove(process)
            process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # macOS refuses with EPERM where only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    for ending in _ENDING:  # a second one must not interrupt the cleaning up
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)


def survives(mutant: Mutant, copy: Path, runs: PytestRuns, timeout_s: float) -> bool:
    """Run a mutant's tests in a copy of the tree; a test run that hangs has noticed it too."""
    target = copy / mutant.file
    source = target.read_bytes()
    target.write_bytes(_mutated(source, mutant))
    tests = mirrored_tests(mutant.file, copy)
    try:
        status = runs.run(["-x", "-q", "--timeout=120", *tests], copy, timeout_s)
    finally:
        target.write_bytes(source)
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"{mutant.file} has no tests: {tests}")
    # Anything else than success has noticed it: a failure, or an error in what conftest.py imports.
    return status == 0


def _files(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        path = ROOT / folder
        yield from (
            [folder]
            if path.is_file()
            else sorted(str(file.relative_to(ROOT)) for file in path.rglob("*.py") if file.name != "__init__.py")
        )


def main() -> int:
    """Print the survivors and the share that was caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=["edgekit", "export"], help="product files or folders")
    parser.add_argument("--count", type=int, default=40, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=None, help="the same seed draws the same mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout-s", type=float, default=300.0)
    arguments = parser.parse_args()
    for ending in _ENDING:
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as under nohup
            signal.signal(ending, _exit_on_signal)
    for path in arguments.paths:
        if not (ROOT / path).exists():
            parser.error(f"there is no {path}")
    every = [mutant for file in dict.fromkeys(_files(arguments.paths)) for mutant in mutants_of(file)]
    drawn = random.Random(arguments.seed).sample(every, min(arguments.count, len(every)))  # noqa: S311  no secret
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="edgekit-mutants-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "work", "dist", ".hypothesis")
        for number in range(arguments.jobs):
            copy = Path(scratch, str(number))
            shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
            copies.put(copy)
        with ThreadPoolExecutor(arguments.jobs) as pool, closing(PytestRuns()) as runs:
            # Without a mutant all tests must at least be found, or every mutant would count as caught. In the pool,
            # so that a signal, which interrupts this thread, cannot come between a process and its registration.
            if pool.submit(runs.run, ["--collect-only", "-qq"], copy).result() != 0:
                sys.exit("pytest --collect-only fails, so every mutant would count as caught")

            def run(mutant: Mutant) -> bool:
                copy = copies.get()
                try:
                    return survives(mutant, copy, runs, arguments.timeout_s)
                finally:
                    copies.put(copy)

            for number, (mutant, survived) in enumerate(zip(drawn, pool.map(run, drawn), strict=True), 1):
                survivors += survived
                mark = "SURVIVED" if survived else "caught  "
                print(f"{number:4}/{len(drawn)} {mark} {mutant}", flush=True)  # noqa: T201
    caught = len(drawn) - survivors
    print(f"{caught} of {len(drawn)} mutants caught ({100 * caught / max(1, len(drawn)):.0f} %)")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
