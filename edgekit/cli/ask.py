"""`edgekit ask`: send a prompt to a running daemon over HTTP or MQTT."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import click

from edgekit.cli.addresses import Daemon, daemon_options
from edgekit.cli.console import print_delta, print_restart, stderr
from edgekit.cli.input import check_text, read_stdin
from edgekit.cli.max_tokens import max_tokens_option, note_cut_off, one_shot_limit
from edgekit.generation.types import Delta, Finished, Message, Restarted

__all__ = ["ask"]


@click.command()
@click.argument("prompt")
@daemon_options
@click.option("--system", help="System message.")
@max_tokens_option
@click.option("--temperature", type=float, help="Sampling temperature; 0 is greedy [the model's, else 0].")
@click.option("--seed", type=int, help="Seed for sampling.")
@click.option("--stats", is_flag=True, help="Print tokens/s to stderr.")
def ask(*, prompt: str, system: str | None, max_tokens: int | None, stats: bool, **options: Any) -> None:
    """Send PROMPT to a running daemon and stream the answer. `-` reads the prompt from standard input.

    Without --http and --mqtt, the daemon at http://127.0.0.1:8090 is asked.
    """
    daemon = Daemon.from_options(options)
    text = read_stdin() if prompt == "-" else check_text(prompt, "the prompt")
    system = check_text(system, "the system message")
    messages = ([Message("system", system)] if system else []) + [Message("user", text)]
    # Closing the iterator on Ctrl-C tells the daemon to stop generating.
    with closing(daemon.ask(messages, max_tokens=one_shot_limit(max_tokens), **options)) as events:
        for event in events:
            if isinstance(event, Delta):
                print_delta(event)
            elif isinstance(event, Restarted):
                print_restart()
            elif isinstance(event, Finished):
                sys.stdout.write("\n")
                sys.stdout.flush()  # before anything on stderr
                note_cut_off(event, max_tokens)
                if stats:
                    stderr.print(_stats(event), style="dim")


def _stats(finish: Finished) -> str:
    rates = finish.timings.as_rates(finish.usage)
    parts = [f"{finish.usage.prompt_tokens} + {finish.usage.completion_tokens} tokens"]
    names = {"prompt_tokens_per_s": "prompt", "decode_tokens_per_s": "decode"}
    parts += [f"{names[key]} {value:.0f} tokens/s" for key, value in rates.items()]
    if (per_token := finish.timings.as_energy(finish.usage).get("joules_per_token")) is not None:
        parts.append(f"{per_token:.2f} J/token")
    return ", ".join(parts)
