"""A worker that plays a script: the only dependency of a transport, under the control of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edgekit.generation.types import (
    ChatRequest,
    ChoiceFinished,
    Delta,
    Event,
    Failure,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
)
from edgekit.generation.usage import Timings, Usage

__all__ = [
    "ARGUMENTS",
    "WORDS",
    "Playing",
    "ScriptedWorker",
    "answer_in_turn",
    "answer_twice",
    "call_tools",
    "finish",
    "speak",
    "tell_logprobs",
    "wait_for_cancel",
]

ARGUMENTS = ('{"city": "Orléans"}', '{"zone": "CET"}')
WORDS = ("Paris", " is", " the", " capital", " of", " France", " (法国", "的首都) 🗼.")


@dataclass
class Playing:
    """One accepted request; stands in for `RequestState`."""

    request: ChatRequest
    on_event: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    prompt: tuple[int, ...] = tuple(range(11))

    def cancel(self) -> None:
        self.cancelled.set()


Script = Callable[[Playing], None]


def finish(reason: FinishReason = "stop", words: int = len(WORDS)) -> Finished:
    return Finished(
        reason,
        Usage(11, words, cached_tokens=4, accepted_tokens=2, rejected_tokens=1, left_out_messages=6),
        Timings(queue_s=0.25, prefill_s=0.5, decode_s=1.0, slowest_token_s=0.5, steps=5, kv_bytes=4096),
    )


def speak(playing: Playing) -> None:
    """Send all words, then finish."""
    for seq, word in enumerate(WORDS):
        playing.on_event(Delta(seq, word))
    playing.on_event(finish())


def wait_for_cancel(playing: Playing) -> None:
    """Send a word every few milliseconds until cancelled; fail after ten seconds."""
    for seq in range(1000):
        playing.on_event(Delta(seq, "word "))
        if playing.cancelled.wait(0.01):
            playing.on_event(finish("cancelled", seq + 1))
            return
    playing.on_event(Failure(AssertionError("not cancelled")))  # type: ignore[arg-type]


def call_tools(playing: Playing) -> None:
    """Call `weather` and `time`, in several deltas."""
    seq = 0
    for number, (name, arguments) in enumerate(zip(("weather", "time"), ARGUMENTS, strict=True)):
        playing.on_event(ToolCallDelta(seq, number, "", id=f"call_{number}", name=name))
        seq += 1
        for start in range(0, len(arguments), 7):
            playing.on_event(ToolCallDelta(seq, number, arguments[start : start + 7]))
            seq += 1
    playing.on_event(finish("tool_calls"))


def answer_twice(playing: Playing) -> None:
    """Send two answers, alternating; the second is cut off."""
    for seq, word in enumerate(WORDS):
        playing.on_event(Delta(2 * seq, word))
        playing.on_event(Delta(2 * seq + 1, word.upper(), index=1))
    playing.on_event(replace(finish(), reasons=("stop", "length")))


def answer_in_turn(playing: Playing) -> None:
    """Send two answers; the second is cut off after a word, the first goes on until it is cancelled."""
    playing.on_event(Delta(0, "Paris"))
    playing.on_event(Delta(1, "PARIS", index=1))
    playing.on_event(ChoiceFinished(1, "length"))
    playing.cancelled.wait(10)
    playing.on_event(Delta(2, " is"))
    playing.on_event(replace(finish("cancelled"), reasons=("cancelled", "length")))


def tell_logprobs(playing: Playing) -> None:
    """Send "Hi 🗼", the tower in two tokens, with log probabilities."""
    tower = "🗼".encode()
    hi = TokenLogprob(5, b"Hi", -0.5, top=((5, b"Hi", -0.5), (6, b"Ho", -1.5)))
    halves = (TokenLogprob(7, b" " + tower[:2], -1.0), TokenLogprob(8, tower[2:], -0.0))
    playing.on_event(Delta(0, "Hi", logprobs=(hi,)))
    playing.on_event(Delta(1, " 🗼", logprobs=halves))
    playing.on_event(finish())


class ScriptedWorker:
    """Plays `script` for each request, each on its own thread."""

    max_open = 64

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
