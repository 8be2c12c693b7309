from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

ROOT = Path(edgekit.__file__).parents[1]


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_importing_edgekit_imports_nothing_but_the_standard_library() -> None:
    names = python(
        "import sys; before = set(sys.modules)\nimport edgekit\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    ).split()
    assert set(names) - sys.stdlib_module_names == {"edgekit"}


def test_looking_at_its_names_imports_nothing_either() -> None:
    heavy = python("import sys, edgekit; dir(edgekit); edgekit.EdgekitError\nprint('numpy' in sys.modules)")
    assert heavy == "False"


def test_opening_a_bundle_imports_neither_numpy_nor_a_runner() -> None:
    loaded = python(
        "import sys, edgekit; edgekit.open_bundle\nprint({'numpy', 'onnxruntime', 'mlx'} & set(sys.modules))"
    )
    assert loaded == "set()"


@pytest.mark.parametrize("name", edgekit.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(edgekit, name)
    assert value.__module__.startswith("edgekit.")
    assert value.__doc__, name
    assert name in dir(edgekit)


def test_type_checkers_see_the_names_that_are_there_at_run_time() -> None:
    tree = ast.parse(Path(edgekit.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: statement.module
        for statement in typed.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert sorted(imported, key=str) == sorted(edgekit.__all__)
    assert imported == edgekit._HOME_OF


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="`modle`"):
        edgekit.modle  # noqa: B018


def test_export_model_is_the_function_whatever_was_imported_before() -> None:
    # `edgekit.export` is the package; a function of that name would be hidden once the package is imported.
    kind = python("import edgekit, edgekit.export.pipeline\nprint(type(edgekit.export_model).__name__)")
    assert kind == "function"


def test_a_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    printed = python(
        "import sys, edgekit\nsys.modules['pydantic'] = None\n"
        "try:\n    edgekit.load\nexcept edgekit.EdgekitError as error:\n    print(error.code, error.message)\n"
        "    print(error.hint)"
    )
    assert printed.startswith("missing_extra this needs `pydantic`")
    assert "[daemon]" in printed
