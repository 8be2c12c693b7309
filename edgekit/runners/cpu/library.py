"""Finds and loads the compiled kernels, or reports why they are unavailable.

The library itself detects which of its variants this processor supports. $EDGEKIT_CPU_KERNELS selects a variant other
than the best (for measuring or debugging), or `off`: onnxruntime then runs everything.
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

__all__ = ["VARIABLE", "Kernels", "Unavailable", "load"]

VARIABLE = "EDGEKIT_CPU_KERNELS"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library.

    Attributes:
        library: The ctypes handle.
        variant: The variant to use, one of `variants`.
        variants: Variants that this processor supports, best first: `avx512vnni`, `avx2`, `dotprod`, `plain`.
        digest: SHA-256 of the library's file: the last bits of results depend on the compiler.
    """

    library: ctypes.CDLL
    variant: str
    variants: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The kernels cannot be used.

    Attributes:
        reason: Why, phrased to follow a colon.
    """

    reason: str


def load(env: Mapping[str, str] | None = None, folder: Path | None = None) -> Kernels | Unavailable:
    """Load the kernels for this processor.

    Args:
        env: The environment; default: this process's.
        folder: Where the library is; default: beside this file.

    Raises:
        ConfigError: $EDGEKIT_CPU_KERNELS names an unknown variant, or one that this processor does not support.
    """
    wanted = (os.environ if env is None else env).get(VARIABLE, "")
    if wanted == "off":
        return Unavailable(f"switched off by ${VARIABLE}")
    found = _load(folder or build.FOLDER)
    if not wanted:
        return found
    if isinstance(found, Unavailable):
        raise ConfigError(f"${VARIABLE} is `{wanted}`, but there are no CPU kernels: {found.reason}", hint="unset it")
    if wanted not in found.variants:
        choices = ", ".join(found.variants)
        raise ConfigError(
            f"${VARIABLE} is `{wanted}`, which is not available here", hint=f"available: {choices}, or off"
        )
    return replace(found, variant=wanted)


def _load(folder: Path) -> Kernels | Unavailable:
    path = folder / build.LIBRARY
    if not path.is_file():
        return Unavailable("they are not compiled")
    try:
        # A call with an outdated signature would crash the process.
        if not build.is_built_from(path, folder / build.SOURCES):
            return Unavailable("they were compiled from other sources")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        library = ctypes.CDLL(str(path))
        library.ek_variants.restype = library.ek_best.restype = ctypes.c_char_p
        variants = tuple(library.ek_variants().decode("ascii").split())
        best = library.ek_best().decode("ascii")
    except (OSError, AttributeError) as error:
        return Unavailable(f"they cannot be loaded: {error}")
    if not variants:
        return Unavailable("this processor supports none of the compiled variants")
    return Kernels(library, best, variants, digest)
