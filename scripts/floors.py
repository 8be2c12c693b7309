"""Prints pip constraints that pin every dependency to the oldest version that pyproject.toml allows.

    python scripts/floors.py export,onnxruntime,daemon,test > constraints.txt

Needs pip only, for the parsers inside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def read_project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project


def requirements(extras: list[str], project: dict[str, Any]) -> Iterator[Requirement]:
    """Yield the base dependencies and those of extras, following the project's own extras that they name.

    Raises:
        KeyError: There is no such extra.
    """
    lines, waiting, seen = [*project["dependencies"]], [*extras], set[str]()
    while lines or waiting:
        for requirement in map(Requirement, lines):
            if canonicalize_name(requirement.name) == canonicalize_name(project["name"]):
                waiting += sorted(requirement.extras)
            else:
                yield requirement
        lines = []
        if waiting and (extra := waiting.pop()) not in seen:
            seen.add(extra)
            lines = project["optional-dependencies"][extra]


def floor(requirement: Requirement) -> Version:
    """Return the oldest version that a requirement allows.

    Raises:
        ValueError: It has no lower bound, or one that is no version (`>`, `~=`, `==1.*`).
    """
    bounds = [clause.version for clause in requirement.specifier if clause.operator in {">=", "=="}]
    if len(bounds) != 1 or bounds[0].endswith("*"):
        raise ValueError(f"`{requirement}` in pyproject.toml needs a lower bound: {requirement.name}>=VERSION")
    return Version(bounds[0])


def floors(extras: list[str], project: dict[str, Any]) -> dict[str, Version]:
    """Return the oldest allowed version of every dependency that this machine and this Python need.

    A dependency may have a higher bound for some machines or Pythons; the highest that applies counts.

    Raises:
        KeyError: There is no such extra.
        ValueError: A dependency has no lower bound.
    """
    found: dict[str, Version] = {}
    for requirement in requirements(extras, project):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            name = canonicalize_name(requirement.name)
            found[name] = max(floor(requirement), found.get(name, Version("0")))
    return found


def main() -> None:
    """Print the constraints for the extras named on the command line."""
    try:
        found = floors(sys.argv[1].split(","), read_project())
    except (KeyError, ValueError) as error:
        sys.exit(f"error: {error}")
    for name, version in sorted(found.items()):
        print(f"{name}=={version}")  # noqa: T201


if __name__ == "__main__":
    main()
