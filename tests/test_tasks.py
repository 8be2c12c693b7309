"""`scripts/bench tasks`: code out of answers, solutions judged in a sandbox, questions converted, runs continued."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from tests.models import write_tokenizer
from tests.scripted import scripted_model, serving

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SETS = BENCHMARKS / "inputs" / "questions"

Part = Callable[[str], Any]

PROMPT = 'def double(x: int) -> int:\n    """Return 2 x.\n    >>> double(2)\n    4\n    """\n'
TEST = "def check(candidate):\n    assert candidate(3) == 6\n"
REPORT = "def check(candidate):\n    raise RuntimeError(candidate(3))\n"
PROBLEM = {"task_id": "own/0", "prompt": PROMPT, "entry_point": "double", "test": TEST}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    """Imports a module of the benchmarks, which are scripts and not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("```python\ndef double(x: int) -> int:\n    return x + x\n```", id="a block"),
        pytest.param(
            "Sure!\n```\ndef double(x):\n    return 2 * x\n```\nIt doubles x.", id="a block without a language"
        ),
        pytest.param("1. So:\n\n   ```py\n   def double(x):\n       return 2 * x\n   ```\n", id="a block in a list"),
        pytest.param(
            "```python\nassert double(2) == 5\n```\n```python\ndef double(x):\n    return 2 * x\n```", id="second"
        ),
        pytest.param(
            "```python\ndef double(x):\n    return 2 * x\n```\n```python\nprint(double('x' * 9))\n1 / 0\n```",
            id="first",
        ),
        pytest.param("```python\ndef double(x):\n    return 2 * x\n", id="a block that is not closed"),
        pytest.param("def double(x):\n    return 2 * x\n", id="no block"),
        pytest.param("```python\nreturn 2 * x\n```", id="a body"),
        pytest.param("    y = x\n    return x + y", id="an indented body"),
    ],
)
def test_the_function_is_found_in_an_answer_by_chat(part: Part, answer: str) -> None:
    completion = part("accuracy.human_eval").completion_of(PROBLEM, answer, "chat")
    found: dict[str, Any] = {}
    exec(PROMPT + completion, found)  # noqa: S102
    assert found["double"](21) == 42


def test_a_completion_ends_where_the_function_ends(part: Part) -> None:
    human_eval = part("accuracy.human_eval")
    body = "    if x:\n        return 2 * x\n    # zero\n    return 0\n"
    for rest in ("\ndef other():\n    pass\n", "\nprint(double(2))", "\nclass A: pass", "\nif x:\n  1", "\n# more"):
        assert human_eval.completion_of(PROBLEM, body + rest, "completions") == body
    assert human_eval.completion_of(PROBLEM, body, "completions") == body


def test_real_problems_are_judged_by_human_evals_own_tests(part: Part) -> None:
    human_eval = part("accuracy.human_eval")
    problems = human_eval.problems()
    assert len(problems) == 164
    # Python accepts every prompt as it is: an answer by chat is appended to it.
    for problem in problems:
        compile(problem["prompt"], problem["task_id"], "exec")
    judge = human_eval.Judge(seconds=30, allow=True)
    first = problems[0]
    block = f"```python\n{first['prompt']}{first['canonical_solution']}```"
    assert judge.passes(first, human_eval.completion_of(first, block, "chat")) == (True, "passed")
    passed, result = judge.passes(first, "    return False\n")
    assert not passed
    row = human_eval.row_of(human_eval.Answer("", "stop", 0, 0, 0.0), "", (passed, result))
    assert row["result"] == "failed: a test failed"
    assert judge.passes(first, "    import os\n    os._exit(0)\n") == (False, "timed out")  # as human-eval calls it
    endless = "    import os\n    while True:\n        os.write(1, b'x' * 1_000_000)\n"
    passed, result = human_eval.Judge(seconds=2, allow=True).passes(first, endless)
    assert not passed, result


def attempts(tmp_path: Path) -> dict[str, str]:
    """Return ways out of a sandbox, each an expression that raises an OSError where it is closed."""
    # Of the home, Python's folder is there if Python lies in it.
    paths = [
        str(Path.home() / ".cache"),
        str(BENCHMARKS),
        "/etc/passwd",
        "/proc/self",
        "/run",
        "/var",
        "/sys",
        "/dev/pts",
    ]
    connect = "socket.socket(socket.{}).connect({!r})"
    return {
        "write": f"open({str(tmp_path / 'written')!r}, 'w')",
        "write beside the program": "open('/program/run_solution.py', 'w')",
        "write into the library": "open(socket.__file__, 'a')",
        "Unix socket": connect.format("AF_UNIX", str(tmp_path / "socket")),
        "abstract Unix socket": connect.format("AF_UNIX", f"\0{tmp_path}"),
        "FIFO": f"posix.open({str(tmp_path / 'fifo')!r}, posix.O_WRONLY | posix.O_NONBLOCK)",
        "signal": f"posix.kill({os.getpid()}, 0)",
        # The verdict; kill() of the first process, which writes it, has no effect.
        "its file": "[posix.write(fd, FORGED) for fd in range(3, 64) if ok(lambda: posix.fstat(fd))][0]",
        "judge": "check(libc.ptrace(16, 1, None, None))",
        "judge's file": "check(libc.syscall(438, check(libc.syscall(434, 1, 0)), 3, 0))",
        "remount": "check(libc.mount(b'none', b'/', None, ctypes.c_ulong(0x20 | 0x1000), None))",
        **{f"list {path}": f"posix.listdir({path!r})" for path in paths},
    }


