"""Compiles csrc/ into the shared library beside this file.

`python -m edgekit.runners.cpu.build` does it in place, and only if something changed. The wheel's build hook
(hatch_build.py) loads this file by its path, before edgekit or anything else is installed: the standard library alone
may be imported here. Knows nothing of what the kernels compute.

`kernels.c` is compiled once per instruction set with `-DEK_VARIANT=<name>`; every other file once, with
`-DEK_VARIANTS(X)=X(name)…` naming those that could be compiled, best first. $EDGEKIT_KERNEL_CC names the compiler, else
$CC, else cc, gcc or clang is taken; a cross-compiler makes a library, and a wheel, for its own target.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
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
    "is_made_of",
    "platform_tag",
    "refresh",
]

FOLDER = Path(__file__).parent
SOURCES = "csrc"
LIBRARY = "_kernels.so"  # so named on macOS too

# No -ffast-math and no contraction: the same sums in the same order, whatever the compiler likes.
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
_VARIANTS: dict[str, dict[str, list[str]]] = {"x86_64": _X86_64, "aarch64": _ARM64, "arm64": _ARM64}
# The first macOS for Apple silicon; the wheel's tag promises it.
_MACOS = "11.0"
_TIMEOUT_S = 600
# The library says itself what it was made of, so that it cannot be taken for one of other sources.
_STAMP = """\
extern const char ek_stamp[];
__attribute__((visibility("default"))) const char ek_stamp[] = "%s\\n%s\\n";
"""


class BuildError(Exception):
    """There is no library; the message says why."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler that answered.

    Attributes:
        command: The program and its fixed arguments.
        target: What it compiles for, as it says itself: `x86_64-linux-gnu`, `arm64-apple-darwin23.1.0`.
    """

    command: tuple[str, ...]
    target: str

    @property
    def machine(self) -> str:
        """The architecture it compiles for."""
        return self.target.partition("-")[0]

    @property
    def macos(self) -> bool:
        """Whether it compiles for macOS."""
        return "-apple-" in self.target

    def variants(self) -> dict[str, list[str]]:
        """The instruction sets to compile for, best first, each with its flags."""
        return _VARIANTS.get(self.machine, {"plain": []})

    def flags(self) -> list[str]:
        """The flags that every file gets."""
        return [*_COMMON, *([f"-mmacosx-version-min={_MACOS}"] if self.macos else [])]


@dataclass(frozen=True, slots=True)
class Built:
    """A library that was made.

    Attributes:
        library: Where it is.
        variants: The instruction sets it has kernels for, best first.
        left_out: Those that the compiler could not make, with what it said.
        warnings: What it said of the files that it did compile.
    """

    library: Path
    variants: tuple[str, ...]
    left_out: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what a user should read: what was made, and each variant that was left out, with the reason."""
        lines = [f"no {name} kernels: {said}" for name, said in self.left_out.items()]
        return "\n".join([*lines, f"CPU kernels compiled: {', '.join(self.variants)}"])


def find_compiler(env: Mapping[str, str] | None = None) -> Compiler:
    """Return the compiler to use.

    Args:
        env: The environment; this process's unless given.

    Raises:
        BuildError: There is none, or the one that the environment names does not answer.
    """
    env = os.environ if env is None else env
    text = env.get("EDGEKIT_KERNEL_CC") or env.get("CC") or ""
    try:
        named = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"there is no C compiler: `{text}` cannot be read: {error}") from error
    tried = []
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0], path=env.get("PATH", os.defpath)) is None:
            tried.append(f"no `{command[0]}`")
            continue
        # macOS has a `cc` that only says that the tools are not installed.
        status, said = _run([*command, "-dumpmachine"])
        if status == 0 and said:
            return Compiler(tuple(command), said.splitlines()[-1])
        tried.append(f"`{' '.join(command)}` does not work: {said[:200]}")
    raise BuildError("there is no C compiler: " + ", ".join(tried))


