"""A library that is installed and cannot be imported is one line and a command, whichever verb meets it first."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import RunnerError, first_line, import_failure
from edgekit.runners.candidates import Candidate, Offer
from edgekit.runners.tensorrt import library
from tests.conftest import edgekit_command
from tests.generation.bundles import tiny_bundle

REINSTALL = f"{sys.executable} -m pip install --force-reinstall numpy"


@pytest.fixture(scope="module")
def broken_numpy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with numpy as it is installed, without the extension module that it is built on."""
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("broken")
    ignored = shutil.ignore_patterns("tests", "_multiarray_umath*", "__pycache__", "f2py")
    shutil.copytree(Path(spec.origin).parent, folder / "numpy", ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("tiny"), "onnx")


def run(broken: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (broken, root)))}
    return subprocess.run(
        edgekit_command(*arguments), capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.mark.parametrize("verb", [["run", "BUNDLE", "hi"], ["verify", "BUNDLE", "--run"], ["bench", "BUNDLE"]])
def test_a_numpy_that_cannot_be_imported_is_an_error_of_one_line(
    verb: list[str], broken_numpy: Path, bundle: Path
) -> None:
    done = run(broken_numpy, *(bundle if word == "BUNDLE" else word for word in verb))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("error: `numpy` is installed and cannot be imported: No module named")
    assert lines[1:] == ["", f"hint: {REINSTALL}"]


def test_doctor_says_in_one_line_that_numpy_cannot_be_imported(broken_numpy: Path) -> None:
    done = run(broken_numpy, "doctor", "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["CPU kernels"]
    assert found["state"] == "missing"
    assert found["fix"] == REINSTALL
    assert "\n" not in found["detail"]
    assert "cannot be imported: No module named" in found["detail"]


def test_the_reason_of_an_import_is_that_of_the_library_that_failed() -> None:
    reason = ImportError("libx.so.1: cannot open shared object file")
    page = ImportError("\n\nIMPORTANT: PLEASE READ THIS\n\nmany lines")
    page.__cause__ = reason
    assert first_line(page) == "libx.so.1: cannot open shared object file"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_a_library_that_is_too_old_is_named_and_edgekits_own_mistakes_are_not() -> None:
    with pytest.raises(ImportError) as found:
        exec("from json import no_such_name", {"__name__": "edgekit.own"})  # noqa: S102  in a module of that name
    failure = import_failure(found.value, "text")
    assert failure is not None
    assert failure.message.startswith("`json` is installed and cannot be imported: cannot import name 'no_such_name'")
    with pytest.raises(ImportError) as own:
        exec("from edgekit.errors import no_such_name", {"__name__": "edgekit.own"})  # noqa: S102  in a module of that name
    assert import_failure(own.value, "text") is None


def test_the_next_runner_is_tried_if_the_library_of_the_first_cannot_be_imported() -> None:
    def fail(_folder: Path, _dialect: str) -> Offer:
        exec("raise ImportError('libcudart.so.12: cannot open')", {"__name__": "onnxruntime.capi"})  # noqa: S102  in a module of that name
        raise AssertionError

    candidate = Candidate("cuda", "onnxruntime with CUDA", "onnxruntime-gpu", fail)
    with pytest.raises(Exception, match="`onnxruntime` is installed and cannot be imported: libcudart") as found:
        candidate.offer(Path(), "portable")
    assert getattr(found.value, "code", None) == "broken_library"
    assert not isinstance(found.value, RunnerError)


def test_a_tensorrt_without_its_libraries_is_not_called_uninstalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(library, "_MODULES", ("tensorrt",))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(Exception, match="`tensorrt` is installed and cannot be imported: libnvinfer") as found:
        library.find_library("tensorrt")
    assert getattr(found.value, "code", None) == "broken_library"
    (tmp_path / "tensorrt.py").unlink()
    with pytest.raises(Exception, match="tensorrt") as absent:
        library.find_library("tensorrt")
    assert getattr(absent.value, "code", None) == "missing_extra"
