"""Prints, as JSON, what the double claims to have and the real bindings do have: run where they import.

    python describe_bindings.py MODULE CLASS.NAME …

For each name the parameters, in every overload; an empty list for a property; null where it is missing.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module

_LINE = re.compile(r"^(?:\d+\. )?\w+\((.*)\)(?: ->.*)?$")


def main(module: str, *names: str) -> None:
    library, found = import_module(module), {}
    for name in names:
        owner, _, member = name.partition(".")
        value = getattr(getattr(library, owner, None), member, None)
        lines = (getattr(value, "__doc__", None) or "").strip().splitlines()
        matches = [match for match in map(_LINE.match, (line.strip() for line in lines)) if match]
        found[name] = None if value is None else [_parameters(match[1]) for match in matches if "*args" not in match[1]]
    sys.stdout.write(json.dumps(found))


def _parameters(text: str) -> list[str]:
    """Names in `self: tensorrt.Runtime, name: str, shape: tuple = (1, 2)`: those at the beginning and behind commas."""
    plain = re.sub(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>", "", text)
    return [
        part.split(":")[0].strip() for part in plain.split(",") if part.strip() and part.split(":")[0].strip() != "self"
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
