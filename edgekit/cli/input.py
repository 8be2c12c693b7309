"""Input of the command line: prompts from standard input."""

from __future__ import annotations

import locale
import sys
from typing import TextIO

from edgekit.errors import ConfigError

__all__ = ["check_text", "is_terminal", "read_stdin"]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; one that was closed before the start is None."""
    return stream is not None and not stream.closed and stream.isatty()


def read_stdin() -> str:
    """Return standard input as text: UTF-8, or else in the terminal's encoding.

    Raises:
        ConfigError: There is no standard input, it cannot be read, or it is in another encoding.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise ConfigError("there is no standard input to read the prompt from", hint="give the prompt as an argument")
    try:
        data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror}", hint="give a file or a pipe") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = data.decode(sys.stdin.encoding)
        except UnicodeDecodeError:
            message = f"standard input is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}"
            raise ConfigError(message, hint="convert it: iconv -f latin1 -t utf-8 FILE") from error
    return text.replace("\r\n", "\n")


def check_text(text: str | None, name: str) -> str:
    """Return typed text; bytes that are not UTF-8 arrive as lone surrogates and are read in the locale's encoding.

    Args:
        text: The text; None counts as empty.
        name: What to call it in the message.

    Raises:
        ConfigError: It is in neither encoding.
    """
    text = text or ""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode(locale.getpreferredencoding(do_setlocale=False))
        except UnicodeError as error:
            raise ConfigError(
                f"{name} is not UTF-8", hint="set the terminal to UTF-8, or read a file: - < FILE"
            ) from error
    return text
