"""The format of the daemon's log, and the one place where text from outside is made safe for it.

Names of models and files, topics, host names and messages of exceptions reach the log. A line break in one would forge
a log line, and an escape sequence would run in the terminal that shows the log.
"""

from __future__ import annotations

import logging
from typing import Any

from edgekit.errors import escape_controls

__all__ = ["LogFormatter"]


class LogFormatter(logging.Formatter):
    """Formats records with every control character of the message escaped.

    Args:
        with_time: Whether a line begins with the time; the journal adds its own.
    """

    def __init__(self, *, with_time: bool) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(message)s" if with_time else "%(levelname)s %(name)s: %(message)s"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Format the line itself."""
        record.message = escape_controls(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        """Format a traceback: its line breaks stay, and its lines are indented, so that none looks like a record."""
        return _escape_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        """Format a stack, like a traceback."""
        return _escape_lines(super().formatStack(stack_info))


def _escape_lines(text: str) -> str:
    return "\n".join(f"  {escape_controls(line)}" for line in text.split("\n"))
