"""scripts/check_wheel.py passes a good wheel and names what is wrong with any other."""

from __future__ import annotations

import base64
import hashlib
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from build_wheels import TARGETS
from check_wheel import VARIANTS, WheelError, check, read_elf

from edgekit.runners.cpu.build import Compiler, compile_kernels, find_compiler, platform_tag
from tests.runners.cpu import small_kernels

LIBRARY = "edgekit/runners/cpu/_kernels.so"
MACOS = "macosx_11_0_arm64"


def write_wheel(
    folder: Path,
    platform: str,
    library: bytes | None,
    *,
    files: dict[str, bytes | None] | None = None,
    record: Callable[[str], str] = lambda text: text,
) -> Path:
    """Write a wheel of version 1.2.3.

    Args:
        folder: Where.
        platform: Of the tag.
        library: The kernels.
        files: To add, to replace, or to leave out (None).
        record: Changes the file RECORD.
    """
    info = "edgekit_llm-1.2.3.dist-info"
    pure = "true" if platform == "any" else "false"
    wheel = f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\nTag: py3-none-{platform}\n"
    contents: dict[str, bytes | None] = {
        "edgekit/__init__.py": b"",
        "edgekit/VERSION": b"1.2.3\n",
        LIBRARY: library,
        f"{info}/METADATA": b"Metadata-Version: 2.4\nName: edgekit-llm\nVersion: 1.2.3\n",
        f"{info}/WHEEL": wheel.encode(),
        **(files or {}),
    }
    path = folder / f"edgekit_llm-1.2.3-py3-none-{platform}.whl"
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            if data is not None:
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(data)}\n")
                archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record("".join([*lines, f"{info}/RECORD,,\n"])))
    return path


