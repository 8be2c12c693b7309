"""Finding Optimum's environment, the errors when it is missing, and its installation."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, ExportError
from edgekit.export.optimum import env
from edgekit.export.optimum.exporter import export_graph
from tests.cli.test_errors import refused
from tests.conftest import edgekit
from tests.models import tiny_checkpoint

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _a_machine_without_optimum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEKIT_OPTIMUM_PYTHON", raising=False)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def wheel(folder: Path, version: str) -> str:
    """Make a wheel with one module, which pip installs without a network, and return it as a requirement."""
    name = f"edgekit_tests_probe-{version}"
    info = f"{name}.dist-info"
    files = {
        "edgekit_tests_probe.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgekit-tests-probe\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{info}/RECORD,,"]
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{member},sha256={digest},{len(text)}")
            archive.writestr(member, text)
        archive.writestr(f"{info}/RECORD", "\n".join(lines) + "\n")
    return f"edgekit-tests-probe @ {path.as_uri()}"


def probe(python: Path) -> str:
    command = [str(python), "-c", "import edgekit_tests_probe; print(edgekit_tests_probe.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_the_environment_the_error_names_the_command_that_creates_it(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model")
    stderr = refused("export", source, "--target", "cpu", "--exporter", "optimum", "-o", tmp_path / "out", status=1)
    assert "Optimum is not installed" in stderr
    assert "hint: edgekit optimum install" in stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(EdgekitError) as caught:
        env.optimum_python()
    assert caught.value.code == "missing_optimum"


def test_a_variable_that_does_not_name_a_program_is_an_error_and_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(EdgekitError, match="/python, which is not a program") as caught:
        env.optimum_python()
    assert caught.value.code == "missing_optimum"


def test_an_interpreter_that_has_no_torch_is_named_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", str(python))
    source = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(EdgekitError, match="has no `onnx`") as caught:
        export_graph(source, {"model_type": "qwen2"}, tmp_path)
    assert caught.value.code == "missing_optimum"
    assert str(python) in caught.value.message


def test_a_program_that_is_not_python_is_not_blamed_on_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", "/bin/false")
    with pytest.raises(ExportError, match="crashed"):
        export_graph(tiny_checkpoint(tmp_path / "model"), {"model_type": "qwen2"}, tmp_path)


def test_the_environment_is_created_once_and_again_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, old, new = env.default_folder(), wheel(tmp_path, "1.0"), wheel(tmp_path, "2.0")
    monkeypatch.setattr(env, "requirements", lambda: (old,))
    python = env.install(folder)
    assert probe(python) == "1.0"
    assert env.optimum_python() == python
    stamp = folder / "edgekit-requirements.txt"
    before = stamp.stat().st_mtime_ns
    assert env.install(folder) == python
    assert stamp.stat().st_mtime_ns == before

    monkeypatch.setattr(env, "requirements", lambda: (new,))
    with pytest.raises(EdgekitError, match="made for another version of edgekit") as caught:
        env.optimum_python()
    assert (caught.value.code, caught.value.hint) == ("missing_optimum", "edgekit optimum install")
    assert probe(env.install(folder)) == "2.0"


def test_an_installation_that_failed_does_not_count_as_complete_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = wheel(tmp_path, "1.0")
    monkeypatch.setattr(env, "requirements", lambda: (f"edgekit-tests-probe @ {(tmp_path / 'no.whl').as_uri()}",))
    with pytest.raises(ExportError, match="pip could not install") as caught:
        env.install(env.default_folder())
    assert caught.value.code == "install_failed"
    with pytest.raises(EdgekitError, match="Optimum is not installed"):
        env.optimum_python()
    monkeypatch.setattr(env, "requirements", lambda: (good,))
    assert probe(env.install(env.default_folder())) == "1.0"


@pytest.mark.parametrize("name", ["cat.jpg", "pyvenv.cfg", "edgekit-requirements.txt"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    # A Python environment of the user's is something else too.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(b"cat")
    done = edgekit("optimum", "install", "--folder", tmp_path / "photos", check=False)
    assert done.returncode == 1
    assert "is not empty, and no Optimum environment" in done.stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == [name]
    assert (tmp_path / "photos" / name).read_bytes() == b"cat"


def test_replacing_the_environment_removes_links_in_it_and_not_their_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "requirements", lambda: (wheel(tmp_path, "1.0"),))
    env.install(tmp_path / "env")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "env" / "lib" / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "env" / "share").symlink_to(tmp_path / "photos")
    monkeypatch.setattr(env, "requirements", lambda: (wheel(tmp_path, "2.0"),))
    assert probe(env.install(tmp_path / "env")) == "2.0"
    assert not (tmp_path / "env" / "lib" / "link").is_symlink()
    assert not (tmp_path / "env" / "share").is_symlink()
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_an_environment_with_a_users_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "requirements", lambda: (wheel(tmp_path, "1.0"),))
    python = env.install(tmp_path / "env")
    (tmp_path / "env" / "notebooks").mkdir()
    (tmp_path / "env" / "notebooks" / "results.csv").write_bytes(b"1,2")
    monkeypatch.setattr(env, "requirements", lambda: (wheel(tmp_path, "2.0"),))
    with pytest.raises(ExportError, match="has notebooks, which is not of the environment"):
        env.install(tmp_path / "env")
    assert (tmp_path / "env" / "notebooks" / "results.csv").read_bytes() == b"1,2"
    assert probe(python) == "1.0"


def test_the_packages_are_the_extra_of_edgekits_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["click>=8.1", 'onnx>=1.18; extra == "export"', 'torch==2.13.0; extra == "optimum"', "optimumx"]
    monkeypatch.setattr(env, "requires", lambda _: stated)
    assert env.requirements() == ("torch==2.13.0",)


def test_the_extra_pins_every_package_exactly() -> None:
    # edgekit calls functions of the exporter that a newer release may change, and depends on the graphs it writes.
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    line = re.search(r"^optimum = \[(.*)\]$", text, re.MULTILINE)
    assert line is not None
    entries = re.findall(r'"([^"]+)"', line[1])
    assert {entry.partition("==")[0] for entry in entries} == {"optimum-onnx", "torch", "transformers"}
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", entry) for entry in entries)