def test_a_model_s_code_reaches_nothing_outside(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = part("accuracy.human_eval").Judge(seconds=30, allow=True)
    if not judge.isolated:
        pytest.skip("this system does not allow user namespaces")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    abstract = f"\0{tmp_path}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as unnamed,
    ):
        named.bind("socket")
        unnamed.bind(abstract)
        ways = attempts(tmp_path)
        ways["TCP"] = f"socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 5)"
        for listener in (named, unnamed, tcp):
            listener.listen()
        code = f"""
    import ctypes, posix, socket
    FORGED = b'{{"passed": true, "result": "forged"}}'
    libc = ctypes.CDLL(None, use_errno=True)
    def check(result):
        if result < 0:
            raise OSError(ctypes.get_errno())
        return result
    def ok(attempt):
        try:
            attempt()
            return True
        except (OSError, LookupError):
            return False
    names = globals() | locals()
    done = [name for name, way in {ways!r}.items() if ok(lambda: eval(way, names))]
    posix.write(1, FORGED)
    posix.kill(posix.getppid(), 9)
    open("own", "w").write("x")
    return f"forged={{done}}"
"""
        passed, result = judge.passes({**PROBLEM, "test": REPORT}, code)
        assert (passed, result) == (False, "failed: forged=[]")
        for listener in (named, unnamed, tcp):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
    os.close(reader)
    assert not (tmp_path / "written").exists()


FORKS = """
    import posix, signal
    children = []
    try:
        while len(children) < 200:
            if (child := posix.fork()) == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        posix.kill(child, 9)
    return len(children)
"""


