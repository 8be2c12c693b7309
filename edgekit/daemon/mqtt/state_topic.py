"""The state topic: load, memory and sensors, at most once in an interval."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgekit.daemon.mqtt import messages
from edgekit.daemon.mqtt.outgoing import Outgoing
from edgekit.daemon.mqtt.topics import Topics
from edgekit.daemon.readings import Load, Readings
from edgekit.generation.model import ModelInfo

__all__ = ["REFRESH_S", "StateTopic"]

REFRESH_S = 60.0
"""Time after which a state is published that has not changed, or only by its sensors."""


class StateTopic:
    """Decides when a state is published, and makes the message.

    The load is looked at once in an interval; the sensors are read only for a message.

    Args:
        topics: The device's topics.
        readings: Reads load and sensors.
        interval_s: Least time between two messages of a connection, in seconds.
        clock: Returns the time in seconds.

    Attributes:
        due: By the clock, when to call `poll` again.
    """

    def __init__(
        self, topics: Topics, readings: Readings, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._topics = topics
        self._readings = readings
        self._interval_s = interval_s
        self._clock = clock
        self._published: tuple[float, Load] | None = None
        self.due = clock()

    def poll(self, session: str, model: ModelInfo) -> Outgoing | None:
        """Return the message if one is due: the load has changed, or the last message is old.

        Args:
            session: The session name of the connection.
            model: The served model.
        """
        now = self._clock()
        if now < self.due:
            return None
        self.due = now + self._interval_s
        load = self._readings.load()
        if self._published is not None:
            at, before = self._published
            if load == before and now - at < REFRESH_S:
                return None
        return self._message(session, model, now, load)

    def birth(self, session: str, model: ModelInfo) -> Outgoing:
        """Return the message for a new connection, or a new reader, whatever was published before."""
        now = self._clock()
        self.due = now + self._interval_s
        return self._message(session, model, now, self._readings.load())

    def _message(self, session: str, model: ModelInfo, now: float, load: Load) -> Outgoing:
        self._published = now, load
        state = messages.state(load, self._readings.sensors(), session=session, model=model.name, runner=model.runner)
        return Outgoing(
            self._topics.state,
            messages.encode(state),
            content_type=messages.CONTENT_TYPE,
            retain=True,
            durable=False,
        )