def macho(
    *, cpu: int = 0x0100000C, minimum: int = 11 << 16, needed: str = "/usr/lib/libSystem.B.dylib", signed: bool = True
) -> bytes:
    """A Mach-O header with its load commands, and the stamp of the kernels."""
    name = needed.encode().ljust((len(needed) // 8 + 1) * 8, b"\0")
    commands = [
        struct.pack("<IIIIII", 0x32, 24, 1, minimum, minimum, 0),
        struct.pack("<IIIIII", 0xC, 24 + len(name), 24, 0, 0, 0) + name,
    ]
    if signed:
        commands.append(struct.pack("<IIII", 0x1D, 16, 0, 0))
    header = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, 6, len(commands), sum(map(len, commands)), 0, 0)
    return header + b"".join(commands) + b"edgekit kernels for dotprod plain\n\0"


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """This machine's platform among those published, and a library of the system's compiler that needs no glibc."""
    compiler = find_compiler()
    platform = f"manylinux_2_28_{compiler.machine}"
    if platform not in VARIANTS:
        pytest.skip("wheels for Linux are checked on the processors they are for")
    folder = tmp_path_factory.mktemp("library")
    return platform, compile_kernels(compiler, small_kernels.write(folder), folder / "kernels.so").library.read_bytes()


def test_every_platform_is_built_for_a_target_that_gives_its_tag_and_its_variants() -> None:
    assert TARGETS.keys() == VARIANTS.keys() - {"any"}
    for platform, target in TARGETS.items():
        compiler = Compiler(("zig",), target)
        assert platform_tag(compiler) == platform
        assert tuple(compiler.variants()) == VARIANTS[platform]


def test_good_wheels_pass(linux: tuple[str, bytes], tmp_path: Path) -> None:
    platform, library = linux
    assert ", ".join(VARIANTS[platform]) in check(write_wheel(tmp_path, platform, library))
    assert "macOS 11.0 or later, signed" in check(write_wheel(tmp_path, MACOS, macho()))
    assert "no kernels" in check(write_wheel(tmp_path, "any", None))


def test_the_command_checks_all_files_and_fails_for_a_bad_one(tmp_path: Path) -> None:
    good, bad = write_wheel(tmp_path, "any", None), write_wheel(tmp_path, MACOS, macho(signed=False))
    command = [sys.executable, "-m", "check_wheel", str(good), str(bad)]
    scripts = Path(__file__).parent.parent / "scripts"
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert good.name in done.stdout
    assert done.stderr == f"error: {bad.name}: the library has no code signature, and Apple silicon does not run it\n"


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (macho(cpu=0x01000007), "a library for CPU type 0x1000007, not arm64"),
        (macho(minimum=12 << 16 | 3 << 8), r"needs macOS 12\.3, newer than 11\.0"),
        (macho(needed="/opt/homebrew/lib/libomp.dylib"), "needs /opt/homebrew/lib/libomp.dylib"),
        (macho(signed=False), "no code signature"),
        (macho().replace(b"dotprod plain", b"plain"), "kernels for plain and not dotprod, plain"),
        (macho().replace(b"edgekit kernels for", b"edgekit kernels: no"), "kernels for nothing and not dotprod"),
        (b"edgekit kernels for dotprod plain\n", "not a shared library of 64-bit macOS"),
        (macho()[:40] + b"edgekit kernels for dotprod plain\n", "Apple's platform"),
        (None, "must be .* and no other library, not none"),
    ],
    ids=["processor", "macos", "needed", "unsigned", "variant", "no variants", "no library", "cut short", "missing"],
)
def test_a_library_that_no_mac_runs_is_refused(library: bytes | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(WheelError, match=message):
        check(write_wheel(tmp_path, MACOS, library))


def test_a_library_of_another_processor_or_a_newer_glibc_is_refused(linux: tuple[str, bytes], tmp_path: Path) -> None:
    platform, library = linux
    (other,) = [name for name in VARIANTS if name.startswith("manylinux") and name != platform]
    for_other = library.replace(" ".join(VARIANTS[platform]).encode(), " ".join(VARIANTS[other]).encode())
    with pytest.raises(WheelError, match="a library for machine"):
        check(write_wheel(tmp_path, other, for_other))
    # This machine's glibc has had threads in libc since 2.34.
    dispatch = f"#include <pthread.h>\n{small_kernels.DISPATCH}\nEXPORT void *create(void);\n"
    dispatch += "void *create(void) { return (void *)pthread_create; }\n"
    sources = small_kernels.write(tmp_path, dispatch=dispatch)
    newer = compile_kernels(find_compiler(), sources, tmp_path / "kernels.so").library.read_bytes()
    if read_elf(newer).glibc <= (2, 28):
        pytest.skip("this machine's glibc is older than 2.34")
    with pytest.raises(WheelError, match=r"needs glibc 2\.\d+, newer than 2\.28"):
        check(write_wheel(tmp_path, platform, newer))


def test_a_library_that_needs_another_is_refused(linux: tuple[str, bytes], tmp_path: Path) -> None:
    platform, library = linux
    (tmp_path / "a.c").write_text("int a(void); int a(void) { return 1; }\n")
    command = [*find_compiler().command, "-shared", "-fPIC", "-Wl,-soname,libgomp.so.1", "a.c", "-o", "libgomp.so.1"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "b.c").write_text("int a(void); int b(void); int b(void) { return a(); }\n")
    command = [*find_compiler().command, "-shared", "-fPIC", "b.c", "libgomp.so.1", "-o", "b.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    stamp = library[library.index(b"edgekit kernels for") :].partition(b"\n")[0] + b"\n"
    with pytest.raises(WheelError, match=r"needs libgomp\.so\.1"):
        check(write_wheel(tmp_path, platform, (tmp_path / "b.so").read_bytes() + stamp))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"edgekit/VERSION": b"1.2.4\n"}, "edgekit/VERSION is another version's"),
        ({"edgekit/VERSION": None}, "edgekit/VERSION is missing"),
        ({"edgekit_llm-1.2.3.dist-info/METADATA": b"Name: edgekit\nVersion: 1.2.3\n"}, "METADATA is of edgekit 1.2.3"),
        ({"edgekit_llm-1.2.3.dist-info/METADATA": b"Name: edgekit-llm\nVersion: 2\n"}, "METADATA is of edgekit-llm 2"),
        ({"edgekit_llm-1.2.3.dist-info/METADATA": None}, "METADATA is missing"),
        ({"edgekit_llm-1.2.3.dist-info/WHEEL": b"Root-Is-Purelib: true\nTag: py3-none-x\n"}, "another tag"),
        ({"edgekit_llm-1.2.3.dist-info/WHEEL": b"Root-Is-Purelib: false\nTag: py3-none-any\n"}, "another tag"),
        ({"edgekit/other.so": b""}, "edgekit/other.so is not for any machine"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(files: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(WheelError, match=message):
        check(write_wheel(tmp_path, "any", None, files=files))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda text: text.replace("sha256=", "sha256=A"), "another hash or size of"),
        (lambda text: text.replace("/VERSION,", "/OTHER,"), "RECORD and the archive differ: edgekit/OTHER"),
        (lambda text: text + text.splitlines()[0] + "\n", "RECORD and the archive differ: edgekit/__init__.py"),
        (lambda text: text.partition("\n")[2], "RECORD and the archive differ: edgekit/__init__.py"),
        (lambda text: text.replace("RECORD,,", "RECORD,sha256=x,1"), "RECORD has a hash of itself"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: Callable[[str], str], message: str, tmp_path: Path) -> None:
    with pytest.raises(WheelError, match=message):
        check(write_wheel(tmp_path, "any", None, record=record))


@pytest.mark.parametrize("name", ["edgekit-1.2.3-py3-none-any.whl", "edgekit_llm-1.2.3-py3-none-linux_x86_64.whl"])
def test_a_name_that_no_index_accepts_is_refused(name: str, tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "any", None).rename(tmp_path / name)
    with pytest.raises(WheelError, match="neither the name nor the tag"):
        check(path)


def test_what_is_not_a_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edgekit_llm-1.2.3-py3-none-any.whl"
    path.write_bytes(b"no archive")
    with pytest.raises(WheelError, match="File is not a zip file"):
        check(path)
