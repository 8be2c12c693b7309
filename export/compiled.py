"""Loops compiled to machine code with numba, for work that numpy would pass over memory many times to do.

Importing this imports numba, which takes a second: modules with kernels are imported where they are needed.
Compiled code is kept beside the source, or in the user's cache folder where the source cannot be written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["helper", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(signature: str, *, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    """Compile a function when its module is imported, and let other threads run while it does.

    Args:
        signature: Types in numba's notation: `void(float32[:,::1], uint8[::1])`.
        fastmath: LLVM's flags for its floating-point operations.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def compiled(function: _Function) -> _Function:
        try:
            return cast("_Function", numba.njit(signature, cache=True, **options)(function))
        except RuntimeError:
            # Neither the source's folder nor the user's cache can be written to: a read-only system.
            return cast("_Function", numba.njit(signature, **options)(function))

    return compiled


def helper(*, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    """Let kernels call a function; it keeps its own flags, and LLVM inlines it."""

    def compiled(function: _Function) -> _Function:
        return cast("_Function", numba.njit(error_model="numpy", fastmath=set(fastmath))(function))

    return compiled
