"""Runs a program in a pseudo-terminal, as a user's shell would, and types into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

__all__ = ["CTRL_C", "CTRL_D", "ENTER", "Terminal"]

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"

# A line editor turns bracketed paste on when it is ready for input.
_READY, _READY_MARK = "\x1b[?2004h", "\N{BLACK RIGHT-POINTING TRIANGLE}"
# CSI and OSC sequences, the keypad's modes, and a sequence that is not complete yet.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>]|\x1b(?:\[[0-9;?]*)?$")


class Terminal:
    """A program in a terminal of 24 rows and 100 columns.

    Attributes:
        output: All it has printed, without escape sequences.
        raw: The same with them.

    Args:
        command: The program and its arguments.
        env: More environment variables.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

        # A session's leader that opens a terminal owns it: Ctrl-C then sends SIGINT to the program.
        opened = ["/bin/sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *command]
        self.process = subprocess.Popen(
            opened,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
        )
        # Open until the program has opened it.
        self._slave: int | None = slave
        self.raw = ""
        self._seen = 0

    @property
    def output(self) -> str:
        return _ESCAPES.sub("", self.raw.replace(_READY, _READY_MARK))

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def paste(self, text: str) -> None:
        """Paste as terminals do: between brackets, with carriage returns for line breaks."""
        self.send(f"\x1b[200~{text}\x1b[201~".replace("\n", "\r"))

    def expect(self, pattern: str, timeout_s: float = 60) -> str:
        """Wait until a regular expression occurs after what was last expected; return all output up to its end."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.output
            if match := re.compile(pattern).search(text, self._seen):
                before, self._seen = text[self._seen : match.end()], match.end()
                return before
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"`{pattern}` did not come; the terminal shows:\n{text}")

    def prompt(self, timeout_s: float = 60) -> str:
        """Wait until the program is ready for input."""
        return self.expect(_READY_MARK, timeout_s)

    def end(self, timeout_s: float = 30) -> int:
        """Wait for the program to end; return its status."""
        with contextlib.suppress(OSError):
            while self._read(timeout_s):
                pass
        return self.process.wait(timeout_s)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the program has ended
            return False
        self.raw += data.decode(errors="replace")
        self._close_slave()
        return bool(data)

    def _close_slave(self) -> None:
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None

    def __enter__(self) -> Terminal:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        self._close_slave()
