from __future__ import annotations

from edgekit.daemon.mqtt.receipts import Receipts


def test_messages_are_acknowledged_in_the_order_in_which_they_came() -> None:
    receipts, sent = Receipts(), list[int]()

    def send(mid: int, _qos: int) -> None:
        sent.append(mid)

    one, two, three = (receipts.add(mid, 1) for mid in (1, 2, 3))
    receipts.settle(two, send)
    receipts.settle(three, send)
    assert sent == []
    receipts.settle(one, send)
    assert sent == [1, 2, 3]
    four = receipts.add(4, 1)
    receipts.clear()
    receipts.settle(four, send)
    assert sent == [1, 2, 3]
