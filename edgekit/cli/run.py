"""`edgekit run`: answer a prompt, or chat, in this terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgekit.cli.addresses import Daemon, daemon_options
from edgekit.cli.chat.answering import Answering, LocalModel
from edgekit.cli.chat.rendering import show_rates
from edgekit.cli.chat.session import Session
from edgekit.cli.chat.settings import Settings
from edgekit.cli.chat.turn import answer, continue_text
from edgekit.cli.console import stderr
from edgekit.cli.input import check_text, is_terminal, read_stdin
from edgekit.cli.loading import interruptible, open_verified
from edgekit.cli.max_tokens import chat_limit, max_tokens_option, note_cut_off, one_shot_limit
from edgekit.cli.runner_option import runner_option
from edgekit.config import MAX_THREADS
from edgekit.errors import ConfigError
from edgekit.generation.model import load_model
from edgekit.generation.types import Finished, Message

__all__ = ["run"]


@click.command()
@click.argument("bundle", required=False)
@click.argument("prompt", required=False)
@click.option("--system", help="System message.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the model's chat template.")
@max_tokens_option
@click.option("--temperature", type=float, help="Sampling temperature; 0 is greedy [the model's, else 0].")
@click.option("--top-p", type=float, help="Nucleus sampling; 1 is off [the model's, else 1].")
@click.option("--top-k", type=int, help="Sample from the K likeliest tokens; 0 is off [the model's, else 0].")
@click.option("--seed", type=int, help="Seed for sampling: the same seed gives the same answer.")
@click.option("--context-length", type=int, help="Maximum tokens of the chat [the bundle's].")
@runner_option
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads [one per usable core].")
@click.option("--ignore-compatible", is_flag=True, help="Run a bundle that was made for other targets.")
@click.option("--stats", is_flag=True, help="Print tokens/s to stderr.")
@daemon_options
def run(
    *,
    bundle: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    context_length: int | None,
    runner: str,
    threads: int | None,
    ignore_compatible: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Answer PROMPT with BUNDLE, or chat if there is no prompt. `-` reads the prompt from standard input.

    A model without a chat template continues PROMPT. With --http or --mqtt a running daemon answers, and there is no
    BUNDLE.
    """
    remote = bool(options["url"] or options["broker"])
    daemon = Daemon.from_options(options)
    if remote:
        if prompt is not None:
            raise ConfigError("a daemon answers with its own model", hint="leave out BUNDLE")
        if raw:
            raise ConfigError("--raw needs a bundle", hint="a daemon continues text at /v1/completions")
        bundle, prompt = None, bundle
    elif bundle is None:
        raise ConfigError("no bundle to run", hint="edgekit run BUNDLE, or --http URL for a running daemon")
    one_shot = prompt is not None or not is_terminal(sys.stdin)
    limit = one_shot_limit(max_tokens) if one_shot else chat_limit(max_tokens)
    settings = Settings({name: value for name, value in options.items() if value is not None}, limit)
    settings.check()
    session = Session(check_text(system, "the system message"), settings, verbose=stats)
    typed = check_text(prompt, "the prompt")
    with ExitStack() as resources:
        continuing: LocalModel | None = None
        if bundle is None:
            model: Answering = _open_remote(daemon)
        else:
            model = _open(
                Path(bundle),
                resources,
                ignore_compatible=ignore_compatible,
                context_length=context_length,
                runner=runner,
                threads=threads,
            )
            continuing = model if raw or not model.chats else None
        if continuing is not None and (system or not one_shot):
            raise ConfigError(
                "a system message needs a chat template" if system else "without a chat template there is no chat",
                hint="give a text to continue: edgekit run BUNDLE PROMPT",
            )
        if not one_shot:
            from edgekit.cli.chat.repl import chat

            chat(model, session)
            return
        text = read_stdin() if prompt in (None, "-") else typed
        if continuing is not None:
            finished = continue_text(continuing, text, settings)
        else:
            finished = answer(model, session, Message("user", text))
        if finished is not None:
            _end(finished, max_tokens, stats=stats)


def _end(finished: Finished, max_tokens: int | None, *, stats: bool) -> None:
    if finished.reason == "cancelled":
        raise KeyboardInterrupt
    note_cut_off(finished, max_tokens)
    if stats:
        show_rates(finished)


def _open_remote(daemon: Daemon) -> Answering:
    from edgekit.cli.chat.remote import RemoteModel

    return RemoteModel(daemon)


def _open(folder: Path, resources: ExitStack, *, ignore_compatible: bool, **options: Any) -> LocalModel:
    """Verify and load a bundle, with options of `load_model`; on a terminal, show what takes time."""
    bundle = open_verified(folder, ignore_compatible=ignore_compatible)
    model = interruptible(f"loading {bundle.manifest.name} …", partial(load_model, bundle, **options))
    resources.callback(model.close)
    if model.info.rejected and stderr.is_terminal:
        better = ", ".join(map(str, model.info.rejected))
        stderr.print(f"running on {model.info.runner}; not on {better}", style="dim", markup=False, highlight=False)
    return LocalModel(bundle, model)
