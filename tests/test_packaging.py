from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import edgekit
from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import find_compiler, platform_tag
from edgekit.version import FILE, NEXT_RELEASE
from tests.runners.cpu import small_kernels

REPOSITORY = Path(__file__).parent.parent
KERNELS = f"edgekit/runners/cpu/{build.LIBRARY}"
VERSION = f"edgekit/{FILE}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What packaging reads of this repository, in a writable folder, with kernels that compile at once."""
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


def make_wheel(source: Path, into: Path, **settings: str) -> tuple[Path, str]:
    """Build as pip does for a user; return the wheel and the output."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    done = run([*command, "-w", str(into), str(source)], **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel, done.stdout + done.stderr


def run(command: list[str], cwd: Path = REPOSITORY, /, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these environment variables, and without the user's $CC."""
    env = {key: value for key, value in os.environ.items() if key != "CC"} | settings
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)


def run_python(program: str, *arguments: str | Path, cwd: Path) -> str:
    done = run([sys.executable, "-c", program, *map(str, arguments)], cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tags(wheel: Path) -> tuple[str, str]:
    """The tag in the name, and the lines of the file WHEEL that say what it is for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        lines = archive.read(name).decode().splitlines()
    return wheel.stem.split("-", 2)[2], "; ".join(line for line in lines if line.startswith(("Root", "Tag")))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    """The text of the one file of the wheel whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (found,) = (member for member in archive.namelist() if member.endswith(name))
        return archive.read(found).decode()


def test_a_wheel_built_from_the_source_distribution_has_kernels_that_load_without_edgekit(tmp_path: Path) -> None:
    run_python("import sys, hatchling.build as b; b.build_sdist(sys.argv[1])", tmp_path, cwd=REPOSITORY)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert not (source / KERNELS).exists()
    sources = source / "edgekit/runners/cpu" / build.SOURCES
    assert {file.name for file in sources.iterdir()} == {file.name for file in (build.FOLDER / build.SOURCES).iterdir()}
    # The version of the repository, which the unpacked sources no longer are.
    assert sdist.name == f"edgekit_llm-{edgekit.__version__}.tar.gz"
    assert (source / VERSION).read_text() == f"{edgekit.__version__}\n"
    # The real ones take half a minute to compile, which other tests do.
    shutil.rmtree(sources)
    small_kernels.write(sources.parent)
    wheel, output = make_wheel(source, tmp_path / "wheels")
    assert read(wheel, VERSION) == f"{edgekit.__version__}\n"
    assert f"\nVersion: {edgekit.__version__}\n" in read(wheel, ".dist-info/METADATA")
    compiler = find_compiler()
    assert f"CPU kernels compiled: {', '.join(compiler.variants())}" in output
    tag = f"py3-none-{platform_tag(compiler)}"
    assert tags(wheel) == (tag, f"Root-Is-Purelib: false; Tag: {tag}")
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(KERNELS, tmp_path)
    program = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).ek_best; f.restype = ctypes.c_char_p; print(f().decode())"
    )
    assert run_python(program, path, cwd=tmp_path).strip() in compiler.variants()


def test_pip_takes_the_wheel_for_any_python_of_this_platform(tree: Path, tmp_path: Path) -> None:
    wheel, _ = make_wheel(tree, tmp_path / "wheels")
    for version in ("3.10", "3.13"):
        place = tmp_path / version
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--only-binary=:all:"]
        python = ["--python-version", version, "--implementation", "cp"]
        done = run([*pip, *python, "--platform", platform_tag(find_compiler()), "--target", str(place), str(wheel)])
        assert done.returncode == 0, done.stderr
        assert (place / KERNELS).is_file()
        assert (place / "edgekit/runners/cpu/csrc/kernels.c").is_file(), "to compile on the device"
        assert run_python("import edgekit; print(edgekit.__version__)", cwd=place) == (place / VERSION).read_text()


def test_without_a_compiler_the_wheel_is_for_any_machine_and_says_what_it_lacks(tree: Path, tmp_path: Path) -> None:
    # A library that was compiled in place is for this machine only.
    (tree / KERNELS).write_bytes(b"of this machine")
    wheel, output = make_wheel(tree, tmp_path / "wheels", PATH="")
    assert tags(wheel) == ("py3-none-any", "Root-Is-Purelib: true; Tag: py3-none-any")
    assert KERNELS not in names(wheel)
    assert "built without the CPU kernels, so onnxruntime runs bundles for the CPU" in output
    assert "there is no C compiler: no `cc`, no `gcc`, no `clang`" in output
    assert "apt install gcc libc6-dev" in output


