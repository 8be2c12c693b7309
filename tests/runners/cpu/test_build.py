from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import BuildError, Compiler, compile_kernels, find_compiler, platform_tag, refresh
from edgekit.runners.cpu.library import Kernels
from tests.runners.cpu.conftest import NAMES
from tests.runners.cpu.small_kernels import DISPATCH, KERNELS, write

# In the words of /proc/cpuinfo.
INSTRUCTIONS = {
    "avx512vnni": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "dotprod": {"asimddp", "asimdhp"},
    "plain": set[str](),
}


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return find_compiler()


def first_variant(compiler: Compiler) -> str:
    return next(iter(compiler.variants()))


def failing(variant: str) -> str:
    """A kernels.c of which one variant does not compile."""
    return f"{KERNELS}\n#define IS_{variant} 1\n#if NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"


def test_every_variant_of_this_architecture_is_in_the_library(compiler: Compiler, tmp_path: Path) -> None:
    built = compile_kernels(compiler, write(tmp_path), tmp_path / "kernels.so")
    assert built.variants == tuple(compiler.variants())
    assert (built.left_out, built.warnings) == ({}, ())
    library = ctypes.CDLL(str(built.library))
    assert library.answers() == 42 * len(built.variants)
    library.ek_variants.restype = ctypes.c_char_p
    assert library.ek_variants().split() == [name.encode() for name in built.variants]


def test_each_variant_is_compiled_for_its_instructions(compiler: Compiler, tmp_path: Path) -> None:
    if compiler.machine != "x86_64":
        pytest.skip("the macros asked for are those of x86-64")
    kernels = KERNELS.replace(
        "return 42;",
        """
#ifdef __AVX512VNNI__
        return 512;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
        return 256;
#else
        return 128;
#endif
        """,
    )
    built = compile_kernels(compiler, write(tmp_path, kernels=kernels), tmp_path / "kernels.so")
    assert ctypes.CDLL(str(built.library)).answers() == 512 + 256 + 128


def test_the_processor_runs_the_variants_whose_instructions_the_system_reports(best: Kernels) -> None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("only Linux lists the instruction sets of its processor")
    flags = set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    assert best.variants == tuple(name for name, needed in INSTRUCTIONS.items() if needed <= flags and name in NAMES)


def test_only_what_is_exported_on_purpose_can_be_seen(compiler: Compiler, tmp_path: Path) -> None:
    library = ctypes.CDLL(str(compile_kernels(compiler, write(tmp_path), tmp_path / "kernels.so").library))
    with pytest.raises(AttributeError):
        _ = library.answer_plain


def test_a_variant_that_does_not_compile_is_left_out_and_reported(compiler: Compiler, tmp_path: Path) -> None:
    bad = first_variant(compiler)
    built = compile_kernels(compiler, write(tmp_path, kernels=failing(bad)), tmp_path / "kernels.so")
    assert built.variants == tuple(name for name in compiler.variants() if name != bad)
    assert list(built.left_out) == [bad]
    assert f"no {bad} kernels: " in built.describe()
    assert "ouch" in built.describe()
    assert ctypes.CDLL(str(built.library)).answers() == 42 * len(built.variants)


@pytest.mark.parametrize(
    ("kernels", "dispatch", "message"),
    [
        ("#error ouch\n", DISPATCH, "kernels.c does not compile: .*ouch"),
        ("int f(void) { return g(); }\n", DISPATCH, "kernels.c does not compile: .*g"),
        (KERNELS, "#error ouch\n", "dispatch.c does not compile: .*ouch"),
        (KERNELS, "int g(void);\nint f(void);\nint f(void) { return g(); }\n", "the kernels cannot be linked: "),
    ],
)
def test_where_nothing_compiles_the_compiler_is_quoted_and_no_file_is_left(
    compiler: Compiler, tmp_path: Path, kernels: str, dispatch: str, message: str
) -> None:
    with pytest.raises(BuildError, match=f"(?s){message}"):
        compile_kernels(compiler, write(tmp_path, kernels=kernels, dispatch=dispatch), tmp_path / "kernels.so")
    assert [file.name for file in tmp_path.iterdir()] == [build.SOURCES]


def test_a_folder_that_does_not_exist_is_named(compiler: Compiler, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"nowhere/kernels\.so cannot be written"):
        compile_kernels(compiler, write(tmp_path), tmp_path / "nowhere" / "kernels.so")


def test_warnings_are_kept(compiler: Compiler, tmp_path: Path) -> None:
    sources = write(tmp_path, dispatch=DISPATCH + "static int unused(void) { return 1; }\n")
    built = compile_kernels(compiler, sources, tmp_path / "kernels.so")
    assert "unused" in "".join(built.warnings)


def test_a_library_is_rebuilt_only_when_something_changed(compiler: Compiler, tmp_path: Path) -> None:
    sources = write(tmp_path)
    assert refresh(compiler, tmp_path) is not None
    assert refresh(compiler, tmp_path) is None
    os.utime(sources / "kernels.c")  # git does so when branches are switched
    assert refresh(compiler, tmp_path) is None
    assert refresh(compiler, tmp_path, force=True) is not None
    (sources / "kernels.h").write_text("/* new */\n", encoding="ascii")
    assert refresh(compiler, tmp_path) is not None
    assert refresh(compiler, tmp_path) is None
    assert refresh(Compiler((*compiler.command, "-g"), compiler.target), tmp_path) is not None
    (tmp_path / build.LIBRARY).unlink()
    assert refresh(compiler, tmp_path) is not None


