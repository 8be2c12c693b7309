"""The line editor: several lines in one prompt, pasted blocks, history, completion of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import DummyHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from edgekit.cli.chat.history import open_history
from edgekit.cli.chat.typed import is_open_block

__all__ = ["Editor"]


class Editor:
    """Reads what the user types.

    Enter sends, but not inside triple quotes; a pasted block with line breaks is one text. Alt-Enter and Ctrl-J begin a
    new line.

    Args:
        folder: Where the history is; None keeps it in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # The prompt is no part of the output: with `edgekit run … | tee file` it stays on the screen.
        output = create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            history=open_history(folder),
            complete_while_typing=False,
            enable_open_in_editor=True,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="... ",
            output=output,
        )
        self._one_line: PromptSession[str] = PromptSession(history=DummyHistory(), output=output)

    def complete(self, commands: Sequence[str]) -> None:
        """Offer these commands on Tab."""
        self._session.completer = WordCompleter(list(commands), sentence=True)

    def read(self) -> str:
        """Read the next text.

        Raises:
            EOFError: Ctrl-D in an empty line.
            KeyboardInterrupt: Ctrl-C; what was typed is dropped.
        """
        return self._session.prompt(">>> ")

    def ask(self, label: str) -> str:
        """Read one line of another kind, which the history does not keep."""
        return self._one_line.prompt(label)

    def keep_history(self, *, on: bool) -> None:
        """Keep what is typed from here on for later chats, or do not."""
        history = open_history(self._folder) if on else InMemoryHistory()
        self._session.history = history
        self._session.default_buffer.history = history
        self._session.default_buffer.reset()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @Condition
    def block_is_open() -> bool:
        return is_open_block(get_app().current_buffer.text)

    @keys.add("enter", filter=~block_is_open)
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("enter", filter=block_is_open)
    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