def platform_tag(compiler: Compiler) -> str:
    """Return the platform in the tag of a wheel that holds what this compiler makes: `linux_x86_64`."""
    if compiler.macos:
        return f"macosx_{_MACOS.replace('.', '_')}_{compiler.machine}"
    if "-linux" in compiler.target and compiler.machine in _VARIANTS and compiler.machine != platform.machine():
        return f"linux_{compiler.machine}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_kernels(compiler: Compiler, sources: Path, library: Path) -> Built:
    """Compile the kernels and put the library in its place in one step: a process that has the old one keeps it.

    Args:
        compiler: What to compile with.
        sources: The folder with kernels.c and the other files.
        library: Where the library goes.

    Raises:
        BuildError: Not one variant could be compiled, or what they share could not, or nothing can be written there.
    """
    kernels = sources / "kernels.c"
    shared = sorted(file for file in sources.glob("*.c") if file != kernels)
    if not kernels.is_file():
        raise BuildError(f"there is no {kernels}")
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-kernels-") as folder, ThreadPoolExecutor(_cpus()) as pool:
            objects = Path(folder)
            start = [*compiler.command, *compiler.flags(), f"-I{sources}", "-c"]
            warnings: list[str] = []

            def compile_one(name: str, file: Path, *options: str) -> str:
                status, said = _run([*start, *options, str(file), "-o", str(objects / f"{name}.o")])
                if status == 0:
                    warnings.extend([said] if said else [])
                    return ""
                return said or f"the compiler ended with status {status}"

            wanted = compiler.variants()
            running = {
                name: pool.submit(compile_one, f"kernels_{name}", kernels, f"-DEK_VARIANT={name}", *flags)
                for name, flags in wanted.items()
            }
            left_out = {name: said for name, job in running.items() if (said := job.result())}
            made = tuple(name for name in wanted if name not in left_out)
            if not made:
                raise BuildError("kernels.c cannot be compiled: " + next(iter(left_out.values())))
            which = f"-DEK_VARIANTS(X)={' '.join(f'X({name})' for name in made)}"
            others = {file.name: pool.submit(compile_one, file.stem, file, which) for file in shared}
            for name, job in others.items():
                if said := job.result():
                    raise BuildError(f"{name} cannot be compiled: {said}")
            (objects / "stamp.c").write_text(_STAMP % (_made_of(sources), _how(compiler, made)), encoding="ascii")
            if said := compile_one("stamp", objects / "stamp.c"):
                raise BuildError(f"the stamp cannot be compiled: {said}")
            parts = [f"kernels_{name}" for name in made] + [file.stem for file in shared] + ["stamp"]
            _link(compiler, [objects / f"{part}.o" for part in parts], objects / library.name)
            _put(objects / library.name, library)
    except OSError as error:
        raise BuildError(f"{library} cannot be written: {error}") from error
    return Built(library, made, left_out, tuple(warnings))


def _link(compiler: Compiler, objects: Sequence[Path], library: Path) -> None:
    # macOS refuses undefined names unless told otherwise, GNU's linker only if told so.
    kind = ["-dynamiclib", f"-mmacosx-version-min={_MACOS}"] if compiler.macos else ["-shared", "-Wl,-z,defs"]
    status, said = _run([*compiler.command, *kind, *map(str, objects), "-o", str(library), "-pthread", "-lm"])
    if status != 0:
        raise BuildError(f"the kernels cannot be linked: {said}")


def _put(made: Path, library: Path) -> None:
    beside = library.with_name(f".{library.name}.{os.getpid()}")
    try:
        shutil.copyfile(made, beside)
        beside.chmod(0o755)
        beside.replace(library)
    finally:
        beside.unlink(missing_ok=True)


def is_made_of(library: Path, sources: Path) -> bool:
    """Say whether the library was compiled of these very sources.

    Raises:
        OSError: One of them cannot be read.
    """
    return _made_of(sources).encode() in library.read_bytes()


def _made_of(sources: Path) -> str:
    """A line that holds SHA-256 over the names and contents of the sources."""
    digest = hashlib.sha256()
    for file in sorted(sources.glob("*.[ch]")):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return f"edgekit kernels of {digest.hexdigest()}"


def _how(compiler: Compiler, variants: Sequence[str]) -> str:
    """A line that holds SHA-256 over what else the library depends on."""
    depends = repr((compiler, compiler.flags(), compiler.variants(), list(variants)))
    return f"compiled by {hashlib.sha256(depends.encode()).hexdigest()}"


def refresh(compiler: Compiler, folder: Path = FOLDER, *, force: bool = False) -> Built | None:
    """Compile in place unless the library there is of these sources, flags and compiler; then return None.

    Args:
        compiler: What to compile with.
        folder: Where the sources are and the library goes.
        force: Compile in any case.

    Raises:
        BuildError: As `compile_kernels`.
    """
    sources, library = folder / SOURCES, folder / LIBRARY
    if not force and library.is_file() and is_made_of(library, sources):
        # Where a variant was left out, this differs, and it is tried again.
        how = _how(compiler, tuple(compiler.variants()))
        if how.encode() in library.read_bytes():
            return None
    return compile_kernels(compiler, sources, library)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """The exit status and what was said, errors first."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        with subprocess.Popen(  # noqa: S603 - the compiler that the user's environment names
            command, stdout=PIPE, stderr=PIPE, encoding="utf-8", errors="replace", env=env, start_new_session=True
        ) as process:
            try:
                said, errors = process.communicate(timeout=_TIMEOUT_S)
            except BaseException:
                # A compiler's driver has children, which would go on for hours.
                os.killpg(process.pid, signal.SIGKILL)
                raise
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return process.returncode, "\n".join(filter(None, (errors.strip(), said.strip())))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile from a shell; 0 if there is a library then."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.runners.cpu.build", description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile even if nothing changed")
    parser.add_argument("--strict", action="store_true", help="fail where a variant is left out, too")
    parser.add_argument("-o", "--output", type=Path, help="write the library there instead, always")
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
