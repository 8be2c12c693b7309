"""Twenty short texts, each with the JSON schema of the record in it. Written for this benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True)
class Task:
    """A text and the schema of its record."""

    text: str
    schema: Mapping[str, Any]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the record."""
        schema = json.dumps(self.schema, separators=(",", ":"))
        return [
            {"role": "system", "content": f"Extract the record as JSON that follows this schema: {schema}"},
            {"role": "user", "content": self.text},
        ]


def _text(max_length: int = 60) -> dict[str, Any]:
    return {"type": "string", "maxLength": max_length}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _list(items: Mapping[str, Any], min_items: int = 1, max_items: int = 4) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "minItems": min_items, "maxItems": max_items}


def _record(optional: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


NUMBER, INTEGER, YES_NO = {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
DATE = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}
TIME = {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"}

TASKS = (
    Task(
        "Invoice 2026-0417 from Halden Timber, dated 2026-03-09: 12 oak boards at 18.50 and 2 tins of oil at 9.90.",
        _record(
            number=_text(20),
            seller=_text(),
            date=DATE,
            lines=_list(_record(item=_text(), count=INTEGER, price=NUMBER)),
        ),
    ),
    Task(
        "Bergen, Tuesday 14:00: 7.5 degrees, light rain, wind from the south-west at 9 m/s, humidity 88 percent.",
        _record(
            place=_text(),
            time=TIME,
            temperature=NUMBER,
            sky=_one_of("clear", "clouds", "rain", "snow", "fog"),
            wind=_record(speed=NUMBER, direction=_one_of("N", "NE", "E", "SE", "S", "SW", "W", "NW")),
            humidity=INTEGER,
        ),
    ),
    Task(
        "You can reach Dr. Amina Osei, head of cardiology, under +233 30 555 0142 or amina.osei@example.org.",
        _record(name=_text(), role=_text(), phone=_text(24), email=_text()),
    ),
    Task(
        "Sensor th-17 in the cold store reported 3.9 degrees at 06:45 and its battery is down to 21 percent.",
        _record(sensor=_text(16), place=_text(), value=NUMBER, unit=_one_of("C", "F", "K"), time=TIME, battery=INTEGER),
    ),
    Task(
        "The printer on floor 3 shows a paper jam again although the tray is empty. It is urgent, payroll is today.",
        _record(device=_text(), problem=_text(), floor=INTEGER, priority=_one_of("low", "normal", "high", "urgent")),
    ),
    Task(
        "Train IC 873 leaves Basel at 11:04 from platform 7 and arrives in Milan at 15:35, about ten minutes late.",
        _record(
            train=_text(12),
            start=_record(station=_text(), time=TIME),
            end=_record(station=_text(), time=TIME),
            platform=INTEGER,
            late=INTEGER,
        ),
    ),
    Task(
        "Pancakes for two: 150 g flour, 2 eggs, 300 ml milk and a pinch of salt. Rest it for 20 minutes, then fry.",
        _record(
            dish=_text(),
            serves=INTEGER,
            ingredients=_list(_record(name=_text(), amount=NUMBER, unit=_text(12)), max_items=6),
            minutes=INTEGER,
        ),
    ),
    Task(
        "Order 55 for table 4: one lentil soup, two glasses of water, no onions please, to be paid by card.",
        _record(
            table=INTEGER,
            items=_list(_record(name=_text(), count=INTEGER)),
            wishes=_list(_text(), min_items=0),
            payment=_one_of("cash", "card"),
        ),
    ),
    Task(
        "For sale: a red bicycle, 28 inch, bought in 2021, two new tyres, 240 euros, only to be fetched in Ghent.",
        _record(
            optional=("year",), item=_text(), colour=_text(20), year=INTEGER, price=NUMBER, place=_text(), ships=YES_NO
        ),
    ),
    Task(
        "Meeting on 2026-05-21 from 09:30 to 10:15 in room Kestrel with Ines, Tom and Rahul about the spring budget.",
        _record(date=DATE, start=TIME, end=TIME, room=_text(), people=_list(_text(), max_items=6), topic=_text()),
    ),
    Task(
        "The tank holds 1,200 litres, is filled to 35 percent and loses 4 litres an hour since the valve was hit.",
        _record(capacity=NUMBER, level=NUMBER, leak=_record(rate=NUMBER, unit=_text(16), cause=_text()), alarm=YES_NO),
    ),
    Task(
        "Build 4821 of branch release failed after 312 seconds: 3 of 940 tests failed, all in the parser.",
        _record(
            build=INTEGER,
            branch=_text(),
            status=_one_of("passed", "failed", "cancelled"),
            seconds=INTEGER,
            tests=_record(total=INTEGER, failed=INTEGER),
            where=_list(_text()),
        ),
    ),
    Task(
        "Flight LX 38 is delayed to 18:20, gate B42, because of fog in San Francisco; passengers get a voucher.",
        _record(flight=_text(10), departure=TIME, gate=_text(6), reason=_text(), voucher=YES_NO),
    ),
    Task(
        "Great headphones, light and loud enough, but the left cushion came off after a month. Three stars of five.",
        _record(
            product=_text(),
            stars={"enum": [1, 2, 3, 4, 5]},
            good=_list(_text()),
            bad=_list(_text()),
            mood=_one_of("positive", "mixed", "negative"),
        ),
    ),
    Task(
        "Turn the living room lights to 40 percent, warm white, at 20:30 and lock the front door.",
        _record(
            actions=_list(
                _record(
                    optional=("level", "time"),
                    device=_text(),
                    action=_one_of("on", "off", "dim", "lock", "unlock"),
                    level=INTEGER,
                    time=TIME,
                )
            )
        ),
    ),
    Task(
        "Parcel 7734-A left Rotterdam on 2026-02-11, weighs 3.2 kg and is expected in Turin within four days.",
        _record(
            parcel=_text(16), sent=DATE, origin=_text(), target=_text(), weight=NUMBER, days=INTEGER, delivered=YES_NO
        ),
    ),
    Task(
        "Patient 0091, aged 54, blood pressure 142 over 91, pulse 78, complains about headaches since Monday.",
        _record(
            patient=_text(12),
            age=INTEGER,
            pressure=_record(upper=INTEGER, lower=INTEGER),
            pulse=INTEGER,
            complaints=_list(_text()),
        ),
    ),
    Task(
        "The library lends 'The Left Hand of Darkness' by Ursula K. Le Guin, 1969, two copies, one of them on loan.",
        _record(title=_text(), author=_text(), year=INTEGER, copies=_record(total=INTEGER, lent=INTEGER)),
    ),
    Task(
        "Pump 2 stopped at 03:12 with error E-207, overheated; it ran again at 03:40 after the filter was cleaned.",
        _record(
            machine=_text(),
            error={"type": "string", "pattern": "^[A-Z]-[0-9]{3}$"},
            stopped=TIME,
            resumed=TIME,
            cause=_text(),
            repair=_text(),
        ),
    ),
    Task(
        "Room 12 is free from Friday for three nights at 89 francs a night, breakfast included, no pets.",
        _record(
            room=INTEGER,
            day=_one_of("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
            nights=INTEGER,
            price=_record(amount=NUMBER, currency={"type": "string", "pattern": "^[A-Z]{3}$"}),
            breakfast=YES_NO,
            pets=YES_NO,
        ),
    ),
)
