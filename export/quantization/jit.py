"""Compiles loops with numba, where numpy would pass over memory many times.

Importing this imports numba, which takes a second: import modules with kernels lazily. Compiled code is cached next
to the source, or in the user's cache folder if the source folder is read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["helper", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(signature: str, *, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    """Compile a function when its module is imported; it releases the GIL while it runs.

    Args:
        signature: Types in numba's notation: `void(float32[:,::1], uint8[::1])`.
        fastmath: LLVM's fast-math flags.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def compiled(function: _Function) -> _Function:
        try:
            return cast("_Function", numba.njit(signature, cache=True, **options)(function))
        except RuntimeError:
            # Both the source folder and the user's cache are read-only.
            return cast("_Function", numba.njit(signature, **options)(function))

    return compiled


def helper(*, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    """Make a function callable from kernels, which contain it inlined; it keeps its own fast-math flags.

    Inlining is forced because numba optimizes a helper on its own and again inside each kernel. Two copies of one
    symbol result, they may round differently, and LLVM's linker takes the first that is loaded: the helper's own in the
    process that compiles, the kernel's in one that loads it from the cache.
    """

    def compiled(function: _Function) -> _Function:
        options: dict[str, Any] = {"error_model": "numpy", "fastmath": set(fastmath), "forceinline": True}
        return cast("_Function", numba.njit(**options)(function))

    return compiled
