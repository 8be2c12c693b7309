"""Shows answers, notes and errors in the terminal."""

from __future__ import annotations

import json
import sys

from edgekit.cli.chat.answering import AnswerEvent
from edgekit.cli.console import print_delta, print_restart, stderr
from edgekit.errors import EdgekitError
from edgekit.generation.types import Delta, Finished, Message, Restarted, ToolCall, ToolCallDelta

__all__ = ["AnswerView", "show_calls", "show_error", "show_finish", "show_note", "show_rates"]


class AnswerView:
    """Prints an answer as it arrives and collects it.

    Attributes:
        finished: The end; None until then.
    """

    def __init__(self) -> None:
        self.finished: Finished | None = None
        self._begin()

    def _begin(self) -> None:
        self._texts: list[str] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._reasoned = False

    def show(self, event: AnswerEvent) -> None:
        """Print an event of the answer."""
        if isinstance(event, Delta):
            if self._reasoned and not event.reasoning and not self._texts:
                stderr.print()
            print_delta(event)
            self._reasoned = self._reasoned or event.reasoning
            if not event.reasoning:
                self._texts.append(event.text)
        elif isinstance(event, ToolCallDelta):
            identity, name, parts = self._calls.get(event.number, ("", "", []))
            parts.append(event.arguments)
            self._calls[event.number] = (event.id or identity, event.name or name, parts)
        elif isinstance(event, Restarted):
            print_restart()
            self._begin()
        elif isinstance(event, Finished):
            self.finished = event

    def end_line(self) -> None:
        """End the line of the answer, whether it is complete or not."""
        sys.stdout.write("\n")
        sys.stdout.flush()  # before anything on stderr

    @property
    def complete(self) -> bool:
        """Whether the answer came to its own end."""
        return self.finished is not None and self.finished.reason != "cancelled"

    def message(self) -> Message:
        """The answer so far, without a call that was cut off: it has no result, and cannot be sent back."""
        calls = [ToolCall(identity, name, "".join(parts)) for _, (identity, name, parts) in sorted(self._calls.items())]
        calls = [call for call in calls if _is_object(call.arguments)]
        return Message("assistant", "".join(self._texts), tool_calls=tuple(calls))


def _is_object(arguments: str) -> bool:
    """Whether a call's arguments are a complete JSON object; no text stands for no arguments."""
    try:
        return isinstance(json.loads(arguments or "{}", parse_constant=_not_json), dict)
    except (ValueError, RecursionError):
        return False


def _not_json(constant: str) -> None:
    raise ValueError(constant)


def show_finish(finished: Finished, max_tokens: int | None, *, verbose: bool) -> None:
    """Print what the user should know about the end of an answer."""
    usage = finished.usage
    if finished.reason == "cancelled":
        show_note("(stopped)")
    if usage.left_out_messages:
        show_note(f"(the conversation is too long: its oldest {usage.left_out_messages} messages were left out)")
    if finished.reason == "length":
        if max_tokens is not None and usage.completion_tokens >= max_tokens:
            show_note(f"(cut off after {max_tokens} tokens; /set parameter max_tokens N)")
        else:
            show_note("(cut off: the context is full; /clear starts over)")
    if verbose:
        show_rates(finished)


def show_rates(finished: Finished) -> None:
    """Print the speed of an answer, and its energy if that was measured."""
    shown = {**finished.timings.as_rates(finished.usage), **finished.timings.as_energy(finished.usage)}
    show_note("  ".join(f"{name} {value:.1f}" for name, value in shown.items()))


def show_calls(message: Message) -> None:
    """Print the tool calls of an answer."""
    for call in message.tool_calls:
        try:
            given = json.loads(call.arguments).items()
            arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given)
        except (ValueError, AttributeError):
            arguments = call.arguments
        stderr.print(f"{call.name}({arguments})", style="cyan")


def show_note(text: str) -> None:
    """Print a note."""
    stderr.print(text, style="dim")


def show_error(error: EdgekitError) -> None:
    """Print an error and its hint."""
    stderr.print(f"error: {error.message}", style="red")
    hint = error.hint
    if error.code == "context_length_exceeded":
        hint = "shorten it, or start over with /clear"
    if hint:
        stderr.print(f"hint: {hint}")