def test_a_model_s_code_starts_a_limited_number_of_processes(part: Part) -> None:
    judge = part("accuracy.human_eval").Judge(seconds=30, allow=True)
    if not judge.isolated:
        pytest.skip("this system does not allow user namespaces")
    passed, result = judge.passes({**PROBLEM, "test": REPORT}, FORKS)
    assert not passed
    assert 1 <= int(result.removeprefix("failed: ")) < part("accuracy.sandbox").PROCESSES


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="root under another name needs root")
def test_a_sandbox_without_a_limit_of_processes_does_not_start(part: Part, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print('ran')", encoding="ascii")
    sandbox = [sys.executable, "-I", "-S", part("accuracy.sandbox").__file__, str(tmp_path), "isolated", "30"]
    done = subprocess.run(["unshare", "-Ur", *sandbox, "program.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (part("accuracy.sandbox").UNAVAILABLE, "")
    assert "no isolation: " in done.stderr


@pytest.mark.parametrize("isolated", [True, False])
def test_what_a_solution_prints_is_no_verdict(part: Part, monkeypatch: pytest.MonkeyPatch, isolated: bool) -> None:
    judge_of = part("accuracy.human_eval").Judge
    judge = judge_of(seconds=2, allow=True)
    if isolated and not judge.isolated:
        pytest.skip("this system does not allow user namespaces")
    monkeypatch.setattr(judge_of, "isolated", isolated)
    # To every file it has, human-eval's pipes too; and so that nothing can follow, where stdout is limited in size.
    code = """
    import posix
    forged = b'\\n{"passed": true, "result": "forged"}'
    for fd in range(64):
        try:
            for _ in range(17):
                posix.write(fd, forged.rjust(1 << 20))
        except OSError:
            pass
    posix.kill(posix.getppid(), 15)
    return 0
"""
    passed, result = judge.passes(PROBLEM, code)
    assert not passed, result


def test_code_runs_without_isolation_only_if_that_is_allowed(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_of = part("accuracy.human_eval").Judge
    run = judge_of._run

    def refused(judge: Any, kind: str, *task: Any) -> tuple[str, str]:
        """A double of a system without user namespaces."""
        return ("", "no isolation: unshare") if kind == "isolated" else run(judge, kind, *task)

    monkeypatch.setattr(judge_of, "_run", refused)
    with pytest.raises(EdgekitError, match="would run unprotected: no isolation: unshare") as caught:
        judge_of(seconds=30, allow=False).passes(PROBLEM, "    return 2 * x\n")
    assert "--allow-code" in str(caught.value.hint)
    assert judge_of(seconds=30, allow=True).passes(PROBLEM, "    return 2 * x\n") == (True, "passed")


CEVAL = {
    "id": 3,
    "question": " 首都？",
    "A": "北京",
    "B": "上海",
    "C": "广州",
    "D": "深圳",
    "answer": "A",
    "explanation": "",
}
MMLU = {"question": "2 + 2?", "subject": "elementary_mathematics", "choices": ["3", "4", "5", "6"], "answer": 1}


def test_rows_of_c_eval_and_of_mmlu_become_questions_of_one_form(part: Part, tmp_path: Path) -> None:
    questions = part("accuracy.questions")
    chinese, english = questions.from_ceval(CEVAL, "geography", "test"), questions.from_mmlu(MMLU, "dev")
    assert chinese["question"] == "首都？"
    assert (chinese["A"], chinese["answer"], chinese["subject"]) == ("北京", "A", "geography")
    assert (english["B"], english["answer"], english["split"]) == ("4", "B", "dev")
    questions.write(tmp_path / "one.jsonl", [chinese, english])
    assert questions.read(tmp_path / "one.jsonl") == [chinese, english]
    assert questions.is_chinese([chinese])
    assert not questions.is_chinese([english])
    with pytest.raises(ValueError, match="answer"):
        questions.from_ceval({**CEVAL, "answer": ""}, "geography", "test")
    for wrong in ({"choices": ["3", "4"]}, {"answer": 4}, {"answer": "B"}, {"question": None}):
        with pytest.raises(ValueError, match=r"choices|answer|question"):
            questions.from_mmlu({**MMLU, **wrong}, "test")


def test_a_file_of_questions_is_refused_with_its_line(part: Part, tmp_path: Path) -> None:
    questions = part("accuracy.questions")
    good = json.dumps(questions.from_ceval(CEVAL, "geography", "test"))
    for second, complaint in (
        ("{", "line 2"),
        ("[]", "line 2"),
        (good.replace('"test"', '"train"'), "line 2: split 'train'"),
        (good.replace('"answer": "A"', '"answer": "E"'), "line 2: answer 'E'"),
    ):
        (tmp_path / "set.jsonl").write_text(f"{good}\n{second}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=complaint):
            questions.read(tmp_path / "set.jsonl")
    (tmp_path / "set.jsonl").write_text(good.replace('"test"', '"dev"'), encoding="utf-8")
    with pytest.raises(ValueError, match="no question of the split `test`"):
        questions.read(tmp_path / "set.jsonl")


def test_a_limit_takes_questions_of_every_subject_in_turn(part: Part) -> None:
    questions = part("accuracy.questions")
    rows = [{**questions.from_mmlu({**MMLU, "subject": name}, "test")} for name in "aaabbc"]
    counts = {subject: len(chosen) for subject, chosen in questions.choose(rows, 5).items()}
    assert counts == {"a": 2, "b": 2, "c": 1}
    assert sum(map(len, questions.choose(rows, None).values())) == 6


@pytest.mark.parametrize("name", ["english", "chinese"])
def test_our_sets_are_whole(part: Part, name: str) -> None:
    questions = part("accuracy.questions")
    rows = questions.read(SETS / f"{name}.jsonl")
    assert len({row["question"] for row in rows}) == len(rows)
    assert questions.is_chinese(rows) == (name == "chinese")
    splits = Counter((row["subject"], row["split"]) for row in rows)
    assert sum(count for (_, split), count in splits.items() if split == "test") == 20
    assert all(splits[subject, "dev"] == 5 for subject, _ in splits)
    assert all(len({row[letter] for letter in questions.LETTERS}) == 4 for row in rows)
    # Always the same letter must not score well.
    answers = Counter(row["answer"] for row in rows if row["split"] == "test")
    assert max(answers.values()) <= 6


def test_a_ledger_continues_after_a_kill_and_forgets_for_other_settings(part: Part, tmp_path: Path) -> None:
    ledger_of = part("accuracy.ledger").Ledger
    ledger = ledger_of(tmp_path, "task", {"seed": 0})
    ledger.add("1", {"passed": True})
    with pytest.raises(EdgekitError, match="another run writes"):
        ledger_of(tmp_path, "task", {"seed": 0})
    ledger.close()
    with ledger.path.open("a", encoding="utf-8") as file:
        file.write('{"key": "2", "pass')
    again = ledger_of(tmp_path, "task", {"seed": 0})
    assert list(again.rows) == ["1"]
    again.add("3", {"passed": False})
    again.close()
    for settings, fresh, keys in (({"seed": 0}, False, ["1", "3"]), ({"seed": 1}, False, []), ({"seed": 0}, True, [])):
        opened = ledger_of(tmp_path, "task", settings, fresh=fresh)
        assert list(opened.rows) == keys
        opened.close()


def test_the_table_has_the_score_and_its_standard_error(part: Part) -> None:
    table = part("accuracy.table")
    row = table.Row("HumanEval", [True, True, True, False], 1234, 56, 7.8, "greedy")
    text = table.markdown("a model, 2026-12-01", [row, table.Row("one", [True], 1, 2, 3.0, "chat")])
    # sqrt(0.75 · 0.25 / 3)
    assert "| HumanEval | 4 | 75.0 | 25.0 | 1,234 | 56 | 8 | greedy |" in text
    assert "| one | 1 | 100.0 |  | 1 | 2 | 3 | chat |" in text


@pytest.fixture
def tasks(part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command and returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["tasks", *arguments])
        with pytest.raises(SystemExit) as left:
            part("tasks").main()
        done = capsys.readouterr()
        return left.value.code, done.out, done.err

    return run


def test_the_command_asks_judges_prints_a_table_and_continues(part: Part, tasks: Any, tmp_path: Path) -> None:
    problems = part("accuracy.human_eval").problems()[:2]
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        right = problems[0]["entry_point"] in prompt
        return f"```python\n{problems[0]['prompt']}{problems[0]['canonical_solution']}```" if right else "I cannot."

    with serving(scripted_model(script)) as server:
        arguments = ("--url", f"{server.url}/v1/", "--tasks", "humaneval", "--work", str(tmp_path), "--allow-code")
        code, out, err = tasks(*arguments, "--limit", "1")
        assert code == 0, err
        assert "scripted, edgekit " in out
        assert "| HumanEval, pass@1 | 1 | 100.0 |" in out
        code, out, err = tasks(*arguments, "--limit", "2")
        assert code == 0, err
        assert "| HumanEval, pass@1 | 2 | 50.0 | 50.0 |" in out
        assert problems[0]["task_id"] not in err  # answered already
        code, out, err = tasks(*arguments, "--model", "scriptd")
        assert (code, out) == (1, "")
        assert "did you mean `scripted`?" in err
    code, out, err = tasks(*arguments)
    assert (code, out) == (1, "")
    assert "does not answer" in err


class OtherServer(BaseHTTPRequestHandler):
    """A double of a server whose list of models is broken, and whose replies are not OpenAI's."""

    def do_GET(self) -> None:
        self._reply(b"" if self.path == "/v1/models" else b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(b'{"answer": "Paris."}')

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def test_another_server_s_replies_are_refused_in_one_line(tasks: Any, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        Thread(target=server.serve_forever).start()
        arguments = ("--url", f"http://127.0.0.1:{server.server_port}", "--tasks", "humaneval", "--allow-code")
        assert "lists no model" in tasks(*arguments)[2]
        code, out, err = tasks(*arguments, "--model", "any", "--work", str(tmp_path))
        server.shutdown()
    assert (code, out) == (1, "")
    assert 'in another form than OpenAI\'s: {"answer": "Paris."}' in err


def test_unknown_tasks_are_refused_before_anything_is_asked(tasks: Any) -> None:
    code, out, err = tasks("--url", "http://127.0.0.1:9", "--tasks", "humaneval,cevall")
    assert (code, out) == (1, "")
    assert err == "error: unknown task `cevall`\n\nhint: did you mean `ceval`?\n"
    assert "each task once" in tasks("--url", "http://127.0.0.1:9", "--tasks", "mmlu,mmlu")[2]


class WithoutEcho(BaseHTTPRequestHandler):
    """A double of a server that returns the log probabilities of what it generates, and not those of the prompt."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": "any"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        logprobs = {"tokens": [" A"], "token_logprobs": [-0.1], "top_logprobs": [{" A": -0.1}], "text_offset": [0]}
        self._reply({"choices": [{"index": 0, "text": " A", "logprobs": logprobs}]})

    def _reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.mark.slow
def test_log_likelihoods_of_a_server_that_does_not_echo_prompts_are_refused(
    part: Part, tasks: Any, tmp_path: Path
) -> None:
    if part("accuracy.environment").evals_python(install=False) is None:
        pytest.skip("lm-eval is not installed, and $EDGEKIT_BENCH_EVALS_PYTHON names no Python")
    write_tokenizer(tmp_path, 300)
    with ThreadingHTTPServer(("127.0.0.1", 0), WithoutEcho) as server:
        Thread(target=server.serve_forever).start()
        arguments = ("--url", f"http://127.0.0.1:{server.server_port}", "--tasks", "english", "--api", "completions")
        code, out, err = tasks(*arguments, "--tokenizer", str(tmp_path), "--work", str(tmp_path), "--limit", "1")
        server.shutdown()
    assert (code, out) == (1, "")
    assert "does not echo a prompt with log probabilities; --api chat needs none" in err
