"""Lets a verb that writes files, or runs another program, clean up when it is terminated, as it does at Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

__all__ = ["clean_up_when_terminated"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def clean_up_when_terminated() -> None:
    """Have SIGTERM, or a terminal that is closed, end the verb as an exception; a second signal ends it at once.

    By default they end the process where it is: unfinished files stay, which may be gigabytes, and so does a program
    that it started. Not for a verb that loads a model: while a library does, Python cannot handle a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        # `nohup` has SIGHUP ignored.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    sys.exit(128 + number)
