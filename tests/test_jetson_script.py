"""`scripts/jetson`, on trees that look like a Jetson's, with a `uname` and a TensorRT that look like one's."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.jetson.tree import write, write_board, write_nano, write_release

SCRIPT = Path(__file__).parents[1] / "scripts" / "jetson"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Jetson runs Linux")


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Jetson:
    """A Jetson's files, and the programs that the script asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = write_nano(folder / "root")
        self.prefix = folder / "env"
        self.machine("aarch64")
        self.tensorrt("10.3.0")

    def machine(self, name: str) -> None:
        _program(self.folder / "bin/uname", f"echo {name}")

    def tensorrt(self, version: str | None) -> None:
        """What `import tensorrt` finds; None raises ImportError."""
        answer = (
            "echo 'ImportError: libnvinfer.so.10: cannot open shared object file' >&2; exit 1"
            if version is None
            else f"echo a warning >&2; echo {version}; exit 0"
        )
        _program(
            self.folder / "bin/python3",
            f'case "$*" in *"import tensorrt"*) {answer};; esac\nexec {sys.executable} "$@"',
        )

    def run(self, *arguments: str, answer: str = "", **more: str) -> tuple[int, str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.folder / "bin/python3"),
            "JETSON_ROOT": str(self.root),
            **more,
        }
        command = [str(SCRIPT), "--prefix", str(self.prefix), *arguments]
        done = subprocess.run(command, env=environment, input=answer, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def jetson(tmp_path: Path) -> Jetson:
    return Jetson(tmp_path)


def test_on_a_jetson_with_everything_the_commands_are_shown_and_nothing_is_changed(jetson: Jetson) -> None:
    status, output = jetson.run("--check")
    assert status == 0, output
    for found in ("Orin Nano", "L4T 36.4", "TensorRT 10.3.0", "free"):
        assert found in output
    assert f"-m venv --system-site-packages {jetson.prefix}\n" in output
    assert "[daemon,tensorrt]" in output
    assert "missing" not in output
    assert not jetson.prefix.exists()


def test_without_a_yes_nothing_is_changed(jetson: Jetson) -> None:
    for answer in ("", "\n", "n\n"):
        status, output = jetson.run(answer=answer)
        assert (status, output.endswith("Nothing was changed.\n")) == (1, True), output
    assert not jetson.prefix.exists()


@pytest.mark.parametrize(
    ("change", "missing", "mend"),
    [
        (lambda jetson: jetson.machine("x86_64"), "this is x86_64", "run this on the Jetson"),
        (lambda jetson: write_board(jetson.root, "Xavier\0", "nvidia,tegra194\0"), "no Jetson Orin", "README.md"),
        (lambda jetson: write_release(jetson.root, "36.3.0"), "L4T 36.3 is older", "flash JetPack 6.2"),
        (lambda jetson: write_release(jetson.root, "35.4.1"), "L4T 35.4 is older", "flash JetPack 6.2"),
        (lambda jetson: jetson.tensorrt(None), ": ImportError: libnvinfer.so.10: cannot", "apt install nvidia-jetpack"),
        (lambda jetson: jetson.tensorrt("8.6.2"), "TensorRT 8.6.2; 10.3", "flash JetPack 6.2"),
        (lambda jetson: write(jetson.prefix, "file", "mine"), "is no virtual environment", "--prefix"),
        (lambda jetson: write(jetson.prefix, "pyvenv.cfg", "x = y"), "does not see JetPack's TensorRT", "--prefix"),
    ],
)
def test_what_is_missing_comes_with_what_to_do_and_nothing_is_changed(
    jetson: Jetson, change: object, missing: str, mend: str
) -> None:
    assert callable(change)
    change(jetson)
    before = sorted(jetson.folder.rglob("*"))
    status, output = jetson.run("--yes")
    assert status == 1, output
    (line,) = [number for number, text in enumerate(output.splitlines()) if text.startswith("  missing")]
    assert missing in output.splitlines()[line]
    assert mend in output.splitlines()[line + 1]
    assert output.endswith("Nothing was changed.\n")
    assert sorted(jetson.folder.rglob("*")) == before


@pytest.mark.parametrize("release", ["36.4.3", "38.4.0", "39.2.1", "41.0.0"])
def test_newer_releases_are_accepted(jetson: Jetson, release: str) -> None:
    write_release(jetson.root, release)
    assert jetson.run("--check")[0] == 0


def test_a_folder_without_our_wheel_is_refused(jetson: Jetson, tmp_path: Path) -> None:
    status, output = jetson.run("--wheels", str(tmp_path))
    assert (status, "no edgekit_llm-*.whl" in output) == (1, True)


@pytest.mark.parametrize("arguments", [["--bogus"], ["--wheels"]])
def test_a_wrong_option_is_refused(jetson: Jetson, arguments: list[str]) -> None:
    assert jetson.run(*arguments)[0] == 2


def _wheel(folder: Path, version: str, *, numpy: str) -> None:
    """A stand-in for edgekit's wheel: its program, and a `tensorrt` and a `numpy` beside it."""
    info = f"edgekit_llm-{version}.dist-info"
    files = {
        "edgekit_stub.py": 'def main():\n    print("doctor was asked")\n',
        "tensorrt.py": '__version__ = "10.3.0"\n',
        "numpy.py": numpy,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: edgekit-llm\nVersion: {version}\n"
            "Provides-Extra: daemon\nProvides-Extra: tensorrt\n"
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgekit = edgekit_stub:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"edgekit_llm-{version}-py3-none-any.whl", "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)


def test_the_environment_is_made_and_later_upgraded_and_its_numpy_is_checked(jetson: Jetson, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    def install(version: str, numpy: str) -> tuple[int, str]:
        _wheel(wheels, version, numpy=numpy)
        return jetson.run("--wheels", str(wheels), answer="y\n", PIP_NO_INDEX="1", PIP_NO_DEPS="1")

    status, output = install("1.0", '__version__ = "2.1"\n')
    assert status == 0, output
    assert "numpy 2.1 of the environment, TensorRT 10.3.0 of JetPack" in output
    assert "doctor was asked" in output
    assert "include-system-site-packages = true" in (jetson.prefix / "pyvenv.cfg").read_text()
    status, output = install("1.1", '__version__, __file__ = "1.21", "/usr/lib/x"\n')
    assert status == 1, output
    assert "-m venv" not in output
    assert "error: numpy 1.21 of /usr/lib/x hides" in output


def test_the_page_shows_the_commands_that_the_script_runs(jetson: Jetson, tmp_path: Path) -> None:
    (tmp_path / "edgekit_llm-1.0-py3-none-any.whl").touch()
    page = (SCRIPT.parents[1] / "docs/jetson.md").read_text(encoding="utf-8")
    status, output = jetson.run("--check", "--wheels", str(tmp_path))
    assert status == 0, output
    shown = output.split("Commands:\n")[1].splitlines()
    assert len(shown) == 2
    for line in shown:
        typed = line.strip().replace(str(jetson.prefix), "/opt/edgekit").replace(str(tmp_path), ".")
        typed = typed.replace("./bin/python3", "/usr/bin/python3")
        typed = typed.replace("edgekit-llm[daemon,tensorrt]", "'edgekit-llm[daemon,tensorrt]'")
        assert f"    sudo {typed}\n" in page


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_a_check_without_sudo_does_not_ask_for_a_folder_that_only_root_may_write() -> None:
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        jetson = Jetson(folder)
        shutil.copy(SCRIPT, folder / "jetson")
        (folder / "edgekit_llm-1.0-py3-none-any.whl").touch()
        command = [str(folder / "jetson"), "--prefix", "/opt/edgekit-of-a-test", "--wheels", name]
        # Python itself may lie in a folder of root's: only the script's questions to it are answered.
        _program(folder / "bin/python3", "echo 10.3.0")
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(folder / "bin/python3"),
            "JETSON_ROOT": str(jetson.root),
        }

        def run(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(
                [*command, *arguments], env=environment, user=65534, capture_output=True, text=True, check=False
            )
            return done.returncode, done.stdout + done.stderr

        status, output = run("--check")
        assert status == 0, output
        assert "/opt is not writable" in output
        assert "install with sudo" in output
        status, output = run("--yes")
        assert status == 1, output
        assert "run this with sudo" in output
        assert output.endswith("Nothing was changed.\n")
