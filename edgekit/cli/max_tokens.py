"""`--max-tokens` of `run` and `ask`, and the default limit of the answer to one prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from edgekit.cli.console import stderr
from edgekit.generation.types import Finished

__all__ = ["chat_limit", "max_tokens_option", "note_cut_off", "one_shot_limit"]

_Command = TypeVar("_Command", bound=Callable[..., object])

# Small models repeat themselves without end, up to the context length: minutes of output. Reasoning needs a thousand.
_DEFAULT = 2048


def max_tokens_option(command: _Command) -> _Command:
    """Add `--max-tokens`; None if it is left out."""
    text = f"Maximum tokens to generate; -1 is up to the context length [{_DEFAULT} for a prompt, -1 in a chat]."
    return click.option("--max-tokens", type=click.IntRange(min=-1), help=text)(command)


def one_shot_limit(given: int | None) -> int | None:
    """Return the limit of the answer to one prompt.

    Args:
        given: `--max-tokens`; None if it was left out.

    Returns:
        Tokens; None is up to the context length.
    """
    return _DEFAULT if given is None else chat_limit(given)


def chat_limit(given: int | None) -> int | None:
    """Return the limit of each answer of a chat, where Ctrl-C stops what goes wrong; as `one_shot_limit`."""
    return None if given == -1 else given


def note_cut_off(finished: Finished, given: int | None) -> None:
    """Say on stderr that an answer was cut off, unless at a limit that was asked for.

    Args:
        finished: The end of the answer.
        given: `--max-tokens`; None if it was left out.
    """
    if finished.reason != "length":
        return
    limit, tokens = one_shot_limit(given), finished.usage.completion_tokens
    if limit is None or tokens < limit:
        stderr.print(f"(cut off after {tokens} tokens: the context is full)", style="dim")
    elif given is None:
        stderr.print(f"(cut off after {tokens} tokens; --max-tokens N allows more, -1 any number)", style="dim")
