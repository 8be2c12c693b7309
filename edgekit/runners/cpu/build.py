"""Compiles csrc/ into the shared library beside this file.

`python -m edgekit.runners.cpu.build` does so in place, and only if something changed. The wheel's build hook
(hatch_build.py) loads this file by its path, before edgekit or anything else is installed: only the standard library
may be imported here.

`kernels.c` is compiled once per instruction set with `-DEK_VARIANT=<name>`; every other file once, with
`-DEK_VARIANTS(X)=X(name)…` listing the variants that compiled, best first. The compiler is $EDGEKIT_KERNEL_CC, else
$CC, else cc, gcc or clang; a cross-compiler builds a library, and a wheel, for its own target. scripts/wheels uses zig:
`python -m ziglang cc -target aarch64-linux-gnu.2.28`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

__all__ = [
    "FOLDER",
    "LIBRARY",
    "SOURCES",
    "BuildError",
    "Built",
    "Compiler",
    "compile_kernels",
    "find_compiler",
    "is_built_from",
    "platform_tag",
    "refresh",
]

FOLDER = Path(__file__).parent
SOURCES = "csrc"
LIBRARY = "_kernels.so"  # on macOS too

# No -ffast-math and no contraction: the compiler must not reorder or fuse floating-point operations.
_COMMON = [
    "-std=c11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror=implicit",
]
_X86_64 = {
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "plain": [],
}
_ARM64 = {"dotprod": ["-march=armv8.2-a+dotprod+fp16"], "plain": []}
# zig reads -march and -mcpu itself, with names of its own; on macOS it takes an M1 for granted.
_ZIG_ARM64 = {"dotprod": ["-mcpu=generic+v8_2a+dotprod+fullfp16"], "plain": ["-mcpu=generic"]}
_VARIANTS: dict[str, dict[str, list[str]]] = {"x86_64": _X86_64, "aarch64": _ARM64, "arm64": _ARM64}
_ZIG_VARIANTS = {"x86_64": _X86_64, "aarch64": _ZIG_ARM64, "arm64": _ZIG_ARM64}
# The first macOS for Apple silicon; the wheel's tag promises it.
_MACOS = "11.0"
_TIMEOUT_S = 600
# The library says which sources it was built from, and how, so that a stale one is recognized; and for which variants,
# which scripts/check_wheel.py reads.
_STAMP = """\
extern const char ek_stamp[];
__attribute__((visibility("default"))) const char ek_stamp[] = "%s\\n%s\\nedgekit kernels for %s\\n";
"""


class BuildError(Exception):
    """No library could be built; the message says why."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A working C compiler.

    Attributes:
        command: The program and its fixed arguments.
        target: What it compiles for, by its own `-dumpmachine` or its `-target` option: `x86_64-linux-gnu`,
            `arm64-apple-darwin23.1.0`; for zig `x86_64-linux-gnu.2.28`, `aarch64-macos.11.0`.
    """

    command: tuple[str, ...]
    target: str

    @property
    def machine(self) -> str:
        """The architecture it compiles for, as the system there calls it."""
        machine = self.target.partition("-")[0]
        return "arm64" if self.macos and machine == "aarch64" else machine

    @property
    def macos(self) -> bool:
        """Whether it compiles for macOS."""
        return "-apple-" in self.target or "-macos" in self.target

    @property
    def zig(self) -> bool:
        """Whether it is zig: the version in its target says so."""
        return re.search(r"-(gnu|macos)\.\d", self.target) is not None

    @property
    def glibc(self) -> str | None:
        """The glibc that zig links against, `2.28`; None for other compilers, which take the system's."""
        found = re.search(r"-gnu\.(\d+\.\d+)", self.target)
        return found[1] if found else None

    def variants(self) -> dict[str, list[str]]:
        """The instruction sets to compile for, best first, each with its flags."""
        return (_ZIG_VARIANTS if self.zig else _VARIANTS).get(self.machine, {"plain": []})

    def flags(self) -> list[str]:
        """The flags that every file gets."""
        macos = [f"-mmacosx-version-min={_MACOS}"] if self.macos else []
        # Debug information is zig's default, and names the folder of this build.
        return [*_COMMON, *macos, *(["-g0"] if self.zig else [])]


