"""`edgekit run`: answer a prompt, or chat, in this terminal."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from edgekit.cli.output import print_piece, stderr
from edgekit.errors import EdgekitError
from edgekit.generation.decode import generate
from edgekit.generation.engine import Engine
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.request import ChatRequest, Delta, Failure, Finish, Message, Sampling

__all__ = ["run"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=int, help="Most tokens to answer with [up to the context length].")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, help="0 is off.")
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option("--context-length", type=int, help="Tokens to hold [the bundle's].")
@click.option("--threads", type=int, help="Threads [one per physical core].")
@click.option("--stats", is_flag=True, help="Print tokens/s to stderr.")
def run(
    *,
    bundle: Path,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    context_length: int | None,
    threads: int | None,
    stats: bool,
) -> None:
    """Answer PROMPT from BUNDLE; without a prompt, chat. A prompt of `-` is read from standard input."""
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    messages = [Message("system", system)] if system else []
    model = load_model(bundle, context_length=context_length, threads=threads)
    chat = _Chat(model, messages, sampling, max_tokens, stats=stats)
    try:
        if prompt is not None:
            chat.answer(sys.stdin.read() if prompt == "-" else prompt)
        elif sys.stdin.isatty():
            _repl(chat)
        else:
            chat.answer(sys.stdin.read())
    finally:
        model.close()


class _Chat:
    """A conversation held in memory; each answer becomes part of it."""

    def __init__(
        self, model: TextModel, messages: list[Message], sampling: Sampling, max_tokens: int | None, *, stats: bool
    ) -> None:
        self._model = model
        # It remembers the conversation: only what is new is computed.
        self._engine = Engine(model)
        self._system = list(messages)
        self._messages = messages
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._stats = stats

    def forget(self) -> None:
        """Start over."""
        self._messages = list(self._system)

    def answer(self, text: str) -> None:
        """Stream the answer to stdout."""
        asked = [*self._messages, Message("user", text)]
        request = ChatRequest(id="run", messages=tuple(asked), sampling=self._sampling, max_tokens=self._max_tokens)
        pieces = []
        for event in generate(self._model, request, engine=self._engine):
            if isinstance(event, Delta):
                print_piece(event)
                if not event.reasoning:
                    pieces.append(event.text)
            elif isinstance(event, Failure):
                raise event.error
            elif isinstance(event, Finish):
                sys.stdout.write("\n")
                sys.stdout.flush()  # before what follows on stderr
                if self._stats:
                    rates = event.timings.as_rates(event.usage)
                    stderr.print("  ".join(f"{name} {value:.1f}" for name, value in rates.items()), style="dim")
        self._messages = [*asked, Message("assistant", "".join(pieces))]


def _repl(chat: _Chat) -> None:
    """Chat until end of file; an error or Ctrl-C ends one answer, not the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    stderr.print("Chat; /new starts over, Ctrl-D ends.", style="dim")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            stderr.print()
            return
        except KeyboardInterrupt:
            stderr.print()
            continue
        if text == "/new":
            chat.forget()
        elif text:
            try:
                chat.answer(text)
            except KeyboardInterrupt:
                stderr.print("\n(stopped)", style="dim")
            except EdgekitError as error:
                stderr.print(f"error: {error.message}", style="red")
