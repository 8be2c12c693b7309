"""Verifies and loads a bundle in front of a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.check import check_bundle
from edgekit.cli.console import progress_bar, spinner

__all__ = ["interruptible", "open_verified"]

T = TypeVar("T")


def open_verified(folder: Path, *, ignore_compatible: bool) -> Bundle:
    """Open a bundle and check it for this machine; on a terminal, show the progress.

    Raises:
        BundleError: It is damaged, or was made for other targets.
    """
    bundle = open_bundle(folder)
    with progress_bar() as bar:
        check_bundle(
            bundle, ignore_compatible=ignore_compatible, progress=lambda done, total: bar("verify", done, total)
        )
    return bundle


def interruptible(text: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; Ctrl-C ends the process meanwhile.

    It runs on another thread, since a library may load for minutes and this one handles Ctrl-C.

    Args:
        text: Shown meanwhile.
        call: Any function.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call)
        try:
            with spinner(text):
                while not wait([running], timeout=0.1).done:
                    pass
        except KeyboardInterrupt:
            os._exit(130)  # at the usual end the interpreter would wait for the thread
        return running.result()