@dataclass(frozen=True, slots=True)
class Built:
    """A library that was built.

    Attributes:
        library: Its file.
        variants: The instruction sets it has kernels for, best first.
        left_out: Variants that did not compile, with the compiler's message.
        warnings: The compiler's messages for the files that compiled.
    """

    library: Path
    variants: tuple[str, ...]
    left_out: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return a report for the user: what was built, and each variant that was left out, with the reason."""
        lines = [f"no {name} kernels: {output}" for name, output in self.left_out.items()]
        return "\n".join([*lines, f"CPU kernels compiled: {', '.join(self.variants)}"])


def find_compiler(env: Mapping[str, str] | None = None) -> Compiler:
    """Return the compiler to use.

    Args:
        env: The environment; this process's unless given.

    Raises:
        BuildError: None was found, or the one that the environment names does not work.
    """
    env = os.environ if env is None else env
    text = env.get("EDGEKIT_KERNEL_CC") or env.get("CC") or ""
    try:
        named = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"there is no C compiler: `{text}` cannot be parsed: {error}") from error
    tried = []
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0], path=env.get("PATH", os.defpath)) is None:
            tried.append(f"no `{command[0]}`")
            continue
        # zig fails on -dumpmachine if its target names a glibc.
        target = command[command.index("-target") + 1] if "-target" in command[:-1] else None
        # Without its developer tools, macOS has a `cc` that only reports that they are missing.
        status, output = _run([*command, "--version" if target else "-dumpmachine"])
        if status == 0 and output:
            return Compiler(tuple(command), target or output.splitlines()[-1])
        tried.append(f"`{' '.join(command)}` does not work: {output[:200]}")
    raise BuildError("there is no C compiler: " + ", ".join(tried))


def platform_tag(compiler: Compiler) -> str:
    """Return the platform tag of a wheel with this compiler's library: `linux_x86_64`, `manylinux_2_28_x86_64`."""
    if compiler.macos:
        return f"macosx_{_MACOS.replace('.', '_')}_{compiler.machine}"
    if compiler.glibc:
        return f"manylinux_{compiler.glibc.replace('.', '_')}_{compiler.machine}"
    if "-linux" in compiler.target and compiler.machine in _VARIANTS and compiler.machine != platform.machine():
        return f"linux_{compiler.machine}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_kernels(compiler: Compiler, sources: Path, library: Path) -> Built:
    """Compile the kernels and replace the library atomically: a process that has the old one open keeps it.

    Args:
        compiler: The compiler.
        sources: The folder with kernels.c and the other files.
        library: The file to write.

    Raises:
        BuildError: No variant compiles, or a shared file does not, or the library cannot be written.
    """
    kernels = sources / "kernels.c"
    shared = sorted(file for file in sources.glob("*.c") if file != kernels)
    if not kernels.is_file():
        raise BuildError(f"{kernels} is missing")
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-kernels-") as folder, ThreadPoolExecutor(_cpus()) as pool:
            objects = Path(folder)
            start = [*compiler.command, *compiler.flags(), f"-I{sources}", "-c"]
            warnings: list[str] = []

            def compile_one(name: str, file: Path, *options: str) -> str:
                status, output = _run([*start, *options, str(file), "-o", str(objects / f"{name}.o")])
                if status == 0:
                    warnings.extend([output] if output else [])
                    return ""
                return output or f"the compiler exited with status {status}"

            wanted = compiler.variants()
            running = {
                name: pool.submit(compile_one, f"kernels_{name}", kernels, f"-DEK_VARIANT={name}", *flags)
                for name, flags in wanted.items()
            }
            left_out = {name: output for name, job in running.items() if (output := job.result())}
            variants = tuple(name for name in wanted if name not in left_out)
            if not variants:
                raise BuildError("kernels.c does not compile: " + next(iter(left_out.values())))
            which = f"-DEK_VARIANTS(X)={' '.join(f'X({name})' for name in variants)}"
            others = {file.name: pool.submit(compile_one, file.stem, file, which) for file in shared}
            for name, job in others.items():
                if output := job.result():
                    raise BuildError(f"{name} does not compile: {output}")
            stamp = _STAMP % (_source_hash(sources), _build_hash(compiler, variants), " ".join(variants))
            (objects / "stamp.c").write_text(stamp, encoding="ascii")
            if output := compile_one("stamp", objects / "stamp.c"):
                raise BuildError(f"the stamp does not compile: {output}")
            parts = [f"kernels_{name}" for name in variants] + [file.stem for file in shared] + ["stamp"]
            _link(compiler, [objects / f"{part}.o" for part in parts], objects / library.name)
            _replace(library, objects / library.name)
    except OSError as error:
        raise BuildError(f"{library} cannot be written: {error}") from error
    return Built(library, variants, left_out, tuple(warnings))


