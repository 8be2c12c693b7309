"""What edgekit needs on a Jetson has wheels for it: nothing is compiled on the device."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PYPROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
EXTRAS = ("daemon", "tensorrt", "onnxruntime")


def listed(key: str) -> list[Requirement]:
    """A list of requirements in pyproject.toml; with its comments it is a list of Python's too."""
    match = re.search(rf"^{key} = (\[.*?\])$", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert match is not None, key
    return [Requirement(text) for text in ast.literal_eval(match[1])]


def required(key: str) -> list[Requirement]:
    """The same with what our own extras stand for."""
    found = []
    for requirement in listed(key):
        if requirement.name == "edgekit-llm":
            found += [inner for extra in requirement.extras for inner in required(extra)]
        else:
            found.append(requirement)
    return found


def applies(requirement: Requirement, python: str, extra: str = "") -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.12",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "aarch64",
        "extra": extra,
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def resolve(requirements: set[str], python: str, glibc: int, folder: Path) -> dict[str, dict[str, object]]:
    """Have pip resolve them for 64-bit Arm; returns each package's metadata."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1))]
    tag = f"cp{python.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--target", str(folder / "target"), "--report", str(folder / "report.json"), "--only-binary", ":all:"]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for abi in (tag, "abi3", "none") for word in ("--abi", abi)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *sorted(requirements)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    return {item["metadata"]["name"].lower(): item["metadata"] for item in report["install"]}


# The Python and the C library of Ubuntu 22.04 (JetPack 6) and 24.04 (JetPack 7).
@pytest.mark.parametrize(("python", "glibc"), [("3.10", 35), ("3.12", 39)])
def test_every_dependency_has_a_wheel_for_a_jetsons_python(python: str, glibc: int, tmp_path: Path) -> None:
    direct = [item for key in ("dependencies", *EXTRAS) for item in required(key)]
    requirements = {without_marker(item) for item in direct if applies(item, python)}
    assert len(requirements) > 10
    while True:
        resolved = resolve(requirements, python, glibc, tmp_path)
        # pip evaluates the markers of dependencies for the Python that it runs in; so they are evaluated here.
        missing = set()
        for metadata in resolved.values():
            for text in metadata.get("requires_dist", []):  # type: ignore[attr-defined]
                item = Requirement(text)
                if applies(item, python) and item.name.lower() not in resolved:
                    missing.add(without_marker(item))
        if missing <= requirements:
            break
        requirements |= missing
    assert {"numpy", "tokenizers", "pydantic", "onnxruntime"} <= set(resolved)
