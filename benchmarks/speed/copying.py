"""Chats whose answers repeat much of their prompt: code to edit, text to quote, tables to change."""

from __future__ import annotations

__all__ = ["CHATS"]

_CODE = '''\
class Thermostat:
    """Keeps a room between two temperatures."""

    def __init__(self, heater, sensor, low=18.0, high=21.0):
        self.heater = heater
        self.sensor = sensor
        self.low = low
        self.high = high
        self.history = []

    def step(self):
        temperature = self.sensor.read()
        self.history.append(temperature)
        if temperature < self.low:
            self.heater.on()
        elif temperature > self.high:
            self.heater.off()
        return temperature

    def average(self, count=10):
        recent = self.history[-count:]
        return sum(recent) / len(recent) if recent else None
'''

_MINUTES = """\
The harbour committee met on the evening of the fourth of March. The eastern pier will be closed from the tenth of April
until the end of May, because four of its piles have to be replaced before the summer. During this time the ferries to
the islands leave from the northern quay, and the fish market moves to the square in front of the customs house. The
fishermen asked for a second crane; the committee will decide about it in June, when the costs of the piles are known.
The proposal to light the breakwater at night was refused with five votes to two, since it would disturb the birds that
nest there. The next meeting takes place on the first of April at seven in the evening.
"""

_TABLE = """\
name,place,height_m,built,lamp
Skerry Point,Aldwick,31,1862,LED
Grey Head,Morvay,44,1901,halogen
The Needle,Port Ansel,27,1878,LED
Low Sands,Brennick,19,1955,LED
North Ness,Aldwick,38,1889,halogen
"""

_CONFIG = """\
server:
  host: 0.0.0.0
  port: 8080
  workers: 4
database:
  host: db.example.org
  port: 5432
  name: orders
  pool_size: 10
logging:
  level: info
  file: /var/log/orders.log
  rotate_mb: 50
"""

CHATS = tuple(
    [{"role": "user", "content": content}]
    for content in (
        f"Rename `heater` to `boiler` everywhere in this class and answer with the whole class only.\n\n{_CODE}",
        f"Sum these minutes up in one sentence, then quote what they say about pier and ferries.\n\n{_MINUTES}",
        f"Change the lamp of every lighthouse in Aldwick to LED and answer with the whole table only.\n\n{_TABLE}",
        f"Set the port of the server to 9090 and the log level to debug, and answer with the whole file.\n\n{_CONFIG}",
    )
)