def test_kernels_that_do_not_compile_do_not_stop_an_installation(tree: Path, tmp_path: Path) -> None:
    small_kernels.write(tree / "edgekit/runners/cpu", kernels="#error ouch\n")
    wheel, output = make_wheel(tree, tmp_path / "wheels")
    assert tags(wheel)[0] == "py3-none-any"
    assert KERNELS not in names(wheel)
    assert "built without the CPU kernels" in output
    assert "ouch" in output


def test_a_variant_that_does_not_compile_is_reported_and_the_others_are_in_the_wheel(
    tree: Path, tmp_path: Path
) -> None:
    kernels = "#define IS_plain 1\n" + small_kernels.KERNELS + "#if !NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"
    small_kernels.write(tree / "edgekit/runners/cpu", kernels=kernels)
    wheel, output = make_wheel(tree, tmp_path / "wheels")
    assert tags(wheel)[0] == f"py3-none-{platform_tag(find_compiler())}"
    assert KERNELS in names(wheel)
    assert f"no {next(iter(find_compiler().variants()))} kernels: " in output
    assert "CPU kernels compiled: plain" in output


def test_an_editable_installation_has_the_library_next_to_its_sources(tree: Path, tmp_path: Path) -> None:
    run_python("import sys, hatchling.build as b; b.build_editable(sys.argv[1])", tmp_path, cwd=tree)
    assert not (tree / VERSION).exists(), "the repository says it, as it changes"
    assert build.is_built_from(tree / KERNELS, tree / "edgekit/runners/cpu" / build.SOURCES)
    (wheel,) = tmp_path.glob("*.whl")
    assert tags(wheel)[0] == "py3-none-any"
    assert KERNELS not in names(wheel)


def test_a_release_is_not_built_without_a_compiler_or_with_a_variant_missing(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys, hatchling.build as b; b.build_wheel(sys.argv[1])", str(tmp_path)]
    done = run(command, tree, EDGEKIT_WHEEL_KERNELS="required", PATH="")
    assert "there is no C compiler" in done.stderr
    bad = next(iter(find_compiler().variants()))
    kernels = f"#define IS_{bad} 1\n{small_kernels.KERNELS}\n#if NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"
    small_kernels.write(tree / "edgekit/runners/cpu", kernels=kernels)
    done = run(command, tree, EDGEKIT_WHEEL_KERNELS="required")
    assert f"no {bad} kernels: " in done.stderr
    done = run(command, tree, EDGEKIT_WHEEL_KERNELS="yes")
    assert "$EDGEKIT_WHEEL_KERNELS is `yes`" in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_a_wheel_without_kernels_can_be_asked_for(tree: Path, tmp_path: Path) -> None:
    wheel, _ = make_wheel(tree, tmp_path / "wheels", EDGEKIT_WHEEL_KERNELS="none")
    assert tags(wheel)[0] == "py3-none-any"
    assert KERNELS not in names(wheel)


def test_a_later_build_replaces_an_earlier_one(tree: Path, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = run(["git", *settings, *arguments], tree)
        assert done.returncode == 0, done.stderr

    git("init", "--quiet")
    git("add", ".")
    for name in ("earlier", "later"):
        git("commit", "--quiet", "--allow-empty", "-m", name)
        make_wheel(tree, tmp_path / name, EDGEKIT_WHEEL_KERNELS="none")
    target = tmp_path / "venv"
    venv.create(target, with_pip=False)
    python = str(target / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--upgrade"]
    found = []
    for name in ("earlier", "later"):
        done = run([*pip, "--find-links", str(tmp_path / name), "edgekit-llm"])
        assert done.returncode == 0, done.stderr
        done = run([python, "-I", "-c", "import edgekit; print(edgekit.__version__)"])
        found.append(done.stdout.strip().partition("+")[0])
    assert found == [f"{NEXT_RELEASE}.dev1", f"{NEXT_RELEASE}.dev2"]
