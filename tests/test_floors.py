"""Every dependency has a lower bound, and `scripts/test --floors` installs the versions that the bounds name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from floors import PYPROJECT, floor, floors, read_project, requirements
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "floors.py"

# Programs for an environment of their own.
CLIENTS = ROOT / "tests" / "clients" / "programs"

# Extras that `scripts/test --floors` leaves out.
LEFT_OUT = {
    "dev": "checks the code and does not run it",
    "mlx": "mlx-lm moves with mlx, and both with Apple's systems",
    "onnxruntime-gpu": "needs a GPU; its version is onnxruntime's",
    "optimum": "one version each, in an environment of its own",
    "tensorrt": "JetPack brings it",
    "tensorrt-rtx": "one version each",
}
# Modules whose names are not those of their distributions.
DISTRIBUTIONS = {
    "cuda": "cuda-bindings",
    "optimum": "optimum-onnx",
    "paho": "paho-mqtt",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu12-bindings",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
# Imported without being declared.
UNDECLARED = {
    "certifi": "with huggingface-hub; edgekit does without it",
    "pydantic_core": "each pydantic needs one version of it",
    "typing_extensions": "for type checkers only",
}


def extras_of_the_script() -> list[str]:
    (found,) = re.findall(r"setup (\S+) \.venv-floors", (ROOT / "scripts" / "test").read_text(encoding="utf-8"))
    return str(found).split(",")


def declared() -> Iterator[tuple[str, Requirement]]:
    """Each dependency in pyproject.toml with the list that names it."""
    project = read_project()
    yield from (("dependencies", Requirement(line)) for line in project["dependencies"])
    for extra, lines in project["optional-dependencies"].items():
        yield from (
            (extra, requirement) for requirement in map(Requirement, lines) if requirement.name != "edgekit-llm"
        )
    (build,) = re.findall(r'^requires = \["(\S+)"\]$', PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    yield "build-system", Requirement(build)


def imported(*folders: str) -> dict[str, Path]:
    """The libraries that the files in these folders import, with one of the files."""
    found: dict[str, Path] = {}
    for path in (file for folder in folders for file in (ROOT / folder).rglob("*.py") if CLIENTS not in file.parents):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[node.module.partition(".")[0]] = path
    ours = {"benchmarks", "edgekit", "tests"} | {path.stem for path in (ROOT / "scripts").glob("*.py")}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | ours}


def test_extras_are_followed_and_dependencies_of_other_machines_left_out() -> None:
    project = {
        "name": "kit",
        "dependencies": ["base>=1.2"],
        "optional-dependencies": {
            "all": ["Kit[some]", "pinned==3.1.4", "range>=2,<3"],
            "some": ["kit[all]", "elsewhere>=9; sys_platform == 'none'", "A_name>=0.1; python_version >= '3'"],
            "other": ["unwanted>=1"],
        },
    }
    found = {name: str(version) for name, version in floors(["all"], project).items()}
    assert found == {"base": "1.2", "pinned": "3.1.4", "range": "2", "a-name": "0.1"}
    with pytest.raises(KeyError, match="none"):
        floors(["none"], project)


@pytest.mark.parametrize("lines", [["a>=1.9", "a>=1.10; python_version >= '3'"], ["a>=1.10", "a>=1.9"]])
def test_of_two_bounds_the_higher_one_counts(lines: list[str]) -> None:
    found = floors([], {"name": "kit", "dependencies": [*lines, "a>=3; sys_platform == 'none'"]})
    assert str(found["a"]) == "1.10"


@pytest.mark.parametrize(
    "line", ["a", "a<2", "a!=2", "a>1", "a~=1.2", "a==1.*", "a>=1,>=2", "a @ https://a.test/a.whl"]
)
def test_a_dependency_without_a_lower_bound_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="a>=VERSION"):
        floors([], {"name": "kit", "dependencies": [line]})


def test_every_dependency_has_a_lower_bound() -> None:
    for _, requirement in declared():
        floor(requirement)


def test_a_dependency_has_the_same_bounds_wherever_it_is_named() -> None:
    bounds = defaultdict(lambda: defaultdict(set))  # type: ignore[var-annotated]
    for place, requirement in declared():
        bounds[canonicalize_name(requirement.name)][place].add((str(requirement.specifier), str(requirement.marker)))
    for name, places in bounds.items():
        assert len(set(map(frozenset, places.values()))) == 1, f"{name}: {dict(places)}"


def test_every_library_that_is_imported_is_declared() -> None:
    names = {canonicalize_name(requirement.name) for _, requirement in declared()}
    found = imported("edgekit", "export", "tests")
    for module, path in found.items():
        distribution = canonicalize_name(DISTRIBUTIONS.get(module, module))
        assert distribution in names or module in UNDECLARED, f"{path} imports {module}: add it to pyproject.toml"
    assert UNDECLARED.keys() <= found.keys(), "no longer imported"


def test_every_extra_is_tested_with_its_oldest_versions_or_has_a_reason() -> None:
    project = read_project()
    wanted = extras_of_the_script()
    reached, waiting = set[str](), [*wanted]
    while waiting:
        extra = waiting.pop()
        reached.add(extra)
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if requirement.name == project["name"]:
                waiting += requirement.extras - reached
    assert reached.isdisjoint(LEFT_OUT)
    assert reached | LEFT_OUT.keys() == project["optional-dependencies"].keys()


def test_the_script_prints_a_constraint_for_every_dependency() -> None:
    extras = extras_of_the_script()
    done = subprocess.run([sys.executable, SCRIPT, ",".join(extras)], capture_output=True, text=True, check=True)
    printed = dict(line.split("==") for line in done.stdout.split())
    wanted = [one for one in requirements(extras, read_project()) if one.marker is None or one.marker.evaluate()]
    assert printed.keys() == {canonicalize_name(requirement.name) for requirement in wanted}
    assert all(
        requirement.specifier.contains(Version(printed[canonicalize_name(requirement.name)])) for requirement in wanted
    )
