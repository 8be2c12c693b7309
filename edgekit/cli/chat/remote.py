"""Chats with the model of a running daemon, over HTTP or MQTT."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from edgekit.cli.addresses import Daemon
from edgekit.cli.chat.answering import AnswerEvent
from edgekit.cli.chat.settings import Settings
from edgekit.generation.types import Message

__all__ = ["RemoteModel"]


class RemoteModel:
    """A daemon's model: see `Answering`.

    Args:
        daemon: Its address.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def name(self) -> str:
        """The model's name.

        Raises:
            EdgekitError: The daemon does not answer.
        """
        return str(self._daemon.describe().get("id", self._daemon))

    def answer(self, messages: list[Message], settings: Settings) -> Generator[AnswerEvent, None, None]:
        """See `Answering.answer`."""
        # Closing the iterator on Ctrl-C tells the daemon to stop generating.
        with closing(self._daemon.ask(messages, **settings.body())) as events:
            yield from events

    def describe(self) -> dict[str, str]:
        """See `Answering.describe`."""
        facts = self._daemon.describe()
        shown = {"model": str(facts.get("id", "")), "daemon": str(self._daemon)}
        if facts.get("context_length"):
            shown["context length"] = f"{facts['context_length']:,} tokens"
        return shown

    def text(self, kind: str) -> str:  # noqa: ARG002  the daemon does not send them
        """See `Answering.text`."""
        return ""
