"""Finds and loads the compiled kernels, and says why there are none.

The library knows which of its variants this processor runs; nothing here looks at a processor. $EDGEKIT_CPU_KERNELS
names another than the best (to measure, or to find a fault), or `off`: onnxruntime then runs everything.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.errors import ConfigError
from edgekit.runners.cpu import build

__all__ = ["VARIABLE", "Absent", "Kernels", "load"]

VARIABLE = "EDGEKIT_CPU_KERNELS"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library.

    Attributes:
        library: As ctypes sees it.
        variant: The kernels to use, of `variants`.
        variants: Those that this processor runs, best first: `avx512vnni`, `avx2`, `dotprod`, `plain`.
        digest: SHA-256 of the library's file: another compiler makes other last bits of the same sources.
    """

    library: ctypes.CDLL
    variant: str
    variants: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Absent:
    """No kernels here.

    Attributes:
        reason: Why, as the rest of a sentence.
    """

    reason: str


def load(env: Mapping[str, str] | None = None, folder: Path | None = None) -> Kernels | Absent:
    """Load the kernels for this processor.

    Args:
        env: The environment; this process's unless given.
        folder: Where the library is; beside this file unless given.

    Raises:
        ConfigError: $EDGEKIT_CPU_KERNELS names kernels that there are not, or that this processor cannot run.
    """
    wanted = (os.environ if env is None else env).get(VARIABLE, "")
    if wanted == "off":
        return Absent(f"switched off by ${VARIABLE}")
    found = _load(folder or build.FOLDER)
    if not wanted:
        return found
    if isinstance(found, Absent):
        raise ConfigError(f"${VARIABLE} is `{wanted}`, and there are no kernels: {found.reason}", hint="unset it")
    if wanted not in found.variants:
        here = ", ".join(found.variants)
        raise ConfigError(f"${VARIABLE} is `{wanted}`, which is not to be had here", hint=f"here: {here}, or off")
    return replace(found, variant=wanted)


def _load(folder: Path) -> Kernels | Absent:
    path = folder / build.LIBRARY
    if not path.is_file():
        return Absent("they are not compiled")
    try:
        # Functions that are called as they no longer are would take the process with them.
        if not build.is_made_of(path, folder / build.SOURCES):
            return Absent("they are not those of the sources beside them")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        library = ctypes.CDLL(str(path))
        library.ek_variants.restype = library.ek_best.restype = ctypes.c_char_p
        variants = tuple(library.ek_variants().decode("ascii").split())
        best = library.ek_best().decode("ascii")
    except (OSError, AttributeError) as error:
        return Absent(f"they cannot be loaded: {error}")
    if not variants:
        return Absent("this processor runs none of those that were compiled")
    return Kernels(library, best, variants, digest)
