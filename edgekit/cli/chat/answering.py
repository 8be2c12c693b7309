"""The models that a chat can talk to: one loaded here, or a daemon's over HTTP or MQTT."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from edgekit.bundle.bundle import Bundle
from edgekit.cli.chat.settings import Settings
from edgekit.generation.engine.engine import Engine
from edgekit.generation.generate import generate
from edgekit.generation.model import TextModel
from edgekit.generation.types import ChatRequest, Delta, Failure, Finished, Message, Restarted, ToolCallDelta

__all__ = ["AnswerEvent", "Answering", "LocalModel"]

AnswerEvent = Delta | ToolCallDelta | Restarted | Finished


class Answering(Protocol):
    """A model that answers."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def answer(self, messages: list[Message], settings: Settings) -> Generator[AnswerEvent, None, None]:
        """Yield the answer's deltas, then one `Finished`; Ctrl-C ends it early, by `cancelled` or KeyboardInterrupt.

        After a `Restarted` the answer begins again.

        Raises:
            EdgekitError: The request failed.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return what is known of the model, for `/show`.

        Raises:
            EdgekitError: It could not be asked.
        """
        ...

    def text(self, kind: str) -> str:
        """Return the model's `license` or `template`; empty if it is unknown."""
        ...


class LocalModel:
    """A bundle loaded in this process."""

    def __init__(self, bundle: Bundle, model: TextModel) -> None:
        self._bundle = bundle
        self._model = model
        # The engine keeps the conversation's KV cache, so only the new turn is computed.
        self._engine = Engine(model)

    @property
    def name(self) -> str:
        """See `Answering.name`."""
        return self._model.info.name

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._model.template is not None

    def answer(self, messages: list[Message], settings: Settings) -> Generator[AnswerEvent, None, None]:
        """See `Answering.answer`."""
        return self._generate(settings.request(messages))

    def continue_text(self, text: str, settings: Settings) -> Generator[AnswerEvent, None, None]:
        """Yield how the model continues a text, without a chat template; otherwise as `answer`."""
        return self._generate(settings.continuation(text))

    def _generate(self, request: ChatRequest) -> Generator[AnswerEvent, None, None]:
        with _interrupt_noted() as interrupted:
            for event in generate(self._model, request, engine=self._engine, cancelled=interrupted):
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, AnswerEvent):
                    yield event

    def describe(self) -> dict[str, str]:
        """See `Answering.describe`."""
        info, manifest = self._model.info, self._bundle.manifest
        return {
            "model": info.name,
            "architecture": info.architecture,
            "parameters": f"{info.parameters / 1e6:,.0f} M",
            "context length": f"{info.context_length:,} tokens",
            "recipe": str(manifest.recipe.get("summary", "")),
            "runner": "; ".join((info.runner, *(f"not {one}" for one in info.rejected))),
            "capabilities": ", ".join(info.capabilities),
            "licence": manifest.licence,
            "bundle": str(self._bundle.path),
        }

    def text(self, kind: str) -> str:
        """See `Answering.text`."""
        name = {"license": "LICENSE", "template": "chat_template.jinja"}[kind]
        try:
            return (self._bundle.path / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


@contextmanager
def _interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C, so that the step that runs can end in order; the second one raises KeyboardInterrupt."""
    noted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
