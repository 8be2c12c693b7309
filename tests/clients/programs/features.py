"""Runs what clients have of the features: `features.py URL CLIENT…` prints a JSON object by client and feature.

A client is a module of the folder `features`, and has the features that it has functions for. All are imported into one
process: most of them import openai and pydantic. A function that raises has the value `{"raised": TRACEBACK}`.
"""

import asyncio
import importlib
import json
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path

FEATURES = ("chat", "streaming", "tools", "schema", "errors", "cancelling")


def outcomes(url: str) -> dict[str, int]:
    """Return how many requests have ended so far, by outcome."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:  # noqa: S310  of this machine
        lines = reply.read().decode().splitlines()
    counted = [line.rsplit(" ", 1) for line in lines if line.startswith("edgekit_requests_total{")]
    return {name.partition('outcome="')[2].partition('"')[0]: int(float(count)) for name, count in counted}


def refused(ask: Callable[[], object]) -> object:
    """Return the name of what the client raises, and its text."""
    try:
        return {"returned": ask()}
    except Exception as problem:  # noqa: BLE001  each client has its own
        return [type(problem).__name__, str(problem)]


def cancelled(ask: Callable[[], str], url: str) -> object:
    """Return what had come when the client left the stream, and how the daemon's request ended."""
    from asked import run as wait_for

    before = outcomes(url)
    text, until = ask(), time.monotonic() + 120
    while (after := outcomes(url)) == before and time.monotonic() < until:
        # Asynchronous clients close their connections in the event loop.
        wait_for(asyncio.sleep(0.05))
    return [text, {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name)}]


def run(client: str, feature: str, url: str) -> object:
    try:
        ask = getattr(importlib.import_module(client), feature)
        if feature == "errors":
            return refused(ask)
        return cancelled(ask, url) if feature == "cancelling" else ask()
    except Exception:  # noqa: BLE001  the other clients go on
        return {"raised": traceback.format_exc()[-4000:]}


def main(url: str, *clients: str) -> None:
    sys.path.insert(0, str(Path(__file__).with_name("features")))
    found: dict[str, dict[str, object]] = {}
    for client in clients:
        try:
            has = [feature for feature in FEATURES if hasattr(importlib.import_module(client), feature)]
        except Exception:  # noqa: BLE001  the other clients go on
            has = list(FEATURES)
        found[client] = {feature: run(client, feature, url) for feature in has}
    print(json.dumps(found))


main(*sys.argv[1:])