def _link(compiler: Compiler, objects: Sequence[Path], library: Path) -> None:
    # Undefined symbols are errors by default on macOS, with GNU's linker only on request.
    kind = ["-shared", "-Wl,-z,defs"]
    if compiler.macos:
        kind = ["-dynamiclib", f"-mmacosx-version-min={_MACOS}", f"-Wl,-install_name,@rpath/{LIBRARY}"]
    if compiler.zig:
        kind.append("-s")  # its runtime has debug information, too
    status, output = _run([*compiler.command, *kind, *map(str, objects), "-o", str(library), "-pthread", "-lm"])
    if status != 0:
        raise BuildError(f"the kernels cannot be linked: {output}")


def _replace(library: Path, new: Path) -> None:
    beside = library.with_name(f".{library.name}.{os.getpid()}")
    try:
        shutil.copyfile(new, beside)
        beside.chmod(0o755)
        beside.replace(library)
    finally:
        beside.unlink(missing_ok=True)


def is_built_from(library: Path, sources: Path) -> bool:
    """Return whether the library was compiled from exactly these sources.

    Raises:
        OSError: A file cannot be read.
    """
    return _source_hash(sources).encode() in library.read_bytes()


def _source_hash(sources: Path) -> str:
    """A line with the SHA-256 of the sources' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(sources.glob("*.[ch]")):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return f"edgekit kernels of {digest.hexdigest()}"


def _build_hash(compiler: Compiler, variants: Sequence[str]) -> str:
    """A line with the SHA-256 of what else the library depends on: compiler, flags and variants."""
    depends = repr((compiler, compiler.flags(), compiler.variants(), list(variants)))
    return f"compiled by {hashlib.sha256(depends.encode()).hexdigest()}"


def refresh(compiler: Compiler, folder: Path = FOLDER, *, force: bool = False) -> Built | None:
    """Compile in place, or return None if the library is up to date with the sources, the flags and the compiler.

    Args:
        compiler: The compiler.
        folder: The folder of the sources and the library.
        force: Compile even if it is up to date.

    Raises:
        BuildError: See `compile_kernels`.
    """
    sources, library = folder / SOURCES, folder / LIBRARY
    if not force and library.is_file() and is_built_from(library, sources):
        # Differs where a variant was left out, which is then tried again.
        expected = _build_hash(compiler, tuple(compiler.variants()))
        if expected.encode() in library.read_bytes():
            return None
    return compile_kernels(compiler, sources, library)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Return the exit status and the output, stderr first."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        with subprocess.Popen(  # noqa: S603 - the compiler that the user's environment names
            command, stdout=PIPE, stderr=PIPE, encoding="utf-8", errors="replace", env=env, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(timeout=_TIMEOUT_S)
            except BaseException:
                # Killing a compiler driver alone would leave its children running.
                os.killpg(process.pid, signal.SIGKILL)
                raise
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return process.returncode, "\n".join(filter(None, (errors.strip(), output.strip())))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if the library exists afterwards."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.runners.cpu.build", description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile even if the library is up to date")
    parser.add_argument("--strict", action="store_true", help="also fail if a variant does not compile")
    parser.add_argument("-o", "--output", type=Path, help="compile in any case, and write the library to this file")
    options = parser.parse_args(arguments)
    try:
        compiler = find_compiler()
        if options.output is not None:
            built: Built | None = compile_kernels(compiler, FOLDER / SOURCES, options.output)
        else:
            built = refresh(compiler, FOLDER, force=options.force)
    except BuildError as error:
        sys.stderr.write(f"edgekit: {error}\n")
        return 1
    if built is not None:
        sys.stderr.write("\n".join([*built.warnings, built.describe()]) + "\n")
    return 1 if options.strict and built is not None and built.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