def test_a_variant_that_was_left_out_is_tried_again(compiler: Compiler, tmp_path: Path) -> None:
    write(tmp_path, kernels=failing(first_variant(compiler)))
    for _ in range(2):
        built = refresh(compiler, tmp_path)
        assert built is not None
        assert built.left_out


def test_a_process_with_the_old_library_open_keeps_it(compiler: Compiler, tmp_path: Path) -> None:
    write(tmp_path)
    refresh(compiler, tmp_path)
    old = ctypes.CDLL(str(tmp_path / build.LIBRARY))
    before = old.answers()
    write(tmp_path, kernels=KERNELS.replace("42", "7"))
    refresh(compiler, tmp_path)
    # Under the old name the loader would return the old one.
    new = ctypes.CDLL(str(shutil.copy(tmp_path / build.LIBRARY, tmp_path / "new.so")))
    assert (old.answers(), new.answers()) == (before, before // 6)


def test_the_environment_names_the_compiler_or_one_is_found() -> None:
    path = os.environ["PATH"]
    found = find_compiler({"PATH": path})
    assert found.command[0] in {"cc", "gcc", "clang"}
    real = shutil.which(found.command[0])
    assert real is not None
    assert find_compiler({"PATH": path, "CC": f"{real} -pipe"}) == Compiler((real, "-pipe"), found.target)
    assert find_compiler({"PATH": path, "CC": "nonesuch", "EDGEKIT_KERNEL_CC": real}).command == (real,)
    assert find_compiler({"PATH": path, "CC": " "}) == found


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"PATH": ""}, "there is no C compiler: no `cc`, no `gcc`, no `clang`"),
        ({"PATH": os.defpath, "CC": "nonesuch"}, "there is no C compiler: no `nonesuch`"),
        ({"PATH": os.defpath, "CC": "'cc"}, "there is no C compiler: `'cc` cannot be parsed"),
        ({"PATH": os.defpath, "CC": "false"}, "there is no C compiler: `false` does not work"),
    ],
)
def test_a_compiler_that_is_missing_or_does_not_work_is_an_error(env: dict[str, str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        find_compiler(env)


def test_a_compiler_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    driver = tmp_path / "cc"
    driver.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {child}\nwait\n")
    driver.chmod(0o755)
    monkeypatch.setattr(build, "_TIMEOUT_S", 1)
    with pytest.raises(BuildError, match="timed out"):
        find_compiler({"EDGEKIT_KERNEL_CC": str(driver)})
    end = time.monotonic() + 10
    while _is_running(int(child.read_text())):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cross_compilers_target_decides_variants_and_tag() -> None:
    arm, mac = Compiler(("x",), "aarch64-linux-gnu"), Compiler(("x",), "arm64-apple-darwin23.1.0")
    intel, other = Compiler(("x",), "x86_64-pc-linux-gnu"), Compiler(("x",), "riscv64-linux-gnu")
    assert list(arm.variants()) == list(mac.variants()) == ["dotprod", "plain"]
    assert list(intel.variants()) == ["avx512vnni", "avx2", "plain"]
    assert list(other.variants()) == ["plain"]
    assert platform_tag(mac) == "macosx_11_0_arm64"
    if sys.platform == "linux":
        assert [platform_tag(compiler) for compiler in (arm, intel)] == ["linux_aarch64", "linux_x86_64"]


def test_the_glibc_or_macos_in_zigs_target_is_the_tags() -> None:
    arm, mac = Compiler(("zig",), "aarch64-linux-gnu.2.17"), Compiler(("zig",), "aarch64-macos.11.0")
    assert [platform_tag(compiler) for compiler in (arm, mac)] == ["manylinux_2_17_aarch64", "macosx_11_0_arm64"]
    assert "-mmacosx-version-min=11.0" in mac.flags()
    for compiler in (arm, mac):
        assert compiler.zig
        # zig reads the architecture from -mcpu, in names of its own.
        assert compiler.variants()["dotprod"] == ["-mcpu=generic+v8_2a+dotprod+fullfp16"]


def test_a_target_among_a_compilers_arguments_is_not_asked_for(tmp_path: Path) -> None:
    # As zig does where the target names a glibc.
    driver = tmp_path / "zig"
    driver.write_text('#!/bin/sh\n[ "$3" = --version ] && echo clang\n')
    driver.chmod(0o755)
    found = find_compiler({"EDGEKIT_KERNEL_CC": f"{driver} -target x86_64-linux-gnu.2.28"})
    assert found == Compiler((str(driver), "-target", "x86_64-linux-gnu.2.28"), "x86_64-linux-gnu.2.28")
    with pytest.raises(BuildError, match="does not work"):
        find_compiler({"EDGEKIT_KERNEL_CC": str(driver)})
