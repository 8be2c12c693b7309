"""A scheduler that plays a script: the door's only dependency, made to do whatever a test needs, when it needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edgekit.generation.request import ChatRequest, Delta, Event, Failure, Finish, FinishReason, Timings, Usage

__all__ = ["WORDS", "Playing", "ScriptedScheduler", "finish", "speak", "wait_for_cancel"]

WORDS = ("Paris", " is", " the", " capital", " of", " France", " (法国", "的首都) 🗼.")


@dataclass
class Playing:
    """One accepted request; a ticket."""

    request: ChatRequest
    on_event: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


Script = Callable[[Playing], None]


def finish(reason: FinishReason = "stop", words: int = len(WORDS)) -> Finish:
    return Finish(reason, Usage(11, words, cached_tokens=4), Timings(queue_s=0.25, prefill_s=0.5, decode_s=1.0))


def speak(playing: Playing) -> None:
    """Say all the words, then finish."""
    for seq, word in enumerate(WORDS):
        playing.on_event(Delta(seq, word))
    playing.on_event(finish())


def wait_for_cancel(playing: Playing) -> None:
    """Say a word every few milliseconds until cancelled; fail if nobody does so for ten seconds."""
    for seq in range(1000):
        playing.on_event(Delta(seq, "word "))
        if playing.cancelled.wait(0.01):
            playing.on_event(finish("cancelled", seq + 1))
            return
    playing.on_event(Failure(AssertionError("nobody cancelled")))  # type: ignore[arg-type]


class ScriptedScheduler:
    """Plays `script` for each request, on a thread of its own."""

    def __init__(self, script: Script = speak) -> None:
        self.script = script
        self.played: list[Playing] = []
        self._threads: list[threading.Thread] = []

    def submit(self, request: ChatRequest, on_event: Callable[[Event], None]) -> Playing:
        playing = Playing(request, on_event)
        self.played.append(playing)
        thread = threading.Thread(target=self.script, args=(playing,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return playing

    def seconds_since_heartbeat(self) -> float:
        return 0.0

    def queue_length(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def stop(self, drain_s: float = 0.0) -> None:
        for playing in self.played:
            playing.cancel()
        for thread in self._threads:
            thread.join(timeout=drain_s + 5)
