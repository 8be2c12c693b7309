from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import find_compiler, platform_tag
from tests.runners.cpu import small_kernels

REPOSITORY = Path(__file__).parent.parent
KERNELS = f"edgekit/runners/cpu/{build.LIBRARY}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What packaging reads of this repository, in a folder that may be written to, and kernels that compile at once."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for folder in ("edgekit", "export", "targets", "systemd"):
        ignored = shutil.ignore_patterns("__pycache__", build.LIBRARY, f".{build.LIBRARY}.*")
        shutil.copytree(REPOSITORY / folder, copy / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"):
        shutil.copy(REPOSITORY / file, copy)
    shutil.rmtree(copy / "edgekit/runners/cpu" / build.SOURCES)
    small_kernels.write(copy / "edgekit/runners/cpu")
    return copy


def make_wheel(source: Path, into: Path, *, path: str | None = None) -> tuple[Path, str]:
    """Build as pip does for a user; return the wheel and what was said."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    done = run([*command, "-w", str(into), str(source)], path=path)
    (wheel,) = into.glob("*.whl")
    return wheel, done.stdout + done.stderr


def run(command: list[str], cwd: Path = REPOSITORY, *, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "CC"}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tags(wheel: Path) -> tuple[str, str]:
    """The tag in the name, and the lines of the file WHEEL that bind it to something."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        lines = archive.read(name).decode().splitlines()
    return wheel.stem.split("-", 2)[2], "; ".join(line for line in lines if line.startswith(("Root", "Tag")))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_made_from_the_source_distribution_has_kernels_that_load_without_edgekit(tmp_path: Path) -> None:
    run([sys.executable, "-c", f"import hatchling.build as b; b.build_sdist({str(tmp_path)!r})"])
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert not (source / KERNELS).exists()
    sources = source / "edgekit/runners/cpu" / build.SOURCES
    assert {file.name for file in sources.iterdir()} == {file.name for file in (build.FOLDER / build.SOURCES).iterdir()}
    # The real ones take half a minute, and are compiled for other tests.
    shutil.rmtree(sources)
    small_kernels.write(sources.parent)
    wheel, said = make_wheel(source, tmp_path / "wheels")
    compiler = find_compiler()
    assert f"CPU kernels compiled: {', '.join(compiler.variants())}" in said
    tag = f"py3-none-{platform_tag(compiler)}"
    assert tags(wheel) == (tag, f"Root-Is-Purelib: false; Tag: {tag}")
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(KERNELS, tmp_path)
    program = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).ek_best; f.restype = ctypes.c_char_p; print(f().decode())"
    )
    assert run([sys.executable, "-I", "-c", program, path]).stdout.strip() in compiler.variants()


def test_pip_takes_the_wheel_for_any_python_of_this_platform(tree: Path, tmp_path: Path) -> None:
    wheel, _ = make_wheel(tree, tmp_path / "wheels")
    for version in ("3.10", "3.13"):
        place = tmp_path / version
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--only-binary=:all:"]
        python = ["--python-version", version, "--implementation", "cp"]
        run([*pip, *python, "--platform", platform_tag(find_compiler()), "--target", str(place), str(wheel)])
        assert (place / KERNELS).is_file()
        assert (place / "edgekit/runners/cpu/csrc/kernels.c").is_file(), "to be compiled on the device"


def test_without_a_compiler_the_wheel_is_for_any_machine_and_says_what_it_lacks(tree: Path, tmp_path: Path) -> None:
    # One that was compiled in place belongs to this machine alone.
    (tree / KERNELS).write_bytes(b"of this machine")
    wheel, said = make_wheel(tree, tmp_path / "wheels", path="")
    assert tags(wheel) == ("py3-none-any", "Root-Is-Purelib: true; Tag: py3-none-any")
    assert KERNELS not in names(wheel)
    assert "built without the CPU kernels, so onnxruntime runs bundles for the CPU" in said
    assert "there is no C compiler: no `cc`, no `gcc`, no `clang`" in said
    assert "apt install gcc libc6-dev" in said


def test_kernels_that_do_not_compile_do_not_stop_an_installation(tree: Path, tmp_path: Path) -> None:
    small_kernels.write(tree / "edgekit/runners/cpu", kernels="#error ouch\n")
    wheel, said = make_wheel(tree, tmp_path / "wheels")
    assert tags(wheel)[0] == "py3-none-any"
    assert KERNELS not in names(wheel)
    assert "built without the CPU kernels" in said
    assert "ouch" in said


def test_one_variant_that_does_not_compile_is_told_and_the_others_are_in_the_wheel(tree: Path, tmp_path: Path) -> None:
    kernels = "#define IS_plain 1\n" + small_kernels.KERNELS + "#if !NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"
    small_kernels.write(tree / "edgekit/runners/cpu", kernels=kernels)
    wheel, said = make_wheel(tree, tmp_path / "wheels")
    assert tags(wheel)[0] == f"py3-none-{platform_tag(find_compiler())}"
    assert KERNELS in names(wheel)
    assert f"no {next(iter(find_compiler().variants()))} kernels: " in said
    assert "CPU kernels compiled: plain" in said


def test_an_editable_installation_has_the_library_next_to_its_sources(tree: Path, tmp_path: Path) -> None:
    program = f"import hatchling.build as b; b.build_editable({str(tmp_path)!r})"
    run([sys.executable, "-c", program], cwd=tree)
    assert build.is_made_of(tree / KERNELS, tree / "edgekit/runners/cpu" / build.SOURCES)
    (wheel,) = tmp_path.glob("*.whl")
    assert tags(wheel)[0] == "py3-none-any"
    assert KERNELS not in names(wheel)
