from __future__ import annotations

import pytest

from edgekit.errors import RequestError
from edgekit.generation import time_limit
from edgekit.generation.time_limit import UNLIMITED, TimeLimit


def test_work_may_take_its_time_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    monkeypatch.setattr(time_limit, "time", Clock)
    limit = TimeLimit(2.5)
    for Clock.now in (100.0, 102.5):
        limit.check()
        UNLIMITED.check()
    Clock.now = 102.6
    with pytest.raises(RequestError, match=r"longer than 2\.5 s") as caught:
        limit.check()
    assert caught.value.code == "preparation_timeout"
    UNLIMITED.check()
